"""How does an array in memory become a case of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoseg.documents.conversion import CASE
from autoseg.errors import AutosegError, Problem, raise_fatal
from autoseg.image.checks import check_affine
from autoseg.image.reading import write_image, write_labels
from autoseg.image.volume import Grid
from autoseg.interop.conversion.case import narrow

FILE_ORDER = "stored:ijk"


def write_case(
    folder: Path,
    case: str,
    image: ArrayLike,
    labels: ArrayLike | None = None,
    affine: ArrayLike | None = None,
    *,
    spacing_mm: Sequence[float] | None = None,
    test: bool = False,
) -> list[Path]:
    """Write a case of the dataset in `folder` (DatasetNNN_Name); the files.

    3D: (X, Y, Z) or (C, X, Y, Z) with the 4x4 `affine` from voxel to RAS+ mm, or with `spacing_mm`
    (x, y, z) of axes that run to the right, front and top: one NIfTI a channel. Without either a
    picture (H, W) or (C, H, W) of one or three channels: a PNG, or a TIFF for floats. `labels` have
    the image's shape without its channels. Raises AutosegError for another shape, a place that is
    none, labels that are no whole numbers, or a training case without labels.
    """
    if CASE.match(case) is None:
        raise AutosegError(f"{case!r} cannot be the name of a file; use letters, digits, - _ and .")
    voxels = np.asarray(image)
    flat = affine is None and spacing_mm is None
    channels = voxels[None] if voxels.ndim == (2 if flat else 3) else voxels
    if (
        channels.ndim != (3 if flat else 4)
        or not channels.size
        or channels.dtype.kind not in "biuf"
    ):
        wanted = "(H, W) or (C, H, W), or a volume with affine or spacing_mm" if flat else (
            "(X, Y, Z) or (C, X, Y, Z)"
        )  # fmt: skip
        raise AutosegError(f"{case}: the image is {voxels.shape} {voxels.dtype}; expected {wanted}")
    if labels is None and not test:
        raise AutosegError(f"{case}: a training case needs labels; or write it with test=True")
    mask = None if labels is None else _whole(case, np.asarray(labels), channels.shape[1:])
    part = "Ts" if test else "Tr"
    grid, ordered = _placed(case, channels, affine, spacing_mm)
    ending = ".nii.gz" if not flat else (".tif" if ordered.dtype.kind == "f" else ".png")
    images = folder / f"images{part}"
    images.mkdir(parents=True, exist_ok=True)
    pieces = [ordered] if flat else [one[None] for one in ordered]
    written = [images / f"{case}_{n:04d}{ending}" for n in range(len(pieces))]
    for path, piece in zip(written, pieces, strict=True):
        write_image(path, piece, FILE_ORDER, grid)
    if mask is not None:
        target = folder / f"labels{part}" / f"{case}{'.png' if flat else '.nii.gz'}"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_labels(target, mask.T[:, :, None] if flat else mask, FILE_ORDER, grid)
        written.append(target)
    return written


def _placed(
    case: str, channels: NDArray[Any], affine: ArrayLike | None, spacing_mm: Sequence[float] | None
) -> tuple[Grid, NDArray[Any]]:
    """The grid, and the channels (C, i, j, k) in a type that files hold. Raises AutosegError."""
    kept = channels.astype(np.float32) if channels.dtype.kind == "f" else narrow(channels)
    if affine is None and spacing_mm is None:
        if len(channels) not in (1, 3):
            raise AutosegError(f"{case}: a picture has one or three channels, not {len(channels)}")
        height, width = channels.shape[1:]
        plain = kept.astype(np.uint16) if kept.dtype == np.int16 and kept.min() >= 0 else kept
        narrow_enough = plain.dtype == np.uint8 or (plain.dtype == np.uint16 and len(plain) == 1)
        stored = plain if narrow_enough else plain.astype(np.float32)
        grid = Grid.of((width, height, 1), np.eye(4), placed=False)
        return grid, stored.transpose(0, 2, 1)[..., None]
    if affine is not None and spacing_mm is not None:
        raise AutosegError(f"{case}: give affine or spacing_mm, not both")
    place = np.diag([*(spacing_mm or ()), 1.0]) if affine is None else np.asarray(affine, float)
    if place.shape != (4, 4):
        raise AutosegError(f"{case}: a volume needs a 4x4 affine, or three numbers of spacing_mm")
    raise_fatal(check_affine(case, place))
    i, j, k = channels.shape[1:]
    wide = kept.astype(np.float32) if kept.dtype.itemsize > 4 else kept
    return Grid.of((i, j, k), place), wide


def _whole(case: str, labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The labels as whole numbers of the image's shape. Raises BadData."""
    if labels.shape != shape:
        what, fix = "image and label differ in size", "give labels of the image's shape"
        raise_fatal([Problem(case, what, f"image {shape}, labels {labels.shape}", fix)])
    whole = labels.astype(np.int32)
    if not np.array_equal(whole, labels):
        what, fix = "the labels are not whole numbers", "give the numbers of structures"
        raise_fatal([Problem(case, what, f"their type is {labels.dtype}", fix)])
    return whole
