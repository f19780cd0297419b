"""Small matrices applied to one axis of a volume, block by block, and volumes taken in slabs.

What the matrices mean (splines, nearest voxels) is decided in `resample`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Block = tuple[slice, slice, Float32]
"""New voxels of an axis, the old ones that count for them, and the weights (new, old)."""

# Weights below this share of the whole are left out of a block: the cubic prefilter's tails fall
# by a factor 0.27 a voxel, and float32 resolves 6e-8.
NEGLIGIBLE = 1e-8
BLOCK_ROWS = 32
# Voxels of a slab that goes through the axes of its planes together: it stays in the cache.
SLAB_VOX = 1 << 20


def slabs(start: int, stop: int, plane_vox: int) -> Iterator[slice]:
    """The planes from `start` to `stop` in pieces of about SLAB_VOX voxels, at least one plane."""
    step = max(1, SLAB_VOX // max(1, plane_vox))
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def plain(planes: NDArray[np.floating]) -> Float32:
    """The same in float32 and C order; a copy only where it is not so already."""
    return np.ascontiguousarray(planes, dtype=np.float32)


def cut(operator: NDArray[np.float64]) -> tuple[Block, ...]:
    """The operator as blocks of rows with only the columns that count for them."""
    blocks = []
    for start in range(0, len(operator), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(operator)))
        used = np.flatnonzero(np.abs(operator[rows]).max(axis=0) > NEGLIGIBLE)
        columns = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)
        blocks.append((rows, columns, operator[rows, columns].astype(np.float32)))
    return tuple(blocks)


def apply(source: Float32, blocks: tuple[Block, ...], axis: int) -> Float32:
    """One axis of a C-ordered array (*S) resized."""
    n_in, n_out = source.shape[axis], blocks[-1][0].stop if blocks else 0
    out = np.empty((*source.shape[:axis], n_out, *source.shape[axis + 1 :]), dtype=np.float32)
    if out.size == 0:
        return out
    if axis == 2:
        lines_in, lines_out = source.reshape(-1, n_in), out.reshape(-1, n_out)
        for rows, columns, weights in blocks:
            np.matmul(lines_in[:, columns], weights.T, out=lines_out[:, rows])
        return out
    before = 1 if axis == 0 else source.shape[0]
    planes_in, planes_out = source.reshape(before, n_in, -1), out.reshape(before, n_out, -1)
    for rows, columns, weights in blocks:
        np.matmul(weights, planes_in[:, columns], out=planes_out[:, rows])
    return out


def weighed(weights: Float32, planes: Float32) -> Float32:
    """Sums of planes (n, Y, X), one a row of the weights."""
    mixed = weights @ planes.reshape(len(planes), -1)
    return mixed.reshape(-1, *planes.shape[1:])
