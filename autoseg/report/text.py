"""Results of the verbs as text for a terminal, and as JSON for a program."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from autoseg.documents.document import Document
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Plan
from autoseg.documents.report import Report, table
from autoseg.errors import Problem, grouped
from autoseg.files import to_json
from autoseg.rules.work import fold_told, total_told


def as_json(result: Any) -> str:
    """The result as JSON text; what has no JSON form is a ValueError."""
    return to_json(_plain(result))


def _plain(value: Any) -> Any:
    if isinstance(value, Document):
        return value.dump()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return str(value) if isinstance(value, Path) else value


def as_text(result: Any) -> str:
    """The result in lines that a person reads; empty if there is nothing to say."""
    if result is None:
        return ""
    if isinstance(result, Report):
        return table(result).rstrip()
    if isinstance(result, Plan):
        return plan_text(result)
    if isinstance(result, Fingerprint):
        return fingerprint_text(result)
    if isinstance(result, (list, tuple)) and result and isinstance(result[0], Problem):
        return grouped(result)
    if isinstance(result, (list, tuple)) and not result:
        return "no problem found"
    if isinstance(result, (list, tuple)):
        return "\n\n".join(as_text(entry) for entry in result)
    if isinstance(result, Mapping):
        return as_json(result).rstrip()
    lines = getattr(result, "lines", None)
    return "\n".join(lines()) if callable(lines) else str(result)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns of one width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _by(values: Sequence[Any]) -> str:
    return " × ".join("own" if v is None else f"{v:.4g}" for v in values)


def fingerprint_text(found: Fingerprint) -> str:
    """The main numbers of a fingerprint."""
    orientations = ", ".join(f"{n} {o}" for o, n in sorted(found.orientation_counts.items()))
    lines = [
        f"{found.dataset}: {len(found.cases)} cases, {found.dimensions}D, "
        f"channels {', '.join(found.channels)}",
        f"orientation {orientations}; {found.median_crop_share:.0%} of a typical case is not zero",
    ]
    for label in found.labels:
        volume = label.median_volume_mm3
        lines.append(
            f"{label.name}: in {label.cases} of {len(found.cases)} cases, "
            f"{label.share_of_voxels:.3%} of the voxels"
            + (f", typically {volume:.4g} mm³" if volume is not None else "")
        )
    for problem in found.outliers:
        lines.append(f"look at {problem.case}: {problem.what} ({problem.found})")
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """A plan's main decisions, each with its reason."""
    fitted = (
        f"for a card of {plan.gpu_memory_gb:.4g} GB"
        if plan.gpu_memory_gb
        else "for the cores of this machine"
    )
    time = f", {plan.train_minutes:.4g} min of training" if plan.train_minutes else ""
    lines = [f"plan {plan.name} of {plan.dataset} ({plan.planner}'s rules, {fitted}{time})"]
    for name, c in plan.configurations.items():
        lines.append(f"\n{name}")
        rows = [
            ("axes", c.preparation.axes, "preparation.axes"),
            ("spacing", _by(c.preparation.spacing_mm) + " mm", "preparation.spacing_mm"),
            ("patch", _by(c.patch_vox) + " voxels", "patch_vox"),
            ("batch", str(c.train.batch_size), "train.batch_size"),
            ("network", f"{c.network.preset}, channels "
             + " ".join(str(width) for width in c.network.widths), "network.encoder"),
            ("training", f"{c.train.steps} steps, {c.train.optimiser}, lr {c.train.lr:g}",
             "train.steps"),
            ("precision", c.train.precision, "train.precision"),
            ("foreground", f"{c.sampling.foreground_share:.0%} of the samples",
             "sampling.foreground_share"),
            ("Dice", "over the batch" if c.train.batch_dice else "of each sample",
             "train.batch_dice"),
        ]  # fmt: skip
        for title, value, key in rows:
            reason = plan.why.get(f"configurations.{name}.{key}", "")
            if not reason and key == "network.encoder":
                reason = plan.why.get(f"configurations.{name}.network", "")
            lines.append(f"  {title:<11}{value}" + (f"\n             {reason}" if reason else ""))
        if c.cost is not None:
            reason = plan.why.get(f"configurations.{name}.cost", c.cost.source)
            lines.append(f"  {'cost':<11}{fold_told(c.cost)}\n             {reason}")
    if total := total_told(plan):
        lines.append(f"\n{total}")
    return "\n".join(lines)
