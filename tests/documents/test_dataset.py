"""What lies in a dataset's folders and is no scan is told, one Problem a file, and nothing hangs."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from autoseg.documents.dataset import Dataset, find_images, read_dataset
from autoseg.errors import BadData, Problem

IMAGE, LABEL = "imagesTr/c_002_0000.nii.gz", "labelsTr/c_002.nii.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of three cases whose files are empty: only names are read here."""
    place = tmp_path / "Dataset001_T"
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (place / name).mkdir(parents=True)
    for number in (1, 2, 3):
        (place / f"imagesTr/c_00{number}_0000.nii.gz").touch()
        (place / f"labelsTr/c_00{number}.nii.gz").touch()
    for number in (4, 5):
        (place / f"imagesTs/c_00{number}_0000.nii.gz").touch()
        (place / f"labelsTs/c_00{number}.nii.gz").touch()
    document(place)
    return place


def document(folder: Path, **entries: object) -> None:
    usual = {"channel_names": {"0": "x"}, "labels": {"background": 0, "a": 1}, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps({**usual, **entries}))


def told(folder: Path) -> tuple[Dataset, list[Problem]]:
    dataset, problems = read_dataset(folder)
    for problem in problems:
        text = f"{problem.case}{problem.what}{problem.found}{problem.fix}"
        assert text.isprintable()
        text.encode()
    return dataset, problems


def one(folder: Path) -> Problem:
    _, (problem,) = told(folder)
    return problem


def test_a_plain_dataset_has_no_problems(folder: Path) -> None:
    dataset, problems = told(folder)
    assert problems == []
    assert [c.id for c in dataset.cases] == ["c_001", "c_002", "c_003"]


def bound(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (lambda p: os.mkfifo(p), "is a named pipe"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "socket": (bound, "is a socket"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "is a device"),
    "dangling": (lambda p: p.symlink_to("/nowhere/x"), "leads to a file that is not there"),
    "circular": (lambda p: p.symlink_to(p.name), "cannot be opened"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", [IMAGE, LABEL])
def test_what_is_no_file(folder: Path, kind: str, name: str) -> None:
    (folder / name).unlink()
    ODD[kind][0](folder / name)
    dataset, problems = told(folder)
    assert ODD[kind][1] in problems[0].found
    assert "a label has no image" not in {p.what for p in problems}
    # the others stand
    assert {"c_001", "c_003"} <= {c.id for c in dataset.cases if c.label is not None}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_under_dataset(folder: Path, kind: str) -> None:
    entries = {
        f"c_00{n}": {
            "images": [f"imagesTr/c_00{n}_0000.nii.gz"],
            "label": f"labelsTr/c_00{n}.nii.gz",
        }
        for n in (1, 2, 3)
    }
    document(folder, dataset=entries, numTraining=2)
    (folder / IMAGE).unlink()
    ODD[kind][0](folder / IMAGE)
    problem = one(folder)
    assert problem.fatal
    assert problem.case == "c_002"
    assert ODD[kind][1] in problem.found


@pytest.mark.parametrize("id_", [b"a\nb", b"a\x1b[31mb", b"t\xe9", b"a" * 235])
def test_names_that_no_id_can_have(folder: Path, id_: bytes) -> None:
    raw = os.fsencode(folder)
    os.rename(raw + b"/" + IMAGE.encode(), raw + b"/imagesTr/" + id_ + b"_0000.nii.gz")
    os.rename(raw + b"/" + LABEL.encode(), raw + b"/labelsTr/" + id_ + b".nii.gz")
    dataset, problems = told(folder)
    assert "an id cannot be used" in {p.what for p in problems if p.fatal}
    assert len(dataset.cases) == 2


@pytest.mark.parametrize("name", ["Thumbs.db", "protocol.pdf", "report_2023.pdf", "notes.docx"])
def test_files_beside_the_scans_stop_nothing(folder: Path, name: str) -> None:
    (folder / "imagesTr" / name).touch()
    problem = one(folder)
    assert (problem.what, problem.fatal) == ("a file has an unknown extension", False)


def test_a_scan_of_unknown_kind_does(folder: Path) -> None:
    (folder / "imagesTr" / "c_007_0000.xyz").touch()
    assert one(folder).fatal


def test_a_copy_that_is_not_complete(folder: Path) -> None:
    document(folder, numTraining=60)
    problem = one(folder)
    assert not problem.fatal
    assert '"numTraining" is 60, 3 training cases are there' in problem.found


@pytest.mark.parametrize("with_label", [0, 2])
def test_entries_without_a_label(folder: Path, with_label: int) -> None:
    entries = {
        f"c_00{n}": {"images": [f"imagesTr/c_00{n}_0000.nii.gz"]}
        | ({"label": f"labelsTr/c_00{n}.nii.gz"} if n <= with_label else {})
        for n in (1, 2, 3)
    }
    document(folder, dataset=entries)
    _, problems = told(folder)
    assert {p.case for p in problems} == {f"c_00{n}" for n in range(with_label + 1, 4)}
    assert all(p.fatal and "names none" in p.found for p in problems)


def test_one_id_for_two_patients(folder: Path) -> None:
    (folder / "imagesTs/c_004_0000.nii.gz").rename(folder / "imagesTs/c_001_0000.nii.gz")
    (folder / "labelsTs/c_004.nii.gz").rename(folder / "labelsTs/c_001.nii.gz")
    problem = one(folder)
    assert (problem.case, problem.fatal) == ("c_001", False)
    assert problem.what == "a training and a test case have one id"


def test_labels_of_some_test_scans(folder: Path) -> None:
    (folder / "labelsTs/c_005.nii.gz").unlink()
    problem = one(folder)
    assert (problem.what, problem.fatal) == ("a test scan has no label", False)


@pytest.mark.parametrize(
    ("name", "fix"),
    [("c_{}_0000.nii.gz", "rename the label files"), ("c_{}_seg.nii.gz", "rename the label files"),
     ("c_{}.seg.nrrd", "save the label maps as CASE.nii.gz")],
)  # fmt: skip
def test_labels_of_nearly_the_right_name(folder: Path, name: str, fix: str) -> None:
    for number in ("001", "002", "003"):
        (folder / f"labelsTr/c_{number}.nii.gz").rename(folder / "labelsTr" / name.format(number))
    _, problems = told(folder)
    assert len(problems) == 3
    assert {p.what for p in problems} == {"a label is named otherwise"}
    assert name.format("001") in problems[0].found
    assert fix in problems[0].fix


def test_nothing_but_faults(folder: Path) -> None:
    for path in (folder / "imagesTr").iterdir():
        path.unlink()
        path.symlink_to("/nowhere/x")
    with pytest.raises(BadData, match="not there"):
        read_dataset(folder)


def test_inputs_of_a_prediction(tmp_path: Path) -> None:
    (tmp_path / "a_0000.nii.gz").touch()
    os.mkfifo(tmp_path / "b_0000.nii.gz")
    (tmp_path / "folder").mkdir()
    images, problems = find_images(tmp_path)
    assert list(images) == ["a"]
    assert [p.case for p in problems] == ["b_0000.nii.gz"]
