"""A folder of scans segmented by nnU-Net in one process, libraries loaded before: files to files.

Its workers for reading and writing are left out (`predict_from_files_sequential`): on few cores
their start alone takes longer than the cases of this benchmark.
"""

import shutil
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from bench.clock import asked, measured, tell

given = asked()
shutil.rmtree(given["output"], ignore_errors=True)
Path(given["output"]).mkdir(parents=True)


def work() -> None:
    predictor = nnUNetPredictor(
        use_mirroring=not given["fast"], device=torch.device(given["device"]), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(given["model"], (0,))
    predictor.predict_from_files_sequential(given["input"], given["output"])


_, cost = measured(work)
tell(**cost)
