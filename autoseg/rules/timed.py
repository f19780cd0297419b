"""What does a card train in a time that does not hold the full schedule?

The time decides as it does on cores: how many steps a run needs, and therefore how long one may
take; batch, patch and width are the largest with which it does. A step is measured on the card
where it is there, else estimated from its operations; few are measured, the others in proportion.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.rules.card import SMALLEST_BATCH, USEFUL_VOX, Case
from autoseg.rules.decision import Decision, Size, sizes
from autoseg.rules.draft import Draft
from autoseg.rules.network import features
from autoseg.rules.recipe import (
    CORE_PATCH_VOX,
    CORE_STEPS,
    CORE_TRAINING,
    EMA_SHARE,
    LEAST_STEPS,
    STEP_SHARE,
    WARMUP_SHARE,
    Fixed,
    Recipe,
)
from autoseg.rules.search import descending
from autoseg.rules.topology import Topology
from autoseg.rules.work import step_operations
from autoseg.rules.world import Device, OperationsOf

LEAST_USEFUL = 2000
"""Steps that a training on a card has at least, if anything can give them."""
SLACK = 1.1
"""So many times as many are planned, for preparing the cases takes of the same time."""
LONG = 50_000
"""From so many steps on (200 of nnU-Net's epochs), its own optimiser is kept and its schedule ends
earlier; below, the recipe for short runs is taken."""
NARROWER = (24, 16)
"""Channels of the finest level that are tried where the smallest useful patch is still too slow."""
MOST_MEASURED = 4
"""Steps that are measured for a configuration, or one a minute: each takes some seconds of it."""
LR_BATCH, MOST_LR_TIMES = 2, 2.0
"""The rate of the short recipe was chosen for this batch; it grows with the root of the batch, up to
so many times."""
SHORT_TRAINING: dict[str, Any] = {
    **CORE_TRAINING, "warmup_share": WARMUP_SHARE, "ema_share": EMA_SHARE, "validation_batches": 4,
}  # fmt: skip
SHORT_WHY = (
    "a run of {steps:,} steps: Muon with warm-up, a cosine and averaged weights, which got further "
    "than AdamW in short runs on cores (0.785 against 0.759 on lung nodules and 0.880 against 0.869 on "
    "nuclei, one fold, one seed); nnU-Net's momentum of 0.99 and slow rate are made for 250,000 steps."
)


@dataclass(frozen=True)
class Tried:
    """A network on a patch, and how many samples a step of it shows."""

    topology: Topology
    batch: int
    channels: Size
    network: NetworkSpec

    def said(self) -> str:
        return f"{self.batch} patches of {sizes(self.topology.patch_vox)} and {self.channels[0]} channels"


class Speed:
    """Seconds of steps: measured where the device can, the others in proportion to operations."""

    def __init__(
        self, device: Device, estimate: Callable[[int], float], most: int = MOST_MEASURED
    ) -> None:
        if device.operations_of is None:
            raise ValueError("a plan for a card within a time needs operations_of")
        self.operations_of: OperationsOf = device.operations_of
        self.measure = device.seconds_of if device.card else None
        self.estimate = estimate
        self.ratio: float | None = None
        """Measured over estimated seconds, of the step that was measured last."""
        self.left = most

    def guess(self, tried: Tried) -> float:
        """Seconds as operations tell, in the proportion that was measured last."""
        forward = self.operations_of(tried.network, tried.topology.patch_vox)
        seconds = self.estimate(step_operations(tried.network, forward, tried.batch))
        return seconds * (self.ratio or 1.0)

    def real(self, tried: Tried) -> float:
        """Seconds as measured, as long as that may be asked, else as estimated."""
        guess = self.guess(tried)
        if self.measure is None or self.left == 0:
            return guess
        self.left -= 1
        seconds = self.measure(tried.network, tried.topology.patch_vox, tried.batch)
        if seconds == inf:  # the card could not be asked
            self.measure = None
            return guess
        self.ratio = seconds / (guess / (self.ratio or 1.0))
        return seconds


def within_minutes(
    full: Recipe,
    draft: Draft,
    case: Case,
    minutes: float,
    *,
    fixed: Fixed,
    speed: Speed,
    authors: Mapping[str, Any] | None = None,
) -> Recipe:
    """What is trained of `full`, the recipe without a limit, in so many minutes a fold.

    Nothing gets larger than in `full`, so that no step takes longer than nnU-Net's. `authors` are
    the optimiser's fields that the network's authors chose; they are kept.
    """
    whole = Tried(
        full.topology.value, full.batch_size.value, full.features.value,
        draft.network(full.topology.value, full.features.value, recompute=full.recompute),
    )  # fmt: skip
    for_steps = minutes * 60 * STEP_SHARE
    took = speed.real(whole)
    steps = int(full.training["steps"])
    if took * steps <= for_steps or (fixed.steps is None and took * LONG <= for_steps):
        return _schedule_kept(full, took, min(steps, int(for_steps / took)), minutes, fixed)
    wanted = round(max(SLACK * LEAST_USEFUL, CORE_STEPS * (minutes / 20) ** 0.5))
    chosen, took = _largest(whole, draft, case, full, fixed, for_steps / wanted, speed, took)
    held = max(LEAST_STEPS, int(for_steps / took))
    return _short(full, chosen, took, held, wanted, minutes, fixed, authors)


def _schedule_kept(full: Recipe, took: float, steps: int, minutes: float, fixed: Fixed) -> Recipe:
    """nnU-Net's recipe, whole or ended earlier."""
    planned = int(full.training["steps"])
    if fixed.steps is not None or steps >= planned:
        return replace(full, step_s=took)
    why = (
        f"{minutes:g} minutes hold {steps:,} steps of {took:.2g} s, of the {planned:,} of the full "
        "schedule, which is gone through faster."
    )
    training = {**full.training, "steps": steps, "warmup_share": WARMUP_SHARE / 5}
    reasons = {
        "train.steps": why,
        "train.warmup_share": "a short warm-up, as the rate falls sooner.",
    }
    return replace(full, training=training, why={**full.why, **reasons}, step_s=took)


def _largest(
    whole: Tried,
    draft: Draft,
    case: Case,
    full: Recipe,
    fixed: Fixed,
    limit_s: float,
    speed: Speed,
    took: float,
) -> tuple[Tried, float]:
    """The first that is fast enough, from the whole on; the fastest if none is. And its seconds."""
    if took <= limit_s:
        return whole, took
    best, best_s = whole, took
    for tried in _smaller(whole, draft, case, full, fixed):
        guess = speed.guess(tried)
        if guess < best_s:
            best, best_s = tried, guess
        if guess > limit_s:
            continue
        seconds = speed.real(tried)
        if seconds <= limit_s:
            return tried, seconds
        best, best_s = tried, seconds
    if best is not whole:
        best_s = speed.real(best)
    return best, best_s


def _smaller(whole: Tried, draft: Draft, case: Case, full: Recipe, fixed: Fixed) -> Iterator[Tried]:
    """Ever cheaper steps: fewer samples, then shorter patches, then narrower networks."""
    least = whole.batch if fixed.batch_size else min(whole.batch, SMALLEST_BATCH)
    batch = whole.batch
    while batch > least:
        batch = max(least, batch * 3 // 4 if batch > 3 else batch - 1)
        yield replace(whole, batch=batch)
    patches = []
    if fixed.topology is None:
        small = min(case.least(USEFUL_VOX), CORE_PATCH_VOX[draft.axes])
        shorter = descending(whole.topology, case.median_vox, draft.on)
        patches = [t for t in shorter if t is not whole.topology and prod(t.patch_vox) >= small]
    useful = [t for t in patches if prod(t.patch_vox) >= case.least(USEFUL_VOX)]
    for topology in useful:
        yield _at(topology, least, None, draft, full, fixed)
    last, width = (useful or [whole.topology])[-1], None
    if draft.whole is None and fixed.width is None:
        for width in (n for n in NARROWER if n < whole.channels[0]):
            yield _at(last, least, width, draft, full, fixed)
    for topology in patches[len(useful) :]:
        yield _at(topology, least, width, draft, full, fixed)


def _at(
    topology: Topology, batch: int, width: int | None, draft: Draft, full: Recipe, fixed: Fixed
) -> Tried:
    channels = features(topology.levels, draft.axes, width or fixed.width).value
    return Tried(
        topology, batch, channels, draft.network(topology, channels, recompute=full.recompute)
    )


def _short(
    full: Recipe,
    chosen: Tried,
    took: float,
    held: int,
    wanted: int,
    minutes: float,
    fixed: Fixed,
    authors: Mapping[str, Any] | None,
) -> Recipe:
    """The recipe for short runs, and why."""
    steps = fixed.steps or held
    times = min(MOST_LR_TIMES, (chosen.batch / LR_BATCH) ** 0.5)
    training: dict[str, Any] = {
        **SHORT_TRAINING,
        "lr": round(CORE_TRAINING["lr"] * times, 4),
        **(authors or {}),
        "steps": steps,
        "validate_every": max(20, round(steps / 40)),
    }
    enough = "as many as" if held >= wanted else "fewer than"
    why = (
        f"{chosen.said()}: a step takes about {took:.2g} s, and {minutes:.3g} minutes hold {held:,} of "
        f"them, {enough} the {wanted:,} that a run of this length needs."
    )
    how = SHORT_WHY.format(steps=steps)
    if authors:
        how = "as the network's authors trained it, with warm-up and averaged weights for a short run."
    reasons = {
        **full.why,
        "train.steps": "pinned by you" if fixed.steps else why,
        "train.optimiser": how,
        "train.lr": f"{CORE_TRAINING['lr']:g} for {LR_BATCH} samples a step, times the root of how many "
        f"more there are, at most {MOST_LR_TIMES:g} times.",
        "train.ema_share": "the weights of the last few percent of the steps are averaged.",
    }
    if authors:
        del reasons["train.lr"]
    return replace(
        full,
        topology=Decision(
            chosen.topology, full.topology.why if chosen.topology == full.topology.value else why
        ),
        batch_size=Decision(
            chosen.batch, full.batch_size.why if chosen.batch == full.batch_size.value else why
        ),
        features=Decision(
            chosen.channels, full.features.why if chosen.channels == full.features.value else why
        ),
        training=training,
        why=reasons,
        step_s=took,
    )
