"""How much work is a fold, and how long does it take? Operations as counted, seconds as measured
where that was possible, else estimated by the kind of card."""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Configuration, Cost, Plan
from autoseg.documents.splits import FOLDS
from autoseg.rules.decision import Size
from autoseg.rules.growing import voxel_share
from autoseg.rules.recipe import CORE_MACS_PER_S
from autoseg.rules.throughput import FLOAT32_TAKES, throughput_of
from autoseg.rules.world import Device

PASSES, RECOMPUTED = 3, 4
"""A step takes so many times the multiply-adds of going forward: backward to inputs and to
weights, and forward once more where activations are computed twice."""
VALIDATION = 1 / PASSES
"""What a batch of validation takes of a step."""


def step_operations(network: NetworkSpec, forward: int, batch: int) -> int:
    """Multiply-adds of one step, whose forward pass takes `forward` of them a sample."""
    return (RECOMPUTED if network.recompute else PASSES) * forward * batch


def estimated_seconds(multiply_adds: int, device: Device, precision: str) -> tuple[float, str]:
    """Seconds of a step on a device that nobody measured, and where the number is from."""
    if device.memory_gb is None:
        said = f"estimated for cores of {CORE_MACS_PER_S:.0e} multiply-adds a second"
        return multiply_adds / CORE_MACS_PER_S, said
    known = throughput_of(device.card)
    takes = FLOAT32_TAKES if precision == "float32" else 1.0
    source = known.source if takes == 1 else f"{known.source}; {takes:g} times as long in float32"
    return takes * 2 * multiply_adds / (known.tflops * 1e12), source


def fold_cost(
    network: NetworkSpec,
    patch_vox: Size,
    train: Mapping[str, Any],
    device: Device,
    *,
    step_s: float | None = None,
    step_bytes: float | None = None,
) -> Cost | None:
    """What a fold costs; None where operations cannot be counted.

    `train` is the document of the training. `step_s` are the seconds of a step where they are
    known already; else the device measures them if it can, or they are estimated.
    """
    if device.operations_of is None:
        return None
    batch, steps = train["batch_size"], train["steps"]
    work = step_operations(network, device.operations_of(network, patch_vox), batch)
    seconds, source = step_s, "measured on the cores of this machine"
    if seconds is None and device.card and device.seconds_of is not None:
        seconds, source = device.seconds_of(network, patch_vox, batch), f"measured on {device.card}"
    elif device.seconds_of is None:
        seconds = None
    if seconds is None or seconds == inf:
        seconds, source = estimated_seconds(work, device, train.get("precision", "auto"))
    # smaller patches take less of a full step, in proportion to their voxels
    share = voxel_share(train.get("patch_schedule", ()), patch_vox, batch)
    scored = train.get("validation_batches", 10) / train.get("validate_every", 250)
    return Cost(
        multiply_adds=work,
        exaflop=2 * work * steps * share / 1e18,
        step_bytes=None if step_bytes is None else round(step_bytes),
        step_s=seconds,
        hours_per_fold=steps * seconds * (share + VALIDATION * scored) / 3600,
        source=source,
    )


def is_measured(cost: Cost) -> bool:
    """Whether its seconds were measured, and not estimated."""
    return cost.source.startswith("measured")


def hours(number: float) -> str:
    """Hours as a person reads them."""
    if number < 1:
        return f"{max(60 * number, 0.1):.2g} min"
    return f"{number:.1f} h" if number < 10 else f"{number:.0f} h"


def fold_told(cost: Cost) -> str:
    """The work of a fold in words."""
    how = "measured" if is_measured(cost) else "estimate"
    return f"{cost.exaflop:.3g} exaFLOP and about {hours(cost.hours_per_fold)} a fold ({how})"


def total_told(plan: Plan, names: Iterable[str] = (), folds: int = FOLDS) -> str:
    """How long all folds of some configurations (all, if none is named) take; empty if unknown."""
    chosen: list[Configuration] = [plan.configurations[n] for n in names or plan.configurations]
    costs = [c.cost for c in chosen if c.cost is not None]
    if len(costs) < len(chosen):
        return ""
    how = "measured" if all(is_measured(cost) for cost in costs) else "estimate"
    total = folds * sum(cost.hours_per_fold for cost in costs)
    return (
        f"about {hours(total)} of training in all: {folds} folds of "
        f"{len(chosen)} configuration{'s' if len(chosen) > 1 else ''} ({how})"
    )
