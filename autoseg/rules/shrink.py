"""What is the next smaller plan, where a training met the end of a card's memory?

A smaller batch comes first, then activations that are computed twice, then a shorter patch. The
network keeps its widths, and its levels as far as the shorter patch has them.
"""

from math import prod
from typing import Any

from autoseg.documents.plan import Configuration
from autoseg.documents.presets.table import PRESETS
from autoseg.rules.card import SMALLEST_BATCH, SMALLEST_VOX
from autoseg.rules.decision import Decision, Size, sizes
from autoseg.rules.topology import topology_for

LEAST_DEEP = 2
"""A patch has so many voxels of the coarsest level along each axis at least: one has no norm."""


def next_smaller(configuration: Configuration) -> Decision[dict[str, Any]] | None:
    """Patch, batch and `recompute` of the next smaller configuration, by dotted keys, and why.

    All three are given, so that a plan in which they are pinned grows nowhere else; as settings of
    a run they hold too. None: nothing smaller is sensible.
    """
    patch, batch = configuration.patch_vox, configuration.train.batch_size
    recompute = configuration.network.recompute
    if batch > SMALLEST_BATCH:
        why = f"the next smaller has a batch of {batch - 1} in the place of {batch}."
        return _pins(patch, batch - 1, recompute, why)
    if not recompute:
        return _pins(
            patch,
            batch,
            True,
            "the next smaller computes again, when going back, what a step computed on its way: "
            "that keeps less and takes about a third more time.",
        )
    shorter = _shorter(configuration)
    if shorter is None:
        return None
    why = f"the next smaller has a patch of {sizes(shorter)} in the place of {sizes(patch)}."
    return _pins(shorter, batch, recompute, why)


def _pins(patch: Size, batch: int, recompute: bool, why: str) -> Decision[dict[str, Any]]:
    pins = {
        "patch_vox": list(patch),
        "train.batch_size": batch,
        "network.recompute": recompute,
    }
    return Decision(pins, why)


def _shorter(configuration: Configuration) -> Size | None:
    """The patch one step shorter along the relatively longest axis that may be, or None."""
    patch, divisor = configuration.patch_vox, configuration.network.divisor
    median = configuration.median_shape_vox[-len(patch) :]
    order = sorted(range(len(patch)), key=lambda axis: (patch[axis] / median[axis], axis))
    for axis in reversed(order):
        for edge in range(patch[axis] - divisor[axis], 0, -divisor[axis]):
            found = (*patch[:axis], edge, *patch[axis + 1 :])
            deep = edge >= LEAST_DEEP * divisor[axis]
            if deep and _suits(configuration, found):
                if prod(found) < min(SMALLEST_VOX[len(patch)], prod(median)):
                    break
                return found
    return None


def _suits(configuration: Configuration, patch: Size) -> bool:
    """Whether the planner, asked for this patch, would take it as it is."""
    preset = PRESETS.get(configuration.network.preset)
    spacing = [mm for mm in configuration.preparation.spacing_mm[-len(patch) :] if mm is not None]
    if preset is None:
        return True
    found = topology_for(patch, tuple(spacing), preset.most_levels)
    return found.levels > 1 and found.patch_vox == patch
