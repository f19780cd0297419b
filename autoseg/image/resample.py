"""To another grid: images by splines, label maps without inventing values, as nnU-Net does it.

The reference is skimage.transform.resize (mode "edge", clip, no anti-aliasing) in float64. Such a
resize is separable, so here it is one small matrix an axis, taken from scipy on the identity and
applied by float32 matrix products: the same numbers to about 1e-6 at a tenth of the time. The
sentence around it (coarse axis apart, in-plane per slice, nearest between slices) is nnU-Net's.
Everything between voxel centres is aligned at the outer edges of the grid, whatever the spacing.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Shape = Sequence[int]
Float32 = NDArray[np.float32]

ANISOTROPY_THRESHOLD = 3.0
# Header spacings of equal axes differ by rounding; nnU-Net sees them after ITK's own rounding.
SAME_SPACING = 1e-5
# Weights below this share of the whole are left out of a block: the cubic prefilter's tails fall
# by a factor 0.27 a voxel, and float32 resolves 6e-8.
NEGLIGIBLE = 1e-8
BLOCK_ROWS = 32
# float32 scores this close to one half are computed again exactly as scipy does in float64.
UNSURE = 1e-5

Block = tuple[slice, slice, Float32]


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
    threshold: float = ANISOTROPY_THRESHOLD,
) -> int | None:
    """The coarse axis that is to be resampled apart; None where all axes go together.

    nnU-Net's rule: if the current spacing's largest is over `threshold` times its smallest, that
    axis; else the same question of the target. None if two or three axes are equally coarse.
    """
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


def resample_image(
    image: NDArray[np.floating],
    shape: Shape,
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    order: int = 3,
    order_z: int = 0,
) -> Float32:
    """The image (C, *S) on a grid of `shape`, as float32; a new array.

    The result stays within each channel's range, or each slice's where a coarse axis goes apart
    (`separate_axis`), in which case `order` holds in-plane and `order_z` between slices.
    """
    new_shape = _checked(image.shape[1:], shape)
    apart = separate_axis(spacing_mm, target_mm)
    out = np.empty((len(image), *new_shape), dtype=np.float32)
    for channel, result in zip(image, out):
        source = np.ascontiguousarray(channel, dtype=np.float32)
        if source.shape == new_shape:
            result[...] = source
        elif apart is None:
            result[...] = _resized(source, new_shape, order, (0, 1, 2))
        else:
            result[...] = _resized_apart(source, new_shape, order, order_z, apart)
    return out


def resample_labels(
    labels: NDArray[np.integer],
    shape: Shape,
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    order: int = 1,
    order_z: int = 0,
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
    new_shape = _checked(labels.shape, shape)
    apart = separate_axis(spacing_mm, target_mm)
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
    picked = _nearest_slices(labels.shape[apart], new_shape[apart])
    if new_shape[apart] > labels.shape[apart]:
        return np.take(_labels_resized(labels, in_plane, order), picked, axis=apart)
    chosen = np.take(labels, picked, axis=apart)
    return _labels_resized(chosen, new_shape, order)


def _checked(shape: Shape, wanted: Shape) -> tuple[int, ...]:
    if len(shape) != 3 or len(wanted) != 3:
        raise ValueError(f"three spatial axes are needed, not {tuple(shape)} -> {tuple(wanted)}")
    return tuple(int(n) for n in wanted)


def _resized(source: Float32, shape: tuple[int, ...], order: int, clip: tuple[int, ...]) -> Float32:
    """All axes resized, then clipped to the source's range over the axes `clip`."""
    low = source.min(axis=clip, keepdims=True)
    high = source.max(axis=clip, keepdims=True)
    # Shrinking axes first: the arrays in between stay small.
    for axis in sorted(range(3), key=lambda a: shape[a] / source.shape[a]):
        if source.shape[axis] != shape[axis]:
            source = _apply(source, _blocks(source.shape[axis], shape[axis], order), axis)
    return np.clip(source, low, high, out=source)


def _resized_apart(
    source: Float32, shape: tuple[int, ...], order: int, order_z: int, apart: int
) -> Float32:
    """In-plane by slices, then along the coarse axis; nearest slices are picked before if fewer."""
    in_plane = tuple(axis for axis in range(3) if axis != apart)
    n_in, n_out = source.shape[apart], shape[apart]
    picked = _nearest_slices(n_in, n_out)
    if order_z == 0 and n_out < n_in:
        source, n_in = np.ascontiguousarray(np.take(source, picked, axis=apart)), n_out
    flat = tuple(n_in if axis == apart else n for axis, n in enumerate(shape))
    if flat != source.shape:
        source = _resized(source, flat, order, in_plane)
    if n_in == n_out:
        return source
    if order_z == 0:
        return np.take(source, picked, axis=apart)
    return _apply(source, _blocks(n_in, n_out, order_z), apart)


@lru_cache(maxsize=256)
def _nearest_slices(n_in: int, n_out: int) -> NDArray[np.intp]:
    """The slice that each new slice is copied from: scipy's map_coordinates of order 0."""
    at = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    numbers = np.arange(n_in, dtype=np.float64)
    slices = ndimage.map_coordinates(numbers, at[None], order=0, mode="nearest")
    return np.asarray(slices, dtype=np.intp)


@lru_cache(maxsize=256)
def _blocks(n_in: int, n_out: int, order: int) -> tuple[Block, ...]:
    return _cut(axis_operator(n_in, n_out, order))


def _cut(operator: NDArray[np.float64]) -> tuple[Block, ...]:
    """The operator as blocks of rows with only the columns that count for them."""
    blocks = []
    for start in range(0, len(operator), BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, len(operator)))
        used = np.flatnonzero(np.abs(operator[rows]).max(axis=0) > NEGLIGIBLE)
        columns = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)
        blocks.append((rows, columns, operator[rows, columns].astype(np.float32)))
    return tuple(blocks)


def _apply(source: Float32, blocks: tuple[Block, ...], axis: int) -> Float32:
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


def _labels_resized(
    labels: NDArray[np.integer], shape: tuple[int, ...], order: int
) -> NDArray[np.integer]:
    """All axes resized, label by label, each only where it can matter."""
    if labels.shape == shape:
        return labels.copy()
    lowest = int(labels.min())
    boxes = ndimage.find_objects(labels.astype(np.int32) - (lowest - 1))
    present = [(lowest + at, box) for at, box in enumerate(boxes) if box is not None]
    if order == 0:
        return _nearest(labels, shape, tuple(slice(0, n) for n in shape))
    out = np.full(shape, lowest, dtype=labels.dtype)
    if len(present) == 1:
        return out
    others = present[1:]
    if len(present) > 2:
        # Beyond the reach of the other labels the lowest is certain; within it, voxels where
        # nothing gets a half keep the nearest label.
        reach = _reach(labels.shape, shape, _union([box for _, box in others]))
        out[reach] = _nearest(labels, shape, reach)
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
    lost = np.nonzero((labels != unlabelled) & (out[np.ix_(*inside)] == unlabelled))
    if not lost[0].size:
        return out
    places = np.ravel_multi_index([to[at] for to, at in zip(inside, lost)], out.shape)
    pairs = np.stack([places, labels[lost].astype(np.int64)])
    found, counts = np.unique(pairs, axis=1, return_counts=True)
    commonest = found[:, np.lexsort((found[1], counts))]  # the last that is written stays
    out = np.ascontiguousarray(out)
    out.reshape(-1)[commonest[0]] = commonest[1]
    return out


def _write_label(
    out: NDArray[np.integer],
    labels: NDArray[np.integer],
    value: int,
    box: tuple[slice, ...],
    reach: tuple[slice, ...],
) -> None:
    """Write `value` into out[reach] where its linearly resized mask is at least one half."""
    score = (labels[box] == value).astype(np.float32)
    sizes = sorted(range(3), key=lambda a: (reach[a].stop - reach[a].start) / score.shape[a])
    for axis in sizes:
        operator = axis_operator(labels.shape[axis], out.shape[axis], 1)
        score = _apply(score, _cut(operator[reach[axis], box[axis]]), axis)
    unsure = np.nonzero(np.abs(score - np.float32(0.5)) < UNSURE)
    if unsure[0].size:
        at = tuple(index + part.start for index, part in zip(unsure, reach))
        score[unsure] = _exact_scores(labels, value, out.shape, at) >= 0.5
    out[reach][score >= 0.5] = value


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


def _reach(shape_in: Shape, shape_out: Shape, box: tuple[slice, ...]) -> tuple[slice, ...]:
    """The box of new voxels in which anything of the old box has a weight.

    It may be empty, when shrinking steps over the box.
    """
    slices = []
    for n_in, n_out, part in zip(shape_in, shape_out, box):
        hit = np.flatnonzero((axis_operator(n_in, n_out, 1)[:, part] > 0).any(axis=1))
        slices.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(slices)


def _union(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    parts = zip(*boxes)
    return tuple(slice(min(p.start for p in ps), max(p.stop for p in ps)) for ps in parts)


def _nearest(
    labels: NDArray[np.integer], shape: tuple[int, ...], reach: tuple[slice, ...]
) -> NDArray[np.integer]:
    """The labels of the nearest old voxels for the new voxels of `reach`."""
    index = [
        axis_operator(n_in, n_out, 0)[part].argmax(axis=1)
        for n_in, n_out, part in zip(labels.shape, shape, reach)
    ]
    return np.asarray(labels[np.ix_(*index)])
