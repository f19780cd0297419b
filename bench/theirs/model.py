"""A model folder of nnU-Net made of weights.npz, as its own trainer would leave it."""

import json
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from bench.clock import asked, tell

given = asked()
folder = Path(given["folder"])
fold = folder / "nnunet" / "fold_0"
fold.mkdir(parents=True, exist_ok=True)
stages = len(given["features"])
arguments = {
    "n_stages": stages, "features_per_stage": given["features"],
    "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": given["kernels"],
    "strides": given["strides"], "n_conv_per_stage": [2] * stages,
    "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None,
    "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
}  # fmt: skip
imported = ["conv_op", "norm_op", "dropout_op", "nonlin"]
name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
image = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
configuration = {
    "data_identifier": "bench_3d_fullres", "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2, "patch_size": given["patch_vox"], "spacing": given["spacing_mm"],
    "median_image_size_in_voxels": given["patch_vox"],
    "normalization_schemes": [given["normalization"]], "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": image,
    "resampling_fn_seg_kwargs": {**image, "is_seg": True, "order": 1},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {**image, "order": 1},
    "architecture": {"network_class_name": name, "arch_kwargs": arguments,
                     "_kw_requires_import": imported},
    "batch_dice": False,
}  # fmt: skip
plans = {
    "dataset_name": "Dataset999_Bench", "plans_name": "bench",
    "original_median_spacing_after_transp": given["spacing_mm"],
    "original_median_shape_after_transp": given["patch_vox"],
    "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2], "configurations": {"3d_fullres": configuration},
    "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": given.get("intensities", {})},
}  # fmt: skip
dataset = {"channel_names": {"0": "MRI"}, "numTraining": 200, "file_ending": ".nii.gz",
           "labels": {"background": 0, "anterior": 1, "posterior": 2}}  # fmt: skip
net = get_network_from_plans(name, arguments, imported, 1, 3, deep_supervision=True)
weights = dict(np.load(folder / "weights.npz"))
with torch.no_grad():
    for key, parameter in net.named_parameters():
        parameter.copy_(torch.from_numpy(weights.pop(key)))
if weights:
    raise SystemExit(f"tensors that nnU-Net's network lacks: {sorted(weights)}")
checkpoint = {
    "network_weights": net.state_dict(), "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "3d_fullres", "fold": 0},
    "inference_allowed_mirroring_axes": (0, 1, 2) if given["mirror"] else None,
}  # fmt: skip
torch.save(checkpoint, fold / "checkpoint_final.pth")
(folder / "nnunet" / "plans.json").write_text(json.dumps(plans))
(folder / "nnunet" / "dataset.json").write_text(json.dumps(dataset))
tell(wall_s=0.0)
