"""One typed function a verb: what the command line does, for use from Python.

Every function takes the dataset by number or name and `root` for the folder that holds `raw`,
`preprocessed` and `results`. A user's mistake raises `autoseg.errors.AutosegError`. `Predictor`
loads a model once and segments arrays and files in process.
"""

from collections.abc import Callable
from typing import Any

from autoseg.api.convert import convert, write_case
from autoseg.api.data import (
    check,
    datasets,
    demo,
    fingerprint,
    networks,
    plan,
    plan_and_preprocess,
    preprocess,
    split,
)
from autoseg.api.interop import import_nnunet
from autoseg.api.models import export, install, models
from autoseg.api.predictor import Predictor
from autoseg.api.training import find_best_configuration, run, status, train, validate
from autoseg.api.using import ensemble, evaluate, postprocess, predict

__all__ = [
    "VERBS", "Predictor", "check", "convert", "datasets", "demo", "ensemble", "evaluate", "export",
    "find_best_configuration", "fingerprint", "import_nnunet", "install", "models", "networks",
    "plan", "plan_and_preprocess", "postprocess", "predict", "preprocess", "run", "split", "status",
    "train", "validate", "write_case",
]  # fmt: skip

VERBS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (
        plan_and_preprocess, train, run, predict, evaluate, status, find_best_configuration, export,
        install, import_nnunet, models, networks, convert, check, fingerprint, split, plan, preprocess,
        validate, ensemble, postprocess, datasets, demo,
    )
}  # fmt: skip
"""Every verb of the command line, in the order of its help."""
