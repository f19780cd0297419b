"""How long, how fast and with what is a network trained, and how is its patch disturbed?

On a card patch, batch and schedule are nnU-Net's as far as memory holds them; on cores the width,
the patch and the batch follow from the time that there is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from autoseg.errors import PlanError
from autoseg.rules.decision import Decision, Size, Spacing, lengths, sizes
from autoseg.rules.draft import Draft
from autoseg.rules.network import MOST_FEATURES, features
from autoseg.rules.search import descending
from autoseg.rules.sides import mirror_axes, paired_labels, pairs_told
from autoseg.rules.topology import Topology, initial_patch
from autoseg.rules.world import Ask, World

NNUNET_STEPS, NNUNET_RATE = 250_000, 0.01
CORE_MINUTES = 60.0
"""Without a card and without --time, a fold is planned to take this long."""
LEAST_STEPS, MOST_VIEWS = 100, 300
"""A run has so many steps at least; without a time, no case is shown more often than this."""
CORE_MACS_PER_S = 2e10
"""Multiply-adds a second of a training step, where nobody measured."""
CORE_PATCH_VOX = {2: 40 * 1024, 3: 128 * 1024}
CORE_SEES, PIECE_VOX = 1 / 3, 100.0
GROW, FINER_BY = 1.03, 2.0
CORE_BATCH = 2
CORE_WIDTHS = (8, 12, 16, 24, 32)
CORE_WIDENING = 8
CORE_STEPS = 2500
"""Steps that a run of 20 minutes should have; they grow with the root of the time."""
STEP_SHARE = 0.85
"""Of the time goes to steps; the rest to start-up and validation."""
WARMUP_SHARE, EMA_SHARE = 0.05, 0.03
CORE_TRAINING: dict[str, Any] = {
    "optimiser": "muon",
    "lr": 0.02,
    "momentum": 0.95,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "clip_norm": 1.0,
}
CORE_WHY = (
    "Muon with a cosine got further than AdamW in 150 CPU seconds: 0.785 against 0.759 on lung "
    "nodules and 0.880 against 0.869 on nuclei (one fold, one seed; SGD was not compared)."
)
DUMMY_2D_ABOVE = 3.0
FLAT_PATCH_ABOVE = 1.5


@dataclass(frozen=True)
class Fixed:
    """What a person pinned of the things that these rules decide; None is free."""

    topology: Topology | None = None
    batch_size: int | None = None
    width: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Recipe:
    """Patch, batch, widths, and the fields of the plan's `train` that follow."""

    topology: Decision[Topology]
    batch_size: Decision[int]
    features: Decision[Size]
    training: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)
    recompute: bool = False
    step_s: float | None = None
    """Seconds of a step, where they decided."""


@dataclass(frozen=True)
class Anatomy:
    """Where the sides of the patient lie: the plan's axes, and the names of the structures.

    `flat` says that the images themselves are 2D.
    """

    axes: str
    names: tuple[str, ...]
    flat: bool
    planner: Literal["autoseg", "nnunet"]

    @classmethod
    def of(cls, world: World, ask: Ask, *, flat: bool) -> "Anatomy":
        """What is known of the patient's sides when `ask` is planned for."""
        return cls(world.axes, tuple(world.labels.structures), flat, ask.planner)


def augmentation_for(patch_vox: Size, anatomy: Anatomy) -> tuple[dict[str, Any], dict[str, str]]:
    """Rotation range, plane and mirrored axes for a patch, and why by key (nnU-Net's rule).

    Where the `anatomy` has left and right structures, the default planner mirrors along fewer axes.
    """
    found, turned, why = _turned(patch_vox)
    everywhere = tuple(range(len(patch_vox)))
    reasons = {"augmentation": why}
    if anatomy.planner == "nnunet":
        pairs = paired_labels(anatomy.names)
        told = f"{pairs_told(anatomy.names, pairs)}; nnU-Net mirrors along every axis all the same."
        mirrored = Decision(everywhere, told if pairs else "")
    else:
        mirrored = mirror_axes(
            anatomy.axes,
            len(patch_vox),
            anatomy.names,
            everywhere,
            flat_images=anatomy.flat,
            turned=turned,
        )
    if mirrored.why:
        reasons["augmentation.mirror_axes"] = mirrored.why
    return {**found, "mirror_axes": list(mirrored.value)}, reasons


def _turned(patch_vox: Size) -> tuple[dict[str, Any], tuple[int, ...], str]:
    """How a patch is turned, the axes between which that may be by half a turn, and why."""
    if len(patch_vox) == 2:
        flat = max(patch_vox) / min(patch_vox) > FLAT_PATCH_ABOVE
        angle = 15.0 if flat else 180.0
        why = f"a 2D patch of {patch_vox[0]} x {patch_vox[1]} may be turned by up to {angle:g}°."
        return {"rotation_degrees": [angle]}, () if flat else (0, 1), why
    if max(patch_vox) / patch_vox[0] > DUMMY_2D_ABOVE:
        why = (
            f"the patch is {max(patch_vox) / patch_vox[0]:.1f} times as wide as it is deep in "
            "voxels, so it is turned and scaled within its slices only."
        )
        return {"rotation_degrees": [180.0], "dummy_2d": True}, (1, 2), why
    return {"rotation_degrees": [30.0] * 3}, (), "nnU-Net's ranges for 3D patches."


def gpu_recipe(
    topology: Decision[Topology],
    batch: Decision[int],
    width: Decision[Size],
    *,
    fixed: Fixed,
    authors: Mapping[str, float | str] | None = None,
    reference: int | None = None,
) -> Recipe:
    """nnU-Net's optimiser and schedule, or those of the network's `authors`.

    The rate belongs to a batch of `reference`. A larger one gets a higher rate and as many steps
    less as show the same number of samples; a smaller one keeps both, as nnU-Net trains batches of
    2 and of hundreds alike.
    """
    steps, why = NNUNET_STEPS, "nnU-Net's 1000 epochs of 250 steps."
    training: dict[str, Any] = dict(authors or {})
    said: dict[str, str] = {}
    if authors:
        said["train.optimiser"] = "as the network's authors trained it, and not nnU-Net's."
    if reference is not None and batch.value > reference:
        times = batch.value / reference
        rate = float(training.get("lr", NNUNET_RATE))
        steps = max(LEAST_STEPS, round(steps / times))
        why = (
            f"nnU-Net's {NNUNET_STEPS:,} steps in batches of {reference} show as many samples as "
            f"{steps:,} in batches of {batch.value}."
        )
        training |= {"lr": float(f"{rate * times**0.5:.2g}"), "warmup_share": WARMUP_SHARE}
        said["train.lr"] = (
            f"{rate:g} belongs to a batch of {reference}; one of {batch.value} gets the root of their "
            "ratio more (Krizhevsky 2014, arXiv:1404.5997), after a warm-up (Goyal et al. 2017, "
            "arXiv:1706.02677)."
        )
    if fixed.steps:
        steps, why = fixed.steps, "pinned by you"
    training |= {"steps": steps, "validate_every": min(250, max(20, round(steps / 40)))}
    return Recipe(topology, batch, width, training, {"train.steps": why, **said})


def spacing_for_cores(
    spacing: Decision[Spacing], median: tuple[float, ...], piece_mm3: float | None
) -> Decision[Spacing]:
    """A grid so coarse that a patch, as cores can train it, sees a third of a typical case.

    Axes that are less than half as coarse as the coarsest grow first, as in nnU-Net's low
    resolution. `piece_mm3` is the typical component of the smallest structure: it keeps at least
    PIECE_VOX voxels.
    """
    fine, coarse = spacing.value, list(spacing.value)
    most = CORE_PATCH_VOX[3] / CORE_SEES

    def voxels(mm: list[float]) -> float:
        return prod(n * a / b for n, a, b in zip(median, fine, mm, strict=True))

    while voxels(coarse) > most:
        finer = [axis for axis in range(3) if max(coarse) / coarse[axis] > FINER_BY]
        grown = [mm * GROW if not finer or a in finer else mm for a, mm in enumerate(coarse)]
        if piece_mm3 is not None and piece_mm3 / prod(grown) < PIECE_VOX:
            break
        coarse = grown
    if coarse == list(fine):
        return spacing
    value = tuple(round(mm, 4) for mm in coarse)
    return Decision(
        value,
        f"{spacing.why} Cores cannot train patches of more than {CORE_PATCH_VOX[3]:,} voxels in "
        f"the time; at {lengths(value)} such a patch sees {CORE_SEES:.0%} of a typical case or "
        "the smallest structure has as few voxels as it may.",
    )


StepSeconds = Callable[[Topology, int, int], float]
"""(topology, width of the finest level, batch) -> seconds of one training step."""


def cpu_recipe(
    draft: Draft,
    median: tuple[float, ...],
    cases: int,
    *,
    fixed: Fixed,
    minutes: float | None,
    seconds_of: StepSeconds,
) -> Recipe:
    """Patch, width, batch and length for the cores of this machine and the time that there is.

    The patch is nnU-Net's, but no larger than CORE_PATCH_VOX; the batch is 2; the
    width is the largest of CORE_WIDTHS with which the steps that a run needs fit into the time.
    """
    time_min = minutes or CORE_MINUTES
    topology = (
        Decision(fixed.topology, "pinned by you") if fixed.topology else core_patch(draft, median)
    )
    batch = Decision(fixed.batch_size or CORE_BATCH, "pinned by you")
    if fixed.batch_size is None:
        batch = Decision(CORE_BATCH, "small batches make most of few minutes on cores.")
    wanted = CORE_STEPS * (time_min / 20) ** 0.5
    limit_s = time_min * 60 * STEP_SHARE / wanted
    pinned = fixed.width if draft.whole is None else draft.whole.widths[0]
    width, took = _widest(topology.value, batch.value, pinned, limit_s, seconds_of)
    chosen = core_features(topology.value.levels, draft.axes, width)
    if not pinned:
        chosen = Decision(
            chosen.value,
            f"{width} channels at the finest level: a step takes about {took:.2g} s on these "
            f"cores, and {time_min:g} minutes "
            + ("should hold" if took <= limit_s else "hold less, even with so few, than")
            + f" the {wanted:.0f} steps that a run needs.",
        )
    length = _core_length(minutes, took, round(MOST_VIEWS * cases / batch.value))
    if fixed.steps:
        length = Decision(fixed.steps, "pinned by you")
    training: dict[str, Any] = {
        **CORE_TRAINING,
        "steps": length.value,
        "warmup_share": WARMUP_SHARE,
        "ema_share": EMA_SHARE,
        "validate_every": max(20, round(length.value / 40)),
        "validation_batches": 4,
    }
    why = {
        "train.steps": length.why,
        "train.optimiser": CORE_WHY,
        "train.ema_share": "the weights of the last few percent of the steps are averaged.",
    }
    return Recipe(topology, batch, chosen, training, why, step_s=took)


def core_patch(draft: Draft, median: tuple[float, ...]) -> Decision[Topology]:
    """The first patch of no more than CORE_PATCH_VOX, as nnU-Net shortens it, that has levels.

    Raises PlanError where the network needs larger ones.
    """
    start = draft.exactly(initial_patch(draft.spacing_mm, median), "a typical case")
    most = CORE_PATCH_VOX[draft.axes]
    fact = f"at most {most:,} voxels, as cores can train them"
    tried = start
    for shortened, tried in enumerate(descending(start, median, draft.on)):
        if prod(tried.patch_vox) > most:
            continue
        patch = sizes(tried.patch_vox)
        if not shortened:
            return Decision(
                tried, f"{patch} covers a median case of {sizes(median)} and has {fact}."
            )
        return Decision(
            tried,
            f"{sizes(start.patch_vox)} was shortened {shortened} times to {patch}, the first patch "
            f"that has {fact}.",
        )
    raise PlanError(
        f"{draft.preset} needs patches of {sizes(tried.patch_vox)} voxels or more, and cores can train "
        f"at most {most:,}; plan for a card (--gpu-memory), pin a patch (--set patch_vox=…), or take "
        "another network"
    )


def _core_length(minutes: float | None, step_s: float, enough: int) -> Decision[int]:
    """How many steps the time holds; where nobody gave a time, no more than are enough."""
    time_min = minutes or CORE_MINUTES
    held = max(LEAST_STEPS, round(time_min * 60 * STEP_SHARE / step_s))
    why = f"what {time_min:g} minutes hold at {step_s:.2g} s a step, besides validation."
    if minutes is not None:
        return Decision(held, why)
    if enough < held:
        shown = f"nobody gave a time, and {MOST_VIEWS} views of each case are enough."
        return Decision(max(LEAST_STEPS, enough), shown)
    return Decision(held, f"nobody gave a time: {why}")


def core_features(levels: int, axes: int, first: int) -> Decision[Size]:
    """The widths of a network on cores: doubled from `first` on, up to eight times it.

    Muon turns the whole matrix of a weight, which wide deep levels would make dearer than the
    convolutions themselves.
    """
    return features(levels, axes, first, min(CORE_WIDENING * first, MOST_FEATURES[axes]))


def _widest(
    topology: Topology, batch: int, pinned: int | None, limit_s: float, seconds_of: StepSeconds
) -> tuple[int, float]:
    """The largest of CORE_WIDTHS whose step stays within the limit (the least if none), its seconds.

    Tried from the narrowest on, so that hopeless widths are never measured.
    """
    widths = (pinned,) if pinned else CORE_WIDTHS
    width, took = widths[0], seconds_of(topology, widths[0], batch)
    for wider in widths[1:]:
        # a wider step never costs less than in proportion to its width
        if took * wider / width > limit_s:
            break
        seconds = seconds_of(topology, wider, batch)
        if seconds > limit_s:
            break
        width, took = wider, seconds
    return width, took
