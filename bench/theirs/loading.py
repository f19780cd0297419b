"""Batches of prepared cases (blosc2) by nnU-Net's loader, without transforms; one thread."""

import json
from pathlib import Path

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from bench.clock import asked, measured, tell

given = asked()
torch.set_num_threads(1)
data = Path(given["preprocessed"])
manager = PlansManager(str(data / "nnUNetPlans.json"))
configuration = manager.get_configuration("3d_fullres")
labels = manager.get_label_manager(json.loads((data / "dataset.json").read_text()))
patch = configuration.patch_size
cases = nnUNetDatasetBlosc2(str(data / configuration.data_identifier))
loader = nnUNetDataLoader(
    cases, given["batch"], patch, patch, labels, oversample_foreground_percent=0.33
)
for _ in range(3):
    next(loader)
count = given["batches"]
_, cost = measured(lambda: sum(len(next(loader)["data"]) for _ in range(count)))
cost |= {key: cost[key] / count for key in ("wall_s", "cpu_s")}
tell(**cost)
