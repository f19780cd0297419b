"""Whatever bytes a file holds: it is read, or refused in words, in little time and memory."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from autoseg.errors import BadData
from autoseg.image import declared
from autoseg.image.reading import read_header, read_image

SHARE = 0.006
"""Of the changes that `damaged.py` knows: some hundreds of about fifty thousand."""


def test_changed_bytes_end_in_words(tmp_path: Path) -> None:
    """A seeded share; fifteen in a hundred were tried when this was written."""
    program = Path(__file__).with_name("damaged.py")
    line = [sys.executable, str(program), str(tmp_path), str(SHARE), "3"]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=300)
    lines = [json.loads(text) for text in ran.stdout.splitlines()]
    assert ran.returncode == 0, (lines[-1:], ran.stderr[-2000:])
    tried = list(zip(lines[::2], lines[1::2], strict=True))
    assert len(tried) > 200
    assert [t for t in tried if t[1]["out"] not in ("read", "refused")] == []
    assert max(result["s"] for _, result in tried) < 5
    assert tried[-1][1]["peak_kb"] < 600_000
    assert {result["out"] for _, result in tried} == {"read", "refused"}


def nifti(path: Path, shape: tuple[int, int, int], **floats: float) -> Path:
    raw = bytearray(352)
    struct.pack_into("<i", raw, 0, 348)
    struct.pack_into("<8h", raw, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<hh", raw, 70, 2, 8)
    struct.pack_into("<8f", raw, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", raw, 108, floats.get("vox_offset", 352))
    struct.pack_into("<h", raw, 254, 1)
    affine = np.diag([floats.get("mm", 1), 1, 1, 1])[:3]
    struct.pack_into("<12f", raw, 280, *affine.ravel())
    raw[344:348] = b"n+1\0"
    path.write_bytes(bytes(raw) + bytes(64))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadData) as error:
        read_image([path], "stored:ijk")
    (problem,) = error.value.problems
    assert problem.case == "a"
    return f"{problem.what}: {problem.found}"


def test_a_size_beyond_the_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", (1024, 1024, 1023))
    assert "1024 x 1024 x 1023 (1.07e+09 bytes), the file holds 416 bytes" in refusal(path)
    packed = path.rename(tmp_path / "a.nii.gz")
    packed.write_bytes(zlib.compress(packed.read_bytes(), wbits=31))
    assert "the file holds" in refusal(packed)


@pytest.mark.parametrize("offset", [np.nan, np.inf, -8.0, 1e30])
def test_voxels_that_begin_nowhere(tmp_path: Path, offset: float) -> None:
    assert "said to begin" in refusal(nifti(tmp_path / "a.nii", (4, 4, 4), vox_offset=offset))


@pytest.mark.parametrize("mm", [1e20, 1e5, 1e-9])
def test_spacing_that_no_scan_has(tmp_path: Path, mm: float) -> None:
    path = nifti(tmp_path / "a.nii", (4, 4, 4), mm=mm)
    assert "cannot be that of a scan" in refusal(path)
    with pytest.raises(BadData):
        read_header(path)


def test_what_the_machine_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path / "a.nii", (4, 4, 4))
    assert read_image([path], "stored:ijk")[0].array.size == 64
    monkeypatch.setattr(declared, "machine_bytes", lambda: 300)
    assert "too large for this machine" in refusal(path)


def test_memory_that_ends_names_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("autoseg.image.reading.read_nifti", no_memory)
    path = nifti(tmp_path / "a.nii", (4, 4, 4))
    assert "not enough memory" in refusal(path)


def test_a_gipl_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.gipl"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((5, 7, 6), np.int16)), str(path))
    assert read_image([path], "stored:ijk")[0].array.all()
    path.write_bytes(path.read_bytes()[:-2])
    assert "cannot be read" in refusal(path)


def test_a_part_of_a_png_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(99, dtype=np.uint8).reshape(9, 11)).save(path)
    raw = bytearray(path.read_bytes())
    raw[33] = 255
    path.write_bytes(bytes(raw))
    assert "a part of 42" in refusal(path)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"
                  "ElementSpacing = 1 1 1\nElementDataFile = {}\n"),
        ("a.nhdr", "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
                   "data file: {}\n\n"),
    ],
)  # fmt: skip
def test_headers_that_lead_out_of_their_folder(tmp_path: Path, name: str, header: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(range(8)))
    (folder / "own.raw").write_bytes(bytes(range(8)))
    path = folder / name
    path.write_text(header.format("own.raw"))
    assert read_image([path], "stored:ijk")[0].array.max() == 7
    for elsewhere in ("../secret.raw", str(tmp_path / "secret.raw")):
        path.write_text(header.format(elsewhere))
        assert "leads out of its folder" in refusal(path)
