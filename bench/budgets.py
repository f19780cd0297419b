"""What autoseg reaches within a given time: Dice of four data sets, and of five folds in an hour.

    python -m bench.budgets train     # fold 0 of four sets within the minutes given; resumable a set
    python -m bench.budgets folds     # everything on data set 4 within an hour; resumable

nnU-Net is not trained here: its schedule takes days on a few cores.
"""

import argparse
import json
import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence

from bench.places import DATA, RESULTS, ROOT, keep
from bench.sides import OURS

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


def train() -> None:
    """Fold 0 of the four sets, planned and trained within the minutes given; resumable a set."""
    root = ROOT
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


def folds() -> None:
    """Everything on 004 within an hour: five folds, choice, postprocessing, package; resumable."""
    root = ROOT / "folds"
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


PARTS = {"train": train, "folds": folds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=[*PARTS])
    for part in parser.parse_args().parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
