"""Which batch, which patch fits the memory that a training met the end of?

Computed, not tried: the bytes of a step come in as a function, and what fits the room that is
really there is searched as the planner searches. The largest batch comes first, then activations
that are computed twice, then a shorter patch. The network keeps its widths, and its levels as far
as the shorter patch has them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Configuration
from autoseg.documents.presets.table import PRESETS
from autoseg.rules.card import SMALLEST_BATCH, SMALLEST_VOX
from autoseg.rules.decision import Decision, Size, sizes
from autoseg.rules.memory import GB, OVERHEADS, Reckoner, usable_bytes
from autoseg.rules.search import largest_number
from autoseg.rules.topology import Topology, topology_for
from autoseg.rules.world import StepCost

LEAST_DEEP = 2
"""A patch has so many voxels of the coarsest level along each axis at least: one has no norm."""
SHARES = (0.8, 0.6)
"""Where a step was counted to fit and did not, the next plan is counted to need this share of it at
the first and the second attempt: what was counted is then too low by an unknown factor."""
RAM_SHARE = 0.85
"""Of the machine's free memory; the rest is left to other programs."""


@dataclass(frozen=True)
class Room:
    """The bytes that a step may take, and what was looked at to know them."""

    step_bytes: float
    why: str


def card_room(free: float, total: float) -> Room:
    """What a card of `total` bytes, of which `free` can be taken now, offers a step.

    CUDA's context is there already, so that of the planner's overhead (`rules.memory.OVERHEADS`)
    only the allocator's share is taken off what is free; more than the planner would reckon with
    for such a card is never offered.
    """
    kept = OVERHEADS["card"].share
    offered = max(0.0, min(usable_bytes(total / GB), (1 - kept) * free))
    return Room(
        offered,
        f"the card has {free / GB:.2f} of its {total / GB:.2f} GB free, of which a step gets "
        f"{offered / GB:.2f}",
    )


def ram_room(free: float) -> Room:
    """What a machine of which `free` bytes can be taken now offers a step on its cores."""
    offered = RAM_SHARE * free
    why = f"{free / GB:.2f} GB of memory are free, of which a step gets {offered / GB:.2f}"
    return Room(offered, why)


def room_after(counted: float, room: Room, attempt: int) -> Room:
    """What the next plan may be counted to need, where one that needs `counted` bytes failed.

    `attempt` is 0 for the first plan that is computed, 1 for the second.
    """
    most = SHARES[attempt] * counted
    if counted > room.step_bytes and (attempt == 0 or room.step_bytes <= most):
        return room
    return Room(
        min(room.step_bytes, most),
        f"{room.why}; {counted / GB:.2f} GB were counted and did not fit, so {SHARES[attempt]:.0%} "
        "of them are allowed",
    )


def fitting(
    configuration: Configuration, limit: float, bytes_of: StepCost, *, batch_alone: bool = False
) -> Decision[dict[str, Any]] | None:
    """Batch, `recompute` and patch, by dotted keys, of which a step takes at most `limit` bytes.

    All three are given, so that a plan in which they are pinned grows nowhere else; as settings of
    a run they hold too. With `batch_alone` nothing but the batch may change. None: nothing sensible
    that is smaller fits.
    """
    batch, patch = configuration.train.batch_size, configuration.patch_vox
    least = min(SMALLEST_BATCH, batch)
    reckoners: dict[bool, Reckoner] = {}
    for network, shape in _candidates(configuration, batch_alone):
        same = shape == patch and network.recompute == configuration.network.recompute
        most = batch - 1 if same else batch
        if most < least:
            continue
        if network.recompute not in reckoners:
            reckoners[network.recompute] = _reckoner(network, limit, bytes_of)
        reckoner = reckoners[network.recompute]
        topology = Topology(shape, network.strides, ())
        found = _largest_batch(reckoner, topology, least, most)
        if found is not None:
            needs = f"needs {reckoner.real(topology, found) / GB:.2f} of {limit / GB:.2f} GB"
            why = f"{_changes(configuration, shape, found, network.recompute)} {needs}."
            return _pins(shape, found, network.recompute, why)
    return None


def _candidates(
    configuration: Configuration, batch_alone: bool
) -> Iterator[tuple[NetworkSpec, Size]]:
    """Networks and patches, in the order in which they are preferred."""
    network, patch = configuration.network, configuration.patch_vox
    yield network, patch
    if batch_alone:
        return
    again = network.model_copy(update={"recompute": True})
    if not network.recompute:
        yield again, patch
    shorter = _shorter(configuration, patch)
    while shorter is not None:
        yield again, shorter
        shorter = _shorter(configuration, shorter)


def _reckoner(network: NetworkSpec, limit: float, bytes_of: StepCost) -> Reckoner:
    return Reckoner(lambda at, batch: bytes_of(network, at.patch_vox, batch), limit)


def _largest_batch(reckoner: Reckoner, at: Topology, least: int, most: int) -> int | None:
    """The largest batch from `least` to `most` whose step really fits, or None."""
    if not reckoner.fits(at, least):
        return None
    if most > least:
        reckoner.real(at, most)  # what lies between two points that are known is known well
    while True:
        found = largest_number(most, least, lambda batch: reckoner.fits(at, batch))
        if reckoner.confirms(at, found):
            return found
        if found == least and reckoner.real(at, least) > reckoner.limit:
            return None


def _changes(configuration: Configuration, patch: Size, batch: int, recompute: bool) -> str:
    """What is smaller than in the configuration, in words."""
    said = []
    before = configuration.train.batch_size, configuration.patch_vox
    if batch != before[0]:
        said.append(f"a batch of {batch} in the place of {before[0]}")
    if patch != before[1]:
        said.append(f"a patch of {sizes(patch)} in the place of {sizes(before[1])}")
    if recompute and not configuration.network.recompute:
        said.append(
            "computing again, when going back, what a step computed on its way (about a third more "
            "time)"
        )
    return " and ".join(said)


def _pins(patch: Size, batch: int, recompute: bool, why: str) -> Decision[dict[str, Any]]:
    pins = {
        "patch_vox": list(patch),
        "train.batch_size": batch,
        "network.recompute": recompute,
    }
    return Decision(pins, why)


def _shorter(configuration: Configuration, patch: Size) -> Size | None:
    """A patch one step shorter along the relatively longest axis that may be, or None."""
    divisor = configuration.network.divisor
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
