"""How does an array in memory become a case of a dataset."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoseg.documents.conversion import CASE
from autoseg.errors import AutosegError, Problem, raise_fatal
from autoseg.image.checks import check_finite, placing
from autoseg.image.reading import write_image, write_labels
from autoseg.image.volume import Grid
from autoseg.interop.conversion.case import narrow

FILE_ORDER = "stored:ijk"


@dataclass(frozen=True)
class Arrays:
    """A case in memory: image and labels, and where they lie (`affine` or `spacing_mm`, or neither).

    3D: (X, Y, Z) or (C, X, Y, Z) with the 4x4 `affine` from voxel to RAS+ mm, as nibabel gives
    them, or with `spacing_mm` (x, y, z) of axes that run to the right, front and top. A picture is
    (H, W) or (C, H, W), of one or three channels, with neither. `labels` have the shape of the
    image without its channels.
    """

    image: ArrayLike
    labels: ArrayLike | None = None
    affine: ArrayLike | None = None
    spacing_mm: Sequence[float] | None = None

    @property
    def flat(self) -> bool:
        """Whether it is a picture."""
        return self.affine is None and self.spacing_mm is None


def write_case(
    folder: Path, case: str, given: Arrays, *, test: bool = False, overwrite: bool = False
) -> list[Path]:
    """Write a case of the dataset in `folder` (DatasetNNN_Name); the files.

    A volume becomes one NIfTI a channel, a picture a PNG, or a TIFF for floats. Raises AutosegError
    for another shape, voxels that are not numbers, a place that is none, labels that are no whole
    numbers from 0 on, a training case without labels, and a case that is there already unless it
    may be replaced.
    """
    if CASE.match(case) is None:
        raise AutosegError(f"{case!r} cannot be the name of a file; use letters, digits, - _ and .")
    flat = given.flat
    channels = _channels(case, np.asarray(given.image), flat)
    if given.labels is None and not test:
        raise AutosegError(f"{case}: a training case needs labels; or write it with test=True")
    labels = None if given.labels is None else np.asarray(given.labels)
    mask = None if labels is None else _whole(case, labels, channels.shape[1:])
    grid, ordered = _placed(case, channels, given)
    ending = ".nii.gz" if not flat else (".tif" if ordered.dtype.kind == "f" else ".png")
    part = "Ts" if test else "Tr"
    pieces = [ordered] if flat else [one[None] for one in ordered]
    written = [folder / f"images{part}/{case}_{n:04d}{ending}" for n in range(len(pieces))]
    _make_way(folder, case, overwrite)
    for path, piece in zip(written, pieces, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, piece, FILE_ORDER, grid)
    if mask is not None:
        target = folder / f"labels{part}" / f"{case}{'.png' if flat else '.nii.gz'}"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_labels(target, mask.T[:, :, None] if flat else mask, FILE_ORDER, grid)
        written.append(target)
    return written


def _channels(case: str, voxels: NDArray[Any], flat: bool) -> NDArray[Any]:
    """The image with its channels first. Raises AutosegError."""
    channels = voxels[None] if voxels.ndim == (2 if flat else 3) else voxels
    fits = channels.ndim == (3 if flat else 4) and channels.size > 0
    if not fits or channels.dtype.kind not in "biuf":
        wanted = "(H, W) or (C, H, W), or a volume with affine or spacing_mm" if flat else (
            "(X, Y, Z) or (C, X, Y, Z)"
        )  # fmt: skip
        raise AutosegError(f"{case}: the image is {voxels.shape} {voxels.dtype}; expected {wanted}")
    if channels.dtype.kind == "f":
        raise_fatal(check_finite(case, channels))
    return channels


def _make_way(folder: Path, case: str, overwrite: bool) -> None:
    """Remove what stands of a case. Raises AutosegError unless it may be replaced."""
    own = re.compile(rf"{re.escape(case)}(_\d{{4}})?\.[a-z.]+", re.IGNORECASE)
    folders = [folder / f"{kind}{part}" for kind in ("images", "labels") for part in ("Tr", "Ts")]
    there = [
        path
        for one in folders
        if one.is_dir()
        for path in one.iterdir()
        if own.fullmatch(path.name) and path.name.startswith(case)
    ]
    if there and not overwrite:
        raise AutosegError(
            f"{case} is in {folder} already ({there[0].name}); choose another name, or write it "
            "with overwrite=True"
        )
    for path in there:
        path.unlink()


def _placed(case: str, channels: NDArray[Any], given: Arrays) -> tuple[Grid, NDArray[Any]]:
    """The grid, and the channels (C, i, j, k) in a type that files hold. Raises AutosegError."""
    kept = channels.astype(np.float32) if channels.dtype.kind == "f" else narrow(channels)
    if given.flat:
        if len(channels) not in (1, 3):
            raise AutosegError(f"{case}: a picture has one or three channels, not {len(channels)}")
        height, width = channels.shape[1:]
        plain = kept.astype(np.uint16) if kept.dtype == np.int16 and kept.min() >= 0 else kept
        narrow_enough = plain.dtype == np.uint8 or (plain.dtype == np.uint16 and len(plain) == 1)
        stored = plain if narrow_enough else plain.astype(np.float32)
        grid = Grid.of((width, height, 1), np.eye(4), placed=False)
        return grid, stored.transpose(0, 2, 1)[..., None]
    place = placing(case, given.affine, given.spacing_mm)
    i, j, k = channels.shape[1:]
    wide = kept.astype(np.float32) if kept.dtype.itemsize > 4 else kept
    return Grid.of((i, j, k), place), wide


def _whole(case: str, labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The labels as whole numbers from 0 on, of the image's shape. Raises BadData."""
    if labels.shape != shape:
        what, fix = "image and label differ in size", "give labels of the image's shape"
        raise_fatal([Problem(case, what, f"image {shape}, labels {labels.shape}", fix)])
    what, fix = "the labels are not whole numbers from 0 on", "give the numbers of structures"
    if labels.dtype.kind not in "biuf":
        raise_fatal([Problem(case, what, f"their type is {labels.dtype}", fix)])
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int32)
    if not np.array_equal(whole, labels) or (whole.size and whole.min() < 0):
        found = f"{labels.dtype} from {labels.min():g} to {labels.max():g}"
        raise_fatal([Problem(case, what, found, fix)])
    return whole
