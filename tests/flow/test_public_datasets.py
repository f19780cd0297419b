"""Public datasets: fetched from a server on this machine, and converted by their specifications."""

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from autoseg import api
from autoseg.documents.cases import read_table
from autoseg.documents.conversion import Converted
from autoseg.documents.dataset import read_dataset
from autoseg.documents.spec import DatasetSpec, list_specs, read_spec
from autoseg.errors import AutosegError, Busy
from autoseg.files import Lock
from autoseg.flow.datasets import Asked, convert_public, fetch_dataset
from autoseg.interop.conversion.layout_spec import draft_of
from autoseg.workspace import Workspace, open_workspace
from tests.interop.sources import (
    SHAPE,
    decathlon,
    drawing,
    nifti,
    picture,
    pixels,
    read,
    voxels,
)
from tests.stages.web import Web, serving

ONE = Asked(workers=1)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path / "root")


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as found:
        yield found


def packed(folder: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(folder, folder.name)
    return out.getvalue()


def from_web(web: Web, name: str, content: bytes) -> DatasetSpec:
    """A known specification whose archive lies on the test's server."""
    web.files["/source.tar"] = content
    archive = {
        "urls": [web.url("/source.tar")], "md5": hashlib.md5(content).hexdigest(),
        "checksum_from": "the test",
    }  # fmt: skip
    return DatasetSpec.parse({**read_spec(name).dump(), "archives": [archive]}, name)


def converted(workspace: Workspace, name: str, source: Path) -> Converted:
    return convert_public(workspace, read_spec(name), source, ONE).converted


def test_a_dataset_is_fetched_verified_unpacked_and_converted(
    web: Web, workspace: Workspace, tmp_path: Path
) -> None:
    source = decathlon(tmp_path / "Task04_Hippocampus", cases=4, test=2)
    spec = from_web(web, "Task04_Hippocampus", packed(source))
    made = fetch_dataset(workspace, spec, None, keep=False, asked=ONE).converted
    assert (made.labelled, made.test, made.made) == (4, 2, 6)
    dataset, problems = read_dataset(workspace.raw[0] / "Dataset104_HippocampusFull")
    assert problems == []
    assert dataset.labels == spec.label_set
    assert np.array_equal(read(dataset.cases[2].images[0]), voxels(2))
    assert not (tmp_path / "root/downloads" / spec.name).exists()
    again = fetch_dataset(workspace, spec, None, keep=False, asked=ONE).converted
    assert (again.labelled, again.test, again.made) == (4, 2, 0)
    assert len(web.asked) == 1


def test_what_was_fetched_may_be_kept_elsewhere(
    web: Web, workspace: Workspace, tmp_path: Path
) -> None:
    source = decathlon(tmp_path / "Task02_Heart")
    labels = drawing(0, (0, 1))
    for n in range(3):
        nifti(source / f"labelsTr/scan_{n:03d}.nii.gz", labels)
    spec = from_web(web, "Task02_Heart", packed(source))
    fetch_dataset(workspace, spec, tmp_path / "cache", keep=True, asked=ONE)
    kept = tmp_path / "cache" / spec.name
    assert (kept / "source.tar").stat().st_size == len(web.files["/source.tar"])
    unpacked = kept / "unpacked_source.tar/Task02_Heart/imagesTr/scan_000.nii.gz"
    assert unpacked.samefile(workspace.raw[0] / spec.name / "imagesTr/scan_000_0000.nii.gz")
    # the kept archive serves when the dataset has to be made again
    fetch_dataset(
        workspace, spec, tmp_path / "cache", keep=True, asked=Asked(workers=1, overwrite=True)
    )
    assert len(web.asked) == 1


def test_a_broken_download_leaves_no_dataset_and_goes_on(
    web: Web, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoseg.stages import fetch

    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    spec = from_web(web, "MSD04", packed(decathlon(tmp_path / "Task04_Hippocampus")))
    web.break_after = [5000, *[0] * 10]
    with pytest.raises(AutosegError, match="5,000 bytes so far"):
        fetch_dataset(workspace, spec, None, keep=False, asked=ONE)
    assert not (workspace.raw[0] / spec.name).exists()
    web.break_after = []
    assert fetch_dataset(workspace, spec, None, keep=False, asked=ONE).converted.labelled == 3
    assert web.asked[-1] == ("/source.tar", "bytes=5000-")


def test_only_one_process_fetches_a_dataset(web: Web, workspace: Workspace, tmp_path: Path) -> None:
    spec = from_web(web, "MSD04", packed(decathlon(tmp_path / "Task04_Hippocampus")))
    with (
        Lock(tmp_path / f"root/downloads/.{spec.name}.lock", "it"),
        pytest.raises(Busy, match=f"the download of {spec.name} is being written by process"),
    ):
        fetch_dataset(workspace, spec, None, keep=False, asked=ONE)
    assert web.asked == []
    assert fetch_dataset(workspace, spec, None, keep=False, asked=ONE).converted.made == 4


def test_data_that_lies_there_is_refused_before_the_download(
    web: Web, workspace: Workspace, tmp_path: Path
) -> None:
    spec = from_web(web, "MSD04", b"nothing")
    own = workspace.raw[0] / spec.name / "dataset.json"
    own.parent.mkdir(parents=True)
    own.write_text("{}", encoding="utf-8")
    with pytest.raises(AutosegError, match="was not made by a conversion"):
        fetch_dataset(workspace, spec, None, keep=False, asked=ONE)
    assert web.asked == []
    assert tmp_path.joinpath("root/downloads").exists() is False


@pytest.mark.parametrize("name", [n for n in list_specs() if not read_spec(n).archives])
def test_what_may_not_be_fetched_is_explained_in_one_line(name: str, workspace: Workspace) -> None:
    spec = read_spec(name)
    with pytest.raises(AutosegError) as told:
        fetch_dataset(workspace, spec, None, keep=False, asked=ONE)
    said = str(told.value)
    assert "\n" not in said
    assert spec.landing_page in said
    assert (spec.licence or "licence: unknown") in said
    assert ("datasets convert" in said) == (spec.source_layout is not None)


def test_brats_is_renumbered_and_its_unlabelled_cases_are_test_cases(
    workspace: Workspace, tmp_path: Path
) -> None:
    for n in range(3):
        case = f"BraTS2021_{n:05d}"
        for at, sequence in enumerate(("t1", "t1ce", "t2", "flair")):
            nifti(tmp_path / f"s/a/{case}/{case}_{sequence}.nii.gz", voxels(10 * n + at))
        if n < 2:
            nifti(tmp_path / f"s/a/{case}/{case}_seg.nii.gz", drawing(n, (0, 1, 2, 4)))
    made = converted(workspace, "BraTS2021", tmp_path / "s")
    assert (made.labelled, made.test) == (2, 1)
    dataset, problems = read_dataset(made.folder)
    assert problems == []
    assert dataset.labels == read_spec("BraTS2021").label_set
    assert np.array_equal(read(dataset.cases[1].images[3]), voxels(13))
    theirs = drawing(1, (0, 1, 2, 4))
    ours = np.select([theirs == 1, theirs == 2, theirs == 4], [2, 1, 3], 0)
    assert dataset.cases[1].label is not None
    assert np.array_equal(read(dataset.cases[1].label), ours)
    (tmp_path / "s/a/BraTS2021_00002/BraTS2021_00002_t2.nii.gz").unlink()
    with pytest.raises(AutosegError, match=r"a case lacks a channel[^\n]*\n  BraTS2021_00002"):
        convert_public(workspace, read_spec("BraTS2021"), tmp_path / "s", ONE)


def test_acdc_has_labelled_test_cases_and_patients(workspace: Workspace, tmp_path: Path) -> None:
    for part, patient in (("training", "patient001"), ("testing", "patient101")):
        for frame in ("01", "12"):
            stem = tmp_path / f"s/database/{part}/{patient}/{patient}_frame{frame}"
            nifti(stem.with_name(f"{stem.name}.nii.gz"), voxels(int(frame)))
            nifti(stem.with_name(f"{stem.name}_gt.nii.gz"), drawing(int(frame), (0, 1, 2, 3)))
        nifti(stem.with_name(f"{patient}_4d.nii.gz"), voxels(0, (*SHAPE, 4)))
    made = converted(workspace, "ACDC", tmp_path / "s")
    assert (made.labelled, made.test) == (2, 2)
    dataset, _ = read_dataset(made.folder)
    assert all(case.label is not None for case in (*dataset.cases, *dataset.test_cases))
    ids = [case.id for case in dataset.cases]
    table = read_table(made.folder / "cases.csv", ids, [c.id for c in dataset.test_cases])
    assert ids == ["patient001_frame01", "patient001_frame12"]
    assert {row["patient"] for row in table.rows.values()} == {"patient001", "patient101"}


def test_lits_is_compressed_with_its_header_untouched(workspace: Workspace, tmp_path: Path) -> None:
    nifti(tmp_path / "s/Batch 1/volume-7.nii", voxels(7))
    nifti(tmp_path / "s/Batch 1/segmentation-7.nii", drawing(7))
    nifti(tmp_path / "s/test/test-volume-0.nii", voxels(0))
    made = converted(workspace, "Dataset118_LiTS", tmp_path / "s")
    assert sorted(p.name for p in made.folder.rglob("*.gz")) == [
        "liver_7.nii.gz", "liver_7_0000.nii.gz", "test_0_0000.nii.gz",
    ]  # fmt: skip
    packed_ = made.folder / "imagesTr/liver_7_0000.nii.gz"
    original = (tmp_path / "s/Batch 1/volume-7.nii").read_bytes()
    assert gzip.decompress(packed_.read_bytes()) == original


def chaos_ct(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A DICOM series whose files are numbered against their places, and PNG masks beside it."""
    pytest.importorskip("pydicom")
    from tests.interop.dicom_phantom import slice_dataset

    image = np.random.default_rng(0).integers(0, 400, (4, 6, 8)).astype(np.uint16)
    masks = np.random.default_rng(1).choice([0, 255], image.shape).astype(np.uint8)
    place = folder / "Train_Sets/CT/5/DICOM_anon"
    place.mkdir(parents=True)
    for n in range(4):
        # the file with the lowest number is the topmost slice
        height = float(30 - 10 * n)
        dataset = slice_dataset(
            image[n], ImagePositionPatient=[0.0, 0.0, height], InstanceNumber=n + 1
        )
        dataset.save_as(place / f"i{n:04d},0000b.dcm", enforce_file_format=True)
        picture(folder / f"Train_Sets/CT/5/Ground/liver_GT_{n:03d}.png", masks[n])
    return image, masks


def test_chaos_masks_belong_to_the_files_and_not_to_the_places(
    workspace: Workspace, tmp_path: Path
) -> None:
    image, masks = chaos_ct(tmp_path / "s")
    made = converted(workspace, "CHAOSCT", tmp_path / "s")
    scan = read(made.folder / "imagesTr/ct_5_0000.nii.gz")
    label = read(made.folder / "labelsTr/ct_5.nii.gz")
    # slices upwards: the last file is the lowest
    for k in range(4):
        file = 3 - k
        offset = scan[..., k].T.astype(int) - image[file]
        assert np.unique(offset).size == 1
        assert np.array_equal(label[..., k].T, masks[file] // 255)


def test_drive_and_dsb_and_glas(workspace: Workspace, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def photo(path: str, channels: int = 3) -> None:
        picture(tmp_path / path, rng.integers(0, 255, (9, 8, channels), np.uint8))

    def mask(path: str, array: np.ndarray) -> np.ndarray:
        picture(tmp_path / path, array.astype(np.uint8))
        return array

    photo("drive/training/images/21_training.tif")
    photo("drive/test/images/01_test.tif")
    vessel = mask("drive/training/1st_manual/21_manual1.gif", 255 * (rng.random((9, 8)) < 0.5))
    view = mask(
        "drive/training/mask/21_training_mask.gif",
        np.full((9, 8), 255) * (rng.random((9, 8)) < 0.7),
    )
    made = converted(workspace, "DRIVE", tmp_path / "drive")
    label = pixels(made.folder / "labelsTr/drive_21.png")
    assert np.array_equal(label, np.where(view == 0, 2, vessel // 255))
    assert (made.labelled, made.test) == (1, 1)

    photo("dsb/abc/images/abc.png", 4)
    parts = [mask(f"dsb/abc/masks/{n}.png", 255 * (rng.random((9, 8)) < 0.2)) for n in range(3)]
    made = converted(workspace, "DSB2018", tmp_path / "dsb")
    assert np.array_equal(pixels(made.folder / "labelsTr/abc.png"), np.max(parts, 0) // 255)

    photo("glas/Warwick/train_3.bmp")
    glands = mask("glas/Warwick/train_3_anno.bmp", rng.integers(0, 5, (9, 8)))
    photo("glas/Warwick/testA_1.bmp")
    mask("glas/Warwick/testA_1_anno.bmp", rng.integers(0, 5, (9, 8)))
    made = converted(workspace, "GlaS", tmp_path / "glas")
    assert np.array_equal(pixels(made.folder / "labelsTr/train_3.png"), glands > 0)
    assert (made.folder / "labelsTs/testA_1.png").exists()


def path_of(pattern: str, channel: str, case: str) -> str:
    """A path that a pattern of a specification takes."""
    words = {"channel": channel, "n": "12", "patient": "patient007", "frame": "01", "part": "A"}
    text = pattern.replace("**/", "some folder/deeper/").replace("*", "7")
    return re.sub(r"\{([a-z]+)(?::[dw])?\}", lambda m: words.get(m[1], case), text)


@pytest.mark.parametrize("name", [n for n in list_specs() if read_spec(n).source_layout])
def test_every_specification_takes_the_files_that_it_speaks_of(name: str, tmp_path: Path) -> None:
    spec = read_spec(name)
    layout = spec.source_layout
    assert layout is not None
    roles = (layout.images, layout.labels, layout.test_images, layout.test_labels)
    for role, n, files in [(r, n, f) for r, all_ in enumerate(roles) for n, f in enumerate(all_)]:
        for channel in files.channels or {"": 0}:
            case = f"{'test' if role > 1 else 'case'}{n}"
            path = tmp_path / path_of(files.pattern, channel, case)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            path.with_name(f"._{path.name}").touch()
    matched = draft_of(spec, [tmp_path])
    train = [case for case in matched.draft.cases if case.label is not None and not case.test]
    assert len(train) >= 1
    assert all(len(c.images) == max(1, len(layout.images[0].channels)) for c in train)
    test = [case for case in matched.draft.cases if case.test]
    assert bool(test) == bool(layout.test_images)
    assert all(case.label is not None for case in test) == bool(layout.test_labels) or not test
    assert matched.strangers == 0
    assert [p for p in matched.draft.problems if p.fatal] == []


def test_an_archive_got_by_hand_serves_too(workspace: Workspace, tmp_path: Path) -> None:
    archive = tmp_path / "kits.tar"
    nifti(tmp_path / "kits/case_00000/imaging.nii.gz", voxels(0))
    nifti(tmp_path / "kits/case_00000/segmentation.nii.gz", drawing(0))
    archive.write_bytes(packed(tmp_path / "kits"))
    made = converted(workspace, "KiTS23", archive)
    assert np.array_equal(read(made.folder / "imagesTr/case_00000_0000.nii.gz"), voxels(0))
    assert not list((tmp_path / "root/downloads").rglob("*.nii.gz"))
    # the same command again finds the dataset as it was made, though the archive is unpacked anew
    assert converted(workspace, "KiTS23", archive).made == 0


@pytest.mark.parametrize("name", ["LIDC", "Dataset006_Nuclei"])
def test_what_patterns_cannot_tell_is_said(name: str, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match="cannot be converted by patterns"):
        convert_public(workspace, read_spec(name), tmp_path, ONE)


def test_another_folder_is_told_with_what_was_looked_for(
    workspace: Workspace, tmp_path: Path
) -> None:
    nifti(tmp_path / "s/x.nii.gz", voxels(0))
    with pytest.raises(AutosegError, match=r"1 files, and none matches \*\*/\{case\}/imaging"):
        convert_public(workspace, read_spec("KiTS23"), tmp_path / "s", ONE)


def test_datasets_at_the_shell(shell: Callable, tmp_path: Path) -> None:
    assert shell("autoseg datasets 102").out.startswith("Dataset102_Heart")
    assert shell("autoseg datasets --name Heart").out.startswith("Dataset102_Heart")
    assert shell("autoseg datasets show Heart").out == shell("autoseg datasets 102").out
    assert shell("autoseg datasets list").out == shell("autoseg datasets").out
    for line, told in (
        ("autoseg datasets fetch", "needs the name"),
        ("autoseg datasets fetsch KiTS23", "did you mean 'fetch'?"),
        ("autoseg datasets fetch KiTS99", "no specification of a dataset 'KiTS99'"),
        ("autoseg datasets convert KiTS23", "needs the path"),
        ("autoseg datasets KiTS23 --keep", "--keep means nothing for a list"),
        ("autoseg datasets fetch BraTS2021", "access is by registration"),
        ("autoseg datasets convert KiTS23 nowhere", "does not exist"),
    ):
        said = shell(line)
        assert (said.code, said.err.count("\n")) == (2, 1), line
        assert told in said.err
    nifti(tmp_path / "kits/case_00000/imaging.nii.gz", voxels(0))
    nifti(tmp_path / "kits/case_00000/segmentation.nii.gz", drawing(0))
    said = shell("autoseg datasets convert KiTS23 kits")
    assert said.code == 0
    assert "1 case to train, 0 to test" in said.out
    assert "1 file matched by **/{case}/imaging.nii.gz" in said.out
    assert "the specification counts 489 cases" in said.out
    assert shell("autoseg check -d 112").code == 0
    document = json.loads(shell("autoseg datasets convert KiTS23 kits --json").out)
    assert document["converted"]["made"] == 0


def test_convert_at_the_shell(shell: Callable, tmp_path: Path) -> None:
    decathlon(tmp_path / "Task12_Scans", frames=2)
    said = shell("autoseg convert msd Task12_Scans -d 12_Scans --workers 1")
    assert said.code == 0
    assert "Dataset012_Scans: 3 cases to train, 1 to test" in said.out
    assert "next: `autoseg check -d 12`" in said.out
    assert shell("autoseg check -d 12").code == 0
    for line, told in (
        ("autoseg convert msdd x -d 13_X", "did you mean 'msd'?"),
        ("autoseg convert msd x -d 13_X", "does not exist"),
        ("autoseg convert msd Task12_Scans -d X", "names no new dataset"),
        ("autoseg convert msd Task12_Scans -d 12_Other", "has the number 12 already"),
        ("autoseg convert msd Task12_Scans -d 13_X --spacing 1,1,1", "--spacing means nothing"),
        ("autoseg convert stack Task12_Scans -d 13_X", "give --spacing in mm"),
        ("autoseg convert stack Task12_Scans -d 13_X --spacing 1,0,1", "is none"),
        ("autoseg convert msd Task12_Scans -d 13_X --link symbolic", "choose hard or soft"),
        ("autoseg convert msd Task12_Scans -d 13_X --labels a", "no label"),
        ("autoseg convert folders Task12_Scans -d 13_X --channels A=_a B", "give each channel"),
        ("autoseg convert bids Task12_Scans -d 13_X", "holds no image sub-*"),
    ):
        said = shell(line)
        assert (said.code, said.err.count("\n")) == (2, 1), line
        assert told in said.err, line
    assert [p.name for p in (tmp_path / "autoseg_data/raw").iterdir()] == ["Dataset012_Scans"]


def test_structures_in_dicom_become_a_dataset(workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    from autoseg.interop.dicom.segmentation import write_segmentation
    from autoseg.interop.dicom.series import find
    from tests.interop.dicom_phantom import structured, write_series

    write_series(tmp_path / "s/ct")
    root = tmp_path / "root"
    with pytest.raises(AutosegError, match="no DICOM-SEG or RTSTRUCT refers to"):
        api.convert("dicom", tmp_path / "s", "13_X", root=root, workers=1)
    assert workspace.datasets() == []
    (series,) = find(tmp_path / "s").series
    names = {"organ": (1,), "tumour": (2,), "speckle": (3,)}
    write_segmentation(tmp_path / "s/drawn.dcm", structured(), "stored", series, names)
    labels = "organ=ORG*,disease=tumour+speckle"
    made = api.convert("dicom", tmp_path / "s", "13_X", labels=labels, root=root, workers=1)
    assert made.converted.labels == {"background": 0, "organ": 1, "disease": 2}
    dataset, problems = read_dataset(workspace.raw[0] / "Dataset013_X")
    assert problems == []
    (case,) = dataset.cases
    assert case.label is not None
    assert np.array_equal(read(case.label).transpose(2, 1, 0), np.minimum(structured(), 2))
    again = api.convert("dicom", tmp_path / "s", "13_X", labels=labels, root=root, workers=1)
    assert again.converted.made == 0
    assert [p.name for p in workspace.raw[0].iterdir()] == ["Dataset013_X"]
    with pytest.raises(AutosegError, match="'organ' is no label"):
        api.convert("dicom", tmp_path / "s", "13_X", labels="organ", root=root)
