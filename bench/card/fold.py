"""A small fold trained by the clock, through the verbs that a user calls: plan, prepare, train.

On the dataset that `make card-pack --data` carried, else on phantoms of the hippocampus's size.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.card.parts import Asked, Row
from bench.places import REPOSITORY

CARRIED = REPOSITORY / ".card" / "data"
AFTER_S = 8.0
EPOCH_STEPS = 250
"""As nnU-Net counts epochs."""
DRY_PINS = (
    "width=4", "3d_fullres.patch_vox=[16,16,16]", "2d.patch_vox=[16,16]", "steps=4",
    "train.threads=1", "train.precision=float32", "train.layout=contiguous",
    "train.validation_batches=2", "predict.mirror=false",
)  # fmt: skip


def rows(asked: Asked) -> Iterator[Row]:
    from autoseg import api

    if "fold" in asked.done:
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.monotonic()
        dataset = _dataset(root, asked.dry)
        api.plan_and_preprocess(
            dataset, root=root, device=asked.device, configuration=("3d_fullres",),
            set=DRY_PINS if asked.dry else (), workers=1 if asked.dry else None,
        )  # fmt: skip
        prepared_s = time.monotonic() - start
        seconds = asked.left() - AFTER_S
        reports = api.train(
            dataset, "3d_fullres", ("0",), root=root, device=asked.device,
            time=None if asked.dry else f"{seconds:.0f}s", workers=0 if asked.dry else None,
        )  # fmt: skip
        yield {
            "key": "fold", "dataset": dataset, "prepared_s": prepared_s,
            "trained_s": time.monotonic() - start - prepared_s,
            "given_s": None if asked.dry else seconds,
            **_learnt(next(root.glob("results/*/*/3d_fullres/*/fold_0"))),
            "dice": {k: v.metrics["dice"].mean for k, v in reports[0].summary.labels.items()},
        }  # fmt: skip


def _dataset(root: Path, dry: bool) -> str:
    """The dataset's name; its folder lies below `root`/raw."""
    carried = sorted(CARRIED.glob("Dataset*"))
    if carried and not dry:
        (root / "raw").mkdir()
        (root / "raw" / carried[0].name).symlink_to(carried[0])
        return carried[0].name
    from autoseg.stages.demo import LOOKS, make_phantom

    size = (20, 24, 18) if dry else (36, 50, 35)
    look = dataclasses.replace(LOOKS["mr"], shape_vox=size, spacing_mm=(1.0, 1.0, 1.0))
    make_phantom(root / "raw", look, cases=5 if dry else 60, test_cases=0)
    return "Dataset001_Phantom"


def _learnt(fold: Path) -> Row:
    """What history and journal tell: steps, their seconds, the scores."""
    history = [json.loads(line) for line in (fold / "history.jsonl").read_text().splitlines()]
    journal = [json.loads(line) for line in (fold / "journal.jsonl").read_text().splitlines()]
    steps = max((entry["step"] for entry in history if "step" in entry), default=0)
    return {
        "steps": steps,
        "epochs": steps / EPOCH_STEPS,
        "scores": [(e["step"], e["dice"]) for e in history if "dice" in e],
        "journal": [e for e in journal if e["event"] in ("variant", "compile", "pace", "deadline")],
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Epochs of 250 steps an hour, and the Dice of the held-out cases."""
    found = next((row for row in rows if row["key"] == "fold"), None)
    if found is None:
        return {}
    return {
        "epochs_an_hour": found["epochs"] / max(found["trained_s"], 1e-9) * 3600,
        "dice": found["dice"],
    }
