"""Where voxels lie: affines, orientations, the arrangement of array axes, boxes. Pure functions.

An affine maps a file's voxel index (i, j, k) to RAS+ millimetres. `axes` says how an array is
laid out: three letters such as "SAR" (axis 0 runs towards Superior, 1 towards Anterior, 2 towards
Right), "stored" (the file's axes reversed: k, j, i, as SimpleITK gives them), or "stored:ikj" (the
file's axes in that order). Only the letters ever flip an axis. Nothing here knows of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, TypeVar

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

POSITIVE = "RAS"
NEGATIVE = "LPI"
FILE_AXES = "ijk"
# Two cosines closer than this count as equal: float32 headers blur a 45 degree tilt by about 1e-7.
COSINE_TIE = 1e-4

Box = tuple[slice, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Arrangement:
    """How an array lies over a file: array axis a is file axis order[a], reversed if flips[a]."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


def spacing_of(affine: ArrayLike) -> tuple[float, float, float]:
    """The distance in mm between neighbouring voxels along the file axes i, j, k."""
    lengths = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return (float(lengths[0]), float(lengths[1]), float(lengths[2]))


def direction_cosines(affine: ArrayLike) -> NDArray[np.float64]:
    """The 3x3 matrix whose columns are the file axes as unit vectors in RAS+.

    Raises ValueError for an affine with a zero or non-finite column.
    """
    spacing_mm = np.asarray(spacing_of(affine))
    if not np.all(np.isfinite(spacing_mm)) or not np.all(spacing_mm > 0):
        raise ValueError(f"an affine with voxel spacing {tuple(spacing_mm)} has no directions")
    return np.asarray(np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_mm)


def orientation_of(affine: ArrayLike) -> str:
    """The letters towards which the file axes i, j, k run, for example "LPS".

    The pair (file axis, world axis) with the largest absolute cosine is matched first, then the
    largest among those left, so sheared and oblique affines always get three different axes.
    Cosines within 1e-4 of each other tie (a tilt of 45 degrees); a tie goes to the lower file axis,
    then to the lower world axis (R/L before A/P before S/I).
    """
    return _letters(np.asarray(affine, dtype=np.float64)[:3, :3].tobytes())


@lru_cache(maxsize=256)
def _letters(columns: bytes) -> str:
    """The letters of the 3x3 part of an affine; the files of a dataset share a few."""
    cosines = direction_cosines(np.frombuffer(columns).reshape(3, 3))
    size = np.abs(cosines).T
    letters = ["", "", ""]
    for _ in range(3):
        tied = np.argwhere(size >= size.max() - COSINE_TIE)
        file_axis, world = (int(n) for n in tied[0])
        letters[file_axis] = (POSITIVE if cosines[world, file_axis] >= 0 else NEGATIVE)[world]
        size[file_axis, :] = -1.0
        size[:, world] = -1.0
    return "".join(letters)


def arrangement(affine: ArrayLike, axes: str) -> Arrangement:
    """How to lay out a file with this affine so that its array axes are `axes`.

    Raises ValueError if `axes` is none of the forms that this module's text lists.
    """
    if axes == "stored":
        return Arrangement((2, 1, 0), (False, False, False))
    if axes.startswith("stored:"):
        order = tuple(FILE_AXES.find(letter) for letter in axes.removeprefix("stored:"))
        if sorted(order) != [0, 1, 2]:
            raise ValueError(f'axes "{axes}": after "stored:" come i, j and k, once each')
        return Arrangement((order[0], order[1], order[2]), (False, False, False))
    worlds = [_world_axis(letter) for letter in axes]
    if sorted(worlds) != [0, 1, 2]:
        raise ValueError(
            f'axes "{axes}" is neither "stored" nor one letter each of R/L, A/P and S/I'
        )
    found = orientation_of(affine)
    file_axis = {_world_axis(letter): at for at, letter in enumerate(found)}
    a, b, c = (file_axis[world] for world in worlds)
    return Arrangement((a, b, c), (found[a] != axes[0], found[b] != axes[1], found[c] != axes[2]))


def _world_axis(letter: str) -> int:
    return max(POSITIVE.find(letter), NEGATIVE.find(letter))


def arrange(array: NDArray[Any], how: Arrangement) -> NDArray[Any]:
    """A view (C, *axes) of an array (C, i, j, k)."""
    flips = tuple(slice(None, None, -1 if flip else None) for flip in how.flips)
    return array.transpose(0, *(axis + 1 for axis in how.order))[(slice(None), *flips)]


def restore(array: NDArray[Any], how: Arrangement) -> NDArray[Any]:
    """A view (C, i, j, k) of an array (C, *axes): the exact inverse of `arrange`."""
    flips = tuple(slice(None, None, -1 if flip else None) for flip in how.flips)
    back = [how.order.index(axis) + 1 for axis in range(3)]
    return array[(slice(None), *flips)].transpose(0, *back)


def arrange_tuple(values_ijk: Sequence[T], how: Arrangement) -> tuple[T, T, T]:
    """Values per file axis (a shape, a spacing) put in the order of the array axes."""
    return (values_ijk[how.order[0]], values_ijk[how.order[1]], values_ijk[how.order[2]])


def arranged_affine(
    affine: ArrayLike, shape_ijk: Sequence[int], how: Arrangement
) -> NDArray[np.float64]:
    """The affine from the arranged array's voxel indices to RAS+ mm."""
    to_file = np.zeros((4, 4))
    to_file[3, 3] = 1.0
    for axis, (file_axis, flip) in enumerate(zip(how.order, how.flips)):
        to_file[file_axis, axis] = -1.0 if flip else 1.0
        to_file[file_axis, 3] = shape_ijk[file_axis] - 1 if flip else 0.0
    return np.asarray(np.asarray(affine, dtype=np.float64) @ to_file)


def corner_gap_mm(shape: Sequence[int], affine_a: ArrayLike, affine_b: ArrayLike) -> float:
    """The largest distance between the same outer corner of a grid under two affines.

    Outer corners (half a voxel beyond the centres), so that a tilt shows in a single slice too.
    """
    corners = np.array([(*c, 1.0) for c in product(*((-0.5, n - 0.5) for n in shape))])
    difference = np.asarray(affine_a, dtype=np.float64) - np.asarray(affine_b, dtype=np.float64)
    return float(np.linalg.norm(corners @ difference[:3].T, axis=1).max())


def box_of(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box that holds all that is true in `mask`; None if nothing is."""
    slices = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        slices.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(slices)


def nonzero_box(image: NDArray[Any]) -> tuple[Box, NDArray[np.bool_]]:
    """The box of an image (C, *S) in which any channel is not zero, and the mask inside that box.

    The mask has the shape of the box: true where any channel is not zero, holes filled. What lies
    outside is where nnU-Net writes -1 into its label maps. As there, a box of one slice has no holes:
    every voxel of it lies at its border. An image of zeros alone has nothing to crop to: it
    gives the whole grid and a mask that is true everywhere.
    """
    box = nonzero_limits(image)
    mask = np.asarray(image[0][box] != 0)
    for channel in image[1:]:
        if mask.all():
            break
        mask |= channel[box] != 0
    if not mask.any():
        return box, np.ones(image.shape[1:], dtype=bool)
    return box, _holes_filled(mask)


def nonzero_limits(image: NDArray[Any]) -> Box:
    """The box of `nonzero_box` alone, in far less time where the image reaches its borders."""
    whole: Box = tuple(slice(0, n) for n in image.shape[1:])
    box = list(whole)
    for axis in range(len(box)):
        part = image[(slice(None), *box)]
        planes = np.moveaxis(part, axis + 1, 0)
        if planes[0].any() and planes[-1].any():
            continue
        others = tuple(other for other in range(part.ndim) if other != axis + 1)
        hits = np.flatnonzero((part != 0).any(axis=others))
        if hits.size == 0:
            return whole
        box[axis] = slice(int(hits[0]), int(hits[-1]) + 1)
    return tuple(box)


def _holes_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`mask` plus every face-connected piece of background that reaches no face of the array.

    The same as scipy's binary_fill_holes when the mask touches all faces, at a fraction of its
    time.
    """
    if mask.all():
        return np.ascontiguousarray(mask)
    background = np.asarray(~mask, order="C")
    if min(background.shape) == 1:
        return ~background
    ends = [background.take(end, axis=axis) for axis in range(background.ndim) for end in (0, -1)]
    if not any(end.any() for end in ends):
        return np.ones(mask.shape, dtype=bool)
    pieces = cc3d.connected_components(background, connectivity=6)
    outside = np.zeros(int(pieces.max()) + 1, dtype=bool)
    for axis in range(pieces.ndim):
        for end in (0, -1):
            outside[np.unique(pieces.take(end, axis=axis))] = True
    outside[0] = False
    return np.asarray(~outside[pieces])
