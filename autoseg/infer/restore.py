"""From logits on the prepared grid back to the grid of the arranged image, before it was cropped.

Logits are resampled linearly, along a coarse axis by the nearest slice, as nnU-Net exports them;
but row by row of axis 0, from slabs that come one after another, so that memory never holds more
than a few rows of all classes. Every voxel is a mean of its neighbours whatever rows are asked for
together, so that the same logits give the same bits.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.image.resample import axis_operator, separate_axis
from autoseg.infer.meaning import Slab

SLAB_BYTES = 64 << 20
BAND = 64
"""New voxels of a line that are computed in one matrix product."""

Box = Sequence[tuple[int, int]]


def rows_at_once(outputs: int, full_shape: Sequence[int], slab_bytes: int = SLAB_BYTES) -> int:
    """How many rows of axis 0 of all outputs on the full grid fit into `slab_bytes`, at least 1.

    It depends on nothing else, so that chunks of several networks can be taken together.
    """
    return max(1, slab_bytes // (4 * outputs * full_shape[1] * full_shape[2]))


def restored(
    slabs: Iterable[Slab],
    shape_vox: Sequence[int],
    box: Box,
    full_shape: Sequence[int],
    spacing_mm: Sequence[float],
    full_spacing_mm: Sequence[float],
    *,
    rows: int,
    outside: Sequence[float],
    separate_z_above: float = 3.0,
) -> Iterator[Slab]:
    """Logits (..., K, rows, Y, X) on the full grid and their rows of axis 0, in order and complete.

    `slabs` are pieces (..., K, n, *shape_vox[1:]) of the logits in the order of axis 0, pulled when
    a row needs them and dropped when none does. `box` holds (start, stop) of each axis of the crop
    on the full grid; outside of it are the K values `outside`. `spacing_mm` is that of the logits.
    Raises ValueError if the slabs do not make up `shape_vox`.
    """
    crop = [stop - start for start, stop in box]
    apart = separate_axis(spacing_mm, full_spacing_mm, separate_z_above)
    first, second, third = (
        None if n == m else _taps(n, m, 0 if axis == apart else 1)
        for axis, (n, m) in enumerate(zip(shape_vox, crop, strict=True))
    )
    source = _Source(slabs, shape_vox)
    if source.lead[-1] != len(outside):
        raise ValueError(f"{len(outside)} values outside of the box, {source.lead[-1]} outputs")
    bands = None if third is None else _bands(third, source.device)
    elsewhere = torch.tensor(outside, dtype=torch.float32, device=source.device)
    (top, bottom), (y0, y1), (x0, x1) = box
    whole = (y1 - y0, x1 - x0) == tuple(full_shape[1:])
    for start in range(0, full_shape[0], rows):
        stop = min(start + rows, full_shape[0])
        chunk = torch.empty((*source.lead, stop - start, *full_shape[1:]), device=source.device)
        if not whole or start < top or stop > bottom:
            chunk[...] = elsewhere.view(-1, 1, 1, 1)
        for row in range(max(start, top), min(stop, bottom)):
            plane = _across(_down(source, row - top, first), second, bands)
            chunk[..., row - start, y0:y1, x0:x1] = plane
        yield slice(start, stop), chunk
        del chunk  # the caller alone decides how long it lives


class _Taps(NamedTuple):
    """Each new voxel of an axis is old[low] * (1 - share) + old[high] * share."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    share: NDArray[np.float32]


class _Band(NamedTuple):
    """Neighbouring new voxels of a line: old @ weights, with only the old ones that count."""

    new: slice
    old: slice
    weights: Tensor


def _taps(n_in: int, n_out: int, order: int) -> _Taps:
    """The old voxels of an axis that each new one is mixed from, by order 0 or 1."""
    operator = axis_operator(n_in, n_out, order)
    used = operator != 0
    low = used.argmax(1)
    high = n_in - 1 - used[:, ::-1].argmax(1)
    share = np.where(high > low, operator[np.arange(n_out), high], 0)
    return _Taps(low, high, share.astype(np.float32))


class _Source:
    """The rows of axis 0 of slabs that come one after another; only those still needed are held."""

    def __init__(self, slabs: Iterable[Slab], shape_vox: Sequence[int]) -> None:
        self.slabs = iter(slabs)
        self.shape = tuple(shape_vox)
        self.held: deque[Slab] = deque()
        self.pulled = 0
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

    def _row(self, index: int) -> Tensor:
        rows, slab = next(held for held in self.held if index < held[0].stop)
        return slab[..., index - rows.start, :, :].float()

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
        self.held.append((rows, slab))
        self.pulled = rows.stop


def _down(source: _Source, row: int, taps: _Taps | None) -> Tensor:
    """One new row (..., K, Y, X) of axis 0, on the old grid of the other two."""
    if taps is None:
        return source.pair(row, row)[0]
    share = float(taps.share[row])
    low, high = source.pair(int(taps.low[row]), int(taps.high[row]))
    return torch.lerp(low, high, share) if share else low


def _across(plane: Tensor, taps: _Taps | None, bands: Sequence[_Band] | None) -> Tensor:
    """A plane (..., K, Y, X) on the new grid."""
    if bands is not None:
        lines = plane.reshape(-1, plane.shape[-1])
        new = torch.empty((len(lines), bands[-1].new.stop), device=plane.device)
        for band in bands:
            torch.mm(lines[:, band.old], band.weights, out=new[:, band.new])
        plane = new.view(*plane.shape[:-1], -1)
    if taps is None:
        return plane
    low, high = (torch.from_numpy(at).to(plane.device) for at in taps[:2])
    share = torch.from_numpy(taps.share).to(plane.device)[:, None]
    return plane.index_select(-2, low).lerp_(plane.index_select(-2, high), share)


def _bands(taps: _Taps, device: torch.device) -> list[_Band]:
    """The last axis in bands: a matrix product beats picking single voxels of a line by far."""
    bands = []
    for start in range(0, len(taps.low), BAND):
        new = slice(start, min(start + BAND, len(taps.low)))
        first, last = int(taps.low[new][0]), int(taps.high[new][-1])
        weights = np.zeros((last + 1 - first, new.stop - start), np.float32)
        columns = np.arange(new.stop - start)
        weights[taps.low[new] - first, columns] = 1 - taps.share[new]
        weights[taps.high[new] - first, columns] += taps.share[new]
        bands.append(_Band(new, slice(first, last + 1), torch.from_numpy(weights).to(device)))
    return bands
