"""From logits on the prepared grid back to the grid of the arranged image, before it was cropped.

Logits are resampled linearly, along a coarse axis by the nearest slice, as nnU-Net exports them;
but slab by slab, so that memory holds never more than a few slices of all classes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.image.resample import axis_operator, separate_axis

SLAB_BYTES = 64 << 20

Box = Sequence[tuple[int, int]]


def restore_labels(
    logits: NDArray[np.float32],
    box: Box,
    full_shape: Sequence[int],
    spacing_mm: Sequence[float],
    full_spacing_mm: Sequence[float],
    separate_z_above: float = 3.0,
    slab_bytes: int = SLAB_BYTES,
) -> NDArray[np.int16]:
    """Class indices (*full_shape) from logits (K, *prepared); background outside of `box`.

    `box` holds (start, stop) of each axis of the crop on the full grid; `spacing_mm` is that of the
    logits. Of equal logits the lower class wins.
    """
    labels = np.zeros(tuple(full_shape), np.int16)
    inside = labels[tuple(slice(a, b) for a, b in box)]
    for rows, slab in _slabs(
        logits, inside.shape, spacing_mm, full_spacing_mm, separate_z_above, slab_bytes
    ):
        inside[rows] = slab.argmax(0).numpy()
    return labels


def restore_probabilities(
    logits: NDArray[np.float32],
    box: Box,
    full_shape: Sequence[int],
    spacing_mm: Sequence[float],
    full_spacing_mm: Sequence[float],
    separate_z_above: float = 3.0,
    slab_bytes: int = SLAB_BYTES,
) -> NDArray[np.float32]:
    """The softmax (K, *full_shape) of the resampled logits; certain background outside of `box`."""
    out = np.zeros((len(logits), *full_shape), np.float32)
    out[0] = 1
    inside = out[(slice(None), *(slice(a, b) for a, b in box))]
    for rows, slab in _slabs(
        logits, inside.shape[1:], spacing_mm, full_spacing_mm, separate_z_above, slab_bytes
    ):
        inside[:, rows] = slab.softmax(0).numpy()
    return out


def _slabs(
    logits: NDArray[np.float32],
    shape: tuple[int, ...],
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    separate_z_above: float,
    slab_bytes: int,
) -> Iterator[tuple[slice, Tensor]]:
    """The resampled logits (K, rows, *shape[1:]) for a few rows of axis 0 after another."""
    source = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
    apart = separate_axis(spacing_mm, target_mm, separate_z_above)
    operators = [
        None if n == m else _operator(n, m, 0 if axis == apart else 1)
        for axis, (n, m) in enumerate(zip(source.shape[1:], shape, strict=True))
    ]
    row_bytes = 4 * len(source) * max(shape[1], source.shape[2]) * max(shape[2], source.shape[3])
    count = max(1, slab_bytes // row_bytes)
    for start in range(0, shape[0], count):
        rows = slice(start, min(start + count, shape[0]))
        yield rows, _resampled(source, rows, operators)


def _operator(n_in: int, n_out: int, order: int) -> Tensor:
    return torch.from_numpy(axis_operator(n_in, n_out, order).astype(np.float32))


def _resampled(source: Tensor, rows: slice, operators: Sequence[Tensor | None]) -> Tensor:
    """Some rows of axis 0 of the resampled logits, read from the few old rows that they mix."""
    first, second, third = operators
    if first is None:
        slab = source[:, rows]
    else:
        matrix = first[rows]
        used = matrix.any(0).nonzero().flatten()
        low, high = int(used[0]), int(used[-1]) + 1
        old = source[:, low:high]
        slab = (matrix[:, low:high] @ old.flatten(2)).view(len(old), -1, *old.shape[2:])
    if third is not None:
        slab = slab @ third.T
    if second is not None:
        slab = second @ slab
    return slab
