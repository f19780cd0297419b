"""Rows of logits that come slab by slab, and rows of another grid mixed from them.

Linear interpolation, or the nearest voxel, axis by axis in float32: two rows of axis 0 are mixed
into one, then its lines by a matrix product, then its columns.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.image.resample import axis_operator
from autoseg.infer.exact import exact_products
from autoseg.infer.meaning import Slab

BAND = 32
"""New voxels of a line that are computed in one matrix product."""

ALL = slice(None)

Scratch = tuple[Tensor, Tensor]


class Taps(NamedTuple):
    """Each new voxel of an axis is old[low] * (1 - share) + old[high] * share."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: NDArray[np.float32]


class Band(NamedTuple):
    """Neighbouring new voxels of a line: old @ weights, with only the old ones that count."""

    new: slice
    old: slice
    weights: Tensor


def linear_taps(n_in: int, n_out: int, order: int) -> Taps:
    """The old voxels of an axis that each new one is mixed from, by order 0 or 1."""
    operator = axis_operator(n_in, n_out, order)
    used = operator != 0
    low = used.argmax(1)
    high = n_in - 1 - used[:, ::-1].argmax(1)
    share = np.where(high > low, operator[np.arange(n_out), high], 0)
    return Taps(low, high, share.astype(np.float32))


class Source:
    """The rows of axis 0 of slabs that come one after another; only those still needed are held.

    Raises ValueError if the slabs do not make up `shape_vox`, as soon as that is seen.
    """

    def __init__(self, slabs: Iterable[Slab], shape_vox: Sequence[int]) -> None:
        self.slabs = iter(slabs)
        self.shape = tuple(shape_vox)
        self.held: deque[Slab] = deque()
        self.pulled = 0
        self.in_main_memory = False
        self._pull()
        first = self.held[0][1]
        self.lead, self.device = tuple(first.shape[:-3]), first.device

    def pair(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Two rows (..., K, Y, X); those before `low` are never asked for again."""
        while self.pulled <= high:
            self._drop(low)
            self._pull()
        self._drop(low)
        return self._row(low), self._row(high)

    def leave_card(self) -> bool:
        """Hold rows in main memory from here on; False if that is so already."""
        if self.in_main_memory:
            return False
        self.in_main_memory, self.device = True, torch.device("cpu")
        self.held = deque((rows, slab.cpu()) for rows, slab in self.held)
        return True

    def _row(self, index: int) -> Tensor:
        rows, slab = next(held for held in self.held if index < held[0].stop)
        # slabs may have left the card before their rows do
        return slab[..., index - rows.start, :, :].to(self.device).float()

    def _drop(self, before: int) -> None:
        while self.held and self.held[0][0].stop <= before:
            self.held.popleft()

    def _pull(self) -> None:
        rows, slab = next(self.slabs, (slice(self.pulled, self.pulled), None))
        found = None if slab is None else tuple(slab.shape[-3:])
        if (
            slab is None
            or found != (rows.stop - self.pulled, *self.shape[1:])
            or (rows.start != self.pulled or rows.stop <= rows.start or rows.stop > self.shape[0])
        ):
            raise ValueError(
                f"logits of {self.shape} are expected, after {self.pulled} rows came "
                f"{'nothing' if slab is None else f'rows {rows.start} to {rows.stop} of {found}'}"
            )
        self.held.append((rows, slab.cpu() if self.in_main_memory else slab))
        self.pulled = rows.stop


class Mixing:
    """How rows (..., K, Y, X) of a new grid are mixed from those of an old one."""

    def __init__(
        self,
        shape_vox: Sequence[int],
        new_shape: Sequence[int],
        apart: int | None,
        device: torch.device,
    ) -> None:
        """Linearly, and by the nearest slice along the axis `apart`."""
        first, second, third = (
            None if n == m else linear_taps(n, m, 0 if axis == apart else 1)
            for axis, (n, m) in enumerate(zip(shape_vox, new_shape, strict=True))
        )
        self._rows, self._columns, self._bands = first, None, None
        if second is not None:
            low, high = (torch.from_numpy(at).to(device) for at in second[:2])
            self._columns = low, high, torch.from_numpy(second.share).to(device)[:, None]
        if third is not None:
            self._bands = _bands(third, device)

    def needed(self, row: int) -> tuple[int, int]:
        """The two old rows, perhaps the same, that a new row is mixed from."""
        if self._rows is None:
            return row, row
        return int(self._rows.low[row]), int(self._rows.high[row])

    def plane(self, low: Tensor, high: Tensor, row: int) -> Tensor:
        """One new row from the two old ones that it needs."""
        return self.columns(self.lines(self.row(low, high, row)))

    def row(self, low: Tensor, high: Tensor, row: int) -> Tensor:
        """One new row, on the old grid of the other two axes."""
        share = 0.0 if self._rows is None else float(self._rows.share[row])
        return torch.lerp(low, high, share) if share else low

    def lines(self, plane: Tensor) -> Tensor:
        """A plane (..., Y, X) with the new voxels of the last axis."""
        if self._bands is None:
            return plane
        lines = plane.reshape(-1, plane.shape[-1])
        new = torch.empty((len(lines), self._bands[-1].new.stop), device=plane.device)
        with exact_products(plane.device):
            for band in self._bands:
                torch.mm(lines[:, band.old], band.weights, out=new[:, band.new])
        return new.view(*plane.shape[:-1], -1)

    def columns(self, plane: Tensor, part: slice = ALL, scratch: Scratch | None = None) -> Tensor:
        """A plane (..., Y, X) with the new voxels of the axis before the last, or a part of them.

        It may lie in the first of two flat tensors for scratch; fresh memory costs more than this.
        """
        if self._columns is None:
            return plane[..., part, :]
        low, high, shares = (side[part] for side in self._columns)
        if scratch is None:
            return plane.index_select(-2, low).lerp_(plane.index_select(-2, high), shares)
        shape = (*plane.shape[:-2], len(low), plane.shape[-1])
        first, second = (flat[: prod(shape)].view(shape) for flat in scratch)
        torch.index_select(plane, -2, low, out=first)
        torch.index_select(plane, -2, high, out=second)
        return first.lerp_(second, shares)


def _bands(taps: Taps, device: torch.device) -> list[Band]:
    """The last axis in bands: a matrix product beats picking single voxels of a line by far."""
    bands = []
    for start in range(0, len(taps.low), BAND):
        new = slice(start, min(start + BAND, len(taps.low)))
        first, last = int(taps.low[new][0]), int(taps.high[new][-1])
        weights = np.zeros((last + 1 - first, new.stop - start), np.float32)
        columns = np.arange(new.stop - start)
        weights[taps.low[new] - first, columns] = 1 - taps.share[new]
        weights[taps.high[new] - first, columns] += taps.share[new]
        bands.append(Band(new, slice(first, last + 1), torch.from_numpy(weights).to(device)))
    return bands
