"""The highest class of each voxel of a finer grid, computed only where it is in question.

A new voxel is a mean of the eight old ones around it. A class that is highest at all eight is highest
in between, also in floating point, where products with the same weights and sums in the same order
keep an order. So most voxels need no interpolation. In the cells between old voxels that disagree,
only the classes count whose best corner reaches what another class has at its worst; these are
compared as skimage would have computed them: in scipy's order of float64 operations, rounded to
float32, the lower class of equals. Where too much is in question, a whole row is interpolated, and
only what float32 cannot tell apart is computed in that order. A card interpolates all rows as a
whole: the choice of what needs it costs a card more than the interpolation.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoseg.device import is_card
from autoseg.image.resample import axis_operator
from autoseg.infer.exact import exact_products
from autoseg.infer.rows import Mixing

NEAR = 2.0**-22
"""Scores closer than this share of the largest may become equal in float32."""
ROUGH = 2.0**-19
"""Scores closer than this share may change places when they are interpolated in float32."""
DENSE = 1 / 16
"""A row is interpolated as a whole from this share of its voxels' classes on that are in question."""
EXPECTED = 3
"""About so many classes are in question where any are."""
PAIRS = 1 << 19
"""So many scores are computed together."""
CARD_PAIRS = 1 << 23
"""The same on a card, 32 MiB: each piece waits for it once."""
PLANES = 1 << 16
"""So many scores are looked at together: small pieces of memory are used again at once."""
CODES = 1 << 12
"""More than there are classes; sums of numbers above it tell one from several."""

ReadRows = Callable[[int, int], tuple[Tensor, Tensor]]
"""Two rows (K, Y, X) of the old grid; those before the first are never asked for again."""


class Cells(NamedTuple):
    """The places of an axis between old voxels in which new voxels lie."""

    low: Tensor
    high: Tensor
    """The old voxels (cells,) on both sides; the same where nothing is mixed."""
    of: Tensor
    """The cell (new,) of each new voxel."""
    shares: Tensor
    """The weights (2, new) of both sides in float64."""


def cells_of(n_in: int, n_out: int, order: int, device: torch.device) -> Cells:
    """The cells of an axis that is resized by order 0 or 1, with scipy's own weights."""
    shares = np.stack([np.ones(n_out), np.zeros(n_out)])
    if n_in == n_out:
        pairs = np.stack([np.arange(n_out)] * 2)
    elif order == 0:
        pairs = np.stack([axis_operator(n_in, n_out, 0).argmax(1)] * 2)
    else:
        at = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
        below = np.floor(at)
        shares = np.stack([1 - (at - below), at - below])
        pairs = np.clip(np.stack([below, below + (shares[1] > 0)]), 0, n_in - 1).astype(np.int64)
    sides, of = np.unique(pairs, axis=1, return_inverse=True)
    low, high = sides
    tensors = (torch.from_numpy(np.ascontiguousarray(a)) for a in (low, high, of.ravel(), shares))
    return Cells(*(tensor.to(device) for tensor in tensors))


class _Row(NamedTuple):
    """A row of the old grid."""

    values: Tensor
    """(K, Y, X), contiguous."""
    lowest: Tensor
    highest: Tensor
    """Classes (voxels,), the same where that one is clearly the highest; else the latter is K."""
    tops: Tensor
    """The highest value (K,) of each class."""
    size: float
    """The largest magnitude."""


class _Pairs(NamedTuple):
    """What may be highest where: classes cell by cell, ascending."""

    classes: Tensor
    counts: Tensor
    """How many classes (cells,) each cell has."""
    starts: Tensor
    """Where they begin in `classes`."""


class Winners:
    """The highest classes (Y, X) of the rows of a new grid, asked for in order."""

    def __init__(
        self,
        read: ReadRows,
        shape_vox: Sequence[int],
        new_shape: Sequence[int],
        apart: int | None,
        device: torch.device,
    ) -> None:
        """Linear interpolation, along the axis `apart` by the nearest slice."""
        self.read, self.dense = read, is_card(device)
        self.mixing = Mixing(shape_vox, new_shape, apart, device)
        self.z, self.y, self.x = (
            cells_of(n, m, 0 if axis == apart else 1, device)
            for axis, (n, m) in enumerate(zip(shape_vox, new_shape, strict=True))
        )
        corners = [(y, x) for y in (self.y.low, self.y.high) for x in (self.x.low, self.x.high)]
        self.corners = torch.stack([y[:, None] * shape_vox[2] + x for y, x in corners]).flatten(1)
        self.rows: dict[int, _Row] = {}
        self.at = (-1, -1)
        self.settled = torch.empty(0)
        self.pairs: _Pairs | None = None
        self.crowded = False
        self.scratch = (torch.empty(0, device=device), torch.empty(0, device=device))

    def row(self, number: int) -> Tensor:
        """The highest class (Y, X), int16, of each voxel of a row, the lower one of equals."""
        cell = self.z.of[number]
        at = int(self.z.low[cell]), int(self.z.high[cell])
        if at != self.at:
            self._look(*at)
        if self.crowded:
            return self._whole(number)
        found = self.settled.index_select(0, self.y.of).index_select(1, self.x.of)
        if self.pairs is None:
            return found.to(torch.int16)
        places = _where(found < 0)
        cells = -1 - _at(found.view(-1), places)
        asked = int(_at(self.pairs.counts, cells).sum())
        if asked > DENSE * found.numel() * len(self.rows[at[0]].values):
            return self._whole(number)
        if asked:
            self._decide(found, number, places, cells, self.pairs)
        return found.to(torch.int16)

    def _look(self, low: int, high: int) -> None:
        """Find out what is settled between two rows of the old grid, and what may be the rest."""
        missing = [at for at in dict.fromkeys((low, high)) if at not in self.rows]
        if missing:
            planes = dict(zip((low, high), self.read(low, high), strict=True))
            self.rows = {at: row for at, row in self.rows.items() if at in (low, high)}
            look = _unseen if self.dense else _seen
            self.rows |= {at: look(planes[at]) for at in missing}
        self.at = low, high
        self.crowded = self.dense
        if self.dense:
            return
        one, other = self.rows[low], self.rows[high]
        lowest = torch.minimum(one.lowest, other.lowest)
        highest = torch.maximum(one.highest, other.highest)
        lowest, highest = (
            reduce(mix, (side.index_select(0, at) for at in self.corners))
            for mix, side in ((torch.minimum, lowest), (torch.maximum, highest))
        )
        doubtful = _where(lowest != highest)
        self.pairs = None
        self.crowded = EXPECTED * len(doubtful) > DENSE * len(one.tops) * len(lowest)
        if len(doubtful) and not self.crowded:
            picked = lowest[doubtful].long(), highest[doubtful].long().clamp_(max=len(one.tops) - 1)
            self.pairs = _possible((one, other), self.corners[:, doubtful], picked)
        numbers = torch.arange(len(doubtful), dtype=torch.int32, device=lowest.device)
        lowest[doubtful] = -1 - numbers
        self.settled = lowest.view(len(self.y.low), len(self.x.low))

    def _decide(
        self, found: Tensor, number: int, places: Tensor, cells: Tensor, pairs: _Pairs
    ) -> None:
        """Write the winners of voxels, numbered in a row, that lie in `cells` of `pairs`."""
        one, other = (self.rows[at] for at in self.at)
        plane = self.mixing.row(one.values, other.values, number)
        margin = ROUGH * max(one.size, other.size)
        at_once = max(1, PAIRS // int(pairs.counts.max()))
        for start in range(0, len(places), at_once):
            part = slice(start, start + at_once)
            counts = pairs.counts[cells[part]]
            voxel = torch.repeat_interleave(counts)
            skipped = pairs.starts[cells[part]] - (counts.cumsum(0) - counts)
            here = _at(skipped, voxel).add_(torch.arange(len(voxel), device=voxel.device))
            classes = _at(pairs.classes, here)
            values = self._roughly(plane, places[part], voxel, classes)
            best = torch.segment_reduce(values, "max", lengths=counts, unsafe=True)
            near = _where(values >= _at(best - margin, voxel))
            self._settle(found, number, places[part], _at(voxel, near), _at(classes, near))

    def _roughly(self, plane: Tensor, places: Tensor, voxel: Tensor, classes: Tensor) -> Tensor:
        """The values of classes at places[voxel] of a row (K, Y, X), mixed in float32."""
        _, height, width = plane.shape
        y, x = places // len(self.x.of), places % len(self.x.of)
        y_cell, x_cell = self.y.of[y], self.x.of[x]
        low = self.y.low[y_cell] * width + self.x.low[x_cell]
        down = _at(((self.y.high - self.y.low) * width)[y_cell], voxel)
        right = _at((self.x.high - self.x.low)[x_cell], voxel)
        y_share = _at(self.y.shares[1].float()[y], voxel)
        x_share = _at(self.x.shares[1].float()[x], voxel)
        corner = (classes * (height * width)).add_(_at(low, voxel))
        flat = plane.view(-1)
        upper = _at(flat, corner).lerp_(_at(flat, corner + right), x_share)
        corner += down
        lower = _at(flat, corner).lerp_(_at(flat, corner + right), x_share)
        return upper.lerp_(lower, y_share)

    def _settle(
        self, found: Tensor, number: int, places: Tensor, voxel: Tensor, classes: Tensor
    ) -> None:
        """Write the highest of the classes at places[voxel], exactly where there are several."""
        winner = torch.zeros(len(places), dtype=torch.int64, device=places.device)
        winner[voxel] = classes
        if len(voxel) > len(places):
            several = _where(_at(torch.bincount(voxel) > 1, voxel))
            voxel, classes = voxel[several], classes[several]
            values = self._exact(number, places[voxel], classes)
            best = torch.full(winner.shape, -torch.inf, device=values.device)
            best.scatter_reduce_(0, voxel, values, "amax")
            highest = _where(values == best[voxel])
            winner[voxel[highest]] = len(self.rows[self.at[0]].values)
            winner.scatter_reduce_(0, voxel[highest], classes[highest], "amin")
        found.view(-1)[places] = winner.to(found.dtype)

    def _exact(self, number: int, places: Tensor, classes: Tensor) -> Tensor:
        """The float32 values of classes at places of a row, computed as scipy does."""
        planes = [self.rows[at].values for at in self.at]
        _, height, width = planes[0].shape
        y, x = places // len(self.x.of), places % len(self.x.of)
        y_cell, x_cell = self.y.of[y], self.x.of[x]
        total = torch.zeros(len(classes), dtype=torch.float64, device=places.device)
        for plane, z_share in zip(planes, self.z.shares[:, number], strict=True):
            for y_old, y_share in zip((self.y.low, self.y.high), self.y.shares, strict=True):
                for x_old, x_share in zip((self.x.low, self.x.high), self.x.shares, strict=True):
                    corner = (classes * height + y_old[y_cell]) * width + x_old[x_cell]
                    value = plane.view(-1)[corner].double()
                    total += value.mul_(z_share).mul_(y_share[y]).mul_(x_share[x])
        return total.float()

    def _whole(self, number: int) -> Tensor:
        """The winners of a row where all classes are interpolated at all voxels."""
        one, other = (self.rows[at] for at in self.at)
        lines = self.mixing.lines(self.mixing.row(one.values, other.values, number))
        height, width = len(self.y.of), len(self.x.of)
        found = torch.empty((height, width), dtype=torch.int16, device=lines.device)
        margin = ROUGH * max(one.size, other.size)
        at_once = max(1, (CARD_PAIRS if self.dense else PAIRS) // (len(lines) * width))
        room = len(lines) * width * min(at_once, height)
        if len(self.scratch[0]) < room:
            self.scratch = (lines.new_empty(room), lines.new_empty(room))
        for start in range(0, height, at_once):
            part = slice(start, start + at_once)
            scores = self.mixing.columns(lines, part, self.scratch).flatten(1)
            classes, near, unclear = _near(scores, margin, self.scratch[1])
            found[part] = classes.view(-1, width)
            if len(unclear):
                voxel, names = torch.nonzero(near[:, unclear].t(), as_tuple=True)
                self._settle(found, number, unclear + start * width, voxel, names)
        return found


def _unseen(values: Tensor) -> _Row:
    """A row of which all is interpolated: but its size is asked for."""
    values, none = values.contiguous(), values.new_empty(0)
    return _Row(values, none, none, none, float(values.abs().max()))


def _seen(values: Tensor) -> _Row:
    values = values.contiguous()
    flat = values.flatten(1)
    tops = flat.amax(1)
    size = float(torch.maximum(-flat.amin(1), tops).max())
    classes, _, unclear = _near(flat, NEAR * size, torch.empty(flat.numel(), device=flat.device))
    lowest = classes.to(torch.int32)
    lowest[unclear] = flat[:, unclear].argmax(0).to(torch.int32)
    highest = lowest.index_fill(0, unclear, len(flat))
    return _Row(values, lowest, highest, tops, size)


def _near(values: Tensor, margin: float, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest classes (voxels,), int16, of values (K, voxels), but for voxels that are unclear.

    Then, where (K, voxels) a class is within a margin of the highest, as numbers that are not 0, and
    the voxels where several are. `scratch` is flat, and is where they are written.
    """
    needed = values.amax(0) - margin
    # numbers, for torch compares into booleans, counts and picks several times more slowly
    near = torch.ge(values, needed, out=scratch[: values.numel()].view(values.shape))
    codes = torch.arange(len(values), dtype=torch.float32, device=values.device) + CODES
    with exact_products(values.device):
        found = (codes @ near).sub_(CODES)
    unclear = _where(found >= CODES)
    found[unclear] = 0
    return found.clamp_(min=0).to(torch.int16), near, unclear


def _possible(rows: tuple[_Row, _Row], corners: Tensor, picked: Sequence[Tensor]) -> _Pairs:
    """The classes that may be highest in cells (4, cells) between two rows.

    None is whose best corner stays below what one of the classes `picked` has at its worst.
    """
    one, other = rows
    size = one.values[0].numel()
    needed = torch.full(corners.shape[1:], -torch.inf, device=corners.device)
    for chosen in picked:
        at = [corner + chosen * size for corner in corners]
        worst = [row.values.view(-1).index_select(0, place) for row in rows for place in at]
        needed = torch.maximum(needed, reduce(torch.minimum, worst))
    needed -= NEAR * max(row.size for row in rows)
    names = _where(torch.maximum(one.tops, other.tops) >= needed.min())
    possible = torch.empty((len(names), len(needed)), dtype=torch.bool, device=needed.device)
    at_once = max(1, PLANES // size)
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        best = torch.maximum(one.values[some], other.values[some])
        best = _with_next(_with_next(best, 1), 2).flatten(1)
        torch.ge(best.index_select(1, corners[0]), needed, out=possible[start : start + at_once])
    pairs = _where(possible.t())
    counts = torch.bincount(pairs // len(names), minlength=len(needed))
    return _Pairs(_at(names, pairs % len(names)), counts, counts.cumsum(0) - counts)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """Values (n,) at places: a picking by brackets takes twice the time."""
    return values.index_select(0, places)


def _where(true: Tensor) -> Tensor:
    """The places, along all axes, at which a tensor is true."""
    if true.device.type != "cpu":
        return torch.nonzero(true.reshape(-1)).view(-1)
    return torch.from_numpy(np.flatnonzero(true.numpy()))  # torch takes three times as long


def _with_next(values: Tensor, axis: int) -> Tensor:
    """The higher of each value and of the next one along an axis."""
    count = values.shape[axis] - 1
    out = values.clone()
    low, high = values.narrow(axis, 0, count), values.narrow(axis, 1, count)
    torch.maximum(low, high, out=out.narrow(axis, 0, count))
    return out
