"""Nrrd, MetaImage and Gipl through SimpleITK, whose LPS world is turned into RAS here.

A file that cannot be used raises BadData with one Problem. Pixels with several components become
channels. The image format is named to SimpleITK, so a wrong suffix does not matter.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its users know
from numpy.typing import NDArray

from autoseg.errors import AutosegError, BadData, Problem, raise_fatal
from autoseg.image.checks import check_affine
from autoseg.image.declared import UNBOUNDED, check_declared, detached_file, itk_factor
from autoseg.image.volume import Grid, Header

HEADER_BYTES = 1 << 16
GIPL_HEADER_BYTES = 256
SPACING_LINES = {
    "nrrd": re.compile(rb"(?im)^(?:spacings|space directions):[^\r\n]*"),
    "meta": re.compile(rb"(?im)^[ \t]*(?:ElementSpacing|ElementSize)[ \t]*=[^\r\n]*"),
}
FORMATS = {
    "nrrd": "NrrdImageIO",
    "meta": "MetaImageIO",
    "gipl": "GiplImageIO",
    "png": "PNGImageIO",
}
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk_header(path: Path, case: str, kind: str) -> Header:
    """The header of a file of one of FORMATS; the voxels stay on disk."""
    return _judged(path, case, kind)[1]


def read_itk(path: Path, case: str, kind: str) -> tuple[NDArray[Any], Header]:
    """The voxels (C, i, j, k) in their stored type, and the header."""
    reader, header = _judged(path, case, kind)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, case, error) from error
    array = sitk.GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    i, j, k = header.grid.shape
    return array.reshape(k, j, i, components).transpose(3, 2, 1, 0), header


def write_itk(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write an array (C, i, j, k) on its grid; the suffix of `path` names the format."""
    stored = array.transpose(3, 2, 1, 0)
    vector = stored.shape[-1] > 1
    image: Any = sitk.GetImageFromArray(
        np.ascontiguousarray(stored if vector else stored[..., 0]), isVector=vector
    )
    affine = RAS_FROM_LPS @ np.asarray(grid.affine)
    spacing_mm = np.asarray(grid.spacing_mm)
    image.SetSpacing([float(value) for value in spacing_mm])
    image.SetDirection([float(value) for value in (affine[:3, :3] / spacing_mm).ravel()])
    image.SetOrigin([float(value) for value in affine[:3, 3]])
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
        raise AutosegError(
            f"cannot write {path}: {reason}; is the disk full, or the folder not writable?"
        ) from error


def _judged(path: Path, case: str, kind: str) -> tuple[Any, Header]:
    """A reader of the file and its header, once that is found possible. Raises BadData."""
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    lies_in = detached_file(path, case, start) if kind in ("meta", "nrrd") else None
    reader = _reader(path, kind)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, case, error) from error
    header = _header(reader, path, case)
    factor = itk_factor(kind, start)
    # a list of files, or their pattern, is no file: only the memory judges it
    lies_in = lies_in or path
    stored = lies_in.stat().st_size if lies_in.is_file() else 0
    if kind == "gipl":
        # read as zeros where it is cut short
        stored = max(stored - GIPL_HEADER_BYTES, 1)
    size = np.dtype(header.dtype).itemsize if header.dtype != "unknown" else 1
    shape = (*header.grid.shape, header.channels)
    check_declared(path, case, shape, size, factor if stored else UNBOUNDED, max(stored, 1))
    return reader, replace(header, problems=(*header.problems, *_unspaced(path, case, kind, start)))


def _unspaced(path: Path, case: str, kind: str, start: bytes) -> Iterator[Problem]:
    """A warning for a Nrrd or MetaImage header without a spacing: 1 mm is silently taken for it."""
    if kind not in SPACING_LINES:
        return
    line = SPACING_LINES[kind].search(start)
    if line is None or b"nan" in line[0].lower():
        found = "no spacing" if line is None else line[0].decode("ascii", "replace").strip()
        yield Problem(
            case,
            "a header says nothing of the voxels' size; 1 mm is taken",
            f"{path.name} has {found[:80]}",
            "write the true spacing into the header, or nothing if the voxels are cubes of 1 mm",
            fatal=False,
        )


def _reader(path: Path, kind: str) -> Any:
    new_reader: Any = sitk.ImageFileReader
    reader = new_reader()
    reader.SetImageIO(FORMATS[kind])
    reader.SetFileName(str(path))
    return reader


def _header(source: Any, path: Path, case: str) -> Header:
    """The header from a reader or an image: both answer to the same questions."""
    size = tuple(int(n) for n in source.GetSize())
    if any(n > 1 for n in size[3:]):
        raise BadData(
            [
                Problem(
                    case,
                    "the file holds several volumes (4D) where one is expected",
                    f"{path}: size {' x '.join(str(n) for n in size)}",
                    "split it into one file per volume, named _0000, _0001, ... for channels",
                )
            ]
        )
    axes = len(size)
    used = min(axes, 3)
    spacing_mm = np.asarray(source.GetSpacing(), dtype=np.float64)[:used]
    direction = np.asarray(source.GetDirection(), dtype=np.float64).reshape(axes, axes)
    lps = np.eye(4)
    lps[:used, :used] = direction[:used, :used] * spacing_mm
    lps[:used, 3] = np.asarray(source.GetOrigin(), dtype=np.float64)[:used]
    affine = RAS_FROM_LPS @ lps
    problems = tuple(check_affine(case, affine))
    raise_fatal(problems)
    shape = (*size[:used], *(1,) * (3 - used))
    # A reader and an image give this one answer under two names.
    in_image = isinstance(source, sitk.Image)
    count = source.GetNumberOfComponentsPerPixel if in_image else source.GetNumberOfComponents
    return Header(Grid.of(shape, affine), int(count()), _dtype_name(source), problems)


def _dtype_name(source: Any) -> str:
    """SimpleITK says "vector of 8-bit unsigned integer" and the like; numpy's name for it."""
    kind = source.GetPixelIDValue()
    names = {
        "uint8": (sitk.sitkUInt8, sitk.sitkVectorUInt8),
        "int8": (sitk.sitkInt8, sitk.sitkVectorInt8),
        "uint16": (sitk.sitkUInt16, sitk.sitkVectorUInt16),
        "int16": (sitk.sitkInt16, sitk.sitkVectorInt16),
        "uint32": (sitk.sitkUInt32, sitk.sitkVectorUInt32),
        "int32": (sitk.sitkInt32, sitk.sitkVectorInt32),
        "uint64": (sitk.sitkUInt64, sitk.sitkVectorUInt64),
        "int64": (sitk.sitkInt64, sitk.sitkVectorInt64),
        "float32": (sitk.sitkFloat32, sitk.sitkVectorFloat32),
        "float64": (sitk.sitkFloat64, sitk.sitkVectorFloat64),
    }
    return next((name for name, ids in names.items() if kind in ids), "unknown")


def _unreadable(path: Path, case: str, error: RuntimeError) -> BadData:
    reason = str(error).strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
    return BadData(
        [
            Problem(
                case,
                "the file cannot be read",
                f"{path}: {reason}",
                "copy or export the file again; this one is damaged",
            )
        ]
    )
