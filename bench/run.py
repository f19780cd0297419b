"""Measure autoseg, beside nnU-Net where there is something to compare, and write the tables.

    python bench/run.py start preprocess        # parts; each is resumable
    python bench/run.py train                   # four data sets within the minutes given
    python bench/run.py folds                   # everything on 004 within an hour; resumable
    python bench/run.py --write                 # docs/benchmarks.md from bench/results/*.json

Both programs run on the same data, on the same machine, in one run, alternating. What is compared
is the median of wall and of user + system seconds of whole commands, and their ratio. nnU-Net
lives in an environment of its own (`make bench-env`); without it only autoseg is measured.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
DATA = Path(os.environ.get("AUTOSEG_BENCH_DATA", REPOSITORY.parent / "shared" / "data"))
NNUNET = Path(os.environ.get("AUTOSEG_BENCH_NNUNET", REPOSITORY / ".venv-nnunet"))
OURS = [sys.executable, "-m", "autoseg"]
MINUTES = {"Dataset004_Hippocampus": 20, "Dataset005_LungNodule": 10,
           "Dataset006_Nuclei": 10, "Dataset007_LowerGradeGlioma": 10}  # fmt: skip
TARGETS = {"Dataset004_Hippocampus": (0.87, 0.885), "Dataset005_LungNodule": (0.79, 0.82),
           "Dataset006_Nuclei": (0.89, 0.91), "Dataset007_LowerGradeGlioma": (0.62, 0.70)}  # fmt: skip


def timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Wall and CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        rows = [
            r.split(":", 1)[1].strip() for r in info.read_text().split("\n") if "model name" in r
        ]
        name = rows[0] if rows else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": name, "cores": str(cores), "python": platform.python_version(),
            "date": date.today().isoformat(), "load": f"{os.getloadavg()[0]:.1f}"}  # fmt: skip


def keep(part: str, rows: Any, command: str) -> None:
    """Write one part's figures."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {"part": part, "machine": machine(), "command": command, "rows": rows}
    (RESULTS / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n")


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(r[key] for r in runs), 2) for key in runs[0]}


def alternate(ours: Any, theirs: Any, times: int) -> dict[str, Any]:
    """Run the two in turn; medians of each and the median of the pairwise ratios."""
    mine, other = [], []
    for _ in range(times):
        mine.append(ours())
        if theirs is not None:
            other.append(theirs())
    row: dict[str, Any] = {"autoseg": medians(mine), "runs": times}
    if other:
        row["nnunet"] = medians(other)
        for key in ("wall_s", "cpu_s"):
            pairs = [a[key] / b[key] for a, b in zip(mine, other, strict=True)]
            row[f"{key}_ratio"] = round(statistics.median(pairs), 3)
    return row


def start(times: int) -> None:
    """Start-up: the help text."""
    rival = NNUNET / "bin" / "nnUNetv2_train"
    theirs = (lambda: timed([str(rival), "-h"])) if rival.exists() else None
    keep("start", [{"what": "--help", **alternate(lambda: timed([*OURS, "--help"]), theirs, times)}],
         "autoseg --help | nnUNetv2_train -h")  # fmt: skip


def preprocess(times: int) -> None:
    """Fingerprint + plan + preprocess of 004, 2d and 3d_fullres, each time from nothing."""
    name = "Dataset004_Hippocampus"
    scratch = Path(tempfile.mkdtemp(prefix="autoseg-bench-"))
    rival = NNUNET / "bin" / "nnUNetv2_plan_and_preprocess"

    def ours() -> dict[str, float]:
        root = scratch / "ours"
        shutil.rmtree(root, ignore_errors=True)
        return timed([*OURS, "plan_and_preprocess", "-d", "4", "--root", str(root)],
                     {"nnUNet_raw": str(DATA)})  # fmt: skip

    def theirs() -> dict[str, float]:
        folders = {f"nnUNet_{k}": str(scratch / f"their_{k}") for k in ("preprocessed", "results")}
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        command = [str(rival), "-d", "4", "-c", "2d", "3d_fullres", "-np", "2", "2", "-npfp", "2",
                   "--no_pbar"]  # fmt: skip
        return timed(command, {**folders, "nnUNet_raw": str(DATA)})

    row = alternate(ours, theirs if rival.exists() else None, times)
    shutil.rmtree(scratch)
    keep("preprocess", [{"what": f"fingerprint + plan + preprocess, {name}", **row}],
         "autoseg plan_and_preprocess -d 4 | nnUNetv2_plan_and_preprocess -d 4 -c 2d 3d_fullres "
         "-np 2 2 -npfp 2")  # fmt: skip


def train(_: int) -> None:
    """Fold 0 of the four sets, planned and trained within the minutes given; resumable a set."""
    root = Path(os.environ.get("AUTOSEG_BENCH_ROOT", REPOSITORY / ".bench"))
    kept = RESULTS / "train.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
    for name in os.environ.get("AUTOSEG_BENCH_SETS", " ".join(MINUTES)).split():
        minutes = MINUTES[name]
        if any(row["what"] == name for row in rows):
            continue
        number = str(int(name[7:10]))
        configuration = "2d" if number == "6" else "3d_fullres"
        environment = {"nnUNet_raw": str(DATA)}
        shared = ["--root", str(root), "--time", f"{minutes}min"]
        timed([*OURS, "fingerprint", "-d", number, "--root", str(root)], environment)
        planning = timed([*OURS, "plan_and_preprocess", "-d", number, *shared], environment)
        # planning counts: training gets what is left of the minutes
        left = ["--root", str(root), "--time", f"{minutes * 60 - planning['wall_s']:.0f}s"]
        training = timed([*OURS, "train", number, configuration, "0", *left], environment)
        fold = root / "results" / name / "default" / configuration / "default" / "fold_0"
        report = json.loads((fold / "validation" / "report.json").read_text())
        plan = json.loads((root / "preprocessed" / name / "plans/default/plan.json").read_text())
        chosen = plan["configurations"][configuration]
        journal = [json.loads(line) for line in (fold / "journal.jsonl").read_text().splitlines()]
        labels = report["summary"]["labels"]
        rows.append({
            "what": name, "configuration": configuration, "minutes": minutes,
            "plan_s": round(planning["wall_s"], 1), "train_s": round(training["wall_s"], 1),
            "train_cpu_s": round(training["cpu_s"], 1),
            "patch": chosen["patch_vox"], "batch": chosen["train"]["batch_size"],
            "widths": [level["width"] for level in chosen["network"]["encoder"]],
            "steps": [e for e in journal if e["event"] == "saved"][-1]["step"],
            "dice": round(report["summary"]["mean_dice"], 4),
            "labels": {k: round(v["metrics"]["dice"]["mean"], 4) for k, v in labels.items()},
            "cases": len(report["cases"]), "target": TARGETS[name],
        })  # fmt: skip
        keep(
            "train",
            rows,
            "autoseg plan_and_preprocess -d N --time T; autoseg train N C 0 --time REST",
        )


def folds(_: int) -> None:
    """Everything on 004 within an hour: five folds, choice, postprocessing, package; resumable."""
    root = Path(os.environ.get("AUTOSEG_BENCH_ROOT", REPOSITORY / ".bench")) / "folds"
    name, number, minutes = "Dataset004_Hippocampus", "4", 60
    command = [*OURS, "run", number, "--time", f"{minutes}min", "--root", str(root)]
    timed(command, {"nnUNet_raw": str(DATA)})
    plan = root / "results" / name / "default"
    report = json.loads((plan / "final" / "report.json").read_text())
    post = json.loads((plan / "final" / "postprocessing.json").read_text())
    ledger = [json.loads(line) for line in (plan / "final/run.jsonl").read_text().splitlines()]
    (configuration,) = json.loads((plan / "final" / "choice.json").read_text())["chosen"]
    chosen = json.loads((root / "preprocessed" / name / "plans/default/plan.json").read_text())
    chosen = chosen["configurations"][configuration]
    each = []
    for fold in sorted((plan / configuration / "default").glob("fold_*")):
        journal = [json.loads(line) for line in (fold / "journal.jsonl").read_text().splitlines()]
        own = json.loads((fold / "validation" / "report.json").read_text())
        each.append({
            "steps": [e for e in journal if e["event"] == "saved"][-1]["step"],
            "dice": round(own["summary"]["mean_dice"], 4),
        })  # fmt: skip
    labels = report["summary"]["labels"]
    keep("folds", [{
        "what": name, "minutes": minutes, "configuration": configuration,
        "spent_s": round(sum(e["seconds"] for e in ledger if e["event"] == "spent")),
        "patch": chosen["patch_vox"], "batch": chosen["train"]["batch_size"],
        "widths": [level["width"] for level in chosen["network"]["encoder"]],
        "folds": each, "before": post["before"],
        "postprocessing": [step["kind"] for step in post["steps"]],
        "dice": round(report["summary"]["mean_dice"], 4),
        "labels": {k: round(v["metrics"]["dice"]["mean"], 4) for k, v in labels.items()},
        "cases": len(report["cases"]), "target": (0.865, 0.88),
    }], f"autoseg run {number} --time {minutes}min")  # fmt: skip


def write() -> None:
    """docs/benchmarks.md from what was kept."""
    parts = {p.stem: json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))}
    lines = ["# Benchmarks", "", "Written by `python bench/run.py --write`; change the runs, not "
             "this page. Seconds are medians of whole commands, wall and user + system.", ""]  # fmt: skip
    for name in ("start", "preprocess"):
        if name not in parts:
            continue
        part = parts[name]
        lines += [f"## {part['rows'][0]['what']}", "", _origin(part), "",
                  "| program | wall s | CPU s |", "|---|---|---|"]  # fmt: skip
        for row in part["rows"]:
            for program in ("autoseg", "nnunet"):
                if program in row:
                    r = row[program]
                    title = "nnU-Net 2.8.1" if program == "nnunet" else program
                    lines.append(f"| {title} | {r['wall_s']} | {r['cpu_s']} |")
            if "wall_s_ratio" in row:
                lines += ["", f"Median ratio of {row['runs']} pairs: wall {row['wall_s_ratio']}, "
                          f"CPU {row['cpu_s_ratio']}."]  # fmt: skip
        lines.append("")
    if "train" in parts:
        lines += _train_table(parts["train"])
    if "folds" in parts:
        lines += _folds_table(parts["folds"])
    if "predict" in parts:
        lines += _memory_table(parts["predict"])
    (REPOSITORY / "docs" / "benchmarks.md").write_text("\n".join(lines).rstrip() + "\n")


def _origin(part: Mapping[str, Any]) -> str:
    m = part["machine"]
    commands = part["command"].replace(" | ", "` against `").replace("; ", "`, then `")
    return (f"{m['date']}, {m['cores']} cores of {m['processor']}, Python {m['python']}, load "
            f"{m['load']} at the end. `{commands}`")  # fmt: skip


def _train_table(part: Mapping[str, Any]) -> list[str]:
    lines = ["## Fold 0 within given minutes", "", _origin(part), "",
             "Mean foreground Dice on the whole volumes of fold 0's held-out cases (five shuffled "
             "folds, nnU-Net's split). nnU-Net was not trained on these cases here.", "",
             "| data set | configuration | given | plan + train s (wall) | steps | patch, batch, widths | "
             "Dice | wanted (aim) |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in part["rows"]:
        labels = ", ".join(f"{k} {v:.3f}" for k, v in r["labels"].items())
        shape = "×".join(map(str, r["patch"]))
        lines.append(
            f"| {r['what']} ({r['cases']} cases) | {r['configuration']} | {r['minutes']} min | "
            f"{r['plan_s']:.0f} + {r['train_s']:.0f} | {r['steps']} | {shape}, {r['batch']}, "
            f"{'-'.join(map(str, r['widths']))} | **{r['dice']:.4f}** ({labels}) | "
            f"{r['target'][0]} ({r['target'][1]}) |"
        )
    notes = [f"{r['what']}: {r['note']}." for r in part["rows"] if "note" in r]
    return [*lines, "", *notes, ""]


def _folds_table(part: Mapping[str, Any]) -> list[str]:
    lines = ["## Five folds, choice and package within an hour", "", _origin(part), "",
             "Every case segmented by the fold that held it out (five shuffled folds, nnU-Net's "
             "split).", "",
             "| data set | spent | steps a fold | patch, batch, widths | Dice of the folds | "
             "cross-validated Dice | wanted (aim) |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in part["rows"]:
        labels = ", ".join(f"{k} {v:.3f}" for k, v in r["labels"].items())
        kept = ", ".join(r["postprocessing"]) or "no postprocessing kept"
        lines.append(
            f"| {r['what']} ({r['cases']} cases) | {r['spent_s'] / 60:.1f} of {r['minutes']} min | "
            f"{', '.join(str(f['steps']) for f in r['folds'])} | "
            f"{'×'.join(map(str, r['patch']))}, {r['batch']}, {'-'.join(map(str, r['widths']))} | "
            f"{', '.join(format(f['dice'], '.4f') for f in r['folds'])} | "
            f"**{r['dice']:.4f}** ({labels}; {kept}, {r['before']:.4f} before) | "
            f"{r['target'][0]} ({r['target'][1]}) |"
        )
    return [*lines, ""]


def _memory_table(part: Mapping[str, Any]) -> list[str]:
    lines = ["## Memory of prediction", "", _origin(part), "",
             "From an image in memory to a label map on the scan's grid, tiles, folds and the way back "
             "included. *Whole* is what holding all classes of all voxels would take, computed and "
             "not run.", "",
             "| scan | prepared | labels | folds | patch, widths, tile step | peak resident GB | "
             "of it before predicting | whole GB | CPU s |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in part["rows"]:
        by = {k: "×".join(map(str, r[k])) for k in ("full_vox", "prepared_vox", "patch_vox")}
        lines.append(
            f"| {by['full_vox']} | {by['prepared_vox']} | {r['labels']} | {r['folds']} | "
            f"{by['patch_vox']}, {'-'.join(map(str, r['features']))}, {r['tile_step']} | "
            f"**{r['peak_bytes'] / 1e9:.2f}** | {r['peak_before_bytes'] / 1e9:.2f} | "
            f"{r['whole_volume_bytes'] / 1e9:.1f} | {r['cpu_s']:.0f} |"
        )
    notes = [
        f"Reading and preparing included: {w['what']}: peak {w['peak_bytes'] / 1e9:.2f} GB, "
        f"{w['wall_s']} s."
        for r in part["rows"]
        if (w := r.get("whole_command"))
    ]
    return [*lines, "", *notes, ""]


PARTS = {"start": start, "preprocess": preprocess, "train": train, "folds": folds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--times", type=int, default=3, help="alternations of each comparison")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    asked = parser.parse_args()
    for part in asked.parts:
        PARTS[part](asked.times)
    if asked.write:
        write()


if __name__ == "__main__":
    main()
