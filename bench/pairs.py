"""Comparing: sides run in turn, medians, pairwise ratios, each row kept as soon as it is measured."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.places import kept, machine, versions, write
from bench.sides import Result, Side

OURS, RIVAL = "autoseg", "nnU-Net"
MEASURES = ("wall_s", "cpu_s", "peak_bytes")

Check = Callable[[Mapping[str, Result]], Mapping[str, Any]]
"""From the last result of each side to what is said about their equality."""


@dataclass(frozen=True)
class Row:
    """One comparison: the sides that run in turn, and what is wanted of their ratios.

    A side whose name is that of the rival, or which no target names, is only told. All that
    depends on the outcome of a side lies in `check`.
    """

    name: str
    what: str
    sides: Mapping[str, Side]
    commands: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Side -> measure -> the largest ratio to the rival that is good enough."""
    check: Check | None = None
    times: int | None = None
    """At most so many alternations; None: as many as are asked for."""
    note: str = ""
    size: Mapping[str, float] = field(default_factory=dict)
    """What the cost grows with, as voxels or labels: such rows are drawn against it."""


def alternate(row: Row, times: int) -> dict[str, list[Result]]:
    """The results of each side, run in turn `times` times; one that failed is not run again."""
    results: dict[str, list[Result]] = {name: [] for name in row.sides}
    for _ in range(times):
        for name, side in row.sides.items():
            if not any("failed" in result for result in results[name]):
                results[name].append(side())
    return results


def measure(row: Row, times: int) -> dict[str, Any]:
    """The row as it is kept."""
    times = min(times, row.times or times)
    load = f"{os.getloadavg()[0]:.1f}"
    results = alternate(row, times)
    document: dict[str, Any] = {
        "row": row.name, "what": row.what, "runs": times,
        "sides": {name: _summary(runs) for name, runs in results.items()},
        "ratios": {}, "targets": {name: dict(of) for name, of in row.targets.items()},
        "commands": dict(row.commands), "machine": {**machine(), "load_before": load},
        "versions": versions(),
    }  # fmt: skip
    if RIVAL in results:
        document["ratios"] = {
            name: ratios(runs, results[RIVAL]) for name, runs in results.items() if name != RIVAL
        }
    last = {name: runs[-1] for name, runs in results.items()}
    if row.check is not None and not any("failed" in result for result in last.values()):
        document["equal"] = dict(row.check(last))
    if row.note:
        document["note"] = row.note
    if row.size:
        document["size"] = dict(row.size)
    return document


def _summary(runs: Sequence[Result]) -> dict[str, Any]:
    """Medians of the numbers of some runs, and the runs' own seconds."""
    if "failed" in runs[-1]:
        return {"failed": runs[-1]["failed"]}
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    middle = {key: statistics.median(run[key] for run in runs) for key in numbers}
    return {**{key: _short(value) for key, value in middle.items()},
            "each": [{k: _short(run[k]) for k in ("wall_s", "cpu_s")} for run in runs]}  # fmt: skip


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def ratios(ours: Sequence[Result], theirs: Sequence[Result]) -> dict[str, float]:
    """The median over alternations of ours / theirs, of each measure that both have."""
    pairs = [
        (a, b) for a, b in zip(ours, theirs, strict=False) if not ("failed" in a or "failed" in b)
    ]
    found = {}
    for key in MEASURES:
        both = [a[key] / b[key] for a, b in pairs if a.get(key) and b.get(key)]
        if both:
            found[key] = _short(statistics.median(both))
    return found


def run_part(
    part: str,
    rows: Sequence[Row],
    times: int,
    *,
    redo: bool,
    say: Callable[[str], object],
    only: Sequence[str] = (),
) -> None:
    """Measure the rows of a part that are not kept yet, or were with fewer alternations.

    `only` names the rows that are asked for; none: all.
    """
    document = kept(part)
    found = {row["row"]: row for row in document.get("rows", ()) if "sides" in row}
    for row in rows:
        if only and row.name not in only:
            continue
        have = found.get(row.name)
        wanted = min(times, row.times or times)
        if have is not None and have["runs"] >= wanted and not redo:
            say(f"{part}: {row.what}: is kept")
            continue
        say(f"{part}: {row.what} …")
        found[row.name] = measure(row, times)
        ordered = [found[one.name] for one in rows if one.name in found]
        write(part, {"part": part, "rows": ordered})
        say("   " + told(found[row.name]))


def told(row: Mapping[str, Any]) -> str:
    """A measured row in one line."""
    said = []
    for name, side in row["sides"].items():
        if "failed" in side:
            said.append(f"{name} {side['failed']}")
        else:
            said.append(f"{name} {side['wall_s']:.3g} s, {side['peak_bytes'] / 1e9:.2f} GB")
    for name, of in row["ratios"].items():
        said.append(f"{name} / {RIVAL} " + ", ".join(f"{k} {v:.3g}" for k, v in of.items()))
    if "equal" in row:
        said.append(str(row["equal"]))
    return "; ".join(said)
