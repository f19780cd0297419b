"""A folder of scans segmented by autoseg, libraries loaded before: from files to files."""

import logging
import shutil
from pathlib import Path

import torch  # noqa: F401

from autoseg import api
from autoseg.flow import use  # noqa: F401
from autoseg.stages import predict as stage  # noqa: F401
from bench.clock import asked, measured, tell

given = asked()
logging.disable(logging.WARNING)
shutil.rmtree(given["output"], ignore_errors=True)
found, cost = measured(
    lambda: api.predict(
        Path(given["input"]), Path(given["output"]), model=given["model"], fast=given["fast"],
        precision=given["precision"], device=given["device"],
    )
)  # fmt: skip
tell(**cost)
