"""DICOM series: found, told apart, chosen, laid on their grid, decoded; and what hostile files do.

The oracle of pixels and geometry is GDCM, through SimpleITK's series reader.
"""

import os
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("pylibjpeg")

from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from autoseg.errors import AutosegError, BadData, Problem  # noqa: E402
from autoseg.image.itk import RAS_FROM_LPS  # noqa: E402
from autoseg.interop.dicom import source as source_module  # noqa: E402
from autoseg.interop.dicom.choosing import choose, listed  # noqa: E402
from autoseg.interop.dicom.pixels import read_scan  # noqa: E402
from autoseg.interop.dicom.series import find  # noqa: E402
from autoseg.interop.dicom.source import holds_dicom, is_dicom, need  # noqa: E402
from tests.interop.dicom_phantom import (  # noqa: E402
    PLANES,
    blobs,
    slice_dataset,
    write_enhanced,
    write_series,
)

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def read_one(path: Path, wanted: tuple[str, ...] = (), **how):
    scans, problems = choose(find(path), wanted)
    assert len(scans) == 1
    volume, found = read_scan(scans[0], "stored", **how)
    return volume, [*problems, *found]


def gdcm(folder: Path):
    reader = sitk.ImageSeriesReader()
    (series,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
    return reader.Execute()


def affine_of(image) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return RAS_FROM_LPS @ lps


def rules(problems: list[Problem]) -> list[str]:
    return [problem.what for problem in problems]


def refusal(path: Path) -> str:
    """What is said of a source that cannot be read; a traceback would fail the test."""
    with pytest.raises(AutosegError) as caught:
        found = find(path)
        if any(problem.fatal for problem in found.problems):
            raise BadData(found.problems)
        scans, _ = choose(found)
        read_scan(scans[0], "stored")
    return str(caught.value)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("reverse", [False, True])
def test_voxels_and_grid_are_those_of_gdcm(tmp_path: Path, plane: str, reverse: bool) -> None:
    write_series(tmp_path, plane=plane, reverse=reverse)
    volume, problems = read_one(tmp_path)
    image = gdcm(tmp_path)
    assert problems == []
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.grid.affine, affine_of(image), atol=1e-4)


def test_the_real_series_is_read_as_gdcm_reads_it(tmp_path: Path, real_data: Path) -> None:
    folder = real_data / "volumes" / "dicom" / "ct_jpeg2000"
    if not folder.is_dir():
        pytest.skip("no real series")
    for path in sorted(folder.iterdir())[:5]:
        shutil.copy(path, tmp_path)
    volume, problems = read_one(tmp_path)
    image = gdcm(tmp_path)
    assert problems == []
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.grid.affine, affine_of(image), atol=1e-4)


def test_axes_turn_a_series_as_they_turn_any_volume(tmp_path: Path) -> None:
    stored = blobs()
    write_series(tmp_path, stored, plane="coronal")
    scans, _ = choose(find(tmp_path))
    volume, _ = read_scan(scans[0], "SAR")
    # columns run to L, rows to I, and coronal slices lie from front to back: normal +y is P
    back = stored.transpose(1, 0, 2)[::-1]
    turned = back[:, ::-1] if volume.grid.orientation[2] == "P" else back
    np.testing.assert_array_equal(volume.array[0], turned[:, :, ::-1] - 1024.0)


def test_every_slice_is_rescaled_by_its_own_numbers(tmp_path: Path) -> None:
    stored = blobs()
    write_series(
        tmp_path, stored, per_slice=lambda n: {"RescaleSlope": 0.5 + n, "RescaleIntercept": n}
    )
    volume, _ = read_one(tmp_path)
    expected = [pixels * (0.5 + n) + n for n, pixels in enumerate(stored)]
    np.testing.assert_allclose(volume.array[0], expected, rtol=1e-6)


def test_an_enhanced_file_is_ordered_by_the_position_of_its_frames(tmp_path: Path) -> None:
    stored = blobs()
    write_enhanced(tmp_path / "e.dcm", stored, [3, 0, 5, 1, 4, 2])
    volume, problems = read_one(tmp_path)
    expected = [pixels * (2.0 + n) - 3.0 for n, pixels in enumerate(stored)]
    assert problems == []
    np.testing.assert_array_equal(volume.array[0], np.asarray(expected, np.float32))
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))


def test_a_zip_holds_the_same_as_its_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "a").iterdir():
            archive.write(path, f"../../{path.name}")
    packed, _ = read_one(tmp_path / "a.zip")
    plain, _ = read_one(tmp_path / "a")
    np.testing.assert_array_equal(packed.array, plain.array)
    assert packed.grid == plain.grid
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.zip"]
    assert holds_dicom(tmp_path / "a.zip") and holds_dicom(tmp_path / "a")


# ---- transfer syntaxes and pixels


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian])
def test_compressed_slices_hold_the_same_values(tmp_path: Path, syntax: str) -> None:
    stored = blobs((4, 20, 24))
    for dataset in write_series(tmp_path, stored):
        if syntax == RLELossless:
            dataset.compress(RLELossless)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
        number = int(dataset.InstanceNumber)
        dataset.save_as(tmp_path / f"s{number:03d}.dcm", enforce_file_format=True)
    volume, _ = read_one(tmp_path)
    np.testing.assert_array_equal(volume.array[0], stored - 1024.0)


def test_big_endian_is_read(tmp_path: Path) -> None:
    dataset = slice_dataset(blobs()[0])
    swapped = dataset.PixelData
    dataset.PixelData = np.frombuffer(swapped, "<i2").astype(">i2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.save_as(tmp_path / "b.dcm", implicit_vr=False, little_endian=False)
    volume, _ = read_one(tmp_path)
    np.testing.assert_array_equal(volume.array[0, 0], blobs()[0] - 1024.0)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_one_picture_in_every_lossless_syntax_is_the_same(name: str) -> None:
    plain, _ = read_one(PYDICOM_FILES / "MR_small.dcm")
    other, _ = read_one(PYDICOM_FILES / name)
    np.testing.assert_array_equal(other.array, plain.array)


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "JPGExtended.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_other_syntaxes_are_read_as_gdcm_reads_them(name: str) -> None:
    volume, _ = read_one(PYDICOM_FILES / name)
    try:
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(PYDICOM_FILES / name)))
    except RuntimeError:
        pytest.skip("GDCM cannot read it")
    found = volume.array.reshape(expected.shape)
    assert np.abs(found - expected).max() <= (1 if "Extended" in name else 0)


def test_a_missing_decoder_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = pydicom.pixels.decoders.JPEG2000LosslessDecoder
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(AutosegError, match="run: pip install pydicom"):
        read_one(PYDICOM_FILES / "MR_small_jp2klossless.dcm")


def test_a_film_is_no_volume() -> None:
    assert "frames do not say where they lie" in refusal(PYDICOM_FILES / "SC_rgb_rle_2frame.dcm")


def test_colours_are_channels() -> None:
    volume, _ = read_one(PYDICOM_FILES / "SC_rgb_small_odd.dcm")
    expected = pydicom.dcmread(PYDICOM_FILES / "SC_rgb_small_odd.dcm").pixel_array
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(expected, -1, 0))
    assert not volume.grid.placed


def test_bits_above_those_in_use_are_no_part_of_the_value(tmp_path: Path) -> None:
    stored = blobs((1, 8, 8))[0] % 4096
    dirty = (stored | 0x4000).astype(np.int16)
    dataset = slice_dataset(dirty, BitsStored=12, HighBit=11, PixelRepresentation=0)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume, _ = read_one(tmp_path)
    np.testing.assert_array_equal(volume.array[0, 0], stored - 1024.0)


@pytest.mark.parametrize(("modality", "turned"), [("DX", True), ("CT", False)])
def test_a_negative_is_turned_over_unless_it_is_a_measurement(
    tmp_path: Path, modality: str, turned: bool
) -> None:
    stored = blobs((1, 8, 8))[0]
    slice_dataset(
        stored,
        Modality=modality,
        PhotometricInterpretation="MONOCHROME1",
        PixelRepresentation=0,
        BitsStored=12,
        HighBit=11,
        RescaleIntercept=0,
    ).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume, problems = read_one(tmp_path)
    np.testing.assert_array_equal(volume.array[0, 0], 4095 - stored if turned else stored)
    assert ("the image is stored as a negative" in rules(problems)) == turned


@pytest.mark.parametrize("written", [-2000, 63536])
def test_padding_that_stands_out_takes_the_lowest_real_value(tmp_path: Path, written: int) -> None:
    stored = blobs()
    stored[:, :3] = -2000
    tag = pydicom.tag.Tag("PixelPaddingValue")
    element = pydicom.DataElement(tag, "SS" if written < 0 else "US", written)
    for number, dataset in enumerate(write_series(tmp_path, stored)):
        dataset[tag] = element
        dataset.save_as(tmp_path / f"s{number + 1:03d}.dcm", enforce_file_format=True)
    volume, problems = read_one(tmp_path)
    lowest = stored[:, 3:].min() - 1024
    assert np.all(volume.array[0, :, :3] == lowest)
    np.testing.assert_array_equal(volume.array[0, :, 3:], stored[:, 3:] - 1024.0)
    assert rules(problems) == ["the scanner filled a part of the image with padding"]


# ---- geometry that is odd


def test_a_missing_slice_is_told_with_its_place(tmp_path: Path) -> None:
    write_series(tmp_path, blobs((8, 8, 8)), without=(3, 4))
    assert "slices of a series are missing" in refusal(tmp_path)
    assert "2 missing at 2.5 mm spacing, after slice 3" in refusal(tmp_path)
    volume, problems = read_one(tmp_path, accept_uneven=True)
    assert volume.array.shape == (1, 6, 8, 8)
    assert [problem.fatal for problem in problems] == [False]


def test_uneven_slices_are_told_and_rounded_positions_are_not(tmp_path: Path) -> None:
    write_series(tmp_path / "a", per_slice=lambda n: {"ImagePositionPatient": [0, 0, n**1.3]})
    assert "the slices are not evenly spaced" in refusal(tmp_path / "a")
    write_series(
        tmp_path / "b", per_slice=lambda n: {"ImagePositionPatient": [0, 0, round(n * 0.625, 2)]}
    )
    assert read_one(tmp_path / "b")[1] == []


def test_a_tilted_gantry_gives_a_sheared_grid_and_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path, shift=(0.0, 0.7, 0.0))
    volume, problems = read_one(tmp_path)
    assert rules(problems) == ["the image axes are not at right angles"]
    assert not problems[0].fatal
    affine = np.asarray(volume.grid.affine)
    np.testing.assert_allclose(affine[:3, 2], [0.0, -0.7, 2.5], atol=1e-5)


def test_slices_off_the_line_are_told(tmp_path: Path) -> None:
    write_series(
        tmp_path, per_slice=lambda n: {"ImagePositionPatient": [3.0 * (n == 2), 0, 2.5 * n]}
    )
    assert "the slices do not lie in one line" in refusal(tmp_path)


def test_a_file_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    write_series(tmp_path)
    shutil.copy(tmp_path / "s002.dcm", tmp_path / "copy of s002.dcm")
    volume, problems = read_one(tmp_path)
    assert volume.array.shape[1] == 6
    assert rules(list(find(tmp_path).problems)) == ["an image is there twice"]
    assert problems == []


def test_equal_slices_in_one_place_count_once_and_different_ones_are_told(tmp_path: Path) -> None:
    stored = blobs()
    write_series(tmp_path, stored)
    position = [-20.0, 13.0, 42.5]
    twin = slice_dataset(stored[1], ImagePositionPatient=position)
    twin.save_as(tmp_path / "twin.dcm", enforce_file_format=True)
    volume, problems = read_one(tmp_path)
    np.testing.assert_array_equal(volume.array[0], stored - 1024.0)
    assert rules(problems) == ["slices are there twice"]
    other = slice_dataset(stored[2], ImagePositionPatient=position)
    other.save_as(tmp_path / "twin.dcm", enforce_file_format=True)
    assert "two different slices lie in one place" in refusal(tmp_path)


# ---- several series


@pytest.mark.parametrize(
    ("entry", "values", "part"),
    [
        ("EchoTime", (4.2, 8.4), "echo time 4.2"),
        ("TemporalPositionIdentifier", (1, 2), "time point 1"),
        ("DiffusionBValue", (0.0, 800.0), "b-value 0.0"),
        ("AcquisitionNumber", (5, 6), "acquisition 5"),
        ("AcquisitionTime", ("101500", "101700"), "time 1 of 2"),
    ],
)
def test_what_differs_in_one_place_tells_volumes_of_a_series_apart(
    tmp_path: Path, entry: str, values: tuple, part: str
) -> None:
    for number, value in enumerate(values):
        write_series(tmp_path / str(number), blobs(seed=number), **{entry: value})
    found = find(tmp_path)
    assert [len(series.frames) for series in found.series] == [6, 6]
    assert found.series[0].part == part
    volume, _ = read_one(tmp_path, ("2",))
    np.testing.assert_array_equal(volume.array[0], blobs(seed=1) - 1024.0)


def test_an_acquisition_number_a_slice_does_not_tear_a_series_apart(tmp_path: Path) -> None:
    write_series(tmp_path, per_slice=lambda n: {"AcquisitionNumber": n, "EchoTime": 3 + n % 2})
    assert [len(series.frames) for series in find(tmp_path).series] == [6]


def test_several_series_are_listed_and_chosen_never_guessed(tmp_path: Path) -> None:
    write_series(tmp_path / "a", SeriesInstanceUID="1.2.5", SeriesNumber=2)
    second = blobs(seed=1)
    write_series(
        tmp_path / "b", second, SeriesInstanceUID="1.2.6", SeriesNumber=4, SeriesDescription="Lung"
    )
    said = refusal(tmp_path)
    assert "2 series of" in said and "Body 3.0" in said and "UID 1.2.6" in said
    for term in ("2", "1.2.6", "lung", "Lung"):
        volume, _ = read_one(tmp_path, (term,))
        np.testing.assert_array_equal(volume.array[0], second - 1024.0)
    with pytest.raises(AutosegError, match="no series fits 'brain'"):
        choose(find(tmp_path), ["brain"])
    with pytest.raises(AutosegError, match="2 series fit 'ct'"):
        choose(find(tmp_path), ["ct"])
    both, _ = choose(find(tmp_path), ["all"])
    assert [scan.case for scan in both] == [f"{tmp_path.name}_1", f"{tmp_path.name}_2"]


def test_two_series_are_two_channels_in_the_order_asked(tmp_path: Path) -> None:
    write_series(tmp_path / "a", SeriesInstanceUID="1.2.5", SeriesDescription="T1")
    second = blobs(seed=1)
    write_series(tmp_path / "b", second, SeriesInstanceUID="1.2.6", SeriesDescription="FLAIR")
    volume, _ = read_one(tmp_path, ("flair", "t1"))
    np.testing.assert_array_equal(volume.array, np.stack([second, blobs()]) - 1024.0)
    write_series(tmp_path / "a", SeriesInstanceUID="1.2.5", SeriesDescription="T1", spacing_mm=3.0)
    with pytest.raises(BadData, match="not in the same place"):
        read_one(tmp_path, ("flair", "t1"))


def test_every_patient_is_a_case_and_localizers_are_left_out(tmp_path: Path) -> None:
    for patient in ("anna", "bert"):
        study = f"1.2.{len(patient)}{patient == 'bert':d}"
        write_series(tmp_path / patient / "ct", PatientID=patient.upper(), StudyInstanceUID=study)
        write_series(
            tmp_path / patient / "scout",
            blobs((3, 20, 24)),
            PatientID=patient.upper(),
            StudyInstanceUID=study,
            SeriesInstanceUID="1.2.99",
            ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        )
    scans, problems = choose(find(tmp_path))
    assert [scan.case for scan in scans] == ["anna", "bert"]
    assert rules(problems) == ["a series was left out"] * 2
    assert listed(find(tmp_path)).count("Body 3.0") == 4


def test_other_objects_of_a_study_are_no_images(tmp_path: Path) -> None:
    write_series(tmp_path)
    for name in ("rtstruct.dcm", "reportsi.dcm", "rtplan.dcm", "rtdose.dcm"):
        shutil.copy(PYDICOM_FILES / name, tmp_path)
    shutil.copy(PYDICOM_FILES / "dicomdirtests" / "DICOMDIR", tmp_path)
    (tmp_path / "notes.txt").write_text("not DICOM")
    found = find(tmp_path)
    assert (len(found.series), len(found.structures), found.passed_over) == (1, 1, 1)
    assert found.problems == ()


# ---- hostile and damaged files


def test_a_cut_off_slice_is_named(tmp_path: Path) -> None:
    write_series(tmp_path)
    path = tmp_path / "s003.dcm"
    path.write_bytes(path.read_bytes()[:-300])
    assert "s003.dcm" in refusal(tmp_path) and "cut off" in refusal(tmp_path)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "deflated", "RLE"])
def test_a_slice_with_half_of_its_pixels_is_told_as_cut_off(tmp_path: Path, syntax: str) -> None:
    """However it is stored; and it is never advised to leave a gap in its place."""
    path = tmp_path / "s003.dcm"
    dataset = write_series(tmp_path, blobs((6, 60, 48)))[2]
    if syntax == "RLE":
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax == "deflated":
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    elif syntax == "implicit":
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(0.7 * len(whole))])
    said = refusal(tmp_path)
    assert "s003.dcm" in said
    assert "cut off" in said
    assert "or take the file out" not in said


@pytest.mark.parametrize("kept", [140, 200, 400, 700])
def test_a_header_cut_anywhere_is_an_explained_problem(tmp_path: Path, kept: int) -> None:
    """Of the last slice, too, which leaves no gap."""
    write_series(tmp_path)
    path = tmp_path / "s006.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    assert "s006.dcm" in refusal(tmp_path) and "cut off" in refusal(tmp_path)


def test_a_huge_image_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    write_series(tmp_path, Rows=65535, Columns=65535)
    assert "does not fit into memory" in refusal(tmp_path) or "cut off" in refusal(tmp_path)
    dataset = slice_dataset(blobs()[0])
    dataset.compress(RLELossless)
    dataset.Rows = dataset.Columns = 65535
    (tmp_path / "rle").mkdir()
    dataset.save_as(tmp_path / "rle" / "a.dcm", enforce_file_format=True)
    assert refusal(tmp_path / "rle")


@pytest.mark.parametrize(
    "values",
    [
        {"PixelSpacing": None},
        {"PixelSpacing": [0, 0]},
        {"Rows": 0},
        {"Rows": None},
        {"NumberOfFrames": 2000000000},
        {"NumberOfFrames": 150000},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"BitsAllocated": 12},
        {"SamplesPerPixel": 7},
        {"PhotometricInterpretation": None},
    ],
)
def test_missing_and_senseless_entries_are_explained(tmp_path: Path, values: dict) -> None:
    write_series(tmp_path, **values)
    assert refusal(tmp_path)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "free_bytes", lambda: 8 << 20)
    monkeypatch.setattr(source_module, "SMALL", 1 << 20)
    dataset = slice_dataset(blobs()[0])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    raw = (tmp_path / "deflated.dcm").read_bytes()
    meta = 144 + int.from_bytes(raw[140:144], "little")
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(12 << 20)) + packer.flush()
    (tmp_path / "deflated.dcm").write_bytes(raw[:meta] + bomb)
    assert "unpacks to more than" in refusal(tmp_path)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(128) + b"DICM" + bytes(3 << 20))
    assert "not a real image" in refusal(tmp_path / "bomb.zip")


def test_dicom_is_known_by_its_content_with_and_without_a_preamble() -> None:
    def start(name: str) -> bytes:
        return (PYDICOM_FILES / name).read_bytes()[:140]

    for name in ("CT_small.dcm", "ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm"):
        assert is_dicom(start(name)), name
    for other in (b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n" * 20, b"\x1f\x8b\x08\x00" * 40):
        assert not is_dicom(other)


def test_damaged_zips_and_empty_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + os.urandom(64))
    assert "no readable zip" in refusal(tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    assert "holds no DICOM image" in refusal(tmp_path / "empty")
    assert not holds_dicom(tmp_path / "empty")


def test_pydicoms_own_odd_files_never_end_in_a_traceback() -> None:
    """Every file either is read, is no image, or is explained."""
    told = read = 0
    for path in sorted(PYDICOM_FILES.glob("*.dcm")):
        try:
            found = find(path)
            if found.problems or not found.series:
                told += 1
                continue
            scans, _ = choose(found, ["all"])
            volume, _ = read_scan(scans[0], "stored")
            read += volume.array.size > 0
        except AutosegError as error:
            assert str(error)
            told += 1
    assert read >= 40
    assert told >= 15


def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(AutosegError, match=r"pip install pydicom highdicom"):
        need("pydicom_that_nobody_has")
