"""Tiles: where a window is put so that it covers a volume, and how much each of its voxels counts.

Pure functions of one axis or one shape; the weights of a tile are the outer product of its axes'.
"""

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

REACH_SIGMAS = 4.0
"""Where a Gaussian ends, as in scipy's gaussian_filter."""


def positions(size: int, patch: int, step: float) -> list[int]:
    """The first voxel of each tile along one axis of `size`, from 0 to size - patch.

    Tiles are at most step * patch (but one voxel) apart and spread evenly, as nnU-Net does it.
    Raises ValueError if the axis is shorter than the patch.
    """
    if size < patch:
        raise ValueError(
            f"an axis of {size} voxels is shorter than the patch of {patch}: pad it first"
        )
    if not 0 < step <= 1:
        raise ValueError(f"the step is a share of the patch in (0, 1], found {step}")
    last = size - patch
    count = math.ceil(last / max(1.0, patch * step)) + 1
    apart = last / (count - 1) if count > 1 else 0.0
    return [round(i * apart) for i in range(count)]


def axis_weights(patch: int, sigma_scale: float) -> FloatArray:
    """A Gaussian of one axis (patch,): largest, 1, at patch // 2, and nowhere zero.

    Its sigma is sigma_scale * patch voxels. What lies beyond its reach counts like the least inside.
    """
    sigma = patch * sigma_scale
    distance = np.abs(np.arange(patch) - patch // 2)
    inside = distance <= int(REACH_SIGMAS * sigma + 0.5)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    least = weights[inside].min()
    return np.where(inside, weights, least).astype(np.float32)


def tile_weights(patch_vox: Sequence[int], sigma_scale: float) -> FloatArray:
    """How much each voxel of a tile counts (*patch): the outer product of its axes' Gaussians."""
    axes = [axis_weights(n, sigma_scale) for n in patch_vox]
    return np.asarray(reduce(np.multiply.outer, axes), np.float32)


def axis_total(size: int, patch: int, step: float, sigma_scale: float) -> FloatArray:
    """The sum of all tiles' weights at each voxel of one axis (size,).

    Tiles lie on a grid of positions, so that the total at a voxel is the product of its axes'.
    """
    total, weights = np.zeros(size, np.float32), axis_weights(patch, sigma_scale)
    for start in positions(size, patch, step):
        total[start : start + patch] += weights
    return total
