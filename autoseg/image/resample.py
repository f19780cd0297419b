"""Images to another grid, by splines as nnU-Net does it; label maps are in `resample_labels`.

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
