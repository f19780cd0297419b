"""What a volume is once it is in memory, and the grid that it came from.

A `Grid` is the file's own geometry (voxel axes i, j, k and their affine); a `Volume` is an array
brought to the plan's axes, which remembers that grid, so that results can be put back. A `Header`
is what is known of a file before its voxels are read.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoseg.errors import Problem
from autoseg.image.geometry import (
    Arrangement,
    arrange_tuple,
    arrangement,
    orientation_of,
    spacing_of,
)

Row = tuple[float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a file: shape (i, j, k) and the affine from voxel index to RAS+ mm.

    `dimensions` is 2 where the file holds one slice (shape[2] is 1). `placed` is false for formats
    that do not say where in the patient the grid lies (png, jpg, bmp, tif). `slice_axis` is the axis
    of the file along which one slice is stored; here it is always the last (`slice_last`).
    """

    shape: tuple[int, int, int]
    affine: tuple[Row, Row, Row, Row]
    dimensions: int
    placed: bool = True
    slice_axis: int = 2

    @classmethod
    def of(cls, shape: tuple[int, ...], affine: ArrayLike, *, placed: bool = True) -> "Grid":
        """The grid with this file shape (i, j, k) and 4x4 affine."""
        i, j, k = (int(n) for n in shape)
        a, b, c, d = ((float(w), float(x), float(y), float(z)) for w, x, y, z in np.asarray(affine))
        return cls((i, j, k), (a, b, c, d), 2 if k == 1 else 3, placed)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The voxel spacing along the file axes i, j, k."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """The letters towards which the file axes run."""
        return orientation_of(self.affine)

    def arrangement(self, axes: str) -> Arrangement:
        """How an array in `axes` lies over this grid."""
        return arrangement(self.affine, axes)

    def to_dict(self) -> dict[str, Any]:
        """The grid as plain JSON values."""
        found = {
            "shape": list(self.shape),
            "affine": [list(row) for row in self.affine],
            "dimensions": self.dimensions,
            "placed": self.placed,
        }
        # said where it is another, so that grids known before stay equal
        return found if self.slice_axis == 2 else {**found, "slice_axis": self.slice_axis}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Grid":
        """The grid that `to_dict` wrote."""
        found = cls.of(tuple(values["shape"]), values["affine"], placed=values["placed"])
        axis = int(values.get("slice_axis", 2))
        return cls(found.shape, found.affine, int(values["dimensions"]), found.placed, axis)

    def slice_last(self) -> "Grid":
        """The grid of a file of one slice with the slice's axis last, wherever the file has it.

        A picture stored as 1 x H x W or H x 1 x W is a picture; itself for volumes.
        """
        flat = [axis for axis, n in enumerate(self.shape) if n == 1]
        if len(flat) != 1 or flat[0] == 2:
            return self
        order = [axis for axis in range(3) if axis != flat[0]] + flat
        shape = tuple(self.shape[axis] for axis in order)
        affine = np.asarray(self.affine)[:, [*order, 3]]
        return replace(Grid.of(shape, affine, placed=self.placed), slice_axis=flat[0])

    def as_in_file(self) -> "Grid":
        """The grid with the axes as the file has them: the inverse of `slice_last`."""
        if self.slice_axis == 2:
            return self
        order = [0, 1]
        order.insert(self.slice_axis, 2)
        shape = tuple(self.shape[axis] for axis in order)
        return Grid.of(shape, np.asarray(self.affine)[:, [*order, 3]], placed=self.placed)


@dataclass(frozen=True)
class Volume:
    """An array (C, *axes) and the file grid that it belongs to."""

    array: NDArray[Any]
    axes: str
    grid: Grid

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The voxel spacing in the order of the array's axes."""
        return arrange_tuple(self.grid.spacing_mm, self.grid.arrangement(self.axes))


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are read.

    `dtype` is the stored numpy type's name; `channels` counts what `read_image` would give.
    """

    grid: Grid
    channels: int
    dtype: str
    problems: tuple[Problem, ...] = ()
