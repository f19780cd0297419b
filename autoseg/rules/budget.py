"""How large may patch and batch be within nnU-Net's measure of what a training step may cost?

nnU-Net's own search, step for step. Where bytes are computed `autoseg.rules.card` decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from autoseg.errors import PlanError
from autoseg.rules.decision import Decision, Spacing, count, sizes
from autoseg.rules.topology import Topology, initial_patch, topology_for

SMALLEST_BATCH = 2

CostOf = Callable[[Topology, int], float]


@dataclass(frozen=True)
class Budget:
    """What one training step may cost.

    `cost_of(topology, batch)` is the cost of a step, in `unit`, which must not exceed `limit` with
    a batch of `fitting_batch`; `batch_within(topology)` is the batch that fills the budget.
    """

    limit: float
    unit: str
    cost_of: CostOf
    batch_within: Callable[[Topology], int]
    fitting_batch: int = SMALLEST_BATCH


def fit_patch(
    spacing_mm: Spacing, median_vox: tuple[float, ...], budget: Budget
) -> Decision[Topology]:
    """The largest patch, in the proportions of a typical case, that fits the budget.

    Starts from a patch that is cubic in mm and no larger than the median case, and shortens, time
    and again, the edge that is longest in relation to the median. Raises PlanError if nothing fits.
    """
    topology = start = topology_for(initial_patch(spacing_mm, median_vox), spacing_mm)
    cost = budget.cost_of(topology, budget.fitting_batch)
    shortened = 0
    while cost > budget.limit:
        topology = topology_for(_shortened(topology, spacing_mm, median_vox, budget), spacing_mm)
        cost = budget.cost_of(topology, budget.fitting_batch)
        shortened += 1
    patch = sizes(topology.patch_vox)
    fits = (
        f"a batch of {budget.fitting_batch} costs {count(cost)} of "
        f"{count(budget.limit)} {budget.unit}"
    )
    if not shortened:
        return Decision(
            topology,
            f"{patch} covers a median case of {sizes(median_vox)} as far as "
            f"a patch that is cubic in mm should, and {fits}.",
        )
    return Decision(
        topology,
        f"{sizes(start.patch_vox)} was shortened {shortened} times to "
        f"{patch}, the first patch at which {fits}.",
    )


def _shortened(
    topology: Topology, spacing_mm: Spacing, median_vox: tuple[float, ...], budget: Budget
) -> Spacing:
    """The patch with its relatively longest edge (the last of equals) one step shorter.

    The step is what must divide the edge *after* it was shortened: from 256, which 64 divides, the
    next patch is 224 and not 192, for 224 needs only multiples of 32.
    """
    patch = list(topology.patch_vox)
    longest = max(range(len(patch)), key=lambda axis: (patch[axis] / median_vox[axis], axis))
    tried = list(patch)
    tried[longest] -= topology.divisor[longest]
    patch[longest] -= topology_for(tuple(tried), spacing_mm).divisor[longest]
    if patch[longest] < 1:
        raise PlanError(
            f"no patch fits the memory budget: even {sizes(topology.patch_vox)} voxels cost more "
            f"than {count(budget.limit)} {budget.unit}; plan with more GPU memory or fewer labels"
        )
    return tuple(patch)


def batch_size(
    topology: Topology, budget: Budget, dataset_vox: float, largest_share: float
) -> Decision[int]:
    """The batch that fills the budget, at most a share of the dataset at once and at least 2.

    `dataset_vox` counts the voxels of all training cases on the grid of the network.
    """
    filling = budget.batch_within(topology)
    cap = round(dataset_vox * largest_share / prod(float(n) for n in topology.patch_vox))
    value = max(min(filling, cap), SMALLEST_BATCH)
    fills = f"{filling} patches of {sizes(topology.patch_vox)} fill the budget"
    if value > min(filling, cap):
        return Decision(
            value,
            f"{fills} and {largest_share:.0%} of the dataset are {cap}, but a "
            f"batch holds at least {SMALLEST_BATCH}.",
        )
    if cap < filling:
        return Decision(
            value,
            f"{fills}, but one step must not show more than "
            f"{largest_share:.0%} of the dataset's {count(dataset_vox)} voxels.",
        )
    return Decision(
        value,
        f"{fills}, and that is within {largest_share:.0%} of the dataset's "
        f"{count(dataset_vox)} voxels.",
    )
