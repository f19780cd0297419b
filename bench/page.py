"""docs/benchmarks.md from the figures that were kept."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pairs import HALF, MEASURES, OURS, RIVAL
from bench.places import REPOSITORY, kept
from bench.plots import curves, draw, power, short
from bench.reasons import reason
from bench.tables import folds_table, memory_table, train_table

PAGE = REPOSITORY / "docs" / "benchmarks.md"
WORDS = {"wall_s": "time", "cpu_s": "CPU", "peak_bytes": "memory"}
HEADS = {
    "ceilings": "Ceilings of this machine", "start": "Start-up", "fingerprint": "Fingerprint",
    "plan": "Plan", "preprocess": "Preprocessing", "resample": "Resampling",
    "augmentation": "Augmentation", "loading": "Loading", "step": "The training step",
    "predict": "Prediction", "export": "Export: from logits to a label map",
    "evaluate": "Evaluation", "raw": "From a raw scan to a label map", "gpu": "On a card",
}  # fmt: skip
ON_A_CARD = [
    "`make card OUT=FOLDER` measures it where there is one, in at most eight minutes: the tests that "
    "need a card, memory of 14 networks predicted and measured, a step beside nnU-Net's, loading, a "
    "whole CT, and a small fold. It needs Python 3.12 with torch, numpy, scipy and scikit-image, and "
    "no network: `make card-pack` (with `DATA=FOLDER`, a small dataset in nnU-Net's layout) first "
    "puts what else is needed into `.card/`, beside the tree. FOLDER then holds a JSON file a part "
    "and `card.md`; a second call does what the first one did not finish. `memory.json` has the "
    "overheads that follow from the figures: `summary.overheads.card` are the fields of the line "
    "`card` of `OVERHEADS` in `autoseg/rules/memory.py`.", "",
]  # fmt: skip

Parts = Mapping[str, Sequence[Mapping[str, Any]]]


def write_page(page: Path = PAGE) -> None:
    """Write the page and its pictures."""
    parts = {name: measured_rows(kept(name)) for name in HEADS}
    lines = [*_opening(), *glance(parts), *missed(parts)]
    for name, rows in parts.items():
        if name != "ceilings":
            lines += section(name, rows, page.parent / "pictures")
    lines += [*growth(parts), *limits(parts)]
    for name, table in (("train", train_table), ("folds", folds_table),
                        ("predict_memory", memory_table)):  # fmt: skip
        if document := kept(name):
            lines += table(document)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n")


def measured_rows(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The compared rows of a part."""
    return [row for row in document.get("rows", ()) if "sides" in row]


def _opening() -> list[str]:
    return [
        "# Benchmarks", "",
        "Written by `make bench`; change the runs, not this page. autoseg and nnU-Net run in turn "
        "on the same data and machine, in processes of their own; figures are medians, ratios are "
        "medians over pairs of neighbouring runs: autoseg / nnU-Net, below 1 is faster or smaller; "
        "in brackets the least and the largest of the pairs. "
        "Whole commands include start-up; scripts (`bench/ours`, `bench/theirs`) time the work "
        "alone. Memory is the most that was resident, libraries included; of a command with "
        "several processes, their sum.", "",
    ]  # fmt: skip


def glance(parts: Parts) -> list[str]:
    """One line for each target, and for each part without one."""
    lines = ["## At a glance", "",
             "| part | autoseg | nnU-Net | ratio | target | |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name, rows in parts.items():
        if name == "ceilings":
            continue
        if not rows:
            lines.append(f"| {HEADS[name]} | | | | | {absent(name)} |")
        for row in rows:
            if not row.get("aside"):
                lines += [_target_line(row, *target) for target in targets(row)]
    return [*lines, ""]


def missed(parts: Parts) -> list[str]:
    """Why targets are missed, one after another."""
    found: dict[str, list[str]] = {}
    for part, rows in parts.items():
        for row in rows:
            for side, measure, most in targets(row):
                ratio = row["ratios"].get(side, {}).get(measure)
                if most is not None and ratio is not None and ratio > most:
                    why = reason(part, row["row"], side, measure)
                    found.setdefault(why, []).append(_named(row, side, measure))
    if not found:
        return []
    lines = [f"- {'; '.join(names)}: {why}" for why, names in found.items()]
    return ["Why targets are missed:", "", *lines, ""]


def _named(row: Mapping[str, Any], side: str, measure: str) -> str:
    """A row, and of which side and measure it is told unless these are the usual ones."""
    what = str(row["what"]) + ("" if side == OURS else f" ({side})")
    return what + ("" if measure == "wall_s" else f", {WORDS[measure]}")


def absent(part: str) -> str:
    return "not measured: no card" if part == "gpu" else "not measured"


def targets(row: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """(side, measure, the largest good ratio) of a row; time without a target where none is named."""
    named = [
        (side, key, float(most)) for side, of in row["targets"].items() for key, most in of.items()
    ]
    return named or [(OURS, "wall_s", None)]


def _target_line(row: Mapping[str, Any], side: str, measure: str, most: float | None) -> str:
    ours, theirs = row["sides"].get(side, {}), row["sides"].get(RIVAL, {})
    ratio = row["ratios"].get(side, {}).get(measure)
    return (f"| {_named(row, side, measure)} | {amount(ours, measure)} | {amount(theirs, measure)} | "
            f"{ratio_of(row, side, measure)} | {of_target(most)} | {verdict(ratio, most)} |")  # fmt: skip


def ratio_of(row: Mapping[str, Any], side: str, measure: str) -> str:
    """The median ratio, and the least and the largest of several pairs."""
    ratio = row["ratios"].get(side, {}).get(measure)
    low, high = row.get("spread", {}).get(side, {}).get(measure, (ratio, ratio))
    if ratio is None or low == high:
        return of_ratio(ratio)
    return f"{of_ratio(ratio)} ({of_ratio(low)} – {of_ratio(high)})"


def verdict(ratio: float | None, most: float | None) -> str:
    if most is None:
        return ""
    if ratio is None:
        return "not compared"
    return "met" if ratio <= most else "**missed**"


def of_target(most: float | None) -> str:
    return "" if most is None else f"≤ 1/{1 / most:.3g}"


def of_ratio(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"1/{1 / ratio:.3g}" if ratio < 1 else f"{ratio:.3g}"


def amount(side: Mapping[str, Any], measure: str) -> str:
    """A figure with its unit; the reason where it failed."""
    if "failed" in side:
        return str(side["failed"])
    value = side.get(measure)
    if value is None:
        return ""
    if measure == "peak_bytes":
        return f"{value / 1e9:.2f} GB" if value else ""
    if value < 0.1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:.0f} s"


def section(name: str, rows: Sequence[Mapping[str, Any]], pictures: Path) -> list[str]:
    """A part in detail: every side of every row, what is equal, commands, machine, a picture."""
    lines = [f"## {HEADS[name]}", ""]
    if not rows:
        return [*lines, absent(name).capitalize() + ".", "", *(ON_A_CARD if name == "gpu" else ())]
    lines += ["| what | program | wall | CPU | peak | time ratio | CPU ratio | memory ratio |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        for side, of in row["sides"].items():
            ratio = [ratio_of(row, side, key) for key in MEASURES]
            figures = [amount(of, key) for key in MEASURES]
            said = f"{side} ({of['variant']})" if "variant" in of else side
            lines.append(f"| {row['what']} | {said} | {' | '.join([*figures, *ratio])} |")
    lines += ["", *_remarks(rows), *_origin(rows), ""]
    picture = draw(name, curves(rows), pictures)
    if picture is not None:
        lines += [f"![cost of {name} against size](pictures/{picture.name})", ""]
    return lines


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        said = [f"{key} {value}" for key, value in row.get("equal", {}).items()]
        said += [row["note"]] if "note" in row else []
        said.append(f"{row['runs']} pair{'s' if row['runs'] > 1 else ''} of runs")
        lines.append(f"- {row['what']}: {'; '.join(said)}.")
    return [*lines, ""]


def _origin(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Commands, machine, versions; each said once."""
    commands = dict.fromkeys(
        f"{side} `{said}`" for row in rows for side, said in row["commands"].items()
    )
    places = dict.fromkeys(
        f"{m['date']}, {m['cores']} cores of {m['processor']}, {m['memory']}, Python {m['python']}; "
        + ", ".join(f"{k} {v}" for k, v in row["versions"].items())
        for row in rows
        for m in [row["machine"]]
    )
    loads = [float(row["machine"]["load_before"]) for row in rows]
    return ["; ".join([*commands, *places]) + f"; load before {statistics.median(loads):.1f}."]


def growth(parts: Parts) -> list[str]:
    """The power of its size with which the time of a part grows."""
    lines = []
    for name, rows in parts.items():
        for curve in curves(rows):
            smallest, *_, largest = map(short, curve.sizes)
            powers = [
                f"{power(curve.points[side]):.2f}" if side in curve.points else ""
                for side in (OURS, RIVAL)
            ]
            lines.append(
                f"| {HEADS[name]} | {curve.of} | {len(curve.sizes)}: {smallest} … {largest} | "
                f"{' | '.join(powers)} |"
            )
    if not lines:
        return []
    return [
        "## How cost grows", "",
        "Wall time ~ size^p: the p that fits best over all measured sizes (least squares of "
        "logarithms; the pictures above show them). 1 is in proportion; what is below 1 has a share "
        "that does not grow, as the start of a command has, or of processes.", "",
        "| part | with | sizes | p of autoseg | p of nnU-Net |", "|---|---|---|---|---|", *lines, "",
    ]  # fmt: skip


def limits(parts: Parts) -> list[str]:
    """What resampling, export and the step would take at the machine's ceilings."""
    ceilings = {row["row"]: row["sides"][OURS] for row in parts["ceilings"]}
    if not ceilings:
        return []
    lines = ["## How far from the machine's limits", "",
             "| threads | copying | matrix products | convolutions |", "|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {c['threads']:.0f} | {c['copy_gb_s']:.3g} GB/s | {c['product_gflops']:.3g} GFLOP/s | "
        f"{c['convolution_gflops']:.3g} GFLOP/s |"
        for c in ceilings.values()
    ]
    lines += ["", "Bytes that must be moved at least, operations that must be done, and the share of "
              "the measured time that they would take at all cores' ceilings (the larger of the two). "
              "Resampling: voxels read once and written once; an axis after another, the products "
              "with blocks of its matrix, at the speed of matrix products. Export: logits read once, "
              "labels written once; every label of every voxel interpolated along one axis after "
              "another (three operations) and compared, at the speed of matrix products, which such "
              "work cannot reach, while autoseg finds most voxels' labels without it. The step: three "
              "times the network's products (forward, and two backward) at the speed of convolutions; "
              "each convolution's result written once and read once forward, read once backward, its "
              "gradient written and read once; a weight read forward and backward, its gradient and "
              "momentum written and read, and itself written; all in float32.", "",
              "| what | bytes | operations | at the ceiling | autoseg | share of the ceiling |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    most = ceilings.get("all", next(iter(ceilings.values())))
    for name in ("resample", "export", "step"):
        for row in parts[name]:
            lines += _limit_lines(row, most)
    return [*lines, ""]


def _limit_lines(row: Mapping[str, Any], most: Mapping[str, float]) -> list[str]:
    """The float32 sides of ours, of a row that knows its bytes or operations."""
    lines = []
    for side, of in row["sides"].items():
        if side == RIVAL or "wall_s" not in of:
            continue
        if HALF in side or not str(of.get("variant", "float32")).startswith("float32"):
            continue  # the ceilings are those of float32
        moved, operations, speed = _least(row, of, most)
        least = max(moved / most["copy_gb_s"], operations / speed) / 1e9
        if least:
            lines.append(
                f"| {_named(row, side, 'wall_s')} | {f'{moved / 1e9:.3g} GB' if moved else '–'} | "
                f"{operations / 1e9:.3g} G | {amount({'wall_s': least}, 'wall_s')} | "
                f"{amount(of, 'wall_s')} | {100 * least / of['wall_s']:.1f} % |"
            )
    return lines


VALUE_PASSES, WEIGHT_PASSES = 5, 7
"""How often a step reads or writes a convolution's result with its gradient, and a weight with its."""


def _least(
    row: Mapping[str, Any], side: Mapping[str, Any], most: Mapping[str, float]
) -> tuple[float, float, float]:
    """Bytes and operations that there must be, and the operations a second that there can be."""
    if "multiply_adds" in side:
        passed = VALUE_PASSES * side.get("values", 0) + WEIGHT_PASSES * side.get("parameters", 0)
        return 4 * passed, 6 * side["multiply_adds"], most["convolution_gflops"]
    known = row.get("least", {})
    return known.get("bytes", 0), known.get("operations", 0), most["product_gflops"]
