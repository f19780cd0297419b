"""Memory and time of predicting a large volume; writes bench/results/predict_memory.json.

    python -m bench.predict_memory                     # 512 x 512 x 300 voxels, 20 labels, five folds
    python -m bench.predict_memory --step 1.0          # fewer tiles; as much memory

A process of its own makes an image and small plain networks with random weights, and goes from the
image in memory to the label map in memory: tiles, resampling to the scan's own grid, labels. Its
peak is the most memory that was ever resident, libraries and image included. One thread, float32,
no mirroring. The way that holds whole volumes (the sum of logits and the padded image while tiles
are added, then the logits on both grids) is computed from the sizes of its arrays, since it seldom
fits.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from math import prod
from typing import Any

from bench.clock import resident
from bench.places import REPOSITORY, keep

FULL_VOX = (300, 512, 512)
PREPARED_VOX = (273, 500, 500)
FULL_MM = (1.0, 0.8, 0.8)
PATCH_VOX = (64, 128, 128)
FEATURES = (4, 8, 16, 16)
LABELS = 20
FOLDS = 5


def predicted(step: float, shrink: int) -> dict[str, Any]:
    """Seconds and peak bytes of one prediction in this process; `shrink` divides all sizes."""
    import numpy as np
    import torch

    from autoseg.documents.labels import LabelSet
    from autoseg.documents.plan import Prediction
    from autoseg.documents.presets.table import network_spec
    from autoseg.infer.meaning import certain_background, painted
    from autoseg.infer.restore import restored, rows_at_once
    from autoseg.infer.volume import logit_slabs
    from autoseg.learn.variants import Variant
    from autoseg.nets.build import build

    torch.set_num_threads(1)
    full, prepared, patch = (
        tuple(n // shrink for n in shape) for shape in (FULL_VOX, PREPARED_VOX, PATCH_VOX)
    )
    labels = LabelSet(names=tuple(f"label {i}" for i in range(LABELS)), values=tuple(range(LABELS)))
    levels = len(FEATURES)
    spec = network_spec(
        "plain", 1, LABELS, FEATURES, [(1, 1, 1), *[(2, 2, 2)] * (levels - 1)],
        [(3, 3, 3)] * levels,
    )  # fmt: skip
    nets = []
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        nets.append(Variant("float32", "channels_last", 1).speaking(build(spec).eval()))
    image = np.random.default_rng(0).standard_normal((1, *prepared), np.float32)
    at_rest = resident("VmHWM")
    start, cpu = time.perf_counter(), time.process_time()
    spacing = tuple(mm * n / m for mm, n, m in zip(FULL_MM, full, prepared, strict=True))
    slabs = logit_slabs(
        nets, image, patch, LABELS, Prediction(tile_step=step, mirror=False), divisor=spec.divisor
    )
    classes = np.empty(full, np.int16)
    for rows, chunk in restored(
        slabs, prepared, [(0, n) for n in full], full, spacing, FULL_MM,
        rows=rows_at_once(LABELS, full), outside=certain_background(labels),
    ):  # fmt: skip
        classes[rows] = painted(chunk, labels, of="logits").numpy()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "full_vox": full, "prepared_vox": prepared, "patch_vox": patch, "labels": LABELS,
        "folds": FOLDS, "features": FEATURES, "tile_step": step,
        "wall_s": round(seconds, 1), "cpu_s": round(cpu, 1), "peak_bytes": resident("VmHWM"), "peak_before_bytes": at_rest,
        "whole_volume_bytes": at_rest + whole_volume_bytes(prepared, full),
        "found_labels": len(np.unique(classes)),
    }  # fmt: skip


def whole_volume_bytes(prepared: tuple[int, ...], full: tuple[int, ...]) -> int:
    """The arrays that are alive together where logits of the whole volume are kept: float32."""
    return 4 * LABELS * (prod(prepared) + prod(full)) + 2 * prod(full)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--step", type=float, default=0.5, help="of tiles, as a share of the patch")
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes; nothing is kept")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(predicted(asked.step, asked.shrink)))
        return
    command = [
        sys.executable, "-m", "bench.predict_memory", "--here", "--step", str(asked.step),
        "--shrink", str(asked.shrink),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(done.stderr[-2000:])
    row = json.loads(done.stdout.splitlines()[-1])
    gb = {key: row[key] / 1e9 for key in row if key.endswith("_bytes")}
    print(
        f"{row['cpu_s']} s of a core, {row['wall_s']} s in all; peak {gb['peak_bytes']:.2f} GB, "
        f"{gb['peak_before_bytes']:.2f} before; whole volumes, computed: "
        f"{gb['whole_volume_bytes']:.2f} GB"
    )
    if asked.shrink == 1:
        keep("predict_memory", [row], f"python -m bench.predict_memory --step {asked.step}")


if __name__ == "__main__":
    main()
