"""The report: the scores of every structure in every case, and their summary.

A score that does not exist is null and has its reason beside it. Summaries count defined values
only and say how many that are, so that no mean hides what it leaves out. Nothing is measured here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from autoseg.documents.document import Document, Frozen

Outcome = Literal["both", "absent", "missed", "spurious"]
"""Where a structure is: in both masks, in neither, in the reference alone, the prediction alone."""

OUTCOMES: tuple[Outcome, ...] = ("both", "absent", "missed", "spurious")
WORST_SHOWN = 5


class LabelScores(Document):
    """The scores of one structure in one case; `undefined` holds the reason of every null."""

    outcome: Outcome
    values: Frozen[str, float | None]
    undefined: Frozen[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _explained(self) -> "LabelScores":
        null = {metric for metric, value in self.values.items() if value is None}
        if null != set(self.undefined):
            odd = ", ".join(sorted(null ^ set(self.undefined)))
            raise ValueError(f"each null, and nothing else, needs its reason in undefined: {odd}")
        return self


class CaseScores(Document):
    """The scores of one case, by the name of the structure."""

    case: str
    labels: Frozen[str, LabelScores]

    @property
    def mean_dice(self) -> float | None:
        """The mean Dice over the foreground structures that the case or its prediction holds."""
        return _mean(s.values.get("dice") for name, s in self.labels.items() if _foreground(name))


class Spread(Document):
    """One metric over the cases: `n` defined values, and how often it was undefined, by reason."""

    n: int
    mean: float | None
    std: float | None
    median: float | None
    undefined: Frozen[str, int]


class LabelSummary(Document):
    """One structure over the cases.

    `dice_absent_as_one` is the other convention for a structure that is rightly not predicted:
    it counts as 1, where the mean of `dice` leaves it out.
    """

    cases: int
    outcomes: Frozen[str, int]
    metrics: Frozen[str, Spread]
    dice_absent_as_one: float | None


class Summary(Document):
    """All structures over all cases; `mean_dice` is the number that configurations compete with.

    It is nnU-Net's foreground mean: per structure the mean over the cases where Dice is defined,
    then the mean over the structures where there is one. Background never counts.
    """

    mean_dice: float | None
    labels: Frozen[str, LabelSummary]


class Report(Document):
    """What was measured, with what tolerance, on which cases, and what came out.

    `plan`, `configuration`, `run` and `fold` say what made the predictions, where that is known.
    """

    schema_number: Literal[1] = Field(default=1, alias="schema")
    dataset: str
    plan: str | None = None
    configuration: str | None = None
    run: str | None = None
    fold: int | None = None
    tolerance_mm: float
    summary: Summary
    cases: tuple[CaseScores, ...]

    @model_validator(mode="after")
    def _distinct(self) -> "Report":
        twice = [case for case, n in Counter(c.case for c in self.cases).items() if n > 1]
        if twice:
            raise ValueError(f"a case is scored twice: {', '.join(twice)}")
        return self

    @property
    def mean_dice(self) -> float | None:
        return self.summary.mean_dice


def label_scores(
    outcome: Outcome, values: Mapping[str, float], undefined: Mapping[str, str]
) -> LabelScores:
    """Measured scores as a document: what is not finite becomes null, its reason stays."""
    plain = {metric: v if math.isfinite(v) else None for metric, v in values.items()}
    return LabelScores(outcome=outcome, values=plain, undefined=undefined)


def build_report(
    cases: Iterable[CaseScores],
    *,
    dataset: str,
    tolerance_mm: float,
    plan: str | None = None,
    configuration: str | None = None,
    run: str | None = None,
    fold: int | None = None,
) -> Report:
    """The report on `cases`, which it sorts by name, with their summary."""
    ordered = tuple(sorted(cases, key=lambda c: c.case))
    return Report(
        dataset=dataset,
        plan=plan,
        configuration=configuration,
        run=run,
        fold=fold,
        tolerance_mm=tolerance_mm,
        summary=summarise(ordered),
        cases=ordered,
    )


def summarise(cases: Sequence[CaseScores]) -> Summary:
    """The summary of `cases`; a structure that a case does not list is not counted there."""
    names = dict.fromkeys(name for case in cases for name in case.labels)
    labels = {
        name: _label_summary([case.labels[name] for case in cases if name in case.labels])
        for name in names
    }
    means = (
        s.metrics["dice"].mean for name, s in labels.items()
        if _foreground(name) and "dice" in s.metrics
    )  # fmt: skip
    return Summary(mean_dice=_mean(means), labels=labels)


def _foreground(name: str) -> bool:
    return name != "background"


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there is none."""
    defined = [v for v in values if v is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _label_summary(scores: Sequence[LabelScores]) -> LabelSummary:
    found = Counter(s.outcome for s in scores)
    metrics = dict.fromkeys(metric for s in scores for metric in s.values)
    counted = (
        1.0 if s.outcome == "absent" else s.values["dice"] for s in scores if "dice" in s.values
    )
    return LabelSummary(
        cases=len(scores),
        outcomes={outcome: found[outcome] for outcome in OUTCOMES},
        metrics={metric: _spread(metric, scores) for metric in metrics},
        dice_absent_as_one=_mean(counted),
    )


def _spread(metric: str, scores: Sequence[LabelScores]) -> Spread:
    """Mean, standard deviation (of the population) and median over the defined values."""
    defined = [v for s in scores if (v := s.values.get(metric)) is not None]
    reasons = Counter(s.undefined[metric] for s in scores if metric in s.undefined)
    return Spread(
        n=len(defined),
        mean=_mean(defined),
        std=float(np.std(defined)) if defined else None,
        median=float(np.median(defined)) if defined else None,
        undefined=dict(sorted(reasons.items())),
    )


# ---- as text

COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("IoU", "iou", 4),
    ("precision", "precision", 4),
    ("recall", "recall", 4),
    ("NSD", "nsd", 4),
    ("HD95* mm", "hd95_penalised_mm", 2),
    ("ASSD* mm", "assd_penalised_mm", 2),
    ("vol. diff.", "relative_volume_difference", 4),
    ("area diff.", "relative_area_difference", 4),
    ("accuracy", "accuracy", 4),
)
"""Header, metric, digits; a column whose metric nobody measured is not shown."""


def table(report: Report) -> str:
    """The summary as aligned text: one line a structure, then the mean Dice and the worst cases."""
    labels = report.summary.labels
    measured = {metric for summary in labels.values() for metric in summary.metrics}
    columns = [column for column in COLUMNS if column[1] in measured]
    header = ["structure", "cases", "missed", "spurious", "absent", "Dice", "± std", "median"]
    rows = [header + [title for title, _, _ in columns]]
    for name, summary in labels.items():
        dice = summary.metrics.get("dice")
        counts = [str(summary.outcomes[o]) for o in ("missed", "spurious", "absent")]
        spread = (dice.mean, dice.std, dice.median) if dice else (None, None, None)
        rows.append(
            [name, str(summary.cases), *counts]
            + [_number(value, 4) for value in spread]
            + [_number(_mean_of(summary, metric), digits) for _, metric, digits in columns]
        )
    lines = [_title(report), "", *_aligned(rows), "", *_notes(report, measured)]
    return "\n".join(lines) + "\n"


def _mean_of(summary: LabelSummary, metric: str) -> float | None:
    return summary.metrics[metric].mean if metric in summary.metrics else None


def _title(report: Report) -> str:
    made_by = [part for part in (report.plan, report.configuration, report.run) if part]
    if report.fold is not None:
        made_by.append(f"fold {report.fold}")
    count = f"{len(report.cases)} case{'s' if len(report.cases) != 1 else ''}"
    return ", ".join([report.dataset, *made_by, count])


def _notes(report: Report, measured: set[str]) -> list[str]:
    notes = [f"mean foreground Dice {_number(report.mean_dice, 4)}"]
    scored = [(c.mean_dice, c.case) for c in report.cases if c.mean_dice is not None]
    if len(scored) > 1:
        worst = [f"{case} {mean:.4f}" for mean, case in sorted(scored)[:WORST_SHOWN]]
        notes.append(f"lowest mean Dice: {', '.join(worst)}")
    notes.append("Means are over the cases where a score is defined; absent structures have none.")
    if "nsd" in measured:
        notes.append(f"NSD: surface Dice at {report.tolerance_mm:g} mm.")
    if "hd95_penalised_mm" in measured:
        notes.append("* a missed or spurious structure counts as the diagonal of the image.")
    return notes


def _number(value: float | None, digits: int) -> str:
    """With so many digits behind the point, or as many as show what a small number is."""
    if value is not None and 0 < abs(value) < 10.0**-digits:
        return f"{value:.2g}"
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows with equal column widths: the first column to the left, numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
