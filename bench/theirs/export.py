"""Logits on the prepared grid to a label map on the scan's grid, by nnU-Net."""

import numpy as np
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from bench.clock import asked, measured, tell
from bench.inputs import logits

given = asked()
kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
plans = {
    "dataset_name": "Dataset999_Bench", "plans_name": "bench",
    "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
    "configurations": {"3d_fullres": {
        "spacing": given["prepared_mm"], "architecture": {},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": kwargs,
    }},
}  # fmt: skip
names = ["background", *(f"label {i}" for i in range(1, given["labels"]))]
dataset = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz",
           "labels": {name: i for i, name in enumerate(names)}}  # fmt: skip
manager = PlansManager(plans)
configuration = manager.get_configuration("3d_fullres")
full = given["full"]
properties = {
    "spacing": given["full_mm"], "shape_before_cropping": full,
    "shape_after_cropping_and_before_resampling": full,
    "bbox_used_for_cropping": [[0, n] for n in full],
}  # fmt: skip
source = torch.from_numpy(logits(given["prepared"], given["labels"]))
found, cost = measured(
    lambda: convert_predicted_logits_to_segmentation_with_correct_shape(
        source,
        manager,
        configuration,
        manager.get_label_manager(dataset),
        properties,
        num_threads_torch=torch.get_num_threads(),
    )
)
np.save(given["save"], found)
tell(**cost)
