"""From prepared cases to a chosen model: training, validating, choosing, and how it all stands."""

from __future__ import annotations

import logging
import time as clock
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.api.job import job_of, several

if TYPE_CHECKING:
    from autoseg.documents.report import Report
    from autoseg.flow.best import Best
    from autoseg.flow.run import Finished
    from autoseg.stages.status import Status

log = logging.getLogger(__name__)


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
    compile: str = "auto",
    measure: bool = False,
    profile: bool = False,
    device: str | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> list[Report]:
    """Train folds and validate each on its held-out cases; goes on where it was stopped.

    dataset: number or name
    configuration: 3d_fullres, 2d, 3d_lowres or 3d_cascade_fullres, as the plan has them
    fold: numbers, as 0 1 2 3 4, or all for one network on all cases
    plan: name of the plan
    run: name of the run; changed settings deserve one of their own
    time: a deadline for each fold that contains everything, as 20min
    steps: number of steps instead of the plan's
    set: change the configuration for this run, as --set train.lr=0.003 --run lowlr
    encoder_weights: a file that a classical encoder (unet_resnet34, deeplab, …) begins with
    auto_shrink: where a step does not fit into memory, compute a plan that fits and train that
    redo: train again what is trained already
    compile: on, off or auto: compile the network where a long run on a card gains by it
    measure: time the variants of the step anew, whatever is remembered of earlier runs
    profile: write where the time of 20 steps went, to profile/ in the fold's folder
    device: cpu, cuda or cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: loading processes (default: none on the CPU, up to 8 with a card)
    json: print JSON
    """
    from autoseg.documents.settings import seconds_of
    from autoseg.flow import ask, make, shrink
    from autoseg.learn.manner import Manner, compile_wish

    began = clock.monotonic()
    overrides = ask.overrides(set, steps, run)
    time_s = None if time is None else seconds_of(time)
    manner = Manner(compile_wish(compile), measure, profile)
    job = job_of(
        dataset, root, plan=plan, configuration=configuration, run=run, workers=workers,
        device=device,
    )  # fmt: skip
    folds = several(fold)
    if len(folds) > 1:
        make.check_folds(job, folds)
    trained = shrink.folds(
        job, folds, overrides=overrides or None, encoder_weights=encoder_weights, time_s=time_s,
        began=began, redo=redo, auto=auto_shrink, manner=manner,
    )  # fmt: skip
    return [make.validation(one, data) for one, data in trained]


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
    configuration: 3d_fullres, 2d, 3d_lowres or 3d_cascade_fullres, as the plan has them
    fold: numbers, as 0 1 2 3 4, or all
    plan: name of the plan
    run: name of the run
    device: cpu, cuda or cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.documents.dataset import read_dataset
    from autoseg.flow import make

    reports = []
    for one in several(fold):
        job = job_of(
            dataset, root, plan=plan, configuration=configuration, run=run, fold=one, device=device
        )
        reports.append(make.validation(job, read_dataset(job.places.raw)[0]))
    return reports


def find_best_configuration(
    dataset: str,
    *,
    configuration: tuple[str, ...] = (),
    plan: str = "default",
    run: str = "default",
    no_ensembles: bool = False,
    crf: bool = False,
    margin: float | None = None,
    workers: int | None = None,
    device: str | None = None,
    root: Path | None = None,
    json: bool = False,
) -> Best:
    """Choose configurations, their ensemble and its postprocessing on the cross-validation.

    The best mean foreground Dice wins. Something cheaper wins only where the cases show, with 95 %
    confidence, that it loses less than the margin. `predict` and `export` use what was chosen.

    dataset: number or name
    configuration: which ones compete (default: all that are trained on every fold)
    plan: name of the plan
    run: name of the run
    no_ensembles: single configurations alone
    crf: also try a conditional random field as postprocessing
    margin: mean Dice that something cheaper may lose (default: 0.005; 0: always the highest mean)
    workers: processes (default: one for each core)
    device: cpu, cuda or cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.errors import AutosegError
    from autoseg.flow import make
    from autoseg.flow.best import best
    from autoseg.rules.selection import MARGIN

    if margin is not None and not 0 <= margin <= 1:
        raise AutosegError(f"--margin {margin:g} is a difference of Dice, from 0 to 1")

    job = job_of(dataset, root, plan=plan, run=run, workers=workers, device=device)
    make.check_plan_name(job)
    data, _, made = make.plan(job)
    return best(job, data, made, several(configuration), ensembles=not no_ensembles, crf=crf,
                margin=MARGIN if margin is None else margin)  # fmt: skip


def run(
    dataset: str,
    *,
    configuration: tuple[str, ...] = (),
    time: str | None = None,
    name: str = "default",
    network: str = "plain",
    gpu_memory: float | None = None,
    use_memory: bool = False,
    set: tuple[str, ...] = (),
    output: Path | None = None,
    crf: bool = False,
    workers: int | None = None,
    device: str | None = None,
    root: Path | None = None,
    json: bool = False,
) -> Finished:
    """Do everything, from raw data to a package that predicts by itself; resumable at any point.

    Plans, prepares, trains every fold, chooses the ensemble and its postprocessing, and writes the
    package. `autoseg status` shows where it is and how long is left.

    dataset: number or name
    configuration: which ones to train (default: all that the time allows)
    time: for everything together, as 60min or 10h; called again, what was spent counts
    name: the plan's name
    network: a preset of `autoseg networks`, for a plan that is not made yet
    gpu_memory: memory of the card to plan for, in GB (default: the card that is there, else none)
    use_memory: fill the card's memory with larger patches and batches, for more time a fold
    set: pin a value before the rules run, as --set batch_size=4
    output: the package (default: results/DATASET/DATASET.autoseg)
    crf: also try a conditional random field as postprocessing
    workers: processes (default: one for each core)
    device: cpu, cuda or cuda:1 (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.documents.settings import seconds_of
    from autoseg.flow import ask
    from autoseg.flow.run import run as run_everything
    from autoseg.stages.plan import Request

    asked = ask.request("autoseg", network, gpu_memory, None, set, use_memory=use_memory)
    job = job_of(dataset, root, plan=name, workers=workers, device=device)
    return run_everything(
        job,
        configurations=several(configuration),
        request=None if asked == Request() else asked,
        total_s=None if time is None else seconds_of(time),
        output=output,
        crf=crf,
    )


def status(
    dataset: str | None = None, *, root: Path | None = None, json: bool = False
) -> list[Status]:
    """Tell, for each dataset, configuration and fold, what is done, half done or stale, and why.

    dataset: number or name (default: all)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.errors import AutosegError
    from autoseg.flow.look import status as status_of
    from autoseg.workspace import open_workspace

    workspace = open_workspace(root)
    names = workspace.datasets() if dataset is None else [workspace.dataset(dataset).name]
    if not names:
        raise AutosegError(
            f"there is no dataset in {' or '.join(map(str, workspace.raw))}; choose another --root, "
            "or make a phantom with `autoseg demo`"
        )
    return [status_of(workspace.places(name)) for name in names]
