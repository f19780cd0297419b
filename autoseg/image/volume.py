"""What a volume is once it is in memory, and the grid that it came from.

A `Grid` is the file's own geometry (voxel axes i, j, k and their affine); a `Volume` is an array
brought to the plan's axes, which remembers that grid, so that results can be put back. A `Header`
is what is known of a file before its voxels are read.
"""

from dataclasses import dataclass
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
    that do not say where in the patient the grid lies (png, jpg, bmp, tif).
    """

    shape: tuple[int, int, int]
    affine: tuple[Row, Row, Row, Row]
    dimensions: int
    placed: bool = True

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
        return {
            "shape": list(self.shape),
            "affine": [list(row) for row in self.affine],
            "dimensions": self.dimensions,
            "placed": self.placed,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Grid":
        """The grid that `to_dict` wrote."""
        found = cls.of(tuple(values["shape"]), values["affine"], placed=values["placed"])
        return cls(found.shape, found.affine, int(values["dimensions"]), found.placed)


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
