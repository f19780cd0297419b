"""From options, as a person writes them, to what is asked of the planner."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoseg.documents.model import Precision
from autoseg.documents.settings import parse_settings, seconds_of, whole_numbers
from autoseg.errors import AutosegError, nearest
from autoseg.interop.nnunet.plan import plan_from_files
from autoseg.stages.plan import Request


def request(
    planner: str,
    network: str,
    gpu_memory: float | None,
    time: str | None,
    pins: Sequence[str],
    *,
    use_memory: bool = False,
) -> Request:
    """What is asked of the planner. Raises AutosegError for values that cannot be."""
    if planner not in ("autoseg", "nnunet"):
        raise AutosegError(f"--planner {planner!r} is unknown; use autoseg or nnunet")
    if gpu_memory is not None and not 0 < gpu_memory < math.inf:
        raise AutosegError(f"--gpu-memory {gpu_memory:g} must be positive and finite, in GB")
    if use_memory and planner == "nnunet":
        raise AutosegError(
            "--use-memory is for --planner autoseg; nnunet always follows --gpu-memory"
        )
    return Request(
        planner="nnunet" if planner == "nnunet" else "autoseg",
        network=network,
        gpu_memory_gb=gpu_memory,
        minutes=None if time is None else seconds_of(time) / 60,
        pins=parse_settings(pins),
        use_memory=use_memory,
    )


def overrides(pins: Sequence[str], steps: int | None, run: str) -> dict[str, Any]:
    """What a run changes in its configuration. Raises AutosegError for what cannot be asked."""
    changed = parse_settings(pins)
    if changed and run == "default":
        raise AutosegError("a run with changed settings needs a name of its own: add --run NAME")
    if steps is not None:
        if steps < 1:
            raise AutosegError(f"--steps {steps} must be at least 1")
        changed["train.steps"] = steps
    return changed


def patch_size(text: str | None) -> tuple[int, ...] | None:
    """`128,128,96` as numbers of voxels. Raises AutosegError for anything else."""
    if text is None:
        return None
    size = whole_numbers(text, "--patch")
    if len(size) not in (2, 3):
        raise AutosegError(f"--patch {text}: give 2 or 3 numbers, as 128,128,128")
    return size


def batch(number: int | None) -> int | None:
    """The number of patches in a step. Raises AutosegError below 1."""
    if number is not None and number < 1:
        raise AutosegError(f"--batch {number} must be at least 1")
    return number


def nnunet_plan(
    asked: Request, fingerprint: Path | None, dataset_json: Path | None, dataset: str | None
) -> dict[str, Any]:
    """nnU-Net's plan from its own two files, under its keys."""
    if fingerprint is None or dataset_json is None:
        raise AutosegError("--fingerprint and --dataset-json belong together; give both files")
    if asked.planner != "nnunet":
        raise AutosegError("nnU-Net's fingerprint can only be planned with --planner nnunet")
    target = asked.pins.get("spacing_mm")
    if set(asked.pins) - {"spacing_mm"}:
        raise AutosegError("only spacing_mm can be pinned when planning from nnU-Net's files")
    return plan_from_files(
        fingerprint,
        dataset_json,
        dataset_name=dataset or dataset_json.absolute().parent.name,
        network=asked.network,
        gpu_memory_gb=asked.gpu_memory_gb,
        target_mm=None if target is None else tuple(float(v) for v in target),
    )


def precision_of(text: str | None) -> Precision | None:
    """The precision that networks compute in. Raises AutosegError for another word."""
    if text is None:
        return None
    known: dict[str, Precision] = {
        "float32": "float32", "bfloat16": "bfloat16", "float16": "float16",
    }  # fmt: skip
    if text not in known:
        raise AutosegError(f"--precision {text!r} is unknown{nearest(text, list(known))}")
    return known[text]
