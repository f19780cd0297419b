"""Layouts of others: what is paired, what is missing, and what cannot be what it claims."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoseg.documents.conversion import ranges_of
from autoseg.documents.dataset import read_dataset
from autoseg.errors import AutosegError, BadData
from autoseg.interop.conversion import layout_folders, layout_lists, layout_table
from autoseg.interop.conversion.convert import Manner, convert
from autoseg.interop.conversion.layout_folders import Wanted
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


def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "Dataset012_Scans"


def told(draft: object) -> set[tuple[str, str]]:
    return {(p.case, p.what) for p in draft.problems}  # type: ignore[attr-defined]


def test_nnunets_first_layout(tmp_path: Path) -> None:
    source = tmp_path / "Task012_Scans"
    for n in range(3):
        part = "Tr" if n < 2 else "Ts"
        for channel in range(2):
            nifti(source / f"images{part}/p{n}_{channel:04d}.nii.gz", voxels(10 * n + channel))
        if n < 2:
            nifti(source / f"labelsTr/p{n}.nii.gz", drawing(n))
    document = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [{"image": "./imagesTr/p0.nii.gz", "label": "./labelsTr/p0.nii.gz"}],
    }
    (source / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    made = convert(layout_lists.nnunet_v1(source), raw(tmp_path), Manner())
    assert (made.labelled, made.test, made.channels) == (2, 1, ("T1", "T2"))
    assert np.array_equal(read(raw(tmp_path) / "imagesTs/p2_0001.nii.gz"), voxels(21))
    (source / "imagesTr/p0_0001.nii.gz").unlink()
    (source / "labelsTr/p1.nii.gz").unlink()
    assert told(layout_lists.nnunet_v1(source)) == {
        ("p0", "a case lacks a channel"), ("p1", "an image has no label"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": "all"}, '"training" is no list'),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "two labels are called 'a'"),
        ({"modality": {"T1": 0}}, "must be 0, 1"),
        ({"labels": {"0": "background", "x": "a"}}, "it must be a whole number"),
    ],
)
def test_a_task_that_says_nonsense(change: dict, message: str, tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task")
    document = json.loads((source / "dataset.json").read_text("utf-8"))
    (source / "dataset.json").write_text(json.dumps({**document, **change}), encoding="utf-8")
    with pytest.raises(AutosegError, match=message):
        layout_lists.msd(source)


RUBBISH = (
    None, -1, 1.5, "", [], {}, [1], {"a": 1}, True, "\0", "../..", "." * 300, [[["x"]]], 10**30,
)  # fmt: skip


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nonsense_in_lists_is_told_and_never_a_traceback(seed: int, tmp_path: Path) -> None:
    source = tmp_path / "Task"
    if not source.exists():
        decathlon(source)
        (source / "whole.json").write_bytes((source / "dataset.json").read_bytes())
    document = json.loads((source / "whole.json").read_text("utf-8"))
    rng = np.random.default_rng(seed)
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[rng.integers(len(keys))]
        if not isinstance(node[key], (dict, list)) or rng.random() < 0.4:
            node[key] = RUBBISH[rng.integers(len(RUBBISH))]
            break
        node = node[key]
    (source / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    for layout in (layout_lists.msd, layout_lists.nnunet_v1):
        try:
            draft = layout(source)
        except AutosegError as error:
            assert str(error)
        else:
            assert all(p.fix and p.found for p in draft.problems)


def test_a_task_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task")
    nifti(tmp_path / "secret.nii.gz", voxels(0))
    document = json.loads((source / "dataset.json").read_text("utf-8"))
    document["training"][0]["image"] = "../secret.nii.gz"
    document["training"].append(17)
    document["training"].append({"image": "./imagesTr/scan_001.nii.gz", "label": ["a", "b"]})
    (source / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    assert told(layout_lists.msd(source)) == {
        ("secret", "a listed file lies outside of the folder"),
        ("?", "an entry of the list names no image"),
        ("scan_001", "a label is not one file"),
    }


def test_a_list_of_monai(tmp_path: Path) -> None:
    for n in range(4):
        for channel in ("t1", "t2"):
            nifti(tmp_path / f"data/p{n}/p{n}_{channel}.nii.gz", voxels(n))
        nifti(tmp_path / f"data/p{n}/seg.nii.gz", drawing(n))

    def entry(n: int) -> dict:
        images = [f"data/p{n}/p{n}_{channel}.nii.gz" for channel in ("t1", "t2")]
        return {"image": images, "label": f"data/p{n}/seg.nii.gz"}

    document = {
        "training": [{**entry(0), "fold": 0}, {**entry(1), "fold": 1}],
        "validation": [entry(2)],
        "test": [{"image": entry(3)["image"]}],
    }
    (tmp_path / "list.json").write_text(json.dumps(document), encoding="utf-8")
    made = convert(layout_lists.monai(tmp_path / "list.json"), raw(tmp_path), Manner())
    assert (made.labelled, made.test) == (3, 1)
    assert made.labels == {"background": 0, "label 1": 1, "label 2": 2}
    dataset, problems = read_dataset(raw(tmp_path))
    assert problems == []
    assert [c.id for c in (*dataset.cases, *dataset.test_cases)] == ["p0", "p1", "p2", "p3"]
    assert (raw(tmp_path) / "cases.csv").read_text("utf-8").splitlines() == [
        "case,fold,split", "p0,0,training", "p1,1,training", "p2,,validation", "p3,,test",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["a/p0_t1.nii.gz", "a/p0_t2.nii.gz"], "p0"),
        (["t1/p0.nii.gz", "t2/p0.nii.gz"], "p0"),
        (["a/p0.nii.gz", "a/p0_t2.nii.gz"], "p0"),
        (["p7/t1.nii.gz", "p7/t2.nii.gz"], "p7"),
        (["p7/image.nii.gz"], "p7"),
        (["a/p0_0000.nii.gz"], "p0"),
        (["a/p0_0000.nii.gz", "a/p0_0001.nii.gz"], "p0"),
    ],
)
def test_a_case_is_called_as_its_files(files: list[str], name: str, tmp_path: Path) -> None:
    document = {"test": [{"image": files}]}
    (tmp_path / "list.json").write_text(json.dumps(document), encoding="utf-8")
    (case,) = layout_lists.monai(tmp_path / "list.json").cases
    assert case.id == name


@pytest.mark.parametrize(
    "content",
    ["empty", "text", "cut", "another size", "half values", "four axes", "dicom"],
)
@pytest.mark.parametrize("which", ["images", "labels"])
def test_files_that_are_not_what_they_claim(which: str, content: str, tmp_path: Path) -> None:
    for n in range(2):
        nifti(tmp_path / f"s/images/p{n}.nii.gz", voxels(n))
        nifti(tmp_path / f"s/labels/p{n}.nii.gz", drawing(n))
    path = tmp_path / f"s/{which}/p1.nii.gz"
    whole = path.read_bytes()
    if content == "half values":
        nifti(path, drawing(1).astype(np.float32) / 2)
    elif content == "another size":
        nifti(path, np.zeros((4, 4, 4), np.int16))
    elif content == "four axes":
        nifti(path, np.zeros((*SHAPE, 2), np.int16))
    else:
        rubbish = {"empty": b"", "text": b"not found", "cut": whole[:-30]}
        path.write_bytes(rubbish.get(content, bytes(128) + b"DICM" + bytes(400)))
    draft = layout_folders.folders(tmp_path / "s", Wanted())
    if (which, content) == ("images", "half values"):
        assert convert(draft, raw(tmp_path), Manner()).labelled == 2
        return
    with pytest.raises(BadData) as found:
        convert(draft, raw(tmp_path), Manner())
    assert {p.case for p in found.value.problems} == {"p1"}
    assert all(p.fix for p in found.value.problems)
    assert not raw(tmp_path).exists()


def test_folders_paired_by_name(tmp_path: Path) -> None:
    for n in range(3):
        nifti(tmp_path / f"s/images/p{n}_t1.nii.gz", voxels(n))
        nifti(tmp_path / f"s/images/p{n}_flair.nii.gz", voxels(10 + n))
    for n in range(2):
        nifti(tmp_path / f"s/labels/p{n}_mask.nii.gz", drawing(n, (0, 255)))
    nifti(tmp_path / "s/labels/p9.nii.gz", drawing(9))
    wanted = Wanted(("T1", "FLAIR"), ("_t1", "_flair"))
    draft = layout_folders.folders(tmp_path / "s", wanted)
    assert told(draft) == {
        ("p2", "an image has no label and becomes a test case"),
        ("p9", "a label has no image"),
    }
    made = convert(draft, raw(tmp_path), Manner())
    assert (made.labelled, made.test, made.channels) == (2, 1, ("T1", "FLAIR"))
    assert np.array_equal(read(raw(tmp_path) / "imagesTr/p1_0001.nii.gz"), voxels(11))
    (tmp_path / "s/images/p1_flair.nii.gz").unlink()
    nifti(tmp_path / "s/images/p1_other.nii.gz", voxels(0))
    broken = layout_folders.folders(tmp_path / "s", wanted)
    assert {("p1", "a case lacks a channel"), ("p1_other", "a file is of no channel")} <= told(
        broken
    )


@pytest.mark.parametrize("by_case", [True, False])
def test_a_mask_a_structure(by_case: bool, tmp_path: Path) -> None:
    painted = {}
    for n in range(2):
        nifti(tmp_path / f"s/images/p{n}.nii.gz", voxels(n))
        map_ = drawing(n)
        painted[f"p{n}"] = map_
        for value, name in ((1, "liver"), (2, "spleen")):
            place = f"p{n}/{name}" if by_case else f"{name}/p{n}"
            nifti(tmp_path / f"s/labels/{place}.nii.gz", ((map_ == value) * 255).astype("u1"))
    made = convert(layout_folders.folders(tmp_path / "s", Wanted()), raw(tmp_path), Manner())
    assert made.labels == {"background": 0, "liver": 1, "spleen": 2}
    for case, map_ in painted.items():
        assert np.array_equal(read(raw(tmp_path) / f"labelsTr/{case}.nii.gz"), map_)


def test_structures_that_overlap_need_leave(tmp_path: Path) -> None:
    nifti(tmp_path / "s/images/p.nii.gz", voxels(0))
    whole = np.ones(SHAPE, np.uint8)
    part = whole.copy()
    part[3:] = 0
    nifti(tmp_path / "s/labels/p/liver.nii.gz", whole)
    nifti(tmp_path / "s/labels/p/tumour.nii.gz", part)
    wanted = Wanted(labels=(("liver", 1), ("tumour", 2)))
    draft = layout_folders.folders(tmp_path / "s", wanted)
    with pytest.raises(BadData, match=r"tumour.nii.gz covers 90 voxels.*"):
        convert(draft, raw(tmp_path), Manner())
    convert(draft, raw(tmp_path), Manner(paint_over=True))
    assert np.array_equal(read(raw(tmp_path) / "labelsTr/p.nii.gz"), whole + part)


def test_a_folder_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with pytest.raises(AutosegError, match=r"no folder 'images'; did you mean 'image'\?"):
        layout_folders.folders(tmp_path, Wanted())


def test_a_bids_dataset(tmp_path: Path) -> None:
    top = tmp_path / "bids"
    for subject in ("01", "02"):
        for session in ("a", "b"):
            stem = f"sub-{subject}_ses-{session}"
            folder = top / f"sub-{subject}/ses-{session}/anat"
            seed = int(subject) * 10 + ord(session)
            nifti(folder / f"{stem}_T1w.nii.gz", voxels(seed))
            nifti(folder / f"{stem}_acq-x_FLAIR.nii.gz", voxels(seed + 1000))
            if (subject, session) != ("02", "b"):
                label = f"derivatives/manual/sub-{subject}/anat/{stem}_space-orig_dseg.nii.gz"
                nifti(top / label, drawing(seed))
    with pytest.raises(AutosegError, match="2 kinds: FLAIR, T1w; choose with --channels"):
        layout_folders.bids(top, Wanted())
    made = convert(layout_folders.bids(top, Wanted(("T1w", "FLAIR"))), raw(tmp_path), Manner())
    assert (made.labelled, made.test) == (3, 1)
    one = raw(tmp_path) / "imagesTr/sub-01_ses-b_0001.nii.gz"
    assert np.array_equal(read(one), voxels(10 + ord("b") + 1000))
    rows = (raw(tmp_path) / "cases.csv").read_text("utf-8").splitlines()
    assert rows[:2] == ["case,patient", "sub-01_ses-a,sub-01"]
    nifti(top / "sub-01/ses-a/anat/sub-01_ses-a_run-2_T1w.nii.gz", voxels(0))
    assert ("sub-01_ses-a", "two files claim to be the same") in told(
        layout_folders.bids(top, Wanted(("T1w",)))
    )


def test_stacks_of_pictures_are_volumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (12, 6, 7), np.uint8)
    label = rng.choice([0, 255], (12, 6, 7)).astype(np.uint8)
    for n in range(12):
        # numbered without leading zeros, so that their order is not that of their names
        picture(tmp_path / f"s/images/p/slice{n + 1}.png", image[n])
        picture(tmp_path / f"s/labels/p/slice{n + 1}.png", label[n])
    draft = layout_folders.stack(tmp_path / "s", Wanted(), (5.0, 0.5, 0.7))
    convert(draft, raw(tmp_path), Manner())
    dataset, problems = read_dataset(raw(tmp_path))
    assert problems == []
    (case,) = dataset.cases
    from autoseg.image.reading import read_image, read_labels

    volume, problems = read_image(case.images, "SPL")
    assert problems == []
    assert volume.spacing_mm == pytest.approx((5.0, 0.5, 0.7))
    assert np.array_equal(volume.array[0], image)
    assert case.label is not None
    assert np.array_equal(read_labels(case.label, "SPL")[0].array[0], label)
    (tmp_path / "s/images/p/slice4.png").unlink()
    assert told(layout_folders.stack(tmp_path / "s", Wanted(), (5.0, 0.5, 0.7))) == {
        ("p", "slices are missing or there twice"),
        ("p", "slices and masks differ in number"),
    }


def test_stacks_in_colour_have_three_channels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 6, 7, 3), np.uint8)
    for n in range(3):
        picture(tmp_path / f"s/images/p/{n}.png", image[n])
        picture(tmp_path / f"s/labels/p/{n}.png", np.full((6, 7), n % 2, np.uint8))
    draft = layout_folders.stack(tmp_path / "s", Wanted(), (1, 1, 1))
    made = convert(draft, raw(tmp_path), Manner())
    assert made.channels == ("R", "G", "B")
    green = read(raw(tmp_path) / "imagesTr/p_0001.nii.gz")
    assert np.array_equal(green.T, image[..., 1])


def test_a_table_of_files(tmp_path: Path) -> None:
    for n in range(3):
        nifti(tmp_path / f"scans/{n}.nii.gz", voxels(n))
        nifti(tmp_path / f"masks/{n}.nii.gz", drawing(n))
    table = tmp_path / "files.csv"
    table.write_text(
        "case;image;label;patient;split;site\n"
        "a;scans/0.nii.gz;masks/0.nii.gz;p1;train;x\n"
        f"b;{tmp_path}/scans/1.nii.gz;masks/1.nii.gz;p1;train;y\n"
        "c;scans/2.nii.gz;;p2;test;x\n",
        encoding="utf-8",
    )
    draft = layout_table.table(table, Wanted(("CT",)))
    made = convert(draft, raw(tmp_path), Manner())
    assert (made.labelled, made.test, made.channels) == (2, 1, ("CT",))
    assert (raw(tmp_path) / "cases.csv").read_text("utf-8").splitlines()[1] == "a,p1,x,train"
    table.write_text(
        "image_t1,image_t2,mask\nscans/0.nii.gz,,masks/0.nii.gz\nscans/1.nii.gz,scans/9.nii.gz,\n",
        encoding="utf-8",
    )
    draft = layout_table.table(table, Wanted())
    assert draft.channels == ("t1", "t2")
    assert told(draft) == {
        ("row 2", "a row names no image"),
        ("1", "a listed file is missing"),
        ("1", "an image has no label"),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"image,label\n", "needs a header and a row"),
        (b"scan,label\na,b\n", "no column image"),
        (b"image,image_1\na,b\n", "use one or the others"),
        (b"image,label\na\n", "row 2 has 1 cells"),
        (b'image,label\n"a,b\n', "mend the quotes"),
        (b"PK\x03\x04", "no text"),
        (b"image,image\na,b\n", "two columns"),
    ],
)
def test_tables_that_are_none(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(AutosegError, match=message):
        layout_table.table(tmp_path / "x.csv", Wanted())


def test_names_of_labels_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "dseg.tsv").write_text("index\tname\n0\tnone\n3\torgan\n", encoding="utf-8")
    assert layout_table.label_table(tmp_path / "dseg.tsv") == {"none": 0, "organ": 3}
    (tmp_path / "dseg.tsv").write_text("index\tname\nx\torgan\n", encoding="utf-8")
    with pytest.raises(AutosegError, match="'organ' = 'x' is no label"):
        layout_table.label_table(tmp_path / "dseg.tsv")


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in range(2):
        picture(tmp_path / f"s/images/{n}.jpg", rng.integers(0, 255, (9, 8, 3), np.uint8))
        picture(tmp_path / f"s/labels/{n}.png", rng.choice([0, 1], (9, 8)).astype(np.uint8))
    draft = layout_folders.folders(tmp_path / "s", Wanted())
    made = convert(draft, raw(tmp_path), Manner())
    assert made.channels == ("R", "G", "B")
    image = raw(tmp_path) / "imagesTr/1_0000.jpg"
    assert image.read_bytes() == (tmp_path / "s/images/1.jpg").read_bytes()
    label = raw(tmp_path) / "labelsTr/1.png"
    assert np.array_equal(pixels(label), pixels(tmp_path / "s/labels/1.png"))


def test_cases_called_alike_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for n in range(3):
        nifti(tmp_path / f"p{n}/anat/flair.nii.gz", voxels(n))
        nifti(tmp_path / f"p{n}/anat/seg.nii.gz", drawing(n))
    pairs = [(f"p{n}/anat/flair.nii.gz", f"p{n}/anat/seg.nii.gz") for n in range(3)]
    entries = [{"image": image, "label": label} for image, label in pairs]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    (tmp_path / "files.csv").write_text(
        "image,label\n" + "\n".join(map(",".join, pairs)), encoding="utf-8"
    )
    for draft in (
        layout_lists.monai(tmp_path / "list.json"),
        layout_table.table(tmp_path / "files.csv", Wanted()),
    ):
        assert [str(case) for case in draft.cases] == ["p0", "p1", "p2"]
    # nothing differs: said with the files; a name that a person gave is never changed
    (tmp_path / "list.json").write_text(json.dumps({"training": entries[:1] * 2}), encoding="utf-8")
    (tmp_path / "files.csv").write_text(
        "case,image,label\n" + "\n".join(f"a,{','.join(pair)}" for pair in pairs), encoding="utf-8"
    )
    for draft, name in (
        (layout_lists.monai(tmp_path / "list.json"), "flair"),
        (layout_table.table(tmp_path / "files.csv", Wanted()), "a"),
    ):
        with pytest.raises(BadData, match=f"two cases have one name(.|\n)*{name} of .*flair"):
            convert(draft, raw(tmp_path), Manner())


def test_a_missing_label_is_told_once_and_with_the_keys_that_are_there(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz", voxels(0))
    entries = [{"image": "a.nii.gz", "mask": "a.nii.gz"}]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    with pytest.raises(BadData) as found:
        convert(layout_lists.monai(tmp_path / "list.json"), raw(tmp_path), Manner())
    assert [p.found for p in found.value.problems] == [
        'it is in "training" without a "label"; it has image, mask'
    ]


@pytest.mark.parametrize("kind", ["msd", "nnunet_v1"])
def test_the_folder_of_a_task_is_looked_for(kind: str, tmp_path: Path) -> None:
    layout = getattr(layout_lists, kind)
    with pytest.raises(AutosegError, match=r"holds no dataset.json; name the folder of the task"):
        layout(tmp_path)
    decathlon(tmp_path / "Task12_Scans")
    with pytest.raises(AutosegError, match=r"holds no dataset.json; name .*Task12_Scans"):
        layout(tmp_path)


def test_labels_in_jpeg_need_ranges_of_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    square = np.zeros((24, 24), np.uint8)
    square[5:14, 7:15] = 255
    for n in range(2):
        picture(tmp_path / f"s/images/p{n}.png", rng.integers(0, 255, (24, 24), np.uint8))
        picture(tmp_path / f"s/labels/p{n}.jpg", square)
    draft = layout_folders.folders(tmp_path / "s", Wanted())
    for labels in (None, {"background": 0, "cell": 255}):
        with pytest.raises(BadData, match=r"is a JPEG(.|\n)*p0.jpg(.|\n)*--values 0-127=0"):
            convert(replace(draft, labels=labels), raw(tmp_path), Manner())
    ranges = ranges_of("0-127=0,128-255=1")
    assert convert(replace(draft, ranges=ranges), raw(tmp_path), Manner()).labelled == 2
    assert np.array_equal(pixels(raw(tmp_path) / "labelsTr/p0.png"), square // 255)


def test_names_that_do_not_agree_are_told_with_one_of_each(tmp_path: Path) -> None:
    nifti(tmp_path / "s/images/img_1.nii.gz", voxels(0))
    nifti(tmp_path / "s/labels/mask_1.nii.gz", drawing(0))
    with pytest.raises(AutosegError, match="mask_1 and img_1; name them alike"):
        layout_folders.folders(tmp_path / "s", Wanted())
    with pytest.raises(BadData, match=r"img_1\.nii\.gz ends with none of _t1"):
        layout_folders.folders(tmp_path / "s", Wanted(("T1",), ("_t1",)))
