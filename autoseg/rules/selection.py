"""Is one way of segmenting better than another by more than chance, and which of several is used?

A way is judged by its Dice on the cases of the cross-validation, in the mean that the report calls
foreground Dice: per structure over the cases where it is defined, then over the structures.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from autoseg.rules.decision import Decision

Dice = Mapping[str, Mapping[str, float | None]]
"""Case -> structure -> Dice, None where it is undefined (the structure is in neither mask)."""

CONFIDENCE = 0.95
DRAWS = 10_000
SEED = 1979
FEWEST_CASES = 5
"""With four cases even a gain in each of them is chance once in sixteen times."""
MARGIN = 0.005
"""A candidate that is shown to lose less mean Dice than this may win by its cost."""
FEWEST_EQUIVALENT = 10
"""That a loss is small cannot be shown with fewer cases."""
ROUNDING = 1e-12
"""A smaller difference of two means is none."""

DRAWN_AT_ONCE = 1 << 21
"""Cases drawn in one step, so that memory does not grow with their number."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A way of segmenting: what it costs, in a unit that all candidates share, and its scores."""

    name: str
    cost: float
    dice: Dice


@dataclass(frozen=True)
class Choice(Decision[Candidate]):
    """The candidate to use, why, and by name the mean Dice of each and a sentence on it."""

    means: Mapping[str, float | None]
    reasons: Mapping[str, str]


def structure_means(dice: Dice) -> dict[str, float | None]:
    """The mean Dice of each structure over the cases where it is defined; None if there is none."""
    names = dict.fromkeys(name for scores in dice.values() for name in scores)
    return {name: _mean(scores.get(name) for scores in dice.values()) for name in names}


def mean_dice(dice: Dice) -> float | None:
    """The mean foreground Dice, as the report has it; None where nothing is defined."""
    return _mean(structure_means(dice).values())


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return math.fsum(defined) / len(defined) if defined else None


def better(
    one: Dice,
    other: Dice,
    *,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Decision[bool]:
    """Whether `one` has the higher mean foreground Dice by more than chance: a paired bootstrap.

    Cases are drawn with replacement, as many as there are, `draws` times (Efron 1979), and each
    time both means are computed anew over the drawn cases. `one` is better if its mean is not the
    higher one in less than 1 - `confidence` of the draws. With fewer than FEWEST_CASES scored
    cases nothing is better. The same arguments give the same answer. Raises ValueError if the two
    were not scored on the same cases.
    """
    _same_cases({"one": one, "other": other})
    cases = [c for c in sorted(one) if _scored(one[c]) or _scored(other[c])]
    ahead, behind = mean_dice(one), mean_dice(other)
    if ahead is None or behind is None:
        return Decision(False, "there is no structure to compare by")
    gain = ahead - behind
    fact = f"mean Dice {ahead:.4f} against {behind:.4f} ({gain:+.4f}) on {_cases(len(cases))}"
    if all(_equal(one[c], other[c]) for c in cases):
        return Decision(False, f"{fact}: the same in every case")
    if len(cases) < FEWEST_CASES:
        return Decision(
            False, f"{fact}: fewer than {FEWEST_CASES} cases cannot tell a gain from chance"
        )
    names = sorted({*structure_means(one), *structure_means(other)})
    gains = _drawn_gains(_table(one, cases, names), _table(other, cases, names), draws, seed)
    share = float(np.mean(gains <= ROUNDING))
    found = share < 1 - confidence
    verdict = "better" if found else "not better"
    return Decision(
        found,
        f"{fact}: {verdict}, as {share:.1%} of {draws:,} resamplings of the cases show no gain "
        f"(under {100 * (1 - confidence):.3g}% counts)",
    )


def equivalent(
    best: Dice,
    other: Dice,
    margin: float,
    *,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Decision[bool]:
    """Whether there is evidence that `other` loses less than `margin` mean Dice against `best`.

    A one-sided test of non-inferiority: the loss that is not exceeded with `confidence` must be below
    the margin. It is the larger of two bounds, since each is too bold somewhere: the percentile of the
    paired bootstrap of `better`, and Student's bound of the mean difference of the cases. Fewer than
    FEWEST_EQUIVALENT scored cases are no evidence. Raises ValueError for other cases.
    """
    _same_cases({"best": best, "other": other})
    cases = [c for c in sorted(best) if _scored(best[c]) or _scored(other[c])]
    if len(cases) < FEWEST_EQUIVALENT:
        return Decision(
            False, f"{_cases(len(cases))} are no evidence, which takes {FEWEST_EQUIVALENT}"
        )
    names = sorted({*structure_means(best), *structure_means(other)})
    one, two = _table(best, cases, names), _table(other, cases, names)
    drawn = float(np.quantile(_drawn_gains(one, two, draws, seed), confidence))
    bound = max(drawn, _student_bound(one, two, confidence))
    found = bound < margin
    return Decision(
        found,
        f"with {confidence:.0%} confidence it loses less than {max(bound, 0):.4f} mean Dice on "
        f"{_cases(len(cases))}, {'within' if found else 'beyond'} the margin of {margin:g}",
    )


def _student_bound(best: Floats, other: Floats, confidence: float) -> float:
    """The upper bound of the mean over cases of the mean difference of the structures."""
    differences = best - other
    defined = np.isfinite(differences)
    rows = defined.any(1)
    if rows.sum() < 2:
        return math.inf
    per_case = np.where(defined, differences, 0.0)[rows].sum(1) / defined[rows].sum(1)
    error = float(per_case.std(ddof=1)) / math.sqrt(len(per_case))
    return float(per_case.mean()) + float(stats.t.ppf(confidence, len(per_case) - 1)) * error


def choose(
    candidates: Sequence[Candidate], *, margin: float = MARGIN, confidence: float = CONFIDENCE
) -> Choice:
    """The candidate with the highest mean Dice; a cheaper one only where it is shown to be as good.

    As good: `equivalent` within `margin`; 0 takes the highest mean whatever it costs. Of candidates
    with one mean it is the cheapest, then the first. Raises ValueError if there is none, if two share
    a name, or if they were not scored on the same cases.
    """
    if not candidates or len({c.name for c in candidates}) != len(candidates):
        raise ValueError("a choice needs candidates, each with a name of its own")
    _same_cases({c.name: c.dice for c in candidates})
    means = {c.name: mean_dice(c.dice) for c in candidates}
    cheap_first = sorted(candidates, key=lambda c: (c.cost, -_or_worst(means[c.name])))
    best = max(cheap_first, key=lambda c: _or_worst(means[c.name]))
    verdicts = {
        c.name: equivalent(best.dice, c.dice, margin, confidence=confidence)
        for c in cheap_first
        if c is not best and c.cost < best.cost
    }
    chosen = next(
        c for c in cheap_first if c is best or (c.name in verdicts and verdicts[c.name].value)
    )
    reasons = {
        c.name: _reason(c, chosen, best, means[c.name], verdicts.get(c.name)) for c in candidates
    }
    return Choice(chosen, f"{chosen.name}: {reasons[chosen.name]}", means, reasons)


def _reason(
    one: Candidate,
    chosen: Candidate,
    best: Candidate,
    mean: float | None,
    verdict: Decision[bool] | None,
) -> str:
    """One sentence on why a candidate was chosen or not."""
    fact = f"mean Dice {'undefined' if mean is None else f'{mean:.4f}'}, cost {one.cost:.4g}"
    if one is best:
        if one is chosen:
            return f"{fact}: chosen, it has the highest mean."
        return f"{fact}: the highest mean, but {chosen.name} is shown to be as good for less."
    if verdict is None:
        return f"{fact}: {best.name} has a higher mean for no more cost."
    if one is chosen:
        return f"{fact}: chosen, it costs less than {best.name}, and {verdict.why}."
    if verdict.value:
        return f"{fact}: as good as {best.name} ({verdict.why}), but {chosen.name} costs less."
    return f"{fact}: {best.name} has a higher mean ({verdict.why})."


def _or_worst(mean: float | None) -> float:
    return -math.inf if mean is None else mean


def _same_cases(scored: Mapping[str, Dice]) -> None:
    """Raises ValueError naming what is missing where."""
    every = {case for dice in scored.values() for case in dice}
    for name, dice in scored.items():
        missing = sorted(every - set(dice))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{name!r} has no scores of case {missing[0]!r}{more}")


def _scored(scores: Mapping[str, float | None]) -> bool:
    return any(v is not None for v in scores.values())


def _equal(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    return all(one.get(name) == other.get(name) for name in {*one, *other})


def _cases(number: int) -> str:
    return f"{number} case{'' if number == 1 else 's'}"


def _table(dice: Dice, cases: Sequence[str], names: Sequence[str]) -> Floats:
    """(cases, structures), NaN where undefined."""
    rows: list[list[Any]] = [[dice[case].get(name) for name in names] for case in cases]
    return np.array(rows, np.float64)


def _drawn_gains(one: Floats, other: Floats, draws: int, seed: int) -> Floats:
    """(draws,): by how much the mean of `one` is above that of `other` in each resampling."""
    rng = np.random.default_rng(seed)
    cases = len(one)
    at_once = max(1, DRAWN_AT_ONCE // cases)
    gains = []
    for begin in range(0, draws, at_once):
        rows = min(at_once, draws - begin)
        picks = rng.integers(cases, size=(rows, cases)) + cases * np.arange(rows)[:, None]
        times = np.bincount(picks.ravel(), minlength=rows * cases).reshape(rows, cases)
        gains.append(_means(times, one) - _means(times, other))
    return np.nan_to_num(np.concatenate(gains))


def _means(times: NDArray[np.int64], table: Floats) -> Floats:
    """(draws,): the mean foreground Dice where case j counts `times[:, j]` times; NaN for none."""
    defined = np.isfinite(table)
    weights = times.astype(np.float64)
    numbers = weights @ defined.astype(np.float64)
    sums = weights @ np.where(defined, table, 0.0)
    per_structure = np.divide(sums, numbers, out=np.zeros_like(sums), where=numbers > 0)
    structures = (numbers > 0).sum(1)
    means: Floats = np.divide(
        per_structure.sum(1), structures, out=np.full(len(times), np.nan), where=structures > 0
    )
    return means
