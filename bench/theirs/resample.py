"""An array brought to another grid by nnU-Net's default resampling."""

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from bench.clock import asked, measured, tell
from bench.inputs import image, label_map

given = asked()
if given["labels"]:
    source, order = label_map(given["shape"], given["labels"])[None], 1
else:
    source, order = image(given["shape"])[None], 3
found, cost = measured(
    lambda: resample_data_or_seg_to_shape(
        source, given["new"], (1.0, 1.0, 1.0), given["target_mm"], is_seg=bool(given["labels"]),
        order=order, order_z=0, force_separate_z=None,
    )
)  # fmt: skip
np.save(given["save"], found[0])
tell(**cost)
