"""What is trained in the time that there is, and how much of it does each training get?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoseg.rules.decision import Decision
from autoseg.rules.recipe import STEP_SHARE
from autoseg.rules.timed import LEAST_USEFUL

LEAST_FOLD_S = 1800.0
"""A second configuration must leave every training so much: less teaches neither."""
FINAL_SHARE, LEAST_FINAL_S = 0.03, 15.0
"""Kept for choosing, postprocessing and the package."""
PREFERRED = ("3d_fullres", "3d_cascade_fullres", "3d_lowres", "2d")
"""In this order configurations are given up where time is short: the last one first."""


CASCADE, BEFORE_IT = "3d_cascade_fullres", "3d_lowres"


@dataclass(frozen=True)
class Trainings:
    """The configurations that are trained, and on how many of the folds."""

    names: tuple[str, ...]
    folds: int

    @property
    def count(self) -> int:
        return len(self.names) * self.folds


def configurations_within(
    planned: Sequence[str],
    total_s: float | None,
    folds: int,
    step_s: Mapping[str, float] | None = None,
) -> Decision[tuple[str, ...]]:
    """Which of the planned configurations are trained, `total_s` being all the time for all folds.

    Each training has LEAST_FOLD_S, and on a card, where `step_s` tells the seconds of their steps,
    LEAST_USEFUL steps as well. A cascade stays only with the low resolution that it refines.
    """
    ranked = sorted(planned, key=PREFERRED.index)
    if total_s is None:
        return Decision(tuple(planned), "all that are planned.")
    kept = list(ranked)
    while len(kept) > 1 and not _enough(kept, total_s / (folds * len(kept)), step_s or {}):
        last = kept.pop()
        if last == BEFORE_IT and CASCADE in kept:
            kept.remove(CASCADE)
    each = total_s / (folds * len(kept)) / 60
    left_out = [name for name in planned if name not in kept]
    why = f"{total_s / 60:.4g} min for {folds} folds leave {each:.3g} min a training"
    if left_out:
        steps = f" or {LEAST_USEFUL:,} steps" if step_s else ""
        why += (
            f"; with {' and '.join(left_out)} as well it would be less than "
            f"{LEAST_FOLD_S / 60:.0f} min{steps}"
        )
    return Decision(tuple(name for name in planned if name in kept), f"{why}.")


def _enough(names: Sequence[str], each_s: float, step_s: Mapping[str, float]) -> bool:
    steps = (each_s * STEP_SHARE / step_s[name] for name in names if name in step_s)
    return each_s >= LEAST_FOLD_S and all(held >= LEAST_USEFUL for held in steps)


def trainings_within(
    planned: Sequence[str],
    total_s: float | None,
    folds: int,
    step_s: Mapping[str, float] | None = None,
    *,
    chosen: bool = False,
    spent_s: float = 0.0,
) -> Decision[Trainings]:
    """Configurations and folds that are trained in the time that there is for all of them.

    One good training beats twenty hopeless ones: on a card, where `step_s` tells the seconds of a
    step, no more folds are trained than can have LEAST_USEFUL steps each, one at least. `chosen`
    configurations are all trained. A cascade learns from all folds, or is not trained.
    """
    found = Decision(tuple(planned), "as asked for.")
    if not chosen:
        found = configurations_within(planned, total_s, folds, step_s)
    names = found.value
    if total_s is None or not step_s or CASCADE in names:
        return Decision(Trainings(names, folds), found.why)
    usable = fold_seconds(total_s, spent_s, 1) * STEP_SHARE
    slowest = max(step_s[name] for name in names)
    held = int(usable / (LEAST_USEFUL * slowest * len(names)))
    if held >= folds:
        return Decision(Trainings(names, folds), found.why)
    most = max(1, held)
    one = "" if most > 1 else " A single fold says little about how good the model is."
    return Decision(
        Trainings(names, most),
        f"{found.why} Of {folds} folds {most} {'are' if most > 1 else 'is'} trained: a step takes "
        f"{slowest:.2g} s, and a training of less than {LEAST_USEFUL:,} steps teaches little.{one}",
    )


def reserve(total_s: float) -> float:
    """Seconds kept for what comes after the last training."""
    return max(LEAST_FINAL_S, FINAL_SHARE * total_s)


def fold_seconds(total_s: float, spent_s: float, trainings_left: int) -> float:
    """Seconds of the next training and its validation: an equal part of what is left."""
    return max(1.0, (total_s - spent_s - reserve(total_s)) / trainings_left)
