"""Label maps to another grid without inventing values, as nnU-Net does it.

A new voxel lies between eight old ones. Where these agree there is nothing to weigh; elsewhere the
label with the largest linear share wins, in float64 and scipy's order of operations, since at an even
factor most voxels of a boundary have two equal shares.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoseg.image.matrices import slabs
from autoseg.image.resample import (
    ANISOTROPY_THRESHOLD,
    axis_operator,
    checked_shape,
    nearest_slices,
    separate_axis,
)

Labels = NDArray[np.integer]

WEIGHED = 1 << 14
"""So many voxels are weighed together: their corners stay in the cache."""
HALF = 0.5 + 1e-9

_Corner = tuple[Labels, NDArray[np.float64]]
"""The label of an old voxel beside each new one, and its weight."""


class _Sides(NamedTuple):
    """The two old voxels (2, new) that each new one of an axis is mixed from."""

    old: NDArray[np.intp]
    weights: NDArray[np.float64]


def resample_labels(
    labels: Labels,
    shape: Sequence[int],
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    order: int = 1,
    order_z: int = 0,
    separate_z_above: float | None = ANISOTROPY_THRESHOLD,
    unlabelled: int | None = None,
) -> Labels:
    """The label map (*S) on a grid of `shape`, in its own type; a new array.

    Order 1: each label's mask is resized linearly and the label with the largest share is written;
    of equal shares that of the nearest old voxel, or else the lowest. So does batchgenerators, which
    nnU-Net calls, from 0.25.4 on; before, a label was written where it reached one half, the higher
    one last.
    Order 0: the nearest voxel's label everywhere. Slices of a coarse axis are never mixed.
    `unlabelled` is the value of voxels that nobody labelled: a coarser grid would step over single
    labelled slices, so a voxel that would get it has the commonest label whose voxels' centres lie
    inside it, if there is one. (nnU-Net loses them.)
    """
    if order not in (0, 1) or order_z != 0:
        raise ValueError(f"label maps take order 0 or 1 and order_z 0, not {order} and {order_z}")
    new_shape = checked_shape(labels.shape, shape)
    apart = separate_axis(spacing_mm, target_mm, separate_z_above)
    if labels.shape == new_shape:
        return labels.copy()
    out = _apart(labels, new_shape, order, apart)
    return out if unlabelled is None else _kept(out, labels, unlabelled)


def _apart(labels: Labels, new_shape: tuple[int, ...], order: int, apart: int | None) -> Labels:
    """The label map on the grid; in-plane by slices where a coarse axis goes apart."""
    in_plane = tuple(
        old if axis == apart else new
        for axis, (old, new) in enumerate(zip(labels.shape, new_shape))
    )
    if apart is None or labels.shape[apart] == new_shape[apart]:
        return _resized(labels, in_plane, order)
    picked = nearest_slices(labels.shape[apart], new_shape[apart])
    if new_shape[apart] > labels.shape[apart]:
        return np.take(_resized(labels, in_plane, order), picked, axis=apart)
    chosen = np.take(labels, picked, axis=apart)
    return _resized(chosen, new_shape, order)


def _resized(labels: Labels, shape: tuple[int, ...], order: int) -> Labels:
    """All axes resized, slab by slab: the nearest labels, and where others are near the largest."""
    if labels.shape == shape:
        return labels.copy()
    labels = np.ascontiguousarray(labels)
    out = np.empty(shape, dtype=labels.dtype)
    sizes = list(zip(labels.shape, shape))
    near = [axis_operator(n_in, n_out, 0).argmax(axis=1) for n_in, n_out in sizes]
    sides = [_sides(n_in, n_out) for n_in, n_out in sizes]
    for rows in slabs(0, shape[0], max(out[0].size, labels[0].size)):
        here = out[rows]
        here[...] = labels[np.ix_(near[0][rows], *near[1:])]
        if order == 0:
            continue
        axes = [_Sides(sides[0].old[:, rows], sides[0].weights[:, rows]), *sides[1:]]
        doubtful, flat = _doubtful(labels, axes), here.reshape(-1)
        for start in range(0, len(doubtful), WEIGHED):
            at = doubtful[start : start + WEIGHED]
            flat[at] = _largest(labels, axes, np.unravel_index(at, here.shape), flat[at])
    return out


def _doubtful(labels: Labels, axes: Sequence[_Sides]) -> NDArray[np.intp]:
    """The numbers of the new voxels between old ones that do not all agree."""
    first = axes[0].old.min()
    least = most = labels[first : axes[0].old.max() + 1]
    cells = []
    for axis, sides in enumerate(axes):
        # a pair is looked at once, however many new voxels lie between
        old = sides.old - first if axis == 0 else sides.old
        pairs, of = np.unique(old, axis=1, return_inverse=True)
        least, most = (
            choose(array.take(pairs[0], axis), array.take(pairs[1], axis))
            for choose, array in ((np.minimum, least), (np.maximum, most))
        )
        cells.append(of.reshape(-1))
    return np.flatnonzero((least != most)[np.ix_(*cells)])


def _largest(
    labels: Labels, axes: Sequence[_Sides], at: tuple[NDArray[np.intp], ...], nearest: Labels
) -> Labels:
    """The label with the largest linear share at single new voxels; of equals see above."""
    strides = (labels.shape[1] * labels.shape[2], labels.shape[2], 1)
    # of each axis and side: what to add for the place of an old voxel, and its weight
    places = [(sides.old * stride)[:, i] for sides, stride, i in zip(axes, strides, at)]
    shares = [sides.weights[:, i] for sides, i in zip(axes, at)]
    corners = [
        (
            labels.reshape(-1).take(places[0][z] + places[1][y] + places[2][x]),
            shares[0][z] * shares[1][y] * shares[2][x],
        )
        for z, y, x in np.ndindex(2, 2, 2)
    ]
    winner = nearest.copy()
    best = _share(winner, corners)
    # who has more than one half has no rival; a little more is asked for, since shares are rounded
    open_ = np.flatnonzero(best < HALF)
    if open_.size:
        corners = [(label[open_], weight[open_]) for label, weight in corners]
        winner[open_] = _weighed(corners, nearest[open_], best[open_])
    return winner


def _weighed(corners: Sequence[_Corner], nearest: Labels, best: NDArray[np.float64]) -> Labels:
    """The label with the largest share, where the nearest one has the share `best`."""
    winner = nearest.copy()
    for label, _ in corners:
        share = _share(label, corners)
        lower = (winner != nearest) & (label < winner)
        better = (share > best) | ((share == best) & lower)
        np.copyto(winner, label, where=better)
        np.maximum(best, share, out=best)
    return winner


def _share(label: Labels, corners: Sequence[_Corner]) -> NDArray[np.float64]:
    """The linear share of a label at each voxel.

    Summed corner by corner, as scipy does, so that equal shares are equal to the last bit; what
    rounding left above the whole is the whole (skimage clips).
    """
    total = np.zeros(len(label))
    for other, weight in corners:
        total += weight * (other == label)
    return np.minimum(total, 1.0, out=total)


@lru_cache(maxsize=256)
def _sides(n_in: int, n_out: int) -> _Sides:
    """The old voxels that each new one of an axis is mixed from.

    The same twice where nothing is mixed; beyond the outer centres, too, with weights that sum to
    one but for rounding.
    """
    at = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    low = np.floor(at)
    above = at - low
    sides = np.clip(np.stack([low, low + (above > 0)]), 0, n_in - 1).astype(np.intp)
    return _Sides(sides, np.stack([1 - above, above]))


def _kept(out: Labels, labels: NDArray[np.integer], unlabelled: int) -> Labels:
    """`out` with the commonest label inside each voxel of it that is unlabelled."""
    inside = [
        ((2 * np.arange(n_in) + 1) * n_out) // (2 * n_in)
        for n_in, n_out in zip(labels.shape, out.shape, strict=True)
    ]
    pairs = np.concatenate(
        [
            _lost(out, labels, unlabelled, inside, part)
            for part in slabs(0, len(labels), labels[0].size)
        ],
        axis=1,
    )
    if not pairs.size:
        return out
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    commonest = found[:, np.lexsort((found[1], counts))]  # the last that is written stays
    out = np.ascontiguousarray(out)
    out.reshape(-1)[commonest[0]] = commonest[1]
    return out


def _lost(
    out: Labels,
    labels: Labels,
    unlabelled: int,
    inside: Sequence[NDArray[np.intp]],
    rows: slice,
) -> NDArray[np.int64]:
    """(2, n): the places in `out` that labelled voxels of these rows lost, and their labels."""
    here = [inside[0][rows], *inside[1:]]
    lost = np.nonzero((labels[rows] != unlabelled) & (out[np.ix_(*here)] == unlabelled))
    places = np.ravel_multi_index([to[at] for to, at in zip(here, lost)], out.shape)
    return np.stack([places, labels[rows][lost].astype(np.int64)])
