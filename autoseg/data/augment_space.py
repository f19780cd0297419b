"""Rotated and scaled patches on a card: an affine map of voxel places, linear in image and labels.

Works on groups of samples that share an output size, in two or three dimensions; axes that the map
leaves alone (slices in dummy 2D) ride along as channels. Nothing here makes the processor wait for
the card: no value is read back, no shape depends on values.
"""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autoseg.documents.labels import OUTSIDE


def offset_of(
    matrix: NDArray[np.float64], shift: NDArray[np.float64], patch_vox: Sequence[int]
) -> NDArray[np.float64]:
    """(..., D): where the patch's first voxel lies in a box that begins at `shift` from it."""
    centre = (np.array(patch_vox) - 1) / 2
    offset: NDArray[np.float64] = centre - shift - matrix @ centre
    return offset


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
    offset = offset_of(matrices, shifts, patch_vox)
    axes = len(patch_vox)
    numbers = on_device(np.concatenate([matrices, offset[..., None]], -1), device)
    numbers = numbers.view(*numbers.shape, *[1] * axes)
    lines = [
        torch.arange(n, dtype=torch.float32, device=device).view(
            [n if a == j else 1 for a in range(axes)]
        )
        for j, n in enumerate(patch_vox)
    ]
    places = []
    for i in range(axes):
        place = numbers[:, i, axes]
        for j, line in enumerate(lines):
            place = place + numbers[:, i, j] * line
        places.append(place)
    return places


def on_device(values: NDArray[np.floating[Any]], device: torch.device) -> Tensor:
    """The values as float32 on `device`; a card gets them without making the processor wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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
    indicator linearly and taking the largest, whatever the number of labels. Never gives a label
    that no corner has. IGNORE is a label like any other, and the lowest. All places are computed,
    also where all corners agree: to ask a card where they differ would make the processor wait.
    """
    axes = len(places)
    # two voxels of outside on each side: cells wholly outside exist, and far places clamp to them
    padded = functional.pad(labels, (2,) * (2 * axes), value=OUTSIDE).contiguous()
    sizes = padded.shape[2:]
    corner = [(p.floor() + 2).clamp_(0, n - 2) for p, n in zip(places, sizes, strict=True)]
    fraction = [(p - (c - 2)).clamp_(0, 1)[:, None] for p, c in zip(places, corner, strict=True)]
    index = _flat([c.to(torch.int64) for c in corner], padded.shape)
    found, weights = [], []
    for bits in product((0, 1), repeat=axes):
        shift, weight = 0, None
        for bit, f, n in zip(bits, fraction, sizes, strict=True):
            shift = shift * n + bit
            part = f if bit else 1 - f
            weight = part if weight is None else weight * part
        assert weight is not None
        found.append(torch.take(padded, index + shift))
        weights.append(weight)
    return _heaviest(found, weights)


def _flat(corner: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """(S, L, *patch) indices into a flattened (S, L, *box) of each place's lowest corner."""
    index = corner[0]
    for c, n in zip(corner[1:], shape[3:], strict=True):
        index = index * n + c
    voxels = prod(shape[2:])
    layers = torch.arange(shape[0] * shape[1], device=index.device) * voxels
    return index[:, None] + layers.view(shape[0], shape[1], *[1] * len(corner))


def _heaviest(corners: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Of the labels at each place's corners the one with the largest sum of weights."""
    scores = [w.expand(c.shape).clone() for c, w in zip(corners, weights, strict=True)]
    for k, (label, weight) in enumerate(zip(corners, weights, strict=True)):
        for j in range(k):
            same = (corners[j] == label).to(weight.dtype)
            scores[k].addcmul_(same, weights[j].expand(label.shape))
            scores[j].addcmul_(same, weight.expand(label.shape))
    winner, best = corners[0], scores[0]
    for label, score in zip(corners[1:], scores[1:], strict=True):
        better = (score > best) | ((score == best) & (label < winner))
        winner = torch.where(better, label, winner)
        best = torch.where(better, score, best)
    return winner
