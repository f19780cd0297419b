"""How a volume lies in a file, so that a patch touches little besides its own bytes: in bricks.

Row by row, a patch of 128 voxels in a plane of 512 x 512 touches four times its bytes, since the
system reads whole pages. Here a volume (Z, Y, X) is cut into bricks that fill a page each, stored
one after the other; those at the upper borders are cut short, so nothing is padded. Labels, which
know few values, are packed into 2 or 4 bits a voxel before.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]

PAGE = 4096
IMAGE_BRICK: Shape = (4, 16, 32)
"""4096 bytes of half floats: a patch of 128³ touches at most 1.45 times its bytes, a slice of 512²
four times."""
LABEL_BRICK: Shape = (16, 16, 16)
"""4096 bytes of packed labels, which are (16, 16, 32) voxels of 4 bits."""

BITS = (2, 4, 8, 16)


def _segments(extent: int, thick: int, lower: int, upper: int) -> Iterator[tuple[int, ...]]:
    """Along one axis: (first brick, count, its thickness, first and last + 1 voxel within it)."""
    while lower < upper:
        brick = lower // thick
        start = brick * thick
        own = min(thick, extent - start)
        count, last = 1, min(upper - start, own)
        if lower == start and last == own == thick:
            count = (upper - lower) // thick
        yield brick, count, own, lower - start, last
        lower = start + (count - 1) * thick + last


def pieces(
    stored: NDArray[Any], shape: Shape, brick: Shape, lower: Sequence[int], upper: Sequence[int]
) -> Iterator[tuple[NDArray[Any], tuple[slice, ...]]]:
    """The box [lower, upper) of `stored` (C, Z*Y*X in bricks): views, and where each lies in the box.

    A view has the axes (C, bricks, z, bricks, y, bricks, x); in the box its place has the same
    numbers with bricks and voxels of an axis as one. At most four views an axis: the bricks at
    both ends that are not whole, and all between them.
    """
    _, size_y, size_x = shape
    item, channels = stored.itemsize, len(stored)
    axes = [
        list(_segments(n, b, a, z)) for n, b, a, z in zip(shape, brick, lower, upper, strict=True)
    ]
    for (k, nz, tz, az, ez), (j, ny, ty, ay, ey), (i, nx, tx, ax, ex) in product(*axes):
        slab, row, one = brick[0] * size_y * size_x, tz * brick[1] * size_x, tz * ty * brick[2]
        first = k * slab + j * row + i * one + (az * ty + ay) * tx + ax
        view: NDArray[Any] = np.ndarray(
            (channels, nz, ez - az, ny, ey - ay, nx, ex - ax),
            stored.dtype,
            stored,
            first * item,
            tuple(n * item for n in (prod(shape), slab, ty * tx, row, tx, one, 1)),
        )
        starts = (k * brick[0] + az, j * brick[1] + ay, i * brick[2] + ax)
        place = tuple(
            slice(s - low, s - low + n)
            for s, low, n in zip(
                starts, lower, (nz * (ez - az), ny * (ey - ay), nx * (ex - ax)), strict=True
            )
        )
        yield view, place


def spans(
    shape: Shape, brick: Shape, lower: Sequence[int], upper: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """The runs [first, last) of numbers of one channel whose bricks the box [lower, upper) touches."""
    size_z, size_y, size_x = shape
    for k in range(lower[0] // brick[0], -(-upper[0] // brick[0])):
        tz = min(brick[0], size_z - k * brick[0])
        for j in range(lower[1] // brick[1], -(-upper[1] // brick[1])):
            ty = min(brick[1], size_y - j * brick[1])
            start = k * brick[0] * size_y * size_x + tz * j * brick[1] * size_x
            first = lower[2] // brick[2] * brick[2]
            last = min(-(-upper[2] // brick[2]) * brick[2], size_x)
            if first < last:
                yield start + tz * ty * first, start + tz * ty * last


def laid(volumes: NDArray[Any], brick: Shape) -> NDArray[Any]:
    """(C, Z*Y*X): the numbers of `volumes` (C, Z, Y, X) in the order of their bricks."""
    z, y, x = volumes.shape[1:]
    stored = np.empty((len(volumes), z * y * x), volumes.dtype)
    for view, place in pieces(stored, (z, y, x), brick, (0, 0, 0), (z, y, x)):
        view[...] = volumes[(slice(None), *place)].reshape(view.shape)
    return stored


def cut(
    stored: NDArray[Any],
    shape: Shape,
    brick: Shape,
    lower: Sequence[int],
    into: NDArray[Any],
) -> None:
    """Fill `into` (C, *size) with the box [lower, lower + size), which lies within the volume."""
    upper = [low + n for low, n in zip(lower, into.shape[1:], strict=True)]
    for view, place in pieces(stored, shape, brick, lower, upper):
        # parting the axes of a view copies nothing
        into[(slice(None), *place)].reshape(view.shape)[...] = view


def bits_for(labels: NDArray[np.integer[Any]]) -> tuple[int, int]:
    """(the bits that a voxel of these labels needs, the least of them, which is stored as 0)."""
    least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
    return next(b for b in BITS if most - least < 2**b), least


def packed_labels(labels: NDArray[np.integer[Any]], bits: int, least: int) -> NDArray[Any]:
    """(Z, Y, X') unsigned: 8 / bits neighbours along x to a byte, the first in its lowest bits."""
    kind = np.uint16 if bits == 16 else np.uint8
    raised: NDArray[Any] = (labels.astype(np.int32) - least).astype(kind)
    each = max(8 // bits, 1)
    if each == 1:
        return raised
    short = -labels.shape[2] % each
    raised = np.pad(raised, ((0, 0), (0, 0), (0, short)))
    packed: NDArray[Any] = raised[..., 0::each].copy()
    for n in range(1, each):
        packed |= raised[..., n::each] << (bits * n)
    return packed


def unpacked_labels(
    packed: NDArray[Any], bits: int, least: int, kind: type[np.integer[Any]], first: int, count: int
) -> NDArray[Any]:
    """(…, count) labels of `kind`: of `packed` (…, n), the voxels first … of each row."""
    if bits >= 8:
        return (packed.astype(np.int32) + least).astype(kind)[..., first : first + count]
    each = 8 // bits
    values = np.arange(256)[:, None] >> (bits * np.arange(each)) & (2**bits - 1)
    # a byte's voxels as one number: looked up and written together
    table = (values + least).astype(np.int8).view(f"i{each}")[:, 0]
    rows: NDArray[Any] = np.take(table, packed).view(np.int8)[..., first : first + count]
    return rows.astype(kind, copy=False)
