"""One scan prepared by nnU-Net: read, cropped, normalised, resampled."""

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from bench.clock import asked, measured, tell

given = asked()
count = len(given["files"])
image = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
plans = {
    "dataset_name": "Dataset999_Bench", "plans_name": "bench",
    "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {
        str(channel): given["intensities"] for channel in range(count)
    },
    "configurations": {"3d_fullres": {
        "preprocessor_name": "DefaultPreprocessor", "spacing": given["spacing_mm"],
        "normalization_schemes": ["CTNormalization"] * count, "use_mask_for_norm": [False] * count,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": image,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**image, "is_seg": True, "order": 1},
        "architecture": {},
    }},
}  # fmt: skip
dataset = {"channel_names": {str(channel): "CT" for channel in range(count)},
           "labels": {"background": 0, "structure": 1}, "file_ending": ".nii.gz"}  # fmt: skip
manager = PlansManager(plans)
configuration = manager.get_configuration("3d_fullres")
preprocessor = DefaultPreprocessor(verbose=False)
(found, _, _), cost = measured(
    lambda: preprocessor.run_case(given["files"], None, manager, configuration, dataset)
)
np.save(given["save"], found)
tell(**cost, shape=list(found.shape))
