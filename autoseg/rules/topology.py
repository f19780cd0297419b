"""How often may each axis be halved, and where does a kernel look across slices?

The topology of a U-Net follows from patch size and spacing alone: an axis is halved while its
feature maps keep at least 4 voxels and its spacing is near that of the finest axis, so that the
voxels of deep levels become isotropic. The numbers are nnU-Net's.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

import numpy as np

from autoseg.rules.decision import Size, Spacing

SMALLEST_EDGE_VOX = 4
NEAR = 2.0
INITIAL_EDGE_VOX = {2: 2048, 3: 256}


@dataclass(frozen=True)
class Topology:
    """A patch and what is done to it, level by level; the first level has stride 1.

    `kernels` has one entry a level, which encoder and decoder share.
    """

    patch_vox: Size
    strides: tuple[Size, ...]
    kernels: tuple[Size, ...]

    @property
    def levels(self) -> int:
        return len(self.strides)

    @property
    def divisor(self) -> Size:
        """What each edge of a patch must be a multiple of."""
        return tuple(prod(steps) for steps in zip(*self.strides, strict=True))

    def level_sizes(self) -> list[Size]:
        """The size of the feature maps of each level, finest first."""
        found, size = [], self.patch_vox
        for stride in self.strides:
            size = tuple(n // s for n, s in zip(size, stride, strict=True))
            found.append(size)
        return found


def initial_patch(spacing_mm: Spacing, median_vox: tuple[float, ...]) -> tuple[float, ...]:
    """A patch as large as 256^3 or 2048^2 voxels, cubic in mm, clipped to the median size.

    The edges may be half voxels, as medians are; `topology_for` rounds them up.
    """
    axes = len(spacing_mm)
    per_mm = 1 / np.array(spacing_mm, dtype=np.float64)
    scale = (INITIAL_EDGE_VOX[axes] ** axes / np.prod(per_mm)) ** (1 / axes)
    return tuple(
        min(float(round(edge)), median)
        for edge, median in zip(per_mm * scale, median_vox, strict=True)
    )


@lru_cache(maxsize=1 << 14)
def topology_for(
    patch_vox: tuple[float, ...], spacing_mm: Spacing, most_levels: int | None = None
) -> Topology:
    """The topology for a patch, whose edges are enlarged until every level divides them.

    At most `most_levels`, the finest counted, however large the patch.
    """
    axes = range(len(spacing_mm))
    size, spacing = list(patch_vox), list(spacing_mm)
    kernel = [1] * len(size)
    strides: list[Size] = [(1,) * len(size)]
    kernels: list[Size] = []
    while len(strides) != most_levels and (halved := _axes_to_halve(size, spacing)):
        for axis in axes:
            if spacing[axis] / min(spacing) < NEAR:
                kernel[axis] = 3
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            spacing[axis] *= 2
            size[axis] = ceil(size[axis] / 2)
    kernels.append((3,) * len(size))
    divisor = [prod(steps) for steps in zip(*strides, strict=True)]
    padded = tuple(d * ceil(n / d) for n, d in zip(patch_vox, divisor, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels))


def _axes_to_halve(size: list[float], spacing: list[float]) -> list[int]:
    """The axes that the next level halves; none where the network ends."""
    long_enough = [axis for axis, n in enumerate(size) if n >= 2 * SMALLEST_EDGE_VOX]
    if not long_enough:
        return []
    finest = min(spacing[axis] for axis in long_enough)
    near = [axis for axis in long_enough if spacing[axis] / finest < NEAR]
    if len(near) == 1 and size[near[0]] < 3 * SMALLEST_EDGE_VOX:
        return []
    return near
