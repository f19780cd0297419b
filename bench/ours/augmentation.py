"""Augmented samples by autoseg: parameters drawn, the box that they need read, applied; one thread."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from autoseg.data.batches import Batches, BatchSpec
from autoseg.data.store import open_case
from autoseg.data.writing import write_case
from autoseg.documents.plan import Augmentation, Sampling
from bench.clock import asked, measured, tell
from bench.inputs import image, label_map

given = asked()
torch.set_num_threads(1)
patch, shape = tuple(given["patch_vox"]), given["shape"]
array = np.stack([image(shape, seed) for seed in range(given["channels"])])
with TemporaryDirectory() as folder:
    case = Path(folder) / "case"
    case.mkdir()
    write_case(case, array, label_map(shape, 4), {})
    stored = open_case(case, in_memory=True)
spec = BatchSpec(
    patch, 1, Sampling(foreground_share=0.33, class_weights=(1 / 3,) * 3, class_first=False),
    Augmentation(rotation_degrees=given["rotation_degrees"], mirror_axes=range(len(patch))),
    seed=given["seed"],
)  # fmt: skip
for _ in Batches([stored], spec, 0, 2):
    pass


def work() -> float:
    batches = Batches([stored], spec, 2, 2 + given["samples"])
    return sum(float(images[0, 0].view(-1)[0]) for images, _ in batches)


_, cost = measured(work)
cost |= {key: cost[key] / given["samples"] for key in ("wall_s", "cpu_s")}
tell(**cost)
