"""Augmented samples by batchgeneratorsv2 with nnU-Net's own transforms; one thread.

The enlarged patch is cropped from an array in memory, as nnU-Net's loader does it. Without the
smaller label maps of deep supervision, which autoseg makes in its loss.
"""

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from threadpoolctl import threadpool_limits

from bench.clock import asked, measured, tell
from bench.inputs import image, label_map

given = asked()
torch.set_num_threads(1)
patch, shape = tuple(given["patch_vox"]), given["shape"]
flat = len(patch) == 2
array = np.stack([image(shape, seed) for seed in range(given["channels"])])
labels = label_map(shape, 4)[None]
angle = np.deg2rad(given["rotation_degrees"][0])
rotation = (-angle, angle)
enlarged = get_patch_size(patch, rotation, rotation, rotation, (0.85, 1.25))
transforms = nnUNetTrainer.get_training_transforms(
    np.array(patch), rotation, None, tuple(range(len(patch))), False
)
np.random.seed(given["seed"])
torch.manual_seed(given["seed"])
box = (1, *enlarged) if flat else tuple(enlarged)
# such a loader places the enlarged patch so that the patch itself lies within the case
room = [max(n - (1 if flat and a == 0 else patch[a - flat]), 0) for a, n in enumerate(shape)]
reach = [(b - (1 if flat and a == 0 else patch[a - flat])) // 2 for a, b in enumerate(box)]


def sample() -> float:
    low = [int(np.random.randint(0, r + 1)) - before for r, before in zip(room, reach)]
    bounds = [[first, first + n] for first, n in zip(low, box)]
    data = torch.from_numpy(crop_and_pad_nd(array, bounds, 0)).float()
    seg = torch.from_numpy(crop_and_pad_nd(labels, bounds, -1)).to(torch.int16)
    if flat:
        data, seg = data[:, 0], seg[:, 0]
    found = transforms(image=data, segmentation=seg)
    return float(found["image"].flatten()[0])


def work() -> float:
    return sum(sample() for _ in range(given["samples"]))


with threadpool_limits(1), torch.no_grad():
    sample()
    sample()
    _, cost = measured(work)
cost |= {key: cost[key] / given["samples"] for key in ("wall_s", "cpu_s")}
tell(**cost)
