"""A training step by autoseg beside one by nnU-Net: network, loss, backward, optimiser; then epochs.

The scripts are those of `make bench`. Where nnU-Net cannot be imported its rows say why.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.card.parts import SECONDS, Asked, Row
from bench.places import REPOSITORY

FEATURES = [32, 64, 128, 256, 320, 320]
SIZES: dict[str, dict[str, Any]] = {
    "four channels 128x128x128": {"patch_vox": [128] * 3, "channels": 4, "batch": 2,
                                  "features": FEATURES},
    "hippocampus 40x56x40": {"patch_vox": [40, 56, 40], "channels": 1, "batch": 9,
                             "features": FEATURES[:4]},
    "slices 512x512": {"patch_vox": [512, 512], "channels": 1, "batch": 12,
                       "features": [32, 64, 128, 256, 512, 512, 512, 512]},
}  # fmt: skip
DRY = {"dry 16x16": {"patch_vox": [16, 16], "channels": 1, "batch": 2, "features": [4, 8]}}
EPOCH = {"patch_vox": [128] * 3, "shape": [160, 192, 160], "channels": 4, "batch": 2,
         "features": FEATURES, "warm_up": 5, "steps": 30, "cases": 6}  # fmt: skip
"""With loading and augmentation."""
SHORT_S = 8.0


def rows(asked: Asked) -> Iterator[Row]:
    from autoseg.device import card_facts, pick_device

    place = pick_device(asked.device)
    sixteen = "float32" if asked.dry else card_facts(place).precision
    device = "cuda" if place.type == "cuda" else "cpu"
    cores = os.cpu_count() or 2
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (DRY if asked.dry else SIZES).items():
            shared = {
                **size, "classes": 4, "steps": 1 if asked.dry else 20, "device": device,
                "choose_s": 0 if asked.dry else 6, "precision": "auto", "layout": "fastest",
                "remembered": str(Path(folder) / f"{len(name)}.json"),
            }  # fmt: skip
            yield from _sides(asked, f"step, {name}", "step", shared, shared)
        if not asked.dry:
            ours = {**EPOCH, "device": device, "workers": min(8, cores), "precision": sixteen}
            theirs = {**EPOCH, "device": device, "workers": min(12, cores)}
            yield from _sides(asked, "steps with loading and augmentation", "epoch", ours, theirs)


def _sides(
    asked: Asked, what: str, script: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[Row]:
    for whose, arguments in (("ours", ours), ("theirs", theirs)):
        row: Row = {"key": f"{what}: {whose}", "what": what, "whose": whose}
        if row["key"] in asked.done:
            continue
        if whose == "theirs" and importlib.util.find_spec("nnunetv2") is None:
            yield row | {"skipped": "nnunetv2 cannot be imported"}
        elif asked.left() < SHORT_S and not asked.dry:
            yield row | {"failed": "no time was left"}
        else:
            yield row | script_says(whose, script, arguments, asked.left())


def script_says(whose: str, name: str, arguments: Mapping[str, Any], left_s: float) -> Row:
    """What a script tells of itself; where it fails, its last words."""
    command = [sys.executable, f"bench/{whose}/{name}.py", json.dumps(arguments)]
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": paths}
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, env=environment,
            timeout=max(1.0, min(left_s, SECONDS)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": "no time was left"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        reason = "skipped" if "ModuleNotFoundError" in lines[-1] else "failed"
        return {reason: lines[-1][:500], "said": done.stderr[-3000:]}
    found: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """nnU-Net's seconds over ours, where both are there: above 1 autoseg is faster."""
    known = {(row["what"], row["whose"]): row["wall_s"] for row in rows if "wall_s" in row}
    return {
        what: known[what, "theirs"] / seconds
        for (what, whose), seconds in known.items()
        if whose == "ours" and (what, "theirs") in known
    }
