"""To another grid: images by splines, label maps without inventing values, as nnU-Net does it.

The reference is skimage.transform.resize (mode "edge", clip, no anti-aliasing) in float64. Such a
resize is separable, so here it is one small matrix an axis, taken from scipy on the identity and
applied by float32 matrix products: the same numbers to about 1e-6 at a tenth of the time. The
sentence around it (coarse axis apart, in-plane per slice, nearest between slices) is nnU-Net's.
Everything between voxel centres is aligned at the outer edges of the grid, whatever the spacing.
A volume goes slab by slab: besides what comes in and what goes out, some tens of planes are held.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.image.matrices import Block, Float32, apply, cut, plain, slabs, weighed

Shape = Sequence[int]

ANISOTROPY_THRESHOLD = 3.0
# Header spacings of equal axes differ by rounding; nnU-Net sees them after ITK's own rounding.
SAME_SPACING = 1e-5
# float32 scores this close to one half are computed again exactly as scipy does in float64.
UNSURE = 1e-5

Box = tuple[slice, ...]


@lru_cache(maxsize=256)
def axis_operator(n_in: int, n_out: int, order: int) -> NDArray[np.float64]:
    """The (n_out, n_in) matrix that resizes one axis as skimage does (edge mode, no clipping).

    Rows sum to one. `order` is the spline order, 0 to 5. The array is shared and read-only.
    """
    if min(n_in, n_out) < 1:
        raise ValueError(f"an axis of {n_in} voxels cannot become one of {n_out}")
    identity = np.eye(n_in)
    zoom = (n_out / n_in, 1.0)
    operator = ndimage.zoom(identity, zoom, order=order, mode="nearest", grid_mode=True)
    operator.setflags(write=False)
    return np.asarray(operator)


def separate_axis(
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    threshold: float | None = ANISOTROPY_THRESHOLD,
) -> int | None:
    """The coarse axis that is to be resampled apart; None where all axes go together.

    nnU-Net's rule: if the current spacing's largest is over `threshold` times its smallest, that
    axis; else the same question of the target. None if two or three axes are equally coarse, or
    if there is no `threshold`.
    """
    if threshold is None:
        return None
    for spacing in (spacing_mm, target_mm):
        coarsest = max(spacing)
        if coarsest / min(spacing) > threshold:
            axes = [a for a, mm in enumerate(spacing) if mm >= coarsest * (1 - SAME_SPACING)]
            return axes[0] if len(axes) == 1 else None
    return None


def resampled_shape(
    shape: Shape, spacing_mm: Sequence[float], target_mm: Sequence[float]
) -> tuple[int, ...]:
    """The voxel counts at the target spacing: rounded (half to even), at least 1."""
    ratios = zip(shape, spacing_mm, target_mm)
    return tuple(max(1, round(mm / target * n)) for n, mm, target in ratios)


class Resampling(Protocol):
    """How an image gets to its grid: `resample_image`, or the same on a card."""

    def __call__(
        self,
        image: NDArray[np.float32],
        shape: Sequence[int],
        *,
        spacing_mm: Sequence[float],
        target_mm: Sequence[float],
        order: int,
        order_z: int,
        separate_z_above: float | None,
    ) -> NDArray[np.float32]: ...


def resample_image(
    image: NDArray[np.floating],
    shape: Shape,
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    order: int = 3,
    order_z: int = 0,
    separate_z_above: float | None = ANISOTROPY_THRESHOLD,
) -> Float32:
    """The image (C, *S) on a grid of `shape`, as float32; a new array.

    The result stays within each channel's range, or each slice's where a coarse axis goes apart
    (`separate_axis`), in which case `order` holds in-plane and `order_z` between slices.
    """
    new_shape = checked_shape(image.shape[1:], shape)
    apart = separate_axis(spacing_mm, target_mm, separate_z_above)
    out = np.empty((len(image), *new_shape), dtype=np.float32)
    for channel, result in zip(image, out):
        if channel.shape == new_shape:
            result[...] = channel
        elif apart is None:
            _resize(channel, result, order)
        else:
            ahead = (np.moveaxis(channel, apart, 0), np.moveaxis(result, apart, 0))
            _resize_apart(*ahead, order, order_z)
    return out


def resample_labels(
    labels: NDArray[np.integer],
    shape: Shape,
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    order: int = 1,
    order_z: int = 0,
    separate_z_above: float | None = ANISOTROPY_THRESHOLD,
    unlabelled: int | None = None,
) -> NDArray[np.integer]:
    """The label map (*S) on a grid of `shape`, in its own type; a new array.

    Order 1: each label's mask is resized linearly and the label is written where it reaches one
    half, in ascending order, so that of two equal shares the higher label wins (nnU-Net's rule).
    Where three or more labels meet and none reaches a half, nnU-Net leaves 0 even if no such label
    is there; here the nearest voxel's label is taken (of a map with two labels, the lower).
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
    out = _labels_apart(labels, new_shape, order, apart)
    return out if unlabelled is None else _kept(out, labels, unlabelled)


def _labels_apart(
    labels: NDArray[np.integer], new_shape: tuple[int, ...], order: int, apart: int | None
) -> NDArray[np.integer]:
    """The label map on the grid; in-plane by slices where a coarse axis goes apart."""
    in_plane = tuple(
        old if axis == apart else new
        for axis, (old, new) in enumerate(zip(labels.shape, new_shape))
    )
    if apart is None or labels.shape[apart] == new_shape[apart]:
        return _labels_resized(labels, in_plane, order)
    picked = nearest_slices(labels.shape[apart], new_shape[apart])
    if new_shape[apart] > labels.shape[apart]:
        return np.take(_labels_resized(labels, in_plane, order), picked, axis=apart)
    chosen = np.take(labels, picked, axis=apart)
    return _labels_resized(chosen, new_shape, order)


def checked_shape(shape: Shape, wanted: Shape) -> tuple[int, ...]:
    """`wanted` as integers. Raises ValueError unless both have three spatial axes."""
    if len(shape) != 3 or len(wanted) != 3:
        raise ValueError(f"three spatial axes are needed, not {tuple(shape)} -> {tuple(wanted)}")
    return tuple(int(n) for n in wanted)


def _resize(source: NDArray[np.floating], out: Float32, order: int) -> None:
    """All axes resized into `out`, then clipped to the range of the source."""
    low, high = np.float32(source.min()), np.float32(source.max())
    flat = out.shape[1:]
    if len(source) == len(out):
        for part in slabs(0, len(out), max(source[0].size, out[0].size)):
            out[part] = _in_plane(source[part], flat, order)
    elif len(out) * source[0].size <= len(source) * out[0].size:
        # What lies in between is smaller if axis 0 goes first.
        for rows, columns, weights in blocks_of(len(source), len(out), order):
            out[rows] = _in_plane(weighed(weights, plain(source[columns])), flat, order)
    else:
        for rows, planes in _mixed(source, len(out), flat, order, order):
            out[rows] = planes
    for part in slabs(0, len(out), out[0].size):
        np.clip(out[part], low, high, out=out[part])


def _resize_apart(source: NDArray[np.floating], out: Float32, order: int, order_z: int) -> None:
    """In-plane by slices of axis 0, each clipped to its own range, then along axis 0."""
    n_in, n_out, flat = len(source), len(out), out.shape[1:]
    if n_in != n_out and order_z != 0:
        for rows, planes in _mixed(source, n_out, flat, order, order_z, clip=True):
            out[rows] = planes
        return
    picked = nearest_slices(n_in, n_out)
    for part in slabs(0, n_in, max(source[0].size, out[0].size)):
        wanted = np.unique(picked[(picked >= part.start) & (picked < part.stop)])
        if wanted.size:
            first, last = np.searchsorted(picked, wanted[0]), np.searchsorted(picked, part.stop)
            planes = _in_plane(source[wanted], flat, order, clip=True)
            out[first:last] = planes[np.searchsorted(wanted, picked[first:last])]


def _mixed(
    source: NDArray[np.floating],
    n_out: int,
    flat: tuple[int, ...],
    order: int,
    order_z: int,
    *,
    clip: bool = False,
) -> Iterator[tuple[slice, Float32]]:
    """Rows of axis 0 and their planes, resized in-plane first; only planes still needed are held."""
    blocks = blocks_of(len(source), n_out, order_z)
    # From which plane on each block and all that follow it need them.
    firsts = np.minimum.accumulate([columns.start for _, columns, _ in blocks][::-1])[::-1]
    held, start, stop = np.empty((0, *flat), np.float32), 0, 0
    for first, (rows, columns, weights) in zip(firsts.tolist(), blocks, strict=True):
        fresh = [
            _in_plane(source[part], flat, order, clip=clip)
            for part in slabs(
                max(stop, first), columns.stop, max(source[0].size, flat[0] * flat[1])
            )
        ]
        held = np.concatenate([held[first - start :], *fresh])
        start, stop = first, max(stop, columns.stop)
        yield rows, weighed(weights, held[columns.start - start : columns.stop - start])


def _in_plane(
    planes: NDArray[np.floating], flat: tuple[int, ...], order: int, *, clip: bool = False
) -> Float32:
    """Planes (n, *flat), resized; with `clip` each stays within the range of its own source."""
    found = plain(planes)
    low, high = (f(found, axis=(1, 2), keepdims=True) for f in (np.min, np.max)) if clip else (0, 0)
    # Shrinking first: the array in between stays small.
    todo = sorted((1, 2), key=lambda axis: flat[axis - 1] / planes.shape[axis])
    changed = [axis for axis in todo if planes.shape[axis] != flat[axis - 1]]
    for axis in changed:
        found = apply(found, blocks_of(found.shape[axis], flat[axis - 1], order), axis)
    return np.clip(found, low, high, out=found) if clip and changed else found


@lru_cache(maxsize=256)
def nearest_slices(n_in: int, n_out: int) -> NDArray[np.intp]:
    """The slice that each new slice is copied from: scipy's map_coordinates of order 0."""
    at = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    numbers = np.arange(n_in, dtype=np.float64)
    slices = ndimage.map_coordinates(numbers, at[None], order=0, mode="nearest")
    return np.asarray(slices, dtype=np.intp)


@lru_cache(maxsize=256)
def blocks_of(n_in: int, n_out: int, order: int) -> tuple[Block, ...]:
    """`axis_operator` as blocks: (new rows, the old columns that count for them, their weights)."""
    return cut(axis_operator(n_in, n_out, order))


def _labels_resized(
    labels: NDArray[np.integer], shape: tuple[int, ...], order: int
) -> NDArray[np.integer]:
    """All axes resized, label by label, each only where it can matter."""
    if labels.shape == shape:
        return labels.copy()
    if order == 0:
        out = np.empty(shape, dtype=labels.dtype)
        _write_nearest(out, labels, tuple(slice(0, n) for n in shape))
        return out
    present = _present(labels)
    lowest = present[0][0]
    out = np.full(shape, lowest, dtype=labels.dtype)
    if len(present) == 1:
        return out
    others = present[1:]
    if len(present) > 2:
        # Beyond the reach of the other labels the lowest is certain; within it, voxels where
        # nothing gets a half keep the nearest label.
        reach = _reach(labels.shape, shape, _union([box for _, box in others]))
        _write_nearest(out, labels, reach)
        _write_label(out, labels, lowest, present[0][1], reach)
    for value, box in others:
        _write_label(out, labels, value, box, _reach(labels.shape, shape, box))
    return out


def _kept(
    out: NDArray[np.integer], labels: NDArray[np.integer], unlabelled: int
) -> NDArray[np.integer]:
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
    out: NDArray[np.integer],
    labels: NDArray[np.integer],
    unlabelled: int,
    inside: Sequence[NDArray[np.intp]],
    rows: slice,
) -> NDArray[np.int64]:
    """(2, n): the places in `out` that labelled voxels of these rows lost, and their labels."""
    here = [inside[0][rows], *inside[1:]]
    lost = np.nonzero((labels[rows] != unlabelled) & (out[np.ix_(*here)] == unlabelled))
    places = np.ravel_multi_index([to[at] for to, at in zip(here, lost)], out.shape)
    return np.stack([places, labels[rows][lost].astype(np.int64)])


def _present(labels: NDArray[np.integer]) -> list[tuple[int, Box]]:
    """The values of a label map, ascending, each with the box that holds it."""
    lowest = int(labels.min())
    found: dict[int, Box] = {}
    for part in slabs(0, len(labels), labels[0].size):
        boxes = ndimage.find_objects(labels[part].astype(np.int32) - (lowest - 1))
        for value, box in enumerate(boxes, lowest):
            if box is not None:
                rows = slice(part.start + box[0].start, part.start + box[0].stop)
                here = (rows, *box[1:])
                found[value] = _union([found[value], here]) if value in found else here
    return sorted(found.items())


def _write_label(
    out: NDArray[np.integer], labels: NDArray[np.integer], value: int, box: Box, reach: Box
) -> None:
    """Write `value` into out[reach] where its linearly resized mask is at least one half."""
    operators = [
        axis_operator(labels.shape[axis], out.shape[axis], 1)[reach[axis], box[axis]]
        for axis in range(3)
    ]
    across = {axis: cut(operators[axis]) for axis in (1, 2)}
    order = sorted(range(3), key=lambda axis: operators[axis].shape[0] / operators[axis].shape[1])
    for rows in slabs(0, len(operators[0]), max(out[0].size, labels[0].size)):
        used = np.flatnonzero(operators[0][rows].any(axis=0))
        if not used.size:
            continue
        first, last = int(used[0]), int(used[-1]) + 1
        blocks = {0: cut(operators[0][rows, first:last]), **across}
        planes = slice(box[0].start + first, box[0].start + last)
        score = (labels[(planes, *box[1:])] == value).astype(np.float32)
        for axis in order:
            score = apply(score, blocks[axis], axis)
        start = reach[0].start + rows.start
        here = (slice(start, start + len(score)), *reach[1:])
        unsure = np.nonzero(np.abs(score - np.float32(0.5)) < UNSURE)
        if unsure[0].size:
            at = tuple(index + part.start for index, part in zip(unsure, here))
            score[unsure] = _exact_scores(labels, value, out.shape, at) >= 0.5
        out[here][score >= 0.5] = value


def _exact_scores(
    labels: NDArray[np.integer],
    value: int,
    shape: tuple[int, ...],
    at: tuple[NDArray[np.intp], ...],
) -> NDArray[np.float64]:
    """The linear score of a label at single voxels in scipy's own order of float64 operations.

    At an even factor most boundary voxels get exactly one half, and rounding decides them.
    """
    axes = [_taps(n_in, n_out) for n_in, n_out in zip(labels.shape, shape)]
    total = np.zeros(len(at[0]))
    for corner in np.ndindex(2, 2, 2):
        source = tuple(taps[tap, index] for (taps, _), tap, index in zip(axes, corner, at))
        share = (labels[source] == value).astype(np.float64)
        for (_, weights), tap, index in zip(axes, corner, at):
            share *= weights[tap, index]
        total += share
    return total


@lru_cache(maxsize=256)
def _taps(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The two old voxels (2, n_out) that each new one is mixed from, and their weights (2, n_out).

    Beyond the outer centres both are the edge voxel, with weights that sum to one but for rounding.
    """
    at = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    low = np.floor(at)
    above = at - low
    taps = np.clip(np.stack([low, low + 1]), 0, n_in - 1).astype(np.intp)
    return taps, np.stack([1 - above, above])


def _reach(shape_in: Shape, shape_out: Shape, box: Box) -> Box:
    """The box of new voxels in which anything of the old box has a weight.

    It may be empty, when shrinking steps over the box.
    """
    slices = []
    for n_in, n_out, part in zip(shape_in, shape_out, box):
        hit = np.flatnonzero((axis_operator(n_in, n_out, 1)[:, part] > 0).any(axis=1))
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(slices)


def _union(boxes: list[Box]) -> Box:
    parts = zip(*boxes)
    return tuple(slice(min(p.start for p in ps), max(p.stop for p in ps)) for ps in parts)


def _write_nearest(out: NDArray[np.integer], labels: NDArray[np.integer], reach: Box) -> None:
    """Write the labels of the nearest old voxels into out[reach]."""
    first, *rest = (
        axis_operator(n_in, n_out, 0)[part].argmax(axis=1)
        for n_in, n_out, part in zip(labels.shape, out.shape, reach)
    )
    within = out[reach]
    for rows in slabs(0, len(first), out[0].size):
        within[rows] = labels[np.ix_(first[rows], *rest)]
