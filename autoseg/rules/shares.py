"""What is trained in the time that there is, and how much of it does each training get?"""

from collections.abc import Sequence

from autoseg.rules.decision import Decision

LEAST_FOLD_S = 1800.0
"""On cores, a second configuration must leave every training so much: less teaches neither."""
FINAL_SHARE, LEAST_FINAL_S = 0.03, 15.0
"""Kept for choosing, postprocessing and the package."""
PREFERRED = ("3d_fullres", "3d_cascade_fullres", "3d_lowres", "2d")
"""In this order configurations are given up where time is short: the last one first."""


def configurations_within(
    planned: Sequence[str], total_s: float | None, folds: int, *, on_cores: bool
) -> Decision[tuple[str, ...]]:
    """Which of the planned configurations are trained, `total_s` being all the time for all folds.

    A cascade stays only with the low resolution that it refines.
    """
    ranked = sorted(planned, key=PREFERRED.index)
    if total_s is None or not on_cores:
        return Decision(tuple(planned), "all that are planned.")
    kept = list(ranked)
    while len(kept) > 1 and total_s / (folds * len(kept)) < LEAST_FOLD_S:
        last = kept.pop()
        if last == "3d_lowres" and "3d_cascade_fullres" in kept:
            kept.remove("3d_cascade_fullres")
    each = total_s / (folds * len(kept)) / 60
    left_out = [name for name in planned if name not in kept]
    why = f"{total_s / 60:.4g} min for {folds} folds leave {each:.3g} min a training"
    if left_out:
        why += (
            f"; with {' and '.join(left_out)} as well it would be less than "
            f"{LEAST_FOLD_S / 60:.0f} min"
        )
    return Decision(tuple(name for name in planned if name in kept), f"{why}.")


def reserve(total_s: float) -> float:
    """Seconds kept for what comes after the last training."""
    return max(LEAST_FINAL_S, FINAL_SHARE * total_s)


def fold_seconds(total_s: float, spent_s: float, trainings_left: int) -> float:
    """Seconds of the next training and its validation: an equal part of what is left."""
    return max(1.0, (total_s - spent_s - reserve(total_s)) / trainings_left)
