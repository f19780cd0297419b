"""DICOM as clinics really hand it over: odd, damaged or hostile, each told in a line or read right."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("pylibjpeg")

from pydicom.encaps import encapsulate, generate_frames  # noqa: E402

from autoseg.errors import AutosegError, BadData  # noqa: E402
from autoseg.interop.dicom import source as source_module  # noqa: E402
from autoseg.interop.dicom.choosing import choose, listed  # noqa: E402
from autoseg.interop.dicom.packed import size_of  # noqa: E402
from autoseg.interop.dicom.pixels import read_scan  # noqa: E402
from autoseg.interop.dicom.series import find  # noqa: E402
from autoseg.interop.dicom.source import holds_dicom  # noqa: E402
from tests.interop.dicom_phantom import blobs, slice_dataset, write_series  # noqa: E402

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
NOWHERE = {"ImagePositionPatient": None}


def read(path: Path, *wanted: str, **how):
    """The volume of a source and all that was told of it. Raises AutosegError, as a command does."""
    found = find(path)
    if any(problem.fatal for problem in found.problems):
        raise BadData(found.problems)
    scans, left = choose(found, wanted)
    volume, odd = read_scan(scans[0], "stored", **how)
    return volume, [problem.what for problem in (*found.problems, *left, *odd)]


def refusal(path: Path, *wanted: str, **how) -> str:
    with pytest.raises(AutosegError) as caught:
        read(path, *wanted, **how)
    return str(caught.value)


# ---- files that are there in another way


def bare(folder: Path, *, meta: bool) -> None:
    """Take the preamble off every file of a series, and without `meta` its own header too."""
    for path in folder.iterdir():
        raw = path.read_bytes()
        after = 144 + int.from_bytes(raw[140:144], "little")
        path.write_bytes(raw[132:] if meta else raw[after:])


@pytest.mark.parametrize("meta", [True, False])
def test_files_without_a_preamble_are_an_input(tmp_path: Path, meta: bool) -> None:
    write_series(tmp_path)
    bare(tmp_path, meta=meta)
    assert holds_dicom(tmp_path) and holds_dicom(tmp_path / "s001.dcm")
    volume, told = read(tmp_path)
    np.testing.assert_array_equal(volume.array[0], blobs() - 1024.0)
    assert told == []


def test_links_are_followed_once_and_those_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    write_series(tmp_path / "disk" / "ct")
    (tmp_path / "disk" / "ct" / "back").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "ct" / "a").symlink_to(tmp_path / "disk" / "ct" / "b")
    (tmp_path / "disk" / "ct" / "b").symlink_to(tmp_path / "disk" / "ct" / "a")
    os.mkfifo(tmp_path / "disk" / "pipe")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "patient").symlink_to(tmp_path / "disk")
    assert holds_dicom(tmp_path / "in")
    volume, told = read(tmp_path / "in")
    assert volume.array.shape == (1, 6, 20, 24)
    assert told == ["a link leads to no file"] * 2


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_zip_of_any_packing_is_read_and_a_damaged_one_is_told(
    tmp_path: Path, method: int
) -> None:
    write_series(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for path in (tmp_path / "a").iterdir():
            archive.write(path, path.name)
    volume, _ = read(tmp_path / "a.zip")
    np.testing.assert_array_equal(volume.array[0], blobs() - 1024.0)
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[100:400] = bytes(byte ^ 0x5A for byte in raw[100:400])
    (tmp_path / "bad.zip").write_bytes(raw)
    assert "a DICOM file cannot be used" in refusal(tmp_path / "bad.zip")
    holds_dicom(tmp_path / "bad.zip")


def test_an_encrypted_zip_is_told_as_such(tmp_path: Path) -> None:
    write_series(tmp_path / "a", blobs((1, 8, 8)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a" / "s001.dcm", "s001.dcm")
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    assert holds_dicom(tmp_path / "a.zip")
    assert "encrypted" in refusal(tmp_path / "a.zip")


def test_what_is_there_instead_of_images_is_named(tmp_path: Path) -> None:
    for name in ("rtdose.dcm", "rtplan.dcm", "README.txt"):
        (tmp_path / name).write_bytes((PYDICOM_FILES / name).read_bytes())
    said = refusal(tmp_path)
    assert "1 of RTDOSE, 1 of RTPLAN" in said
    assert "no DICOM (files: 1)" in said
    assert "only what was drawn on others" in refusal(PYDICOM_FILES / "liver_1frame.dcm")


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "it is empty"), (b"<html>404</html>", "its content is none")]
)
def test_a_slice_that_was_lost_on_its_way_is_missed(
    tmp_path: Path, content: bytes, told: str
) -> None:
    """The last one leaves no gap, and would be passed over as any other file."""
    write_series(tmp_path)
    (tmp_path / "s006.dcm").write_bytes(content)
    (tmp_path / "notes").write_bytes(content)
    assert f"s006.dcm: its name says that it is DICOM, but {told}" in refusal(tmp_path)
    (tmp_path / "s006.dcm").unlink()
    assert read(tmp_path)[0].array.shape[1] == 5


def test_slices_that_all_have_one_uid_are_still_slices(tmp_path: Path) -> None:
    write_series(tmp_path, SOPInstanceUID="1.2.3")
    volume, told = read(tmp_path)
    np.testing.assert_array_equal(volume.array[0], blobs() - 1024.0)
    assert told == []


# ---- more in a file than it says, or less


@pytest.mark.parametrize("values", [{"Rows": 10}, {"Rows": 19}, {"Columns": 23}])
def test_more_pixels_than_rows_and_columns_are_refused(tmp_path: Path, values: dict) -> None:
    write_series(tmp_path, **values)
    assert "960 bytes of pixels" in refusal(tmp_path)


def test_a_byte_that_only_fills_up_is_no_excess() -> None:
    path = PYDICOM_FILES / "SC_rgb_small_odd_big_endian.dcm"
    volume, _ = read(path)
    expected = pydicom.dcmread(path).pixel_array
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(expected, -1, 0))


SIZES = {
    "MR_small_jp2klossless.dcm": (64, 64), "MR_small_jpeg_ls_lossless.dcm": (64, 64),
    "JPGExtended.dcm": (1024, 256), "SC_rgb_jpeg_gdcm.dcm": (100, 100),
    "693_J2KI.dcm": (512, 512), "SC_rgb_jpeg_dcmtk.dcm": (100, 100),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_the_size_of_packed_pixels_is_known_before_they_are_unpacked(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = pydicom.dcmread(PYDICOM_FILES / name)
    (packed,) = generate_frames(dataset.PixelData, number_of_frames=1)
    rows, columns = SIZES[name]
    assert size_of(packed) == (rows, columns)
    # a bomb: the few bytes ask for gigabytes
    pair = 4 if "_jp2k" in name or "J2K" in name else 2
    small = rows.to_bytes(pair, "big"), columns.to_bytes(pair, "big")
    huge = (60000).to_bytes(pair, "big")
    swapped = small[1] + small[0] if pair == 4 else small[0] + small[1]
    assert swapped in packed
    dataset.PixelData = encapsulate([packed.replace(swapped, huge + huge)])
    dataset.save_as(tmp_path / "bomb.dcm")
    monkeypatch.setattr("pydicom.pixels.iter_pixels", None)
    said = refusal(tmp_path / "bomb.dcm")
    assert f"its packed pixels are 60000 x 60000, its header says {rows} x {columns}" in said


@pytest.mark.parametrize(
    "packed", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda" + bytes(20), b"\xff\xd8" + bytes(40),
               b"\xff\x4f\xff\x51\0\0", b"\xff\xd8" + b"\xff" * 40, bytes(64)],
)  # fmt: skip
def test_packed_pixels_of_no_known_kind_have_no_size(packed: bytes) -> None:
    assert size_of(packed) is None


def test_a_file_of_zeros_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "MOST_ELEMENTS", 100)
    write_series(tmp_path)
    path = tmp_path / "s006.dcm"
    whole = path.read_bytes()
    # behind the pixels zeros do no harm and are not even looked at
    path.write_bytes(whole + bytes(8 * 200))
    assert read(tmp_path)[0].array.shape[1] == 6
    path.write_bytes(bytes(128) + b"DICM" + bytes(8 * 200))
    assert "s006.dcm: zeros follow its preamble" in refusal(tmp_path)
    path.write_bytes(whole[:400] + bytes(8 * 200))
    assert "s006.dcm: more than 100 elements" in refusal(tmp_path)


def test_what_cannot_be_unpacked_is_told_with_the_reason(tmp_path: Path) -> None:
    dataset = slice_dataset(blobs((1, 8, 8))[0])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    dataset.PixelData = encapsulate([b"rubbish!"])
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    said = refusal(tmp_path)
    assert "raised by all available plugins: pylibjpeg: " in said
    assert "uncompressed" in said


# ---- places, sizes and directions that make no sense


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"PixelSpacing": [-0.8, 0.7]}, "PixelSpacing is -0.8 x 0.7"),
        ({"PixelSpacing": [0.8, 0]}, "PixelSpacing is 0.8 x 0"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, "no unit vectors"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, "no unit vectors"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "stored as mosaics"),
    ],
)
def test_what_would_give_a_wrong_volume_is_refused(tmp_path: Path, values: dict, told: str) -> None:
    write_series(tmp_path, per_slice=lambda n: values)
    assert told in refusal(tmp_path)
    assert told in refusal(tmp_path, "1")


def test_a_mosaic_beside_a_volume_is_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "t1")
    write_series(tmp_path / "f", SeriesInstanceUID="1.2.9", ImageType=["ORIGINAL", "MOSAIC"])
    volume, told = read(tmp_path)
    assert volume.array.shape == (1, 6, 20, 24)
    assert told == ["a series was left out"]


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_slice_that_does_not_say_where_it_lies_is_missed(tmp_path: Path, at: int) -> None:
    """At the end, too, where it would leave no gap."""
    write_series(tmp_path, per_slice=lambda n: NOWHERE if n == at else {})
    said = refusal(tmp_path)
    assert "slices of a series do not say where they lie" in said
    assert f"1 of 6, as s{at + 1:03d}.dcm" in said
    volume, told = read(tmp_path, accept_uneven=True)
    assert volume.array.shape[1] == 5
    assert told[0] == "slices of a series do not say where they lie"


def test_a_series_of_slices_without_places_is_one_fault_not_a_list(tmp_path: Path) -> None:
    write_series(tmp_path, per_slice=lambda n: NOWHERE)
    said = refusal(tmp_path)
    assert "6 slices, s001.dcm the first, without ImagePositionPatient" in said
    assert "could be meant" not in said


def test_a_gap_is_told_with_what_becomes_of_it(tmp_path: Path) -> None:
    write_series(tmp_path, without=(3,))
    assert "lengths and volumes along the gaps are then wrong" in refusal(tmp_path)
    scans, _ = choose(find(tmp_path))
    _, (told,) = read_scan(scans[0], "stored", accept_uneven=True)
    assert told.found.endswith("after slice 3; taken as 5 slices 3.12 mm apart")


# ---- several series, planes, studies and patients


def test_planes_of_one_series_are_named(tmp_path: Path) -> None:
    for plane in ("axial", "coronal", "sagittal", "oblique"):
        write_series(tmp_path / plane, plane=plane)
    found = find(tmp_path)
    assert sorted(s.part for s in found.series) == ["axial", "coronal", "oblique", "sagittal"]
    for plane in ("coronal", "oblique"):
        volume, _ = read(tmp_path, plane)
        alone, _ = read(tmp_path / plane)
        assert volume.grid == alone.grid


def test_a_projection_that_turns_is_many_planes_each_with_a_number(tmp_path: Path) -> None:
    def turned(n: int) -> dict:
        angle = 0.3 * n
        return {"ImageOrientationPatient": [np.cos(angle), np.sin(angle), 0, 0, 0, -1]}

    write_series(tmp_path, per_slice=turned)
    parts = [series.part for series in find(tmp_path).series]
    assert parts[0] == "plane 1 (coronal)"
    assert len(set(parts)) == 6


def test_studies_of_a_patient_are_named_and_listed_by_their_days(tmp_path: Path) -> None:
    for number, day in ((1, "20210301"), (2, "20200115")):
        write_series(
            tmp_path, blobs(seed=number), names=f"t{number}_{{:03d}}.dcm", StudyDate=day,
            StudyInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.2.{number}.1",
        )  # fmt: skip
    found = find(tmp_path)
    scans, _ = choose(found)
    assert [scan.case for scan in scans] == ["P1_20200115", "P1_20210301"]
    assert "of 2021-03-01 10:10, UID 1.2.1.1" in listed(found)
    (one,), told = choose(found, ["1.2.1.1"])
    assert one.case == "P1_20210301"
    assert [problem.what for problem in told] == ["a patient was left out"]
    np.testing.assert_array_equal(read_scan(one, "stored")[0].array[0], blobs(seed=1) - 1024.0)
    with pytest.raises(AutosegError, match=r"no series fits '1\.2\.7' in P1"):
        choose(found, ["1.2.7"])


def test_time_points_of_a_study_are_listed_in_order_of_time(tmp_path: Path) -> None:
    for uid, clock in (("1.2.5", "1130"), ("1.2.6", "0915")):
        write_series(tmp_path / uid, SeriesInstanceUID=uid, SeriesDate="20200115", SeriesTime=clock)
    said = refusal(tmp_path)
    assert said.index("2020-01-15 09:15, UID 1.2.6") < said.index("2020-01-15 11:30, UID 1.2.5")
