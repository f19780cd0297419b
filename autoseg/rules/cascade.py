"""Is a low resolution worth training, so that a network at full resolution refines what it says?

nnU-Net's trigger and iteration: where a patch at full resolution shows under a quarter of a
typical case, the grid is coarsened by 3 % time and again until one shows a quarter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from autoseg.rules.decision import Size, Spacing, count, lengths, sizes

BELOW_SHARE = 0.25
STEP = 1.03
SPREAD = 2.0
LEAST_SAVING = 2.0

PatchAt = Callable[[Spacing, Size], Size]
"""(spacing, median size) -> the patch that fits there."""


@dataclass(frozen=True)
class LowResolution:
    """The grid of a low resolution and a typical case on it.

    `voxels` are those of a typical case before its edges were rounded to `median_vox`.
    """

    spacing_mm: Spacing
    median_vox: Size
    voxels: float


def low_resolution(
    spacing_mm: Spacing, median_vox: tuple[float, ...], patch_vox: Size, patch_at: PatchAt
) -> tuple[LowResolution | None, str]:
    """The grid on which a patch shows a quarter of a typical case, or None; and why.

    `patch_vox` is the patch at full resolution. The finer axes grow by 3 % until they are within a
    factor of 2 of the coarsest, then all do.
    """
    fine, median = np.array(spacing_mm), np.array(median_vox)
    seen = prod(patch_vox) / prod(median_vox)
    fact = f"a patch of {sizes(patch_vox)} shows {seen:.0%} of a median case of {sizes(median_vox)}"
    spacing, share, low = fine.copy(), seen, None
    while share < BELOW_SHARE:
        finer = spacing.max() / spacing > SPREAD
        spacing[finer if finer.any() else slice(None)] *= STEP
        size = fine / spacing * median
        low = LowResolution(
            tuple(float(mm) for mm in spacing),
            tuple(max(1, round(n)) for n in size),
            float(np.prod(size)),
        )
        share = prod(patch_at(low.spacing_mm, low.median_vox)) / low.voxels
    if low is None:
        return None, f"{fact}, not under {BELOW_SHARE:.0%}: no low resolution is needed."
    saving = prod(median_vox) / low.voxels
    if saving < LEAST_SAVING:
        return None, (
            f"{fact}, but a low resolution would have only {saving:.2g} times fewer voxels."
        )
    return low, (
        f"{fact}, so a network at {lengths(low.spacing_mm)} ({count(low.voxels)} voxels), where one "
        "shows a quarter, goes before."
    )
