"""Which steps of cleaning are tried on the cross-validation, in which order, and is one kept?

Steps of one kind go together. The order is: a dense CRF, the largest piece of all foreground, of
each structure, least sizes, holes.
"""

import math
from collections.abc import Mapping, Sequence

from autoseg.documents.labels import LabelSet
from autoseg.documents.postprocessing import (
    EVERYTHING,
    DenseCRF,
    FillHoles,
    KeepLargest,
    MinimumSize,
    Step,
    Tried,
)
from autoseg.rules.decision import Decision
from autoseg.rules.selection import ROUNDING, Dice, better, mean_dice, structure_means

Waves = tuple[tuple[Step, ...], ...]

LIMITS = ((0.01, 0.1), (0.01, 0.5), (0.01, 1.0), (0.05, 1.0))
"""Least sizes: (the percentile of the pieces in the references, the share of it)."""

CRF_WEIGHTS = ((1.0, 0.5), (2.0, 0.5), (2.0, 0.25))
"""(weight, width in units of the normalised intensity) of the kernel that looks at the image."""


def classes_of(labels: LabelSet) -> dict[str, tuple[int, ...]]:
    """The structures that are scored, and the class indices of each."""
    if labels.regions:
        return {region.name: region.classes for region in labels.regions}
    return {name: (index,) for index, name in enumerate(labels.foreground, 1)}


def steps_to_try(
    labels: LabelSet,
    volumes_mm3: Mapping[str, Sequence[float]],
    voxel_mm3: float,
    fields: Sequence[DenseCRF] = (),
) -> Waves:
    """The steps in the order in which they are tried, those of one kind together.

    `volumes_mm3` are the volumes of the pieces of each structure in all references, `voxel_mm3`
    that of the smallest voxel.
    """
    names = list(classes_of(labels))
    each = names if len(names) > 1 else []  # one structure alone is all foreground
    sizes = [
        MinimumSize(of=name, mm3=limit)
        for name in names
        for limit in size_limits_mm3(volumes_mm3.get(name, ()), voxel_mm3)
    ]
    return (
        tuple(fields),
        (KeepLargest(of=EVERYTHING),),
        tuple(KeepLargest(of=name) for name in each),
        tuple(sizes),
        tuple(FillHoles(of=name) for name in names),
    )


def size_limits_mm3(volumes_mm3: Sequence[float], voxel_mm3: float) -> tuple[float, ...]:
    """Least sizes worth trying, ascending: from a tenth of the small pieces of the references on.

    What is not above one voxel would change nothing and is left out. Limits are rounded down, so
    that a piece as small as the one that gave the limit stays.
    """
    ordered = sorted(volumes_mm3)
    if not ordered:
        return ()
    found = {
        _rounded_down(share * ordered[math.floor(percentile * (len(ordered) - 1))])
        for percentile, share in LIMITS
    }
    return tuple(sorted(limit for limit in found if limit > voxel_mm3))


def _rounded_down(value: float) -> float:
    """Three digits of a positive number; a number of three digits stays what it is."""
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return float(f"{math.floor(value * scale + 1e-9) / scale:.3g}")


def fields_to_try(spacing_mm: Sequence[float]) -> tuple[DenseCRF, ...]:
    """Settings of the dense CRF for scans of such a spacing: lengths in the finest voxel side."""
    fine = float(f"{min(spacing_mm):.3g}")
    return tuple(
        DenseCRF(
            radius_mm=3 * fine,
            smooth_mm=fine,
            bilateral_weight=weight,
            bilateral_mm=3 * fine,
            bilateral_intensity=width,
        )
        for weight, width in CRF_WEIGHTS
    )


def supersedes(step: Step, earlier: Step) -> bool:
    """Whether `step` does all that `earlier` did, which is therefore left out."""
    if isinstance(step, DenseCRF):
        return isinstance(earlier, DenseCRF)
    return (
        isinstance(step, MinimumSize)
        and isinstance(earlier, MinimumSize)
        and step.of == earlier.of
        and step.mm3 >= earlier.mm3
    )


def depends_on(step: Step, kept: Sequence[Step], labels: LabelSet) -> tuple[Step, ...]:
    """Those of the kept steps that decide what `step` does to the scores that it can change.

    Pieces of one class do not depend on what was done to another, so most of what was measured
    stays true when a step is kept. Holes depend on everything, and so do nested regions.
    """
    if isinstance(step, DenseCRF):
        return ()
    others = tuple(s for s in kept if not supersedes(step, s))
    filled = any(isinstance(s, FillHoles) for s in (*others, step))
    if labels.regions or step.of == EVERYTHING or filled:
        return others
    return tuple(s for s in others if isinstance(s, DenseCRF) or s.of in (EVERYTHING, step.of))


def touched(step: Step | None, labels: LabelSet) -> tuple[str, ...]:
    """The structures whose scores a step can change; all of them for no step."""
    everything = tuple(classes_of(labels))
    if step is None or isinstance(step, DenseCRF) or step.of == EVERYTHING or labels.regions:
        return everything
    return (step.of,)


def worth_keeping(before: Dice, after: Dice) -> Decision[bool]:
    """Whether a step is kept: it makes the mean Dice better, and that of no structure falls."""
    found = better(after, before)
    if not found.value:
        return found
    old, new = structure_means(before), structure_means(after)
    for name, mean in new.items():
        was = old.get(name)
        if mean is not None and (was is None or mean < was - ROUNDING):
            return Decision(
                False,
                f"{found.why}; but {name} falls from {'undefined' if was is None else f'{was:.4f}'} "
                f"to {mean:.4f}",
            )
    return found


def record(
    tried: Sequence[Tried], step: Step, verdict: Decision[bool], before: Dice, after: Dice
) -> list[Tried]:
    """What was tried with one more step, which takes the place of those that it supersedes."""
    found = [
        Tried(
            step=t.step,
            kept=False,
            before=t.before,
            after=t.after,
            why=f"{t.why}; a later step does this and more",
        )
        if verdict.value and t.kept and supersedes(step, t.step)
        else t
        for t in tried
    ]
    entry = Tried(
        step=step,
        kept=verdict.value,
        before=mean_dice(before),
        after=mean_dice(after),
        why=verdict.why,
    )
    return [*found, entry]
