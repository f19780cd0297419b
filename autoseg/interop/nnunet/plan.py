"""How is a plan said in nnU-Net's words: a `dataset_fingerprint.json` in, a `plans.json` out.

The plan is what nnU-Net 2.8's own planners would write, key for key; each configuration holds in
addition the flat keys `strides`, `kernels` and `features`, which nnU-Net passes over. Tuples are
in nnU-Net's order of axes: the file's axes reversed, then transposed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import AutosegError
from autoseg.files import read_json
from autoseg.rules import grid, nnunet
from autoseg.rules.decision import Spacing

PLANNERS = {
    "plain": ("ExperimentPlanner", "nnUNetPlans"),
    "resenc_m": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "resenc_l": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "resenc_xl": ("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
}
NETWORK_CLASSES = {
    "plain": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "residual": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
SCHEMES = {
    "ct": "CTNormalization",
    "none": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
READERS = {
    ".png": "NaturalImage2DIO",
    ".bmp": "NaturalImage2DIO",
    ".tif": "NaturalImage2DIO",
    ".nii.gz": "SimpleITKIO",
    ".nrrd": "SimpleITKIO",
    ".mha": "SimpleITKIO",
    ".gipl": "SimpleITKIO",
    ".tiff": "Tiff3DIO",
    ".nii": "NibabelIO",
}
FINGERPRINT_KEYS = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)
DATASET_KEYS = ("labels", "numTraining", "file_ending")


def plan_from_files(
    fingerprint_path: Path,
    dataset_path: Path,
    *,
    dataset_name: str,
    network: str = "plain",
    gpu_memory_gb: float | None = None,
    target_mm: Spacing | None = None,
) -> dict[str, Any]:
    """The plan for a fingerprint and a `dataset.json` on disk, as `plan` makes it."""
    fingerprint, dataset = read_json(fingerprint_path), read_json(dataset_path)
    _need(fingerprint, FINGERPRINT_KEYS, fingerprint_path)
    _need(dataset, DATASET_KEYS, dataset_path)
    return plan(
        fingerprint,
        dataset,
        dataset_name=dataset_name,
        network=network,
        gpu_memory_gb=gpu_memory_gb,
        target_mm=target_mm,
    )


def plan(
    fingerprint: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    dataset_name: str,
    network: str = "plain",
    gpu_memory_gb: float | None = None,
    target_mm: Spacing | None = None,
) -> dict[str, Any]:
    """nnU-Net's `plans.json` as plain dicts, lists and numbers, ready to be written.

    `network` is plain, resenc_m, resenc_l or resenc_xl; without `gpu_memory_gb` the planner's own
    memory counts: 8, 8, 24, 40 GB. `target_mm` overwrites the target spacing, before transposing.
    Raises AutosegError if the two documents cannot be planned from.
    """
    if network not in PLANNERS:
        raise AutosegError(
            f"there is no nnU-Net planner for network {network!r}; choose one of "
            f"{', '.join(PLANNERS)}"
        )
    if gpu_memory_gb is not None and not gpu_memory_gb > 0:
        raise AutosegError(f"gpu_memory is {gpu_memory_gb:g} GB; give a positive number")
    decided = nnunet.plan(
        _numbers(fingerprint, dataset), network, gpu_memory_gb, target_mm=target_mm
    )
    order = decided.axis_order.value
    planner, plans_name = PLANNERS[network]
    median_mm = np.median(fingerprint["spacings"], 0)
    median_vox = np.median(fingerprint["shapes_after_crop"], 0)
    return {
        "dataset_name": dataset_name,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": [float(median_mm[axis]) for axis in order],
        "original_median_shape_after_transp": [round(float(median_vox[axis])) for axis in order],
        "image_reader_writer": _reader(dataset, 2 if median_vox[0] == 1 else 3),
        "transpose_forward": list(order),
        "transpose_backward": list(grid.inverse_order(order)),
        "configurations": _configurations(decided, plans_name),
        "experiment_planner_used": planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": fingerprint[
            "foreground_intensity_properties_per_channel"
        ],
    }


def _need(document: object, keys: Sequence[str], path: Path) -> None:
    """Raise AutosegError if a document that was read from `path` lacks one of `keys`."""
    if not isinstance(document, Mapping):
        raise AutosegError(f"{path} holds no JSON object; give the file that nnU-Net wrote")
    if missing := [key for key in keys if key not in document]:
        raise AutosegError(f"{path} lacks {', '.join(missing)}; give the file that nnU-Net wrote")


def _numbers(fingerprint: Mapping[str, Any], dataset: Mapping[str, Any]) -> nnunet.Dataset:
    """The numbers on which the rules decide, checked."""
    spacings = tuple(tuple(float(mm) for mm in case) for case in fingerprint["spacings"])
    shapes = tuple(tuple(int(n) for n in case) for case in fingerprint["shapes_after_crop"])
    if not spacings or len(spacings) != len(shapes):
        raise AutosegError(
            f"the fingerprint holds {len(spacings)} spacings and {len(shapes)} "
            "shapes; it needs one of each a case: extract it again"
        )
    for number, (spacing, shape) in enumerate(zip(spacings, shapes, strict=True)):
        if len(spacing) != 3 or len(shape) != 3 or min(spacing) <= 0 or min(shape) < 1:
            raise AutosegError(
                f"case {number} of the fingerprint has spacing {spacing} and shape "
                f"{shape}; both need three positive numbers: extract it again"
            )
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not channels:
        raise AutosegError(
            'dataset.json names no channel; add channel_names, for example {"0": "CT"}'
        )
    return nnunet.Dataset(
        spacings,
        shapes,
        tuple(channels.values()),
        len(dataset["labels"]),
        int(dataset["numTraining"]),
        float(fingerprint["median_relative_size_after_cropping"]),
    )


def _reader(dataset: Mapping[str, Any], dimensions: int) -> str:
    """The class with which nnU-Net would read the images."""
    wish = str(dataset.get("overwrite_image_reader_writer", "None"))
    if wish in {*READERS.values(), "NibabelIOWithReorient", "SimpleITKIOWithReorient"}:
        return wish
    ending = str(dataset["file_ending"])
    if dimensions == 3 and ending.lower() == ".tif":
        return "Tiff3DIO"
    if ending.lower() not in READERS:
        raise AutosegError(
            f"nnU-Net has no reader for {ending!r} (file_ending in dataset.json); "
            f"it reads {', '.join(READERS)}"
        )
    return READERS[ending.lower()]


def _configurations(decided: nnunet.Plan, plans_name: str) -> dict[str, Any]:
    found = {name: _configuration(name, decided, plans_name) for name in decided.configurations}
    if decided.cascade.value:
        found["3d_lowres"]["next_stage"] = "3d_cascade_fullres"
        found["3d_cascade_fullres"] = {
            "inherits_from": "3d_fullres",
            "previous_stage": "3d_lowres",
        }
    return found


def _configuration(name: str, decided: nnunet.Plan, plans_name: str) -> dict[str, Any]:
    """One configuration; the low resolution counts its median size in whole voxels."""
    chosen = decided.configurations[name]
    topology = chosen.topology.value
    median = [int(n) if name == "3d_lowres" else float(n) for n in chosen.median_vox]
    # The residual planners use the plain planner's prepared data where the grid is the same.
    owner = plans_name if name == "3d_lowres" else "nnUNetPlans"
    return {
        "data_identifier": f"{owner}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": chosen.batch_size.value,
        "patch_size": list(topology.patch_vox),
        "median_image_size_in_voxels": median,
        "spacing": list(chosen.spacing_mm.value),
        "normalization_schemes": [SCHEMES[scheme.value] for scheme in decided.schemes],
        "use_mask_for_norm": [mask.value for mask in decided.uses_mask],
        **_resampling(),
        "architecture": _architecture(chosen),
        "batch_dice": chosen.batch_dice.value,
        "strides": [list(stride) for stride in topology.strides],
        "kernels": [list(kernel) for kernel in topology.kernels],
        "features": list(chosen.features.value),
    }


def _resampling() -> dict[str, Any]:
    """Cubic for images, linear for labels and probabilities, nearest across coarse slices."""
    function = "resample_data_or_seg_to_shape"

    def orders(is_seg: bool, order: int) -> dict[str, Any]:
        return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}

    return {
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": orders(False, 3),
        "resampling_fn_seg_kwargs": orders(True, 1),
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": orders(False, 1),
    }


def _architecture(chosen: nnunet.Configuration) -> dict[str, Any]:
    """The network by the names under which nnU-Net imports it."""
    net, topology = chosen.architecture, chosen.topology.value
    axes = len(topology.patch_vox)
    blocks = "n_conv_per_stage" if net.kind == "plain" else "n_blocks_per_stage"
    return {
        "network_class_name": NETWORK_CLASSES[net.kind],
        "arch_kwargs": {
            "n_stages": topology.levels,
            "features_per_stage": list(net.features),
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [list(kernel) for kernel in topology.kernels],
            "strides": [list(stride) for stride in topology.strides],
            blocks: list(net.encoder_blocks),
            "n_conv_per_stage_decoder": list(net.decoder_convs),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
