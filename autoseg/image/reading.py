"""Reading and writing images and label maps of any format the pipeline accepts.

A file is read by what it contains; where its suffix says something else, it is read all the same
and a Problem names the disagreement. What cannot be read raises BadData with one Problem; what
was read but is wrong (NaN, half labels, files in different places) is returned beside the volume,
and the caller decides. The `case` in a Problem is the file's name without suffix.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError, BadData, Problem, raise_fatal
from autoseg.files import replacing
from autoseg.image.checks import (
    check_finite,
    check_label_integers,
    check_same_grid,
)
from autoseg.image.declared import decoding
from autoseg.image.geometry import arrange, restore
from autoseg.image.itk import read_itk, read_itk_header, write_itk
from autoseg.image.nifti import (
    GZIP_MAGIC,
    nifti_version,
    read_nifti,
    read_nifti_header,
    unpacked_start,
    write_nifti,
)
from autoseg.image.raster import read_raster, read_raster_header, write_raster
from autoseg.image.tif_spacing import with_spacing, write_spacing
from autoseg.image.volume import Grid, Header, Volume

KIND_OF_SUFFIX = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "meta",
    ".mhd": "meta",
    ".gipl": "gipl",
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".bmp": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
SUFFIXES = tuple(KIND_OF_SUFFIX)
# Not .nhdr and .mhd (two files cannot be replaced in one step), .gipl (it forgets the
# orientation) or .jpg (it changes the values).
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tif", ".tiff")
ITK_KINDS = ("nrrd", "meta", "gipl")
MAGIC = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"NRRD": "nrrd",
}
GIPL_MAGIC = (bytes.fromhex("2ae389b8"), bytes.fromhex("efffe9b0"))


def suffix_of(path: Path) -> str | None:
    """The one of SUFFIXES that the name ends with, in lower case; None if none does."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def case_of(path: Path) -> str:
    """The file's name without its suffix."""
    suffix = suffix_of(path)
    return path.stem if suffix is None else path.name[: -len(suffix)]


def read_header(path: Path) -> Header:
    """What an image file says of itself; voxels are neither read nor unpacked."""
    case = case_of(path)
    kind, problems = _kind_of(path, case)
    with decoding(path, case):
        if kind == "nifti":
            header = read_nifti_header(path, case)
        elif kind in ITK_KINDS:
            header = read_itk_header(path, case, kind)
        else:
            header = read_raster_header(path, case, kind)
    if kind == "tiff":
        header = with_spacing(header, path, case, labels=False)
    return _as_picture(header, problems)


def read_image(paths: Sequence[Path], axes: str) -> tuple[Volume, list[Problem]]:
    """The image (C, *axes) as float32, the channels of all files in order, and what is wrong.

    The files of one case must share one grid, that of the first: other sizes raise BadData, other
    places are a fatal Problem. A file without a place takes that of the others.
    """
    if not paths:
        raise ValueError("an image needs at least one file")
    loaded = [_load(path, labels=False) for path in paths]
    case = case_of(paths[0])
    problems = [problem for _, header in loaded for problem in header.problems]
    grid = next((h.grid for _, h in loaded if h.grid.placed), loaded[0][1].grid)
    shape = arrange(loaded[0][0], grid.arrangement(axes)).shape[1:]
    for path, (_, header) in zip(paths, loaded):
        differences = list(check_same_grid(case_of(path), grid, header.grid, axes, "channel file"))
        raise_fatal(problem for problem in differences if "size" in problem.what)
        problems += differences
    image = np.empty((sum(array.shape[0] for array, _ in loaded), *shape), dtype=np.float32)
    filled = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for array, header in loaded:
            place = header.grid if header.grid.placed else grid
            image[filled : filled + array.shape[0]] = arrange(array, place.arrangement(axes))
            filled += array.shape[0]
    problems += check_finite(case, image)
    return Volume(image, axes, grid), problems


def read_labels(path: Path, axes: str, grid: Grid | None = None) -> tuple[Volume, list[Problem]]:
    """The label map (1, *axes) as int32, and what is wrong.

    `grid` is the image's: a label file without a place (png, tif) takes it over, so that both are
    turned the same way. Values that are no whole numbers are a fatal Problem and come back
    rounded, NaN as 0.
    """
    case = case_of(path)
    array, header = _load(path, labels=True)
    problems = list(header.problems)
    if array.shape[0] > 1:
        array = _one_channel(array, path, case)
    if array.dtype.kind == "f":
        problems += check_label_integers(case, array)
        array = np.rint(np.nan_to_num(array, posinf=0.0, neginf=0.0))
    limits = np.iinfo(np.int32)
    if (
        array.dtype.itemsize >= 4
        and array.size
        and (array.max() > limits.max or array.min() < limits.min)
    ):
        raise BadData(
            [
                Problem(
                    case,
                    "the label map holds values out of range",
                    f"{path}: {array.min():g} to {array.max():g}",
                    "number the labels 0, 1, 2, ...",
                )
            ]
        )
    own = header.grid
    if grid is not None and not own.placed and own.shape == grid.shape:
        own = grid
    arranged = arrange(array, own.arrangement(axes))
    return Volume(np.ascontiguousarray(arranged, dtype=np.int32), axes, own), problems


def ending_for(suffix: str) -> str:
    """The file ending of label maps for images of this ending: the same where it can hold labels."""
    lower = suffix.lower()
    if lower in LABEL_SUFFIXES:
        return lower
    return ".png" if lower in (".jpg", ".jpeg") else ".nii.gz"


def write_labels(
    path: Path,
    labels: NDArray[np.integer],
    axes: str,
    grid: Grid,
    noted: Callable[[Path], None] | None = None,
) -> None:
    """Write a label map (*axes) back on its file grid, in the format that the suffix names.

    The smallest of uint8, uint16 and int32 that holds the values is stored. The file appears in
    one step; `noted` is called with it when it is finished, before it takes its place. A tif volume
    has its spacing in a JSON file beside it. Raises AutosegError where the format cannot hold it.
    """
    suffix = suffix_of(path)
    if suffix not in LABEL_SUFFIXES:
        raise AutosegError(
            f"{path}: label maps are not written as {suffix or 'this kind of file'}; "
            f"choose one of {', '.join(LABEL_SUFFIXES)}"
        )
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    dtype = next(d for d in (np.uint8, np.uint16, np.int32) if _fits(low, high, d))
    stored = labels[None].astype(dtype, copy=False)
    _write(path, suffix, stored, axes, grid, labels=True, noted=noted)


def write_image(path: Path, image: NDArray[Any], axes: str, grid: Grid) -> None:
    """Write an image (C, *axes) on its file grid, in the array's own type, in one step.

    NIfTI holds one channel; png, bmp and tif hold one or three, and no floats but in tif.
    """
    suffix = suffix_of(path)
    if suffix not in LABEL_SUFFIXES:
        raise AutosegError(f"{path}: images are written as {', '.join(LABEL_SUFFIXES)}")
    _write(path, suffix, image, axes, grid, labels=False)


def _write(
    path: Path,
    suffix: str,
    array: NDArray[Any],
    axes: str,
    grid: Grid,
    *,
    labels: bool,
    noted: Callable[[Path], None] | None = None,
) -> None:
    stored = restore(array, grid.arrangement(axes))
    if stored.shape[1:] != grid.shape:
        raise ValueError(f"an array of {stored.shape[1:]} voxels for a grid of {grid.shape}")
    kind = KIND_OF_SUFFIX[suffix]
    if kind == "nifti" or kind in ITK_KINDS:
        stored, grid = np.moveaxis(stored, 3, 1 + grid.slice_axis), grid.as_in_file()
    if kind == "nifti" and len(stored) > 1:
        raise AutosegError(f"{path}: a NIfTI file holds one channel, not {len(stored)}")
    if kind == "tiff" and len(stored) not in (1, 3):
        raise AutosegError(f"{path}: a tif file holds one or three channels, not {len(stored)}")
    if kind in ("png", "bmp"):
        whole = np.uint16 if kind == "png" and len(stored) == 1 else np.uint8
        narrow = stored.dtype in (np.uint8, whole)
        if grid.shape[2] != 1 or len(stored) not in (1, 3) or not narrow:
            raise AutosegError(
                f"{path}: {suffix} cannot hold {len(stored)} channel(s) of {grid.shape[2]} "
                f"slice(s) as {stored.dtype}; write .nii.gz or .tif"
            )
    if kind == "tiff":
        # before the volume: one that is there has its spacing
        write_spacing(path, grid, labels=labels)
    # writers know .nii.gz, and not .NII.GZ
    with replacing(path, name=case_of(path) + suffix) as beside:
        if kind == "nifti":
            write_nifti(beside, stored[0], grid)
        elif kind in ITK_KINDS:
            write_itk(beside, stored, grid)
        else:
            write_raster(beside, stored)
        if noted is not None:
            noted(beside)


def _load(path: Path, *, labels: bool) -> tuple[NDArray[Any], Header]:
    """The voxels (C, i, j, k) in their stored type, and the header."""
    case = case_of(path)
    kind, problems = _kind_of(path, case)
    with decoding(path, case):
        if kind == "nifti":
            array, header = read_nifti(path, case)
        elif kind in ITK_KINDS:
            array, header = read_itk(path, case, kind)
        else:
            array, header = read_raster(path, case, kind, labels=labels)
    if kind == "tiff":
        header = with_spacing(header, path, case, labels=labels)
    header = _as_picture(header, problems)
    return np.moveaxis(array, 1 + header.grid.slice_axis, 3), header


def _as_picture(header: Header, problems: tuple[Problem, ...]) -> Header:
    """The header with the axis of a single slice last, and with what else was noticed."""
    grid = header.grid.slice_last()
    return replace(header, grid=grid, problems=(*problems, *header.problems))


def _kind_of(path: Path, case: str) -> tuple[str, tuple[Problem, ...]]:
    """The kind of file by its content, and a warning where its suffix says something else."""
    if not path.is_file():
        raise BadData([Problem(case, "a file is missing", str(path), "restore it or its name")])
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise _not_an_image(case, f"{path} is empty (0 bytes)")
    kind = _kind_by_content(start)
    if kind is None:
        what = "a DICOM slice" if start[128:132] == b"DICM" else f"beginning with {start[:12]!r}"
        raise _not_an_image(case, f"{path} is a file {what}")
    suffix = suffix_of(path)
    if suffix is not None and KIND_OF_SUFFIX[suffix] == kind:
        return kind, ()
    found = f"{path.name} holds {kind}; read as that"
    fix = "give the file the suffix of what it holds"
    what = "a file's suffix is not that of its content"
    return kind, (Problem(case, what, found, fix, fatal=False),)


def _kind_by_content(start: bytes) -> str | None:
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    if nifti_version(unpacked_start(start)) is not None:
        return "nifti"
    if start.startswith(GZIP_MAGIC):
        return None
    if start[252:256] in GIPL_MAGIC:
        return "gipl"
    text = start[:1024]
    return "meta" if b"NDims" in text and b"=" in text else None


def _one_channel(array: NDArray[Any], path: Path, case: str) -> NDArray[Any]:
    """The first channel of a coloured label map if all are equal; BadData otherwise."""
    if np.all(array[1:] == array[:1]):
        return array[:1]
    raise BadData(
        [
            Problem(
                case,
                "the label map is in colour",
                f"{path} has {array.shape[0]} different channels",
                "save it with one number per pixel: 0 for background, 1, 2, ... for labels",
            )
        ]
    )


def _fits(low: int, high: int, dtype: type[np.integer]) -> bool:
    limits = np.iinfo(dtype)
    return int(limits.min) <= low and high <= int(limits.max)


def _not_an_image(case: str, found: str) -> BadData:
    what = "the file is not an image of a known kind"
    fix = f"export it again as one of {', '.join(SUFFIXES)}"
    return BadData([Problem(case, what, found, fix)])
