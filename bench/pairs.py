"""Comparing: sides run in turn, medians, pairwise ratios, each row kept as soon as it is measured."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.places import kept, machine, versions, write
from bench.sides import Result, Side

OURS, RIVAL = "autoseg", "nnU-Net"
FASTEST, HALF = "autoseg, fastest", "autoseg, bf16"
"""Other sides of ours: the fastest variant of a step, and half precision."""
MEASURES = ("wall_s", "cpu_s", "peak_bytes")
PAIRS = 3
PAIR_S = 15.0
"""Mostly the time in which both programs load their libraries."""

Targets = Mapping[str, Mapping[str, float]]
"""Side -> measure -> the largest ratio to the rival that is good enough."""

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
    targets: Targets = field(default_factory=dict)
    check: Check | None = None
    pairs: int = PAIRS
    """How often the sides run in turn: often where a run is short, once where it takes minutes."""
    pair_s: float = PAIR_S
    """About how long all sides take once, on two cores; no more than a guess to be told."""
    note: str = ""
    size: Mapping[str, float] = field(default_factory=dict)
    """What the cost grows with -> how large it is here. Rows of a part that name the same differ in
    it alone: they are drawn against it."""
    least: Mapping[str, float] = field(default_factory=dict)
    """`bytes` that must be moved and `operations` that must be done, where they are known."""
    aside: bool = False
    """It shows growth alone, and is not told at a glance."""


def alternate(row: Row, times: int) -> dict[str, list[Result]]:
    """The results of each side, run in turn `times` times; one that failed is not run again."""
    results: dict[str, list[Result]] = {name: [] for name in row.sides}
    for _ in range(times):
        for name, side in row.sides.items():
            if not any("failed" in result for result in results[name]):
                results[name].append(side())
    return results


def measure(row: Row, pairs: int) -> dict[str, Any]:
    """The row as it is kept."""
    load, start = f"{os.getloadavg()[0]:.1f}", time.monotonic()
    results = alternate(row, pairs)
    spent = time.monotonic() - start
    document: dict[str, Any] = {
        "row": row.name, "what": row.what, "runs": pairs, "spent_s": round(spent, 1),
        "sides": {name: _summary(runs) for name, runs in results.items()},
        "ratios": {}, "spread": {}, "commands": dict(row.commands),
        "machine": {**machine(), "load_before": load}, "versions": versions(),
    }  # fmt: skip
    if RIVAL in results:
        for name, runs in results.items():
            if name == RIVAL:
                continue
            each = pair_ratios(runs, results[RIVAL])
            document["ratios"][name] = {
                key: _short(statistics.median(of)) for key, of in each.items()
            }
            document["spread"][name] = {
                key: [_short(min(of)), _short(max(of))] for key, of in each.items()
            }
    last = {name: runs[-1] for name, runs in results.items()}
    if row.check is not None and not any("failed" in result for result in last.values()):
        document["equal"] = dict(row.check(last))
    if row.note:
        document["note"] = row.note
    return document | described(row)


def described(row: Row) -> dict[str, Any]:
    """What is said of a row whatever was measured; of a kept row it is brought up to date."""
    return {
        "targets": {name: dict(of) for name, of in row.targets.items()},
        "size": dict(row.size), "least": dict(row.least), "aside": row.aside,
    }  # fmt: skip


def _summary(runs: Sequence[Result]) -> dict[str, Any]:
    """Medians of the numbers of some runs, what else the last told, and the runs' own seconds."""
    if "failed" in runs[-1]:
        return {"failed": runs[-1]["failed"]}
    numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    middle = {key: _short(statistics.median(run[key] for run in runs)) for key in numbers}
    words = {k: v for k, v in runs[-1].items() if isinstance(v, str) and k != "said"}
    each = [{k: _short(run[k]) for k in ("wall_s", "cpu_s")} for run in runs]
    return {**middle, **words, "each": each}


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def pair_ratios(ours: Sequence[Result], theirs: Sequence[Result]) -> dict[str, list[float]]:
    """ours / theirs of each pair of neighbouring runs, of each measure that both have."""
    pairs = [
        (a, b) for a, b in zip(ours, theirs, strict=False) if not ("failed" in a or "failed" in b)
    ]
    found = {}
    for key in MEASURES:
        both = [a[key] / b[key] for a, b in pairs if a.get(key) and b.get(key)]
        if both:
            found[key] = both
    return found


def run_part(
    part: str,
    rows: Sequence[Row],
    pairs: int | None,
    *,
    redo: bool,
    say: Callable[[str], object],
    only: Sequence[str] = (),
    lacking: bool = False,
) -> None:
    """Measure the rows of a part that do not stand yet, and keep each as soon as it is measured.

    `pairs` holds for every row; None: as many as each row wants. `only` names the rows that are
    asked for; none: all. `lacking` lets stand what was measured at another commit.
    """
    document = kept(part)
    found = {row["row"]: row for row in document.get("rows", ()) if "sides" in row}
    todo = []
    for row in rows:
        have = found.get(row.name, {})
        stands = _stands(have, row, pairs or row.pairs, lacking)
        if have and have["what"] == row.what:
            found[row.name] = have | described(row)
        if only and row.name not in only:
            continue
        if stands and not redo:
            say(f"{part}: {row.what}: is kept")
        else:
            todo.append(row)
    if found:
        write(part, {"part": part, "rows": _ordered(rows, found)})
    if todo:
        expected = sum((pairs or row.pairs) * _pair_s(row, found.get(row.name)) for row in todo)
        say(f"{part}: {len(todo)} to be measured, about {duration(expected)}")
    for row in todo:
        say(f"{part}: {row.what} …")
        found[row.name] = measure(row, pairs or row.pairs)
        write(part, {"part": part, "rows": _ordered(rows, found)})
        say("   " + told(found[row.name]))


def _stands(have: Mapping[str, Any], row: Row, pairs: int, lacking: bool) -> bool:
    """Whether a row was measured: the same, often enough, on this machine, by these programs."""
    if not have or have["what"] != row.what or have["runs"] < pairs:
        return False
    here = machine()
    if any(have["machine"].get(key) != here[key] for key in ("processor", "cores", "memory")):
        return False
    return lacking or have["versions"] == versions()


def _ordered(rows: Sequence[Row], found: Mapping[str, Any]) -> list[Any]:
    return [found[row.name] for row in rows if row.name in found]


def _pair_s(row: Row, have: Mapping[str, Any] | None) -> float:
    """Seconds that one pair took before, or is said to take."""
    if have is None or "spent_s" not in have:
        return row.pair_s
    return float(have["spent_s"]) / int(have["runs"])


def duration(seconds: float) -> str:
    """Seconds or minutes, in words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


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
