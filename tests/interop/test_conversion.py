"""Data of others become a dataset: nothing changes that need not, nothing half done is seen."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from autoseg.documents.cases import read_table
from autoseg.documents.conversion import Draft, Source, SourceCase, labels_of, order_of, ranges_of
from autoseg.documents.dataset import read_dataset
from autoseg.errors import AutosegError, BadData
from autoseg.image.reading import read_header
from autoseg.interop.conversion import convert as conversion
from autoseg.interop.conversion import layout_lists
from autoseg.interop.conversion.convert import MARK, Manner, convert
from autoseg.interop.conversion.nifti_frames import frames_of, split
from tests.interop.sources import (
    AFFINE,
    SHAPE,
    decathlon,
    drawing,
    nifti,
    picture,
    pixels,
    read,
    voxels,
)

NAME = "Dataset012_Scans"


def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw" / NAME


def test_a_task_of_the_decathlon_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12_Scans")
    made = convert(layout_lists.msd(source), raw(tmp_path), Manner())
    assert (made.labelled, made.test, made.made) == (3, 1, 4)
    dataset, problems = read_dataset(raw(tmp_path))
    assert problems == []
    assert dataset.channels == ("M0",)
    assert dataset.labels.structures == {"organ": (1,), "lesion": (2,)}
    assert [c.id for c in dataset.cases] == ["scan_000", "scan_001", "scan_002"]
    for case in dataset.cases:
        original = source / f"imagesTr/{case.id}.nii.gz"
        assert case.images[0].read_bytes() == original.read_bytes()
        assert case.label is not None
        assert case.label.read_bytes() == (source / f"labelsTr/{case.id}.nii.gz").read_bytes()
    document = json.loads((raw(tmp_path) / "dataset.json").read_text("utf-8"))
    assert (document["numTraining"], document["licence"]) == (3, "CC0")
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == [NAME]


def test_a_4d_image_is_cut_into_its_channels(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task01", frames=3)
    convert(layout_lists.msd(source), raw(tmp_path), Manner())
    for n in range(4):
        part = "Tr" if n < 3 else "Ts"
        whole = nib.load(source / f"images{part}/scan_{n:03d}.nii.gz")
        for channel in range(3):
            one = nib.load(raw(tmp_path) / f"images{part}/scan_{n:03d}_{channel:04d}.nii.gz")
            assert np.array_equal(one.dataobj, np.asarray(whole.dataobj)[..., channel])
            assert one.get_data_dtype() == whole.get_data_dtype()
            assert np.allclose(one.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_frames_keep_type_scaling_and_place(kind: type, order: str, tmp_path: Path) -> None:
    array = voxels(3, (*SHAPE, 4)).astype(f"{order}i2")
    header = kind(endianness=order)
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_sform(AFFINE, 1)
    header.set_slope_inter(0.5, 3)
    header["vox_offset"] = len(header.binaryblock) + 4
    header["magic"] = b"n+1" if kind is nib.Nifti1Header else b"n+2"
    stored = header.binaryblock + bytes(4) + array.tobytes("F")
    (tmp_path / "a.nii").write_bytes(stored)
    frames = frames_of(tmp_path / "a.nii")
    assert frames is not None
    assert (frames.count, frames.shape) == (4, SHAPE)
    targets = [tmp_path / f"b_{n}.nii.gz" for n in range(4)]
    split(frames, targets)
    for n, target in enumerate(targets):
        assert np.allclose(nib.load(target).get_fdata(), array[..., n] * 0.5 + 3)
        assert np.allclose(nib.load(target).affine, AFFINE, atol=1e-5)


def test_running_again_does_nothing(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12")
    convert(layout_lists.msd(source), raw(tmp_path), Manner())
    before = {p: p.stat().st_mtime_ns for p in raw(tmp_path).rglob("*")}
    made = convert(layout_lists.msd(source), raw(tmp_path), Manner())
    assert made.made == 0
    assert {p: p.stat().st_mtime_ns for p in raw(tmp_path).rglob("*")} == before


def test_a_changed_source_needs_leave_and_only_the_change_is_made(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12")
    convert(layout_lists.msd(source), raw(tmp_path), Manner())
    (raw(tmp_path) / "notes.txt").write_text("mine", encoding="utf-8")
    nifti(source / "labelsTr/scan_001.nii.gz", drawing(77))
    with pytest.raises(AutosegError, match="--overwrite"):
        convert(layout_lists.msd(source), raw(tmp_path), Manner())
    made = convert(layout_lists.msd(source), raw(tmp_path), Manner(overwrite=True))
    assert made.made == 1
    assert np.array_equal(read(raw(tmp_path) / "labelsTr/scan_001.nii.gz"), drawing(77))
    assert np.array_equal(read(raw(tmp_path) / "labelsTr/scan_002.nii.gz"), drawing(2))
    assert (raw(tmp_path) / "notes.txt").read_text("utf-8") == "mine"
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == [NAME]


def test_other_data_is_never_overwritten(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12")
    own = raw(tmp_path) / "dataset.json"
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    with pytest.raises(AutosegError, match="was not made by a conversion"):
        convert(layout_lists.msd(source), raw(tmp_path), Manner(overwrite=True))
    assert own.read_text("utf-8") == "mine"
    with pytest.raises(AutosegError, match="has the number 12 already"):
        convert(layout_lists.msd(source), raw(tmp_path).with_name("Dataset012_Other"), Manner())


def test_a_damaged_case_is_told_and_no_dataset_appears(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12")
    broken = source / "imagesTr/scan_001.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData) as told:
        convert(layout_lists.msd(source), raw(tmp_path), Manner())
    assert [p.case for p in told.value.problems] == ["scan_001"]
    assert str(broken) in str(told.value)
    assert not raw(tmp_path).exists()
    broken.write_bytes(whole)
    made = convert(layout_lists.msd(source), raw(tmp_path), Manner())
    # the three others were kept
    assert (made.labelled, made.made) == (3, 1)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12", cases=5)
    (source / "imagesTr/scan_000.nii.gz").write_bytes(b"")
    (source / "imagesTr/scan_001.nii.gz").write_text("no image", encoding="utf-8")
    (source / "labelsTr/scan_002.nii.gz").unlink()
    nifti(source / "labelsTr/scan_003.nii.gz", np.zeros((3, 3, 3), np.uint8))
    draft = layout_lists.msd(source)
    assert [(p.case, p.what) for p in draft.problems] == [("scan_002", "a listed file is missing")]
    draft = Draft(**{**draft.__dict__, "problems": (), "cases": draft.cases[:2] + draft.cases[3:]})
    with pytest.raises(BadData) as told:
        convert(draft, raw(tmp_path), Manner())
    assert {p.case for p in told.value.problems} == {"scan_000", "scan_001", "scan_003"}
    assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").iterdir())


def test_undeclared_values_are_refused(tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12")
    nifti(source / "labelsTr/scan_001.nii.gz", drawing(1, (0, 1, 9)))
    with pytest.raises(BadData, match="values that are not declared"):
        convert(layout_lists.msd(source), raw(tmp_path), Manner())
    assert not raw(tmp_path).exists()


@pytest.mark.parametrize("link", ["hard", "soft"])
def test_links_instead_of_copies(link: str, tmp_path: Path) -> None:
    source = decathlon(tmp_path / "Task12")
    convert(layout_lists.msd(source), raw(tmp_path), Manner(link=link))  # type: ignore[arg-type]
    made = raw(tmp_path) / "imagesTr/scan_000_0000.nii.gz"
    assert made.samefile(source / "imagesTr/scan_000.nii.gz")
    assert made.is_symlink() == (link == "soft")


def case(tmp_path: Path, **rest: object) -> SourceCase:
    image = nifti(tmp_path / "source/image.nii", voxels(0))
    given = {"images": (Source((image,)),), **rest}
    return SourceCase("one", **given)  # type: ignore[arg-type]


def test_values_are_mapped_and_unknown_ones_are_an_error(tmp_path: Path) -> None:
    label = nifti(tmp_path / "source/label.nii", drawing(0, (0, 55, 60, 200)))
    one = case(tmp_path, label=Source((label,)))
    draft = Draft(
        (one,), ("CT",), {"background": 0, "a": 1, "b": 2}, ranges=ranges_of("0-55=0,56-70=1,200=2")
    )
    convert(draft, raw(tmp_path), Manner(pack=True))
    found = read(raw(tmp_path) / "labelsTr/one.nii")
    original = drawing(0, (0, 55, 60, 200))
    assert np.array_equal(found, (original == 60) * 1 + (original == 200) * 2)
    packed = raw(tmp_path) / "imagesTr/one_0000.nii.gz"
    assert np.array_equal(read(packed), voxels(0))
    worse = Draft((one,), ("CT",), {"background": 0, "a": 1}, ranges=ranges_of("0-55=0,60=1"))
    with pytest.raises(BadData, match=r"does not know.*\n  one: label.nii: 200"):
        convert(worse, raw(tmp_path).with_name("Dataset013_Other"), Manner())


def test_the_spacing_beside_a_tif_volume_goes_with_it(tmp_path: Path) -> None:
    stack = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    for name in ("image", "label"):
        path = tmp_path / f"s/{name}.tif"
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, stack % 2 if name == "label" else stack, photometric="minisblack")
        (tmp_path / f"s/{name}.json").write_text('{"spacing": [3.0, 0.75, 0.5]}')
    one = SourceCase(
        "a", (Source((tmp_path / "s/image.tif",)),), Source((tmp_path / "s/label.tif",))
    )
    convert(Draft((one,), ("CT",), {"background": 0, "a": 1}), raw(tmp_path), Manner())
    for written in ("imagesTr/a_0000.tif", "labelsTr/a.tif"):
        assert read_header(raw(tmp_path) / written).grid.spacing_mm == (0.5, 0.75, 3.0), written


def test_outside_of_the_field_of_view_nobody_labelled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = picture(tmp_path / "s/a.tif", rng.integers(0, 255, (9, 8, 3), np.uint8))
    label = picture(tmp_path / "s/a.gif", np.where(rng.random((9, 8)) < 0.5, 255, 0).astype("u1"))
    view = np.zeros((9, 8), np.uint8)
    view[2:7] = 255
    mask = picture(tmp_path / "s/view.gif", view)
    one = SourceCase("a", (Source((image,)),), Source((label,)), Source((mask,)))
    labels = {"background": 0, "vessel": 1, "ignore": 2}
    draft = Draft((one,), ("R", "G", "B"), labels, ranges=((0, 0, 0), (255, 255, 1)))
    convert(draft, raw(tmp_path), Manner())
    found = pixels(raw(tmp_path) / "labelsTr/a.png")
    inside = pixels(label) // 255
    assert np.array_equal(found, np.where(view == 0, 2, inside))
    assert (raw(tmp_path) / "imagesTr/a_0000.tif").read_bytes() == image.read_bytes()


def test_transparency_is_dropped_and_parts_are_joined(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 255, (9, 8, 4), np.uint8)
    image = picture(tmp_path / "s/a.png", stored)
    masks = []
    for n in range(3):
        mask = np.zeros((9, 8), np.uint8)
        mask[3 * n : 3 * n + 2, 2:5] = 255
        masks.append(picture(tmp_path / f"s/mask_{n}.png", mask))
    one = SourceCase("a", (Source((image,)),), Source(tuple(masks), "parts"))
    draft = Draft((one,), (), {"background": 0, "nucleus": 1}, ranges=((0, 0, 0), (255, 255, 1)))
    made = convert(draft, raw(tmp_path), Manner())
    assert made.channels == ("R", "G", "B")
    with Image.open(raw(tmp_path) / "imagesTr/a_0000.png") as found:
        assert found.mode == "RGB"
        assert np.array_equal(np.asarray(found), stored[..., :3])
    joined = pixels(raw(tmp_path) / "labelsTr/a.png")
    rows = [0, 1, 3, 4, 6, 7]
    assert joined.sum() == 18
    assert np.array_equal(np.flatnonzero(joined[:, 3]), rows)


def test_labels_that_nobody_declared_are_found(tmp_path: Path) -> None:
    label = nifti(tmp_path / "source/label.nii.gz", drawing(0, (0, 3, 255)))
    made = convert(Draft((case(tmp_path, label=Source((label,))),)), raw(tmp_path), Manner())
    assert made.labels == {"background": 0, "label 3": 3, "label 255": 255}


def test_a_stopped_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = decathlon(tmp_path / "Task12")
    real, done = conversion.make_case, []

    def stops(work: conversion.Work) -> conversion.Made:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(work.case.id)
        return real(work)

    monkeypatch.setattr(conversion, "make_case", stops)
    with pytest.raises(KeyboardInterrupt):
        convert(layout_lists.msd(source), raw(tmp_path), Manner())
    assert not raw(tmp_path).exists()
    monkeypatch.setattr(conversion, "make_case", real)
    assert convert(layout_lists.msd(source), raw(tmp_path), Manner()).made == 2
    assert len(list((raw(tmp_path) / MARK / "cases").iterdir())) == 4


def test_what_is_known_of_cases_stands_in_a_table(tmp_path: Path) -> None:
    label = nifti(tmp_path / "source/label.nii.gz", drawing(0))
    one = case(tmp_path, label=Source((label,)), facts={"patient": "p7", "site": "a, b"})
    convert(Draft((one,)), raw(tmp_path), Manner())
    table = read_table(raw(tmp_path) / "cases.csv", ["one"])
    assert table.patient_column == "patient"
    assert table.rows["one"] == {"patient": "p7", "site": "a, b"}


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "", "a\nb", "x" * 300])
def test_names_of_cases_that_are_no_names_of_files_are_refused(name: str, tmp_path: Path) -> None:
    one = SourceCase(name, (), Source(()))
    with pytest.raises(BadData, match="cannot be that of a file"):
        convert(Draft((one,)), raw(tmp_path), Manner())


def test_labels_and_values_are_read_as_they_are_written() -> None:
    assert labels_of("tumour=1, organ = 2") == {"background": 0, "tumour": 1, "organ": 2}
    nested = labels_of("background=0,whole=1+2+3,core=2+3,enhancing=3")
    assert nested == {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    assert order_of(nested) == (1, 2, 3)
    assert order_of({"background": 0, "a": 1}) is None
    assert ranges_of("0-127=0, 255=1") == ((0, 127, 0), (255, 255, 1))


@pytest.mark.parametrize("text", ["tumour", "a=x", "=1", "a=1,a=2", "a=1,b=1"])
def test_labels_that_are_none_are_told(text: str) -> None:
    with pytest.raises(AutosegError):
        labels_of(text)


@pytest.mark.parametrize("text", ["1", "a=1", "5-2=1", "0-9=0,9=1", "1=x"])
def test_values_that_are_none_are_told(text: str) -> None:
    with pytest.raises(AutosegError, match="--values"):
        ranges_of(text)
