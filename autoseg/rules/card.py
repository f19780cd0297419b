"""What of a network fits a card: patch, batch, and whether activations are computed twice.

Memory is a bound and not a goal to fill. By default a step holds no more than nnU-Net's own plan
(`Work`), so that a fold costs as much on any card: the patch is nnU-Net's, or the nearest smaller one
that fits. Without that bound the patch grows until one more step along any axis would not fit or a
typical case is seen whole, the batch until one more sample would not fit or one step would show too
much of the training set.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.errors import PlanError
from autoseg.rules.decision import Decision, Size, count, sizes
from autoseg.rules.draft import Draft
from autoseg.rules.memory import BATCHES, GB, SHAPES, Reckoner, target_for, usable_bytes
from autoseg.rules.search import descending, grown, largest_number
from autoseg.rules.topology import Topology, initial_patch

LARGEST_SHARE = 0.05
"""Of the training voxels, at most so many are in one batch."""
SMALLEST_BATCH = 2
RECOMPUTED_SHARE = 0.975
"""Of nnU-Net's voxels a step may hold so many that are computed twice: 1.3 times its operations."""
SMALLEST_VOX = {2: 64 * 64, 3: 32**3}
"""A smaller patch, unless cases are so small, is not worth a training: the plan ends in an error."""
USEFUL_VOX = {2: 256 * 256, 3: 96**3}
"""Below, unless cases are so small, activations are computed twice to make room for more."""

CardBytes = Callable[[NetworkSpec, Size, int], float]
"""(network, patch, batch) -> peak bytes of one training step."""


@dataclass(frozen=True)
class Work:
    """What a step of nnU-Net's own plan holds, which a step of ours may: a batch of patches."""

    patch_vox: Size
    batch: int
    share: float = LARGEST_SHARE
    """Of the training voxels, at most so many are in one batch."""

    @property
    def voxels(self) -> int:
        return self.batch * prod(self.patch_vox)

    def most(self, patch_vox: Size, recompute: bool) -> int:
        """How many samples of a patch are no more; computed twice, they are a third dearer."""
        share = RECOMPUTED_SHARE if recompute else 1.0
        return int(share * self.voxels / prod(patch_vox))


@dataclass(frozen=True)
class Card:
    """A card's memory, and what is known already of the steps that fit it."""

    memory_gb: float
    bytes_of: CardBytes
    reckoners: dict[tuple[Any, ...], Reckoner] = field(default_factory=dict, compare=False)

    @property
    def usable(self) -> float:
        return usable_bytes(self.memory_gb)

    def reckoner(self, draft: Draft, recompute: bool) -> Reckoner:
        """The one for a draft's networks, which drafts on other grids may share."""
        key = (*draft.identity, recompute)
        if key not in self.reckoners:
            # the first draft's networks stand for those of all drafts that are equal to it
            self.reckoners[key] = Reckoner(
                lambda topology, batch: self.bytes_of(
                    draft.network(topology, recompute=recompute), topology.patch_vox, batch
                ),
                self.usable,
            )
        return self.reckoners[key]


@dataclass(frozen=True)
class Case:
    """The typical case of a configuration, on the network's axes, and all training voxels."""

    median_vox: tuple[float, ...]
    dataset_vox: float

    def least(self, voxels: dict[int, int]) -> float:
        """So many voxels, or the whole case if it is smaller."""
        return min(voxels[len(self.median_vox)], prod(self.median_vox))


@dataclass(frozen=True)
class Fit:
    """What was found to fit, with the bytes of its step."""

    topology: Decision[Topology]
    batch_size: Decision[int]
    recompute: Decision[bool]


def fit_card(
    draft: Draft,
    case: Case,
    card: Card,
    *,
    patch: Topology | None = None,
    batch: int | None = None,
    work: Work | None = None,
) -> Fit:
    """Patch and batch of a network on a card; `patch` and `batch` are those that a person pinned.

    With `work` a step holds no more than that, as far as the network's levels let it.

    Raises PlanError with the least memory that would do, or with the nearest patch that fits.
    """
    asked = draft.recomputes
    found, chosen = None, asked is True
    told = "it would not do." if asked is None else "pinned by you"
    number = batch or SMALLEST_BATCH
    enough = case.least(USEFUL_VOX)
    if work is not None:
        enough = min(enough, prod(work.patch_vox))
    for recompute in (False, True) if asked is None else (asked,):
        tried = patch or largest_patch(draft, case, card, number, recompute, work)
        if patch is not None and card.reckoner(draft, recompute).real(patch, number) > card.usable:
            tried = None
        if tried is None or (found and prod(tried.patch_vox) <= prod(found.patch_vox)):
            continue
        if asked is None:
            told = _recompute_why(found, tried, recompute, card)
        found, chosen = tried, recompute
        if patch is not None or prod(found.patch_vox) >= enough:
            break
    if found is None and batch is not None:
        found = patch
    if found is None:
        raise _nothing_fits(draft, case, card, patch, number)
    reckoner = card.reckoner(draft, chosen)
    samples = _batch(reckoner, found, case, card, batch, work, chosen)
    why = "pinned by you" if patch else _patch_why(reckoner, found, case, card, number, work)
    return Fit(Decision(found, why), samples, Decision(chosen, told))


def largest_patch(
    draft: Draft,
    case: Case,
    card: Card,
    batch: int,
    recompute: bool,
    work: Work | None = None,
) -> Topology | None:
    """The patch that cannot grow by a step along any axis, or None if no sensible one fits.

    With `work` it starts from nnU-Net's patch, grows no longer and holds no more.
    """
    reckoner = card.reckoner(draft, recompute)
    wished = initial_patch(draft.spacing_mm, case.median_vox) if work is None else work.patch_vox
    start = draft.exactly(wished, "a typical case")
    longest = case.median_vox
    if work is not None:
        longest = tuple(map(min, case.median_vox, map(float, start.patch_vox)))
    samples = SMALLEST_BATCH if work is None else max(SMALLEST_BATCH, min(batch, work.batch))

    def allowed(topology: Topology) -> bool:
        return work is None or work.most(topology.patch_vox, recompute) >= samples

    def fits(topology: Topology) -> bool:
        return allowed(topology) and reckoner.fits(topology, batch)

    def really_fits(topology: Topology) -> bool:
        return allowed(topology) and reckoner.fits(topology, batch, SHAPES)

    while True:
        found = start
        for tried in descending(start, case.median_vox, draft.on):
            if tried is start or _sensible(tried, case):
                found = tried
                if fits(tried):
                    break
        else:
            # the least sensible patch is taken even if it is more than nnU-Net's work
            if reckoner.real(found, batch) > reckoner.limit:
                return None
        found = grown(found, longest, draft.on, fits)
        if reckoner.confirms(found, batch):
            larger = grown(found, longest, draft.on, really_fits)
            if larger is found or reckoner.confirms(larger, batch):
                return larger


def _sensible(topology: Topology, case: Case) -> bool:
    return prod(topology.patch_vox) >= case.least(SMALLEST_VOX)


def _batch(
    reckoner: Reckoner,
    topology: Topology,
    case: Case,
    card: Card,
    pinned: int | None,
    work: Work | None,
    recompute: bool,
) -> Decision[int]:
    """The largest batch that fits, within `work` and its share of the voxels, at least 2."""
    if pinned is not None:
        cost = reckoner.real(topology, pinned)
        over = f"; it {_needs(cost, card)}: too much" if cost > card.usable else ""
        return Decision(pinned, f"pinned by you{over}")
    patch = sizes(topology.patch_vox)
    share = LARGEST_SHARE if work is None else work.share
    cap = round(case.dataset_vox * share / prod(topology.patch_vox))
    most = max(cap, SMALLEST_BATCH)
    if work is not None:
        most = max(min(most, work.most(topology.patch_vox, recompute)), SMALLEST_BATCH)
    if most > SMALLEST_BATCH and reckoner.guess(topology, most) is None:
        reckoner.real(topology, min(most, reckoner.filling(topology, SMALLEST_BATCH)))
    value = _filling(reckoner, topology, most)
    needs = _needs(reckoner.real(topology, value), card)
    if value == most and work is not None and most != cap:
        why = (
            f"{count(value * prod(topology.patch_vox))} voxels a step; nnU-Net's own plan shows "
            f"{count(work.voxels)}, {work.batch} patches of {sizes(work.patch_vox)}; it {needs}."
        )
    elif cap < SMALLEST_BATCH:
        why = (
            f"{share:.0%} of the training set are {cap} patches of {patch}, but a batch "
            f"holds at least {SMALLEST_BATCH}; it {needs}."
        )
    elif value == cap:
        why = (
            f"one step must not show more than {share:.0%} of the training set's "
            f"{count(case.dataset_vox)} voxels; it {needs}."
        )
    else:
        why = f"one more sample of {patch} would not fit: the batch {needs}."
    return Decision(value, why)


def _filling(reckoner: Reckoner, topology: Topology, most: int) -> int:
    """The largest batch up to `most` that fits, SMALLEST_BATCH being known to."""
    least = SMALLEST_BATCH
    while True:
        value = largest_number(most, least, lambda n: reckoner.fits(topology, n))
        if value > SMALLEST_BATCH and not reckoner.confirms(topology, value):
            least = SMALLEST_BATCH
        elif value < most and reckoner.fits(topology, value + 1, BATCHES):
            least = value + 1
        else:
            return value


def _patch_why(
    reckoner: Reckoner,
    topology: Topology,
    case: Case,
    card: Card,
    batch: int,
    work: Work | None,
) -> str:
    patch, needs = sizes(topology.patch_vox), _needs(reckoner.real(topology, batch), card)
    pairs = zip(topology.patch_vox, case.median_vox, strict=True)
    if work is not None and topology.patch_vox == work.patch_vox:
        return (
            "nnU-Net's own for this grid; a larger one would make a fold dearer than nnU-Net's "
            f"(--use-memory takes what fits). In a batch of {batch} it {needs}."
        )
    if work is not None:
        return (
            f"the nearest to nnU-Net's own {sizes(work.patch_vox)} that suits the network, fits and "
            f"costs no more: in a batch of {batch} it {needs}."
        )
    if all(edge >= typical for edge, typical in pairs):
        return (
            f"{patch} sees a median case of {sizes(case.median_vox)} whole, and in a batch of "
            f"{batch} it {needs}."
        )
    return (
        f"one step more along any axis of {patch} would not fit or see more of a median case of "
        f"{sizes(case.median_vox)}: in a batch of {batch} it {needs}."
    )


def _needs(step_bytes: float, card: Card) -> str:
    return (
        f"needs {step_bytes / GB:.2f} GB of the {max(0.0, card.usable) / GB:.2f} GB that a card of "
        f"{card.memory_gb:.3g} GB leaves for a step"
    )


def _recompute_why(without: Topology | None, tried: Topology, recompute: bool, card: Card) -> str:
    if not recompute:
        return "what a step computes on its way fits without being computed twice."
    gained = sizes(tried.patch_vox)
    if without is None:
        return f"no patch fits {card.memory_gb:.3g} GB otherwise; so {gained} does, for a third more time."
    return (
        f"without, no more than {sizes(without.patch_vox)} fits, which is little to learn from; so "
        f"{gained} does, for a third more time."
    )


def _nothing_fits(
    draft: Draft, case: Case, card: Card, patch: Topology | None, batch: int
) -> PlanError:
    """The error that names the nearest patch that fits, or the least memory that would do."""
    recompute = draft.recomputes is not False
    reckoner = card.reckoner(draft, recompute)
    name = draft.preset if draft.whole is None else draft.whole.preset
    if patch is not None:
        found = _nearest_patch(draft, case, patch, reckoner)
        fit = f"; the nearest that fits is {list(found.patch_vox)}" if found else ""
        need = reckoner.real(patch, batch)
        return PlanError(
            f"patch_vox={list(patch.patch_vox)} does not fit: {name} in a batch of {batch} "
            f"{_needs(need, card)}{fit}; it works from --gpu-memory {target_for(need):g} on"
        )
    start = draft.on(initial_patch(draft.spacing_mm, case.median_vox))
    sensible = [t for t in descending(start, case.median_vox, draft.on) if _sensible(t, case)]
    least = sensible[-1] if sensible else start
    need = reckoner.real(least, batch)
    return PlanError(
        f"{name} does not fit a card of {card.memory_gb:.3g} GB: even a patch of "
        f"{sizes(least.patch_vox)} in a batch of {batch} {_needs(need, card)}; it works from "
        f"--gpu-memory {target_for(need):g} on, with a smaller --set width=…, or take a lighter "
        "network (`autoseg networks` lists what each needs)"
    )


def _nearest_patch(
    draft: Draft, case: Case, patch: Topology, reckoner: Reckoner
) -> Topology | None:
    """The largest patch on the way down from a pinned one that fits."""
    while True:
        patches = descending(patch, case.median_vox, draft.on)
        fitting = (t for t in patches if reckoner.fits(t, SMALLEST_BATCH))
        found = next(fitting, None)
        if found is None or reckoner.confirms(found, SMALLEST_BATCH):
            return found
