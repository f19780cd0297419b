"""One typed function a verb: what the command line does, for use from Python.

Every function takes the dataset by number or name and `root` for the folder that holds `raw`,
`preprocessed` and `results`. A user's mistake raises `autoseg.errors.AutosegError`.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.documents.fingerprint import Fingerprint
    from autoseg.documents.plan import Plan
    from autoseg.documents.report import Report
    from autoseg.errors import Problem
    from autoseg.flow.make import Job
    from autoseg.report.overlay import DemoResult
    from autoseg.stages.networks import Networks
    from autoseg.stages.predict import Predicted
    from autoseg.stages.status import Status

log = logging.getLogger(__name__)


def _job(dataset: str, root: Path | None, **rest: Any) -> Job:
    from autoseg.flow.make import Job
    from autoseg.workspace import open_workspace

    return Job(open_workspace(root).dataset(dataset), **rest)


def _several(names: tuple[str, ...] | str) -> tuple[str, ...]:
    """A single name given where several may be, as a tuple of one."""
    return (names,) if isinstance(names, str) else tuple(names)


def check(
    dataset: str, *, root: Path | None = None, workers: int | None = None, json: bool = False
) -> list[Problem]:
    """Look for everything that is wrong with a dataset; warnings are listed too.

    dataset: number or name
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.errors import Problem
    from autoseg.files import read_json
    from autoseg.flow import make

    job = _job(dataset, root, workers=workers)
    make.fingerprint(job)
    return [Problem(**entry) for entry in read_json(job.places.checks)["problems"]]


def fingerprint(
    dataset: str,
    *,
    root: Path | None = None,
    workers: int | None = None,
    verify: bool = False,
    json: bool = False,
) -> Fingerprint:
    """Measure a dataset: geometry, intensities, structures; case by case, only what is new.

    dataset: number or name
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    verify: hash every file again, even if its size and time have not changed
    json: print JSON
    """
    from autoseg.flow import make

    return make.fingerprint(_job(dataset, root, workers=workers), verify=verify)[1]


def plan(
    dataset: str | None = None,
    *,
    name: str = "default",
    planner: str = "autoseg",
    network: str = "plain",
    gpu_memory: float | None = None,
    time: str | None = None,
    set: tuple[str, ...] = (),
    fingerprint: Path | None = None,
    dataset_json: Path | None = None,
    device: str | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> Plan | dict[str, Any]:
    """Decide grid, patch, batch, network and recipe, each with its reason.

    With --fingerprint and --dataset-json (nnU-Net's own files) and --planner nnunet, print
    nnU-Net's plan under its keys instead, without any dataset folder.

    dataset: number or name
    name: the plan's name; several live side by side
    planner: autoseg, or nnunet for nnU-Net's own values
    network: a preset of `autoseg networks`, as plain, resenc_m, swin_unetr, umamba_bot
    gpu_memory: memory of the card to plan for, in GB (default: the card that is there, else none)
    time: training time to plan for on this machine's cores, as 20min or 2h
    set: pin a value before the rules run, as --set batch_size=4
    fingerprint: nnU-Net's dataset_fingerprint.json
    dataset_json: nnU-Net's dataset.json, with --fingerprint
    device: cpu to plan for the cores although there is a card
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.errors import AutosegError
    from autoseg.flow import ask, make

    asked = ask.request(planner, network, gpu_memory, time, set)
    if fingerprint is not None or dataset_json is not None:
        return ask.nnunet_plan(asked, fingerprint, dataset_json, dataset)
    if dataset is None:
        raise AutosegError("`autoseg plan` needs dataset (-d)")
    job = _job(dataset, root, plan=name, workers=workers, device=device)
    return make.plan(job, asked)[2]


def preprocess(
    dataset: str,
    *,
    configuration: tuple[str, ...] = (),
    plan: str = "default",
    root: Path | None = None,
    workers: int | None = None,
) -> str:
    """Prepare the training cases for some or all configurations of a plan.

    dataset: number or name
    configuration: which ones (default: all of the plan)
    plan: name of the plan
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    """
    from autoseg.flow import make

    job = _job(dataset, root, plan=plan, workers=workers)
    make.check_plan_name(job)
    data, _, made = make.prepared(job, configuration)
    return f"{data.name}: {', '.join(configuration or made.configurations)} prepared"


def plan_and_preprocess(
    dataset: tuple[str, ...],
    *,
    name: str = "default",
    planner: str = "autoseg",
    network: str = "plain",
    gpu_memory: float | None = None,
    time: str | None = None,
    set: tuple[str, ...] = (),
    configuration: tuple[str, ...] = (),
    device: str | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> list[Plan]:
    """Measure, plan and prepare one or more datasets: all that training needs.

    dataset: numbers or names
    name: the plan's name; several live side by side
    planner: autoseg, or nnunet for nnU-Net's own values
    network: a preset of `autoseg networks`, as plain, resenc_m, swin_unetr, umamba_bot
    gpu_memory: memory of the card to plan for, in GB (default: the card that is there, else none)
    time: training time to plan for on this machine's cores, as 20min or 2h
    set: pin a value before the rules run, as --set batch_size=4
    configuration: which ones to prepare (default: all of the plan)
    device: cpu to plan for the cores although there is a card
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.flow import ask, make
    from autoseg.stages.plan import Request

    asked = ask.request(planner, network, gpu_memory, time, set)
    request = None if asked == Request() else asked
    made = []
    for one in _several(dataset):
        job = _job(one, root, plan=name, workers=workers, device=device)
        made.append(make.prepared(job, configuration, request)[2])
    return made


def train(
    dataset: str,
    configuration: str,
    fold: tuple[str, ...],
    *,
    plan: str = "default",
    run: str = "default",
    time: str | None = None,
    steps: int | None = None,
    set: tuple[str, ...] = (),
    encoder_weights: Path | None = None,
    auto_shrink: bool = False,
    redo: bool = False,
    device: str | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> list[Report]:
    """Train folds and validate each on its held-out cases; goes on where it was stopped.

    dataset: number or name
    configuration: 2d, 3d_fullres or 3d_lowres
    fold: 0 1 2 3 4, or all for one network on all cases
    plan: name of the plan
    run: name of the run; changed settings deserve one of their own
    time: a deadline for each fold that contains everything, as 20min
    steps: number of steps instead of the plan's
    set: change the configuration for this run, as --set train.lr=0.003 --run lowlr
    encoder_weights: a file that a classical encoder (unet_resnet34, deeplab, …) begins with
    auto_shrink: where a step does not fit into memory, plan the next smaller and train that
    redo: train again what is trained already
    device: cpu, cuda or cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: loading processes (default: none on the CPU, up to 8 with a card)
    json: print JSON
    """
    from autoseg.documents.settings import parse_settings, seconds_of
    from autoseg.errors import AutosegError
    from autoseg.flow import make, shrink

    began = clock.monotonic()
    overrides = parse_settings(set)
    if overrides and run == "default":
        raise AutosegError("a run with changed settings needs a name of its own: add --run NAME")
    if steps is not None:
        if steps < 1:
            raise AutosegError(f"--steps {steps} must be at least 1")
        overrides["train.steps"] = steps
    time_s = None if time is None else seconds_of(time)
    reports = []
    for one in _several(fold):
        job = _job(
            dataset, root, plan=plan, configuration=configuration, run=run, fold=one,
            workers=workers, device=device,
        )  # fmt: skip
        job, data = shrink.fold(
            job, overrides=overrides or None, encoder_weights=encoder_weights, time_s=time_s,
            began=began, redo=redo, auto=auto_shrink,
        )  # fmt: skip
        reports.append(make.validation(job, data))
        began = clock.monotonic()
    return reports


def validate(
    dataset: str,
    configuration: str,
    fold: tuple[str, ...],
    *,
    plan: str = "default",
    run: str = "default",
    device: str | None = None,
    root: Path | None = None,
    json: bool = False,
) -> list[Report]:
    """Segment and score the held-out cases of trained folds; what is done is kept.

    dataset: number or name
    configuration: 2d, 3d_fullres or 3d_lowres
    fold: 0 1 2 3 4, or all
    plan: name of the plan
    run: name of the run
    device: cpu, cuda or cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.documents.dataset import read_dataset
    from autoseg.flow import make

    reports = []
    for one in _several(fold):
        job = _job(
            dataset, root, plan=plan, configuration=configuration, run=run, fold=one, device=device
        )
        reports.append(make.validation(job, read_dataset(job.places.raw)[0]))
    return reports


def predict(
    input: Path | None = None,
    output: Path | None = None,
    *,
    dataset: str | None = None,
    configuration: str | None = None,
    fold: tuple[str, ...] = (),
    plan: str | None = None,
    run: str | None = None,
    strict: bool = False,
    device: str | None = None,
    root: Path | None = None,
    json: bool = False,
) -> Predicted:
    """Segment the scans of a folder with trained folds; what is done is skipped.

    input: folder of CASE_0000.ext files (default: the dataset's imagesTs)
    output: folder for the label maps
    dataset: number or name (default: the one dataset that has models)
    configuration: default: the one with the best validation Dice
    fold: default: all trained folds together
    plan: default: the plan of the best configuration
    run: default: the run of the best configuration
    strict: treat a scan unlike the training set as an error
    device: cpu, cuda or cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.errors import AutosegError
    from autoseg.flow import use
    from autoseg.workspace import open_workspace

    if output is None:
        raise AutosegError("`autoseg predict` needs output (-o)")
    places, folds = use.choose_model(open_workspace(root), dataset, configuration, plan, run, fold)
    return use.predictions(places, folds, input, output, device=device, strict=strict)


def evaluate(
    input: Path,
    reference: Path | None = None,
    *,
    dataset: str | None = None,
    tolerance_mm: float | None = None,
    output: Path | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> Report:
    """Score label maps against references: Dice, IoU, precision, recall, volumes, surfaces.

    input: folder of predicted label maps
    reference: folder of reference label maps (default: the dataset's labelsTs, then labelsTr)
    dataset: number or name; says what the label values mean
    tolerance_mm: tolerance of the surface Dice (NSD), default 1 mm
    output: also write the report to this JSON file
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.flow import use

    places = None if dataset is None else _job(dataset, root).places
    report = use.evaluation(input, reference, places, tolerance_mm, workers)
    if output is not None:
        report.write(output)
    return report


def networks(
    dataset: str | None = None,
    *,
    configuration: str = "",
    plan: str = "default",
    patch: str | None = None,
    batch: int | None = None,
    network: tuple[str, ...] = (),
    measure: tuple[str, ...] = (),
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> Networks:
    """List the networks that a plan may have, with their parameters, operations and memory.

    On the grid of a dataset's plan, or on --patch voxels of 1 mm. Memory is computed, for one step
    in mixed precision on a card; nothing is trained.

    dataset: number or name; its plan says channels, classes, spacing and patch
    configuration: which one of the plan (default: 3d_fullres, else 2d)
    plan: name of the plan
    patch: voxels of a patch, as 128,128,128 or 256,256
    batch: patches in a step (default: the plan's, else 2)
    network: which ones (default: all)
    measure: time a training step of these on this machine's cores
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.flow import ask
    from autoseg.flow.networks import networks as costs

    job = None
    if dataset is not None:
        job = _job(dataset, root, plan=plan, configuration=configuration, workers=workers)
    return costs(
        job, patch=ask.patch_size(patch), batch=ask.batch(batch), names=_several(network),
        measure=_several(measure), workers=workers,
    )  # fmt: skip


def status(
    dataset: str | None = None, *, root: Path | None = None, json: bool = False
) -> list[Status]:
    """Tell, for each dataset, configuration and fold, what is done, half done or stale, and why.

    dataset: number or name (default: all)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.flow.look import status as status_of
    from autoseg.workspace import open_workspace

    workspace = open_workspace(root)
    names = workspace.datasets() if dataset is None else [workspace.dataset(dataset).name]
    return [status_of(workspace.places(name)) for name in names]


def demo(*, run: bool = False, root: Path | None = None, time: str = "90s") -> DemoResult:
    """Make Dataset001_Phantom, synthetic scans to try everything on; with --run, all stages too.

    run: also plan, train fold 0, segment the test scans, score them and draw an overlay
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    time: training time with --run
    """
    from autoseg.flow.demo import demo as make_demo
    from autoseg.workspace import open_workspace

    return make_demo(open_workspace(root), run=run, time=time)


VERBS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (
        plan_and_preprocess, train, predict, evaluate, status, networks, check, fingerprint, plan,
        preprocess, validate, demo,
    )
}  # fmt: skip
"""Every verb of the command line, in the order of its help."""
