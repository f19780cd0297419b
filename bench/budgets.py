"""What autoseg reaches within a given time: Dice of four data sets, and of five folds in an hour.

    python -m bench.budgets train     # fold 0 of four sets within the minutes given; resumable a set
    python -m bench.budgets folds     # everything on data set 4 within an hour; resumable

nnU-Net is not trained here: its schedule takes days on a few cores.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from autoseg.documents.run import lines
from bench.places import DATA, ROOT, keep, kept
from bench.sides import OURS, command

MINUTES = {"Dataset004_Hippocampus": 20, "Dataset005_LungNodule": 10,
           "Dataset006_Nuclei": 10, "Dataset007_LowerGradeGlioma": 10}  # fmt: skip
TARGETS = {"Dataset004_Hippocampus": (0.87, 0.885), "Dataset005_LungNodule": (0.79, 0.82),
           "Dataset006_Nuclei": (0.89, 0.91), "Dataset007_LowerGradeGlioma": (0.62, 0.70)}  # fmt: skip


def train() -> None:
    """Fold 0 of the four sets, planned and trained within the minutes given; resumable a set."""
    rows = kept("train").get("rows", [])
    for name in os.environ.get("AUTOSEG_BENCH_SETS", " ".join(MINUTES)).split():
        minutes = MINUTES[name]
        if any(row["what"] == name for row in rows):
            continue
        number = str(int(name[7:10]))
        configuration = "2d" if number == "6" else "3d_fullres"
        raw = {"nnUNet_raw": str(DATA)}
        shared = ["--root", str(ROOT), "--time", f"{minutes}min"]
        command([*OURS, "fingerprint", "-d", number, "--root", str(ROOT)], raw)
        planning = command([*OURS, "plan_and_preprocess", "-d", number, *shared], raw)
        # planning counts: training gets what is left of the minutes
        left = ["--root", str(ROOT), "--time", f"{minutes * 60 - planning['wall_s']:.0f}s"]
        training = command([*OURS, "train", number, configuration, "0", *left], raw)
        fold = ROOT / "results" / name / "default" / configuration / "default" / "fold_0"
        rows.append({
            "what": name, "configuration": configuration, "minutes": minutes,
            "plan_s": round(planning["wall_s"], 1), "train_s": round(training["wall_s"], 1),
            "train_cpu_s": round(training["cpu_s"], 1), **planned(ROOT, name, configuration),
            "steps": steps(fold), **scored(fold / "validation"), "target": TARGETS[name],
        })  # fmt: skip
        said = "autoseg plan_and_preprocess -d N --time T; autoseg train N C 0 --time REST"
        keep("train", rows, said)


def folds() -> None:
    """Everything on 004 within an hour: five folds, choice, postprocessing, package; resumable."""
    root = ROOT / "folds"
    name, number, minutes = "Dataset004_Hippocampus", "4", 60
    asked = ["run", number, "--time", f"{minutes}min"]
    command([*OURS, *asked, "--root", str(root)], {"nnUNet_raw": str(DATA)})
    final = root / "results" / name / "default" / "final"
    post = json.loads((final / "postprocessing.json").read_text())
    (configuration,) = json.loads((final / "choice.json").read_text())["chosen"]
    each = [
        {"steps": steps(fold), "dice": scored(fold / "validation")["dice"]}
        for fold in sorted((final.parent / configuration / "default").glob("fold_*"))
    ]
    spent = sum(e["seconds"] for e in lines(final / "run.jsonl") if e["event"] == "spent")
    row = {
        "what": name, "minutes": minutes, "configuration": configuration, "spent_s": round(spent),
        **planned(root, name, configuration), "folds": each, "before": post["before"],
        "postprocessing": [step["kind"] for step in post["steps"]], **scored(final),
        "target": (0.865, 0.88),
    }  # fmt: skip
    keep("folds", [row], f"autoseg {' '.join(asked)}")


def planned(root: Path, name: str, configuration: str) -> dict[str, Any]:
    """Patch, batch and widths of a plan."""
    plan = json.loads((root / "preprocessed" / name / "plans/default/plan.json").read_text())
    chosen = plan["configurations"][configuration]
    return {
        "patch": chosen["patch_vox"], "batch": chosen["train"]["batch_size"],
        "widths": [level["width"] for level in chosen["network"]["encoder"]],
    }  # fmt: skip


def steps(fold: Path) -> int:
    """How many steps a run took."""
    return int([e for e in lines(fold / "journal.jsonl") if e["event"] == "saved"][-1]["step"])


def scored(folder: Path) -> dict[str, Any]:
    """The mean Dice of a report, that of each label, and of how many cases."""
    report = json.loads((folder / "report.json").read_text())
    labels = report["summary"]["labels"]
    return {
        "dice": round(report["summary"]["mean_dice"], 4),
        "labels": {k: round(v["metrics"]["dice"]["mean"], 4) for k, v in labels.items()},
        "cases": len(report["cases"]),
    }  # fmt: skip


PARTS = {"train": train, "folds": folds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=[*PARTS])
    for part in parser.parse_args().parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
