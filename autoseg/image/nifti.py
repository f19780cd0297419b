"""NIfTI-1 and NIfTI-2 in and out (.nii, .nii.gz): the only file that knows nibabel.

The place of a volume is the sform where its code is set, else the qform, else the pixel sizes
alone. Files are unpacked in one go, which is about twice as fast as reading through a stream; a
header is read without unpacking the rest. A file that cannot be used raises BadData with one
Problem; what can be lived with stands in `Header.problems`.
"""

import gzip
import io
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from autoseg.errors import BadData, Problem, raise_fatal
from autoseg.image.checks import PLACE_TOLERANCE_VOX, SHEAR_TOLERANCE, check_affine
from autoseg.image.declared import DEFLATE, RAW, check_declared
from autoseg.image.geometry import corner_gap_mm, direction_cosines
from autoseg.image.volume import Grid, Header

GZIP_MAGIC = b"\x1f\x8b"
HEADER_BYTES = 540
LARGEST_NIFTI1_SIDE = 32767
BEYOND = 1 << 20
"""Bytes after the voxels that are unpacked all the same, so that the checksum is met."""
# NIfTI's codes for the unit of length, in mm.
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
BAD_FILE_FIX = "copy or export the file again; this one is damaged"


@dataclass(frozen=True)
class _Parsed:
    header: Any
    summary: Header
    offset: int
    stored_shape: tuple[int, ...]


def nifti_version(raw: bytes) -> int | None:
    """1 or 2 if these first bytes (unpacked) open a single-file NIfTI, else None."""
    if raw[344:348] == b"n+1\0":
        return 1
    return 2 if raw[4:8] == b"n+2\0" else None


def unpacked_start(raw: bytes) -> bytes:
    """The first bytes of a file's content, unpacked if `raw` is gzip; empty if that fails."""
    if not raw.startswith(GZIP_MAGIC):
        return raw[:HEADER_BYTES]
    try:
        return zlib.decompressobj(wbits=31).decompress(raw, HEADER_BYTES)
    except zlib.error:
        return b""


def read_nifti_header(path: Path, case: str) -> Header:
    """The header of a NIfTI file; of a .nii.gz only the start is unpacked."""
    with path.open("rb") as file:
        start = unpacked_start(file.read(1 << 16))
    return _parse(start, path, case).summary


def read_nifti(path: Path, case: str) -> tuple[NDArray[Any], Header]:
    """The voxels (1, i, j, k) and the header.

    The stored type is kept where no scaling is set; otherwise slope and intercept are applied and
    float32 comes back.
    """
    raw = path.read_bytes()
    parsed = _parse(unpacked_start(raw), path, case)
    dtype = parsed.header.get_data_dtype()
    count = prod(parsed.stored_shape)
    needed = count * dtype.itemsize
    factor = DEFLATE if raw.startswith(GZIP_MAGIC) else RAW
    check_declared(path, case, parsed.stored_shape, dtype.itemsize, factor, len(raw))
    if raw.startswith(GZIP_MAGIC):
        try:
            raw = _unpacked(raw, parsed.offset + needed)
        except (EOFError, OSError, zlib.error) as error:
            raise _unreadable(case, f"{path}: the compressed data ends early ({error})") from error
    found = len(raw) - parsed.offset
    if found < needed:
        raise _unreadable(case, f"{path}: {max(found, 0)} bytes of voxels, {needed} expected")
    flat = np.frombuffer(raw, dtype, count, parsed.offset)
    voxels = flat.reshape(parsed.summary.grid.shape, order="F")[None]
    return _scaled(voxels, parsed.header, path, case), parsed.summary


def _unpacked(raw: bytes, needed: int) -> bytes:
    """The content of a gzip file, or little more of it than `needed` bytes.

    Raises EOFError, OSError or zlib.error if it is damaged.
    """
    checksum, promised = int.from_bytes(raw[-8:-4], "little"), int.from_bytes(raw[-4:], "little")
    # A promise beyond what the header declares is no reason to take memory.
    if promised <= min(DEFLATE * len(raw), needed + BEYOND):
        try:
            content = zlib.decompress(raw, wbits=31, bufsize=max(1, promised))
        except zlib.error:
            content = b""
        # The last eight bytes are those of the last member: of several, the first does not fit.
        if len(content) == promised and zlib.crc32(content) == checksum:
            return content
    # of several members, very large, with padding, or damaged
    with gzip.open(io.BytesIO(raw)) as file:
        return file.read(needed + BEYOND)


def write_nifti(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (i, j, k) on its grid; the stored type is the array's own.

    The sform carries the affine (code 1); the qform repeats it where the axes are square, and has
    code 0 where it could not.
    """
    affine = np.asarray(grid.affine)
    wide = max(array.shape) > LARGEST_NIFTI1_SIDE
    new_image: Any = nib.Nifti2Image if wide else nib.Nifti1Image
    image = new_image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    cosines = direction_cosines(affine)
    square = np.abs(cosines.T @ cosines - np.eye(3)).max() <= SHEAR_TOLERANCE
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1 if square else 0)
    content = image.to_bytes()
    # Level 1: label maps pack well at any level, and the higher ones cost several times the time.
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)


def _parse(raw: bytes, path: Path, case: str) -> _Parsed:
    version = nifti_version(raw)
    if version is None:
        raise _unreadable(case, f"{path} does not begin as a NIfTI file")
    kind: Any = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    length = 348 if version == 1 else 540
    if len(raw) < length:
        raise _unreadable(case, f"{path}: the header is cut short at {len(raw)} bytes")
    header = kind(raw[:length], check=False)
    dtype = _dtype(header, path, case)
    stored_shape = _stored_shape(header, path, case)
    i, j, k = (*stored_shape, 1, 1, 1)[:3]
    affine, problems = _affine(header, (i, j, k), len(stored_shape), case)
    summary = Header(Grid.of((i, j, k), affine), 1, dtype.name, tuple(problems))
    # A single file's voxels start after the header and four bytes of flags; 0 means just that.
    begin = float(header["vox_offset"])
    if not 0 <= begin < 2**62:
        raise _unreadable(case, f"{path}: the voxels are said to begin at byte {begin:g}")
    offset = max(int(begin), length + 4)
    return _Parsed(header, summary, offset, stored_shape)


def _dtype(header: Any, path: Path, case: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError, TypeError) as error:
        raise _unreadable(case, f"{path}: unknown voxel type {header['datatype']}") from error
    if dtype.kind not in "biuf":
        raise BadData(
            [
                Problem(
                    case,
                    "the voxels are colours or complex numbers",
                    f"{path} stores {dtype.name if dtype.names is None else 'RGB colours'}",
                    "save each colour or part as an image file of its own, one channel each",
                )
            ]
        )
    return dtype


def _stored_shape(header: Any, path: Path, case: str) -> tuple[int, ...]:
    dim = [int(n) for n in header["dim"]]
    shape = tuple(dim[1 : 1 + dim[0]]) if 1 <= dim[0] <= 7 else ()
    if not shape or min(shape) < 1:
        raise _unreadable(case, f"{path}: the header gives the size {dim[1:]}")
    if any(n > 1 for n in shape[3:]):
        raise BadData(
            [
                Problem(
                    case,
                    "the file holds several volumes (4D) where one is expected",
                    f"{path}: size {' x '.join(str(n) for n in shape)}",
                    "split it into one file per volume, named _0000, _0001, ... for channels",
                )
            ]
        )
    return shape


def _affine(
    header: Any, shape: tuple[int, int, int], stored_axes: int, case: str
) -> tuple[NDArray[np.float64], list[Problem]]:
    """The affine of the rule in this module's text, in mm, and what is worth saying about it."""
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    # An axis that the file does not have says nothing about its spacing.
    missing = (np.arange(3) >= stored_axes) & ~(pixdim > 0)
    if missing.any():
        header["pixdim"][1:4] = pixdim = np.where(missing, 1.0, pixdim)
    problems: list[Problem] = []
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    qform = _qform(header, pixdim)
    if header["sform_code"] > 0:
        affine = sform
    elif header["qform_code"] > 0:
        affine = np.full((4, 4), np.nan) if qform is None else qform
    else:
        affine = np.diag((*pixdim, 1.0))
        if np.any(pixdim < 0):
            affine[:] = np.nan
    unit = int(header["xyzt_units"]) & 7
    factor = MM_PER_UNIT.get(unit, 1.0)
    if factor != 1.0:
        problems.append(
            Problem(
                case,
                "lengths are not stored in mm",
                f"the header says {'metres' if unit == 1 else 'micrometres'}; converted",
                "correct xyzt_units in the header if the numbers are mm after all",
                fatal=False,
            )
        )
    affine = np.diag((factor, factor, factor, 1.0)) @ affine
    problems += check_affine(case, affine)
    raise_fatal(problems)
    if header["sform_code"] > 0 and header["qform_code"] > 0 and qform is not None:
        problems += _forms_apart(case, shape, sform, qform)
    return affine, problems


def _qform(header: Any, pixdim: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The qform's affine; None where its numbers cannot be one."""
    if not np.all((pixdim > 0) & np.isfinite(pixdim)):
        return None
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return None
    return qform if np.isfinite(qform).all() else None


def _forms_apart(
    case: str,
    shape: tuple[int, int, int],
    sform: NDArray[np.float64],
    qform: NDArray[np.float64],
) -> list[Problem]:
    gap = corner_gap_mm(shape, sform, qform)
    voxel = float(np.linalg.norm(sform[:3, :3], axis=0).min())
    if gap <= PLACE_TOLERANCE_VOX * voxel:
        return []
    return [
        Problem(
            case,
            "the file's two positions (sform and qform) disagree",
            f"corners up to {gap:.2f} mm apart; the sform is used",
            "export the file again if results appear shifted in a viewer",
            fatal=False,
        )
    ]


def _scaled(voxels: NDArray[Any], header: Any, path: Path, case: str) -> NDArray[Any]:
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise _unreadable(case, f"{path}: the intensity scaling is not a number") from error
    if slope is None or (slope == 1 and intercept in (0, None)):
        return voxels
    scaled: NDArray[Any] = voxels.astype(np.float32)
    scaled *= np.float32(slope)
    scaled += np.float32(intercept or 0.0)
    return scaled


def _unreadable(case: str, found: str) -> BadData:
    return BadData([Problem(case, "the file cannot be read", found, BAD_FILE_FIX)])
