"""Batches of prepared cases by autoseg, without augmentation; one thread, mapped from disk."""

from pathlib import Path

import torch

from autoseg.data.batches import Batches, BatchSpec
from autoseg.data.store import StoredCases
from autoseg.documents.plan import read_plan
from bench.clock import asked, measured, tell

given = asked()
torch.set_num_threads(1)
data = Path(given["preprocessed"])
c = read_plan(data / "plans" / "default" / "plan.json").configuration("3d_fullres")
none = {name: 0.0 for name in type(c.augmentation).model_fields if name.endswith("_p")}
c = c.model_copy(
    update={
        "augmentation": c.augmentation.model_copy(update={**none, "mirror_axes": ()}),
        "train": c.train.model_copy(update={"batch_size": given["batch"]}),
    }
)
prepared = data / "prepared" / c.preparation.key
cases = StoredCases(prepared, sorted(p.parent.name for p in prepared.glob("*/case.json")))
spec, count = BatchSpec.of(c), given["batches"]
for _ in Batches(cases, spec, 0, 3):
    pass
_, cost = measured(lambda: sum(len(images) for images, _ in Batches(cases, spec, 3, 3 + count)))
cost |= {key: cost[key] / count for key in ("wall_s", "cpu_s")}
tell(**cost)
