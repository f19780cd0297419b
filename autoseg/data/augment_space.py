"""Rotated and scaled patches: an affine map of voxel places, linear in image and labels.

Works on groups of samples that share an output size, in two or three dimensions; axes that the map
leaves alone (slices in dummy 2D) ride along as channels.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autoseg.documents.labels import IGNORE, OUTSIDE

MIXED = IGNORE - 1
"""Marks cells whose corners hold several labels; no label is below IGNORE."""


def source_places(
    matrices: NDArray[np.float64],
    shifts: NDArray[np.float64],
    patch_vox: Sequence[int],
    device: torch.device,
) -> list[Tensor]:
    """Where each voxel of the patch lies in the boxes that were read: one (S, *patch) an axis.

    `matrices` (S, D, D) map offsets from the patch's centre, `shifts` (S, D) are the boxes' starts
    relative to the patch's start. In voxels: whole numbers are voxel centres.
    """
    centre = (np.array(patch_vox) - 1) / 2
    offset = centre - shifts - matrices @ centre
    axes = len(patch_vox)
    places = []
    for i in range(axes):
        terms = [_along(offset[:, i], None, axes, i, device)]
        for j, n in enumerate(patch_vox):
            terms.append(_along(matrices[:, i, j], n, axes, j, device))
        place = terms[0]
        for term in terms[1:]:
            place = place + term
        places.append(place)
    return places


def _along(
    slope: NDArray[np.float64], n: int | None, axes: int, axis: int, device: torch.device
) -> Tensor:
    """slope * (0 … n-1) laid along `axis` of (S, *ones); the slope itself where n is None."""
    line = np.ones(1) if n is None else np.arange(n)
    shape = [len(slope)] + [1] * axes
    shape[axis + 1] = len(line)
    values = (slope[:, None] * line).astype(np.float32).reshape(shape)
    return torch.from_numpy(values).to(device)


def sample_images(images: Tensor, places: Sequence[Tensor]) -> Tensor:
    """(S, C, *patch): `images` (S, C, *box) at `places`, linear between voxel centres, 0 outside."""
    sizes = images.shape[2:]
    grid = torch.stack(
        # the places in torch's own terms: -1 and 1 are the outer faces of the first and last voxel
        [(2 * p + 1) / n - 1 for p, n in zip(reversed(places), reversed(sizes), strict=True)],
        dim=-1,
    )
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def sample_labels(labels: Tensor, places: Sequence[Tensor]) -> Tensor:
    """(S, L, *patch): the label with the largest linear weight of each place, the lowest at a tie.

    `labels` is (S, L, *box); outside the box all is -1. Equal to interpolating every label's
    indicator linearly and taking the largest, whatever the number of labels: only cells whose
    corners differ, a few percent, are interpolated at all. Never gives a label that no corner has.
    IGNORE is a label like any other, and the lowest.
    """
    axes = len(places)
    # two voxels of outside on each side: cells wholly outside exist, and far places clamp to them
    padded = functional.pad(labels, (2,) * (2 * axes), value=OUTSIDE).contiguous()
    low = high = padded
    for axis in range(2, 2 + axes):
        n = low.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, n), low.narrow(axis, 1, n))
        high = torch.maximum(high.narrow(axis, 0, n), high.narrow(axis, 1, n))
    cells = torch.where(low == high, low, MIXED)
    corner = [
        (p.floor() + 2).clamp_(0, n - 1).to(torch.int64)
        for p, n in zip(places, cells.shape[2:], strict=True)
    ]
    found = torch.take(cells, _flat(corner, cells.shape))
    mixed = (found == MIXED).nonzero(as_tuple=True)
    if mixed[0].numel():
        here = (mixed[0], *mixed[2:])
        near = [c[here] for c in corner]
        fraction = [p[here] - (c - 2) for p, c in zip(places, near, strict=True)]
        rows = mixed[0] * padded.shape[1] + mixed[1]
        found[mixed] = _heaviest(padded, rows, near, fraction)
    return found


def _flat(corner: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """(S, L, *patch) indices into a flattened (S, L, *cells) of each place's cell."""
    index = corner[0]
    for c, n in zip(corner[1:], shape[3:], strict=True):
        index = index * n + c
    cells = int(np.prod(shape[2:]))
    layers = torch.arange(shape[0] * shape[1], device=index.device) * cells
    return index[:, None] + layers.view(shape[0], shape[1], *[1] * len(corner))


def _heaviest(
    padded: Tensor, rows: Tensor, near: Sequence[Tensor], fraction: Sequence[Tensor]
) -> Tensor:
    """(M,): among the corners of each cell, the label with the largest sum of linear weights."""
    sizes = padded.shape[2:]
    corners, weights = [], []
    for bits in product((0, 1), repeat=len(near)):
        index, weight = rows, torch.ones_like(fraction[0])
        for bit, c, f, n in zip(bits, near, fraction, sizes, strict=True):
            index = index * n + (c + bit)
            weight = weight * (f if bit else 1 - f)
        corners.append(torch.take(padded, index))
        weights.append(weight)
    best = torch.full_like(weights[0], -1.0)
    winner = torch.zeros_like(corners[0])
    for label in corners:
        score = torch.zeros_like(best)
        for other, weight in zip(corners, weights, strict=True):
            score += torch.where(other == label, weight, 0.0)
        better = (score > best) | ((score == best) & (label < winner))
        winner = torch.where(better, label, winner)
        best = torch.where(better, score, best)
    return winner
