"""Rotated and scaled patches on a processor: looked up in blocks that fit its caches.

Says what `augment_space` says to a card. Patches turned in three axes look up rows of a few layers,
all that a place needs in one piece. Planes are left to torch, which is fast there: those of patches
turned in the plane, and of patches that are only scaled or mirrored, whose first axis is
interpolated before. Layers are channels, and slices too where the map stays in the plane.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autoseg.data.augment_memory import kept
from autoseg.documents.labels import IGNORE, OUTSIDE

LAYERS = 4
"""Layers looked up together: 16 bytes, which NumPy copies in one instruction."""

BLOCK_VOX = 16384
"""Voxels placed together: their rows and weights fit the second level cache."""

PLANE_VOX = 32768
"""The same of a patch turned in the plane, which needs no rows."""

BLOCK_ROWS = 32
"""Rows of a plane that are scaled together, for the same reason."""

MIXED = IGNORE - 1
"""Marks cells whose corners hold several labels; no label is below IGNORE."""

MARGIN = 2
"""Voxels of outside round a box: cells wholly outside exist, and far places are moved to them."""

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]
Block = tuple[slice, ...]


def moved_here(
    image: Floats,
    maps: Sequence[Integers],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    images: Floats,
    found: Integers,
) -> None:
    """Fill `images` (L, *patch) and `found` (M, *patch): voxel o shows offset + matrix @ o.

    `image` is (L, *box), linear, 0 outside the box; `maps`, M of (*box), give the label with the
    largest linear weight, the lowest at a tie, -1 outside. Two or three spatial axes.
    """
    if np.count_nonzero(matrix - np.diag(np.diag(matrix))):
        _turned(image, maps, matrix, offset, images, found)
        return
    steps = zip(offset, np.diag(matrix), images.shape[1:], strict=True)
    places = [o + m * np.arange(n) for o, m, n in steps]
    _between(image, places, images)
    _scaled(maps, places, found)


# --- scaled: axis by axis ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Taps:
    """Two voxels for each output of an axis, and their weights."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    low_weight: Floats
    high_weight: Floats


def taps_at(places: NDArray[np.float64], n: int) -> Taps:
    """The linear weights of places on an axis of `n` voxels; what lies outside weighs nothing."""
    floor = np.floor(places)
    fraction = places - floor
    low, high = floor.astype(np.intp), floor.astype(np.intp) + 1
    return Taps(
        low.clip(0, n - 1),
        high.clip(0, n - 1),
        np.where((low >= 0) & (low < n), 1 - fraction, 0).astype(np.float32),
        np.where((high >= 0) & (high < n), fraction, 0).astype(np.float32),
    )


def _between(image: Floats, places: Sequence[NDArray[np.float64]], out: Floats) -> None:
    """Fill `out` (L, *patch) with `image` (L, *box) at the places of each axis, 0 outside.

    Two or three axes. The planes of the first of three are interpolated here, one of all layers at
    a time so that it stays near the processor, the rest by torch.
    """
    rows, columns = places[-2:]
    height, width = image.shape[-2:]
    grid = np.empty((1, len(rows), len(columns), 2), np.float32)
    grid[0, ..., 0] = (2 * columns + 1) / width - 1
    grid[0, ..., 1] = ((2 * rows + 1) / height - 1)[:, None]
    if len(places) == 2:
        plane = _owned(image)
        for start in range(0, len(rows), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            out[:, part] = _sampled(plane, grid[:, part])
        return
    taps = taps_at(places[0], image.shape[1])
    low, high = (kept(f"plane {k}", (len(image), height, width), np.float32) for k in range(2))
    for z in range(out.shape[1]):
        np.multiply(image[:, taps.low[z]], taps.low_weight[z], out=low)
        if taps.high_weight[z]:
            low += np.multiply(image[:, taps.high[z]], taps.high_weight[z], out=high)
        out[:, z] = _sampled(torch.from_numpy(low), grid)


def _owned(image: Floats) -> Tensor:
    """A copy in one piece, in memory of this module: torch reads no views of a case."""
    copy = kept("planes", image.shape, np.float32)
    np.copyto(copy, image)
    return torch.from_numpy(copy)


def _sampled(plane: Tensor, grid: Floats) -> Floats:
    """(L, h, w): `plane` (L, H, W) at a grid in torch's terms (1, h, w, 2), linear, 0 outside."""
    found: Floats = functional.grid_sample(
        plane[None],
        torch.from_numpy(grid),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )[0].numpy()
    return found


def _scaled(
    maps: Sequence[Integers], places: Sequence[NDArray[np.float64]], found: Integers
) -> None:
    padded, cells = _cells(maps, found.dtype.type)
    clamped = [np.clip(p, -MARGIN, n) for p, n in zip(places, maps[0].shape, strict=True)]
    corner = [np.floor(p).astype(np.intp) + MARGIN for p in clamped]
    here = cells
    for axis, index in enumerate(corner, 1):
        here = np.take(here, index, axis=axis, mode="clip")
    found[...] = here
    for one, of, into in zip(padded, cells, found, strict=True):
        mixed = np.unravel_index(np.flatnonzero(into == MIXED), into.shape)
        index = np.ravel_multi_index([c[m] for c, m in zip(corner, mixed, strict=True)], of.shape)
        fractions = [
            (p[m] - (c[m] - MARGIN)).astype(np.float32)
            for p, c, m in zip(clamped, corner, mixed, strict=True)
        ]
        into[mixed] = _heaviest(one, index, fractions)


# --- turned: rows looked up -------------------------------------------------------------------


def _turned(
    image: Floats,
    maps: Sequence[Integers],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    images: Floats,
    found: Integers,
) -> None:
    padded, cells = _cells(maps, found.dtype.type)
    plane, tables = None, []
    if len(matrix) == 2:
        plane = _owned(image)
    else:
        tables = _tables(image)
    numbers = np.arange(prod(found.shape[1:])).reshape(found.shape[1:])
    left: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in maps]
    for block in _blocks(found.shape[1:]):
        places = _places(matrix, offset, block, image.shape[1:])
        if plane is not None:
            _sample(plane, places, images[(slice(None), *block)])
        index, fractions = _cell_of(places, image.shape[1:])
        if tables:
            _look_up(tables, index, fractions, images[(slice(None), *block)])
        for m, of in enumerate(cells):
            here = np.take(of.reshape(-1), index, mode="clip")
            target = found[m][block]
            target[...] = here.reshape(target.shape)
            mixed = np.flatnonzero(here == MIXED)
            if mixed.size:
                where = numbers[block].reshape(-1)[mixed]
                left[m].append((where, index[mixed], *(f[mixed] for f in fractions)))
    for m, parts in enumerate(left):
        if parts:
            where, index, *fractions = (np.concatenate(p) for p in zip(*parts, strict=True))
            found[m].reshape(-1)[where] = _heaviest(padded[m], index, fractions)


def _blocks(patch: tuple[int, ...]) -> Iterator[Block]:
    """Blocks of a patch of two or three axes: whole lines, near to each other in every axis."""
    lines = max(1, (PLANE_VOX if len(patch) == 2 else BLOCK_VOX) // patch[-1])
    edges = (lines,) if len(patch) == 2 else (max(1, isqrt(lines)),) * 2
    steps = [range(0, n, e) for n, e in zip(patch, edges, strict=False)]
    for starts in product(*steps):
        yield (
            *(slice(s, min(s + e, n)) for s, e, n in zip(starts, edges, patch, strict=False)),
            slice(0, patch[-1]),
        )


def _tables(image: Floats) -> list[Floats]:
    """(*padded box, layers) for each few layers: what one place needs lies together, 0 round it."""
    box = image.shape[1:]
    padded = tuple(n + 2 * MARGIN for n in box)
    voxels = prod(padded)
    memory = kept("tables", ((len(image) + LAYERS) * voxels,), np.float32)
    tables = []
    for first in range(0, len(image), LAYERS):
        layers = image[first : first + LAYERS]
        # three layers lie in four places, since rows of 12 bytes are copied slowly
        width = 4 if len(layers) == 3 else len(layers)
        table = memory[first * voxels : (first + width) * voxels].reshape(*padded, width)
        for axis, n in enumerate(box):
            lead = (slice(None),) * axis
            table[(*lead, slice(0, MARGIN))] = 0
            table[(*lead, slice(MARGIN + n, None))] = 0
        inner = table[tuple(slice(MARGIN, MARGIN + n) for n in box)]
        # slice by slice: what is written four times over stays near the processor meanwhile
        for z in range(box[0]):
            for k, layer in enumerate(layers):
                inner[z, ..., k] = layer[z]
        tables.append(table)
    return tables


def _cells(maps: Sequence[Integers], kind: type[np.integer[Any]]) -> tuple[Integers, Integers]:
    """(the maps with -1 round the box, the label that all corners of a cell share, or MIXED).

    A cell bears the number of its lowest corner. The last of each axis have no upper corners: they
    hold anything, and nobody looks there.
    """
    box = maps[0].shape
    shape = (len(maps), *(n + 2 * MARGIN for n in box))
    padded = kept("maps", shape, kind)
    padded.fill(OUTSIDE)
    for layer, target in zip(maps, padded, strict=True):
        target[tuple(slice(MARGIN, MARGIN + n) for n in box)] = layer
    low = high = padded.reshape(-1)
    # in one long row, a voxel's next along an axis is a fixed step away
    for axis, step in enumerate(_strides(shape)[1:]):
        lower, higher = (kept(f"{end} {axis % 2}", low.shape, kind) for end in ("low", "high"))
        np.minimum(low[:-step], low[step:], out=lower[:-step])
        np.maximum(high[:-step], high[step:], out=higher[:-step])
        lower[-step:], higher[-step:] = OUTSIDE, OUTSIDE
        low, high = lower, higher
    np.copyto(low, MIXED, where=np.not_equal(low, high, out=kept("mixed", low.shape, np.bool_)))
    return padded, low.reshape(shape)


def _places(
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    block: Block,
    box: tuple[int, ...],
) -> list[Floats]:
    """Where a block's voxels lie in the padded box, a flat array an axis; far places move to it."""
    places = []
    *lead, last = (np.arange(part.start, part.stop, dtype=np.float64) for part in block)
    shape = (*(len(line) for line in lead), len(last))
    for axis, (row, start, n) in enumerate(zip(matrix, offset, box, strict=True)):
        lines = lead[0] * row[0] + (start + MARGIN)
        if len(lead) == 2:
            lines = lines[:, None] + lead[1] * row[1]
        place = kept(f"place {axis}", shape, np.float32)
        line = (last * row[-1]).astype(np.float32)
        np.add(lines.astype(np.float32)[..., None], line, out=place)
        place = place.reshape(-1)
        np.maximum(place, 0, out=place)
        np.minimum(place, n + MARGIN, out=place)
        places.append(place)
    return places


def _cell_of(
    places: Sequence[Floats], box: tuple[int, ...]
) -> tuple[NDArray[np.intp], Sequence[Floats]]:
    """(index of each place's cell in the padded box, its fractions along the axes).

    The fractions take the memory of the places.
    """
    size = places[0].shape
    floor, whole = kept("floor", size, np.float32), kept("whole", size, np.int32)
    index = kept("index", size, np.int32)
    index.fill(0)
    for place, n in zip(places, box, strict=True):
        np.floor(place, out=floor)
        place -= floor
        np.copyto(whole, floor, casting="unsafe")
        index *= n + 2 * MARGIN
        index += whole
    long = kept("index", size, np.intp)
    np.copyto(long, index)
    return long, places


def _sample(image: Tensor, places: Sequence[Floats], target: Floats) -> None:
    """Fill `target` (L, *block) of a plane: `image` (L, H, W) at the places, 0 outside."""
    grid = kept("grid", (1, *target.shape[1:], 2), np.float32)
    # torch's terms: columns first, -1 and 1 are the outer faces of the first and last voxel
    for k, (place, n) in enumerate(zip(reversed(places), reversed(image.shape[1:]), strict=True)):
        axis = grid[0, ..., k]
        np.multiply(place.reshape(axis.shape), 2 / n, out=axis)
        axis += (1 - 2 * MARGIN) / n - 1
    target[...] = _sampled(image, grid)


def _look_up(
    tables: Sequence[Floats],
    index: NDArray[np.intp],
    fractions: Sequence[Floats],
    target: Floats,
) -> None:
    """Fill `target` (layers of all tables, *block), linear between the corners of each cell."""
    weights: list[Tensor] = []
    done = 0
    for table in tables:
        width = table.shape[-1]
        if not weights or weights[0].shape[1] != width:
            weights = [_repeated(f, width, axis) for axis, f in enumerate(fractions)]
        values = _interpolated(table, index, weights)
        for k, layer in enumerate(target[done : done + width]):
            layer[...] = values[:, k].reshape(layer.shape)
        done += width


def _repeated(fractions: Floats, width: int, axis: int) -> Tensor:
    """(N, width): each fraction for all layers of a row."""
    wide = kept(f"weight {axis}", (fractions.size, width), np.float32)
    for k in range(width):
        wide[:, k] = fractions
    return torch.from_numpy(wide)


def _interpolated(table: Floats, index: NDArray[np.intp], weights: Sequence[Tensor]) -> Floats:
    """(N, layers): linear between the corners of each cell."""
    shape = (index.size, table.shape[-1])
    rows, strides = table.reshape(-1, shape[1]), _strides(table.shape[:-1])
    # no more corners are held at once than this
    held = [kept(f"corner {k}", shape, np.float32) for k in range(len(weights) + 1)]
    corners = [torch.from_numpy(corner) for corner in held]

    def along(axis: int, shift: int, slot: int) -> None:
        if axis == len(weights):
            rows[shift:].take(index, axis=0, mode="clip", out=held[slot])
            return
        along(axis + 1, shift, slot)
        along(axis + 1, shift + strides[axis], slot + 1)
        # in one step, where NumPy takes three
        torch.lerp(corners[slot], corners[slot + 1], weights[axis], out=corners[slot])

    along(0, 0, 0)
    return held[0]


def _strides(shape: Sequence[int]) -> list[int]:
    """Steps in a flattened array from a voxel to its next along each axis."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _heaviest(padded: Integers, index: NDArray[np.intp], fractions: Sequence[Floats]) -> Integers:
    """(N,): among the corners of each cell, the label with the largest sum of linear weights."""
    strides, flat = _strides(padded.shape), padded.reshape(-1)
    labels: list[Integers] = []
    weights: list[Floats] = []
    for bits in product((0, 1), repeat=len(fractions)):
        shift = sum(s for bit, s in zip(bits, strides, strict=True) if bit)
        labels.append(np.take(flat[shift:], index, mode="clip"))
        weight = np.ones(index.shape, np.float32)
        for bit, f in zip(bits, fractions, strict=True):
            weight *= f if bit else 1 - f
        weights.append(weight)
    lows: Integers = np.minimum.reduce(labels)
    highs: Integers = np.maximum.reduce(labels)
    low_sum, high_sum = _sum_of(lows, labels, weights), _sum_of(highs, labels, weights)
    winner: Integers = np.where(high_sum > low_sum, highs, lows)
    best = np.maximum(low_sum, high_sum)
    # two labels are nearly all; a third can win only where they leave it enough
    rest = np.flatnonzero(1 - low_sum - high_sum >= best)
    if rest.size:
        few_labels, few_weights = [x[rest] for x in labels], [w[rest] for w in weights]
        top, score = winner[rest], best[rest]
        for label in few_labels:
            own = _sum_of(label, few_labels, few_weights)
            better = (own > score) | ((own == score) & (label < top))
            top, score = np.where(better, label, top), np.where(better, own, score)
        winner[rest] = top
    return winner


def _sum_of(label: Integers, labels: Sequence[Integers], weights: Sequence[Floats]) -> Floats:
    total = np.zeros(label.shape, np.float32)
    for other, weight in zip(labels, weights, strict=True):
        total += (other == label) * weight
    return total
