"""A series in, a result on it out: written once, in a second form without segmenting again."""

import logging
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("highdicom")

import pydicom

from autoseg import api
from autoseg.errors import AutosegError, BadData
from autoseg.files import Lock
from autoseg.flow import use
from autoseg.flow.dicom import segmented
from autoseg.interop.dicom.choosing import choose
from autoseg.interop.dicom.labels import read_structures
from autoseg.interop.dicom.modality import modality_of
from autoseg.interop.dicom.series import find
from autoseg.models.members import Model
from tests.interop.dicom_phantom import blobs, write_enhanced, write_series

SHAPE = (8, 20, 24)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_series(tmp_path / "patient", blobs(SHAPE))
    return tmp_path / "patient"


def times(folder: Path) -> dict[str, int]:
    """When each file was last written, but for locks."""
    return {
        str(p): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".lock"
    }


def drawn(folder: Path, path: Path, names: dict[str, int]) -> np.ndarray:
    """What a written result says on its series, by label values (column, row, slice)."""
    os.link(path, folder / "result.dcm")
    found = find(folder)
    (structures,) = found.structures
    assert set(structures.names) <= set(names)
    (scan,), _ = choose(found)
    volume, _ = read_structures([structures], scan.channels[0], names, "stored", "patient")
    (folder / "result.dcm").unlink()
    return np.asarray(volume.array[0])


def test_a_series_is_segmented_once_and_put_back_in_every_form(
    one_network: Model, series: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = segmented(one_network, series, out, form="dicom-seg", device="cpu")
    assert [p.name for p in done.written] == ["patient.nii.gz"]
    assert [p.name for p in done.results] == ["patient.seg.dcm"]
    first, second = done.lines()
    assert first == "1 label map written"
    assert "patient.seg.dcm" in second

    image = nib.load(out / "patient.nii.gz")
    labels = np.asarray(image.dataobj)
    assert labels.shape == SHAPE[::-1]
    assert {1, 4} & set(np.unique(labels).tolist())
    values = {"liver": 1, "tumour_a": 4}
    back = drawn(series, out / "patient.seg.dcm", values)
    assert np.array_equal(np.sort(np.unique(back)), np.unique(labels))
    for value in values.values():
        assert np.count_nonzero(back == value) == np.count_nonzero(labels == value)

    before = times(out)
    again = segmented(one_network, series, out, form="dicom-seg", device="cpu")
    assert (again.written, again.results, again.skipped) == ([], [], 1)
    assert times(out) == before

    contours = segmented(one_network, series, out, form="rtstruct", device="cpu")
    assert (contours.written, contours.skipped) == ([], 1)
    assert [p.name for p in contours.results] == ["patient.rtstruct.dcm"]
    assert {p: t for p, t in times(out).items() if p in before} == before
    assert np.array_equal(drawn(series, out / "patient.rtstruct.dcm", values), back)


def test_refused_series_leave_nothing_behind(
    one_network: Model, series: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(AutosegError, match=r"no series fits 'lung'"):
        segmented(one_network, series, out, series=["lung"], device="cpu")
    (series / "s004.dcm").unlink()
    with pytest.raises(BadData, match=r"slices of a series are missing(.|\n)*--accept-uneven"):
        segmented(one_network, series, out, device="cpu")
    assert not out.exists()


def test_a_gap_is_taken_as_even_only_while_that_is_asked(
    one_network: Model, series: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (series / "s004.dcm").unlink()
    how = {"form": "dicom-seg", "device": "cpu"}
    with caplog.at_level(logging.WARNING):
        done = segmented(one_network, series, tmp_path / "out", accept_uneven=True, **how)
    assert [p.name for p in done.results] == ["patient.seg.dcm"]
    assert "slices of a series are missing" in caplog.text
    with pytest.raises(BadData, match="slices of a series are missing"):
        segmented(one_network, series, tmp_path / "out", **how)


def test_another_time_point_of_one_file_is_segmented_anew(
    one_network: Model, tmp_path: Path
) -> None:
    first, second = blobs(SHAPE), blobs(SHAPE, seed=1)
    path = write_enhanced(tmp_path / "mr" / "e.dcm", first, [*range(8), *range(8)])
    dataset = pydicom.dcmread(path)
    dataset.PixelData = np.concatenate([first, second]).tobytes()
    dataset.save_as(path)
    for number, stored in (("1", first), ("2", second)):
        done = segmented(one_network, path.parent, tmp_path / "out", series=[number], device="cpu")
        assert [p.name for p in done.written] == ["mr.nii.gz"]
        image = nib.load(tmp_path / "out" / ".autoseg" / "dicom" / "mr_0000.nii.gz")
        rescaled = stored * (2.0 + np.arange(8)[:, None, None]) - 3.0
        np.testing.assert_array_equal(image.get_fdata(), rescaled.transpose(2, 1, 0))


def test_a_scan_that_another_process_reads_is_left_to_it(
    one_network: Model, series: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Lock(out / ".autoseg" / "dicom" / "patient.lock", "scan patient"):
        done = segmented(one_network, series, out, form="dicom-seg", device="cpu")
    assert (done.written, done.results, done.elsewhere) == ([], [], ["patient"])


def test_another_modality_is_a_warning_and_with_strict_an_error(
    one_network: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path / "head", blobs(SHAPE), Modality="MR")
    with caplog.at_level(logging.WARNING):
        done = segmented(one_network, tmp_path / "head", tmp_path / "out", device="cpu")
    assert len(done.written) == 1
    assert "MR (Body 3.0), the model takes CT (channel 'CT')" in caplog.text
    with pytest.raises(BadData, match="another modality"):
        segmented(one_network, tmp_path / "head", tmp_path / "strict", strict=True, device="cpu")
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    ("channel", "modality"),
    [
        ("CT", "CT"), ("CT2", "CT"), ("ct_venous", "CT"), ("MRI", "MR"), ("T1w", "MR"), ("T2", "MR"),
        ("t1_ce", "MR"), ("FLAIR", "MR"), ("ADC", "MR"), ("PET", "PT"), ("SUV", "PT"),
        ("PET/CT", None), ("rescale_to_0_1", None), ("noNorm", None), ("image", None),
        ("R", None), ("fat", None), ("actin", None),
    ],
)  # fmt: skip
def test_a_channels_name_tells_its_modality_or_nothing(channel: str, modality: str | None) -> None:
    assert modality_of(channel) == modality


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"no image")
    return path


def test_inputs_that_hold_no_dicom_are_told_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "zero.zip").touch()
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "nodcm").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "scan_0000.nii.gz").write_bytes(b"\x1f\x8b")
    zipped(tmp_path / "empty.zip")
    zipped(tmp_path / "slip.zip", "../SLIP.dcm")
    zipped(tmp_path / "nifti.zip", "scan_0000.nii.gz")
    for name, *told in (
        ("zero.zip", "is empty (0 bytes)"),
        ("empty.zip", "is an empty zip"),
        ("text.zip", "nor a zip of it"),
        ("slip.zip", "holds no DICOM, but ../SLIP.dcm"),
        ("nifti.zip", "holds no DICOM, but scan_0000.nii.gz", "unpack it"),
        ("in/scan_0000.nii.gz", "is one image", f"-i {(tmp_path / 'in').resolve()}"),
        ("nodcm", "holds no", "DICOM files in it or in folders below it", "CASE_0000.nii.gz"),
        ("absent", "it does not exist"),
    ):
        path = tmp_path / name
        for options in ({}, {"format": "dicom-seg"}, {"accept_uneven": True}):
            with pytest.raises(AutosegError) as caught:
                if options:
                    api.predict(path, tmp_path / "out", model="any", root=tmp_path, **options)
                else:
                    use.input_cases(path, None)
            for words in (name, *told):
                assert words in str(caught.value), (name, options)
    with pytest.raises(AutosegError, match=r"--accept-uneven: for DICOM only; .* other formats"):
        api.predict(tmp_path / "in", tmp_path / "out", model="any", accept_uneven=True)
    assert not (tmp_path / "out").exists()
