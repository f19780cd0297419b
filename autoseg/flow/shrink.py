"""A fold that does not fit into memory: which smaller plan would, and training that one instead."""

import gc
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.documents.dataset import Dataset
from autoseg.documents.plan import Configuration, read_plan
from autoseg.errors import OutOfMemory, PlanError
from autoseg.files import read_json, sha256_json
from autoseg.flow import make
from autoseg.flow.make import Job
from autoseg.pool import give_freed_memory_back
from autoseg.rules.shrink import next_smaller
from autoseg.stages.plan import Request

if TYPE_CHECKING:
    from autoseg.learn.manner import Manner

log = logging.getLogger(__name__)
MOST_TRIES = 12


def fold(
    job: Job,
    *,
    overrides: Mapping[str, Any] | None,
    encoder_weights: Path | None,
    time_s: float | None,
    began: float,
    redo: bool,
    auto: bool,
    manner: "Manner | None" = None,
) -> tuple[Job, Dataset]:
    """As `make.fold`; where memory does not suffice, the next smaller plan is said, or taken.

    With `auto` the smaller plan is made beside the first (`NAME_s1`, `NAME_s2`, …) and trained;
    the job that is returned says which. Raises OutOfMemory, with the command that makes the next
    smaller plan.
    """
    for _ in range(MOST_TRIES):
        try:
            return make.fold(
                job, overrides=overrides, encoder_weights=encoder_weights, time_s=time_s,
                began=began, redo=redo, manner=manner,
            )  # fmt: skip
        except OutOfMemory as error:
            job = smaller_job(job, error, auto=auto, changes=overrides)
            redo = False
        # the frames of the failure held the network and all that it had computed
        gc.collect()
        give_freed_memory_back()
    raise OutOfMemory(
        f"{MOST_TRIES} smaller plans did not fit either; is another program using it?"
    )


def smaller_job(
    job: Job, error: OutOfMemory, *, auto: bool, changes: Mapping[str, Any] | None = None
) -> Job:
    """The job with the next smaller plan, made. Raises OutOfMemory if it is not to be made."""
    path = job.places.plan(job.plan)
    found = next_smaller(read_plan(path).configuration(job.configuration))
    if found is None:
        raise OutOfMemory(
            f"{error}, and nothing smaller is sensible; use another network"
        ) from error
    name = _next_name(job.plan)
    pins = {f"{job.configuration}.{key}": value for key, value in found.value.items()}
    stamp = job.places.plan_stamp(job.plan)
    kept = read_json(stamp) if stamp.exists() else None
    if kept is None or kept["made"] != sha256_json(read_json(path)):
        wanted = ", ".join(f"{key}={json.dumps(value)}" for key, value in pins.items())
        raise OutOfMemory(
            f"{error}; {found.why} Plan {job.plan!r} was written by hand: make a copy of it under "
            f"another name with {wanted}"
        ) from error
    asked = Request(**kept["stamp"]["options"])
    smaller = replace(job, plan=name)
    train = smaller.command(changes=changes)
    if not auto:
        raise OutOfMemory(
            f"{error}; {found.why} To go on: `{_command(job, name, asked, pins)}`, then `{train}`; "
            "or train with --auto-shrink"
        ) from error
    log.warning("%s; %s It is planned as %s", error, found.why, name)
    make.plan(smaller, replace(asked, pins={**asked.pins, **pins}))
    _check_smaller(read_plan(path).configuration(job.configuration), smaller)
    if error.lasting:
        raise OutOfMemory(
            f"{name} is planned, but oneDNN does not recover within a process; to go on: "
            f"`{train} --auto-shrink`"
        ) from error
    return smaller


def _check_smaller(before: Configuration, job: Job) -> None:
    """Raises PlanError if a plan of that name is there already and is not smaller."""
    after = read_plan(job.places.plan(job.plan)).configuration(job.configuration)
    if after == before:
        raise PlanError(
            f"plan {job.plan!r} is there already and is no smaller; remove it, or train it by name"
        )


def _next_name(name: str) -> str:
    stem, _, number = name.rpartition("_s")
    return f"{stem}_s{int(number) + 1}" if stem and number.isdigit() else f"{name}_s1"


def _command(job: Job, name: str, asked: Request, pins: Mapping[str, Any]) -> str:
    """The command that makes the smaller plan."""
    words = ["autoseg", "plan", "-d", job.places.name, "--name", name, "--network", asked.network]
    if asked.gpu_memory_gb is not None:
        words += ["--gpu-memory", f"{asked.gpu_memory_gb:g}"]
    words += ["--use-memory"] if asked.use_memory else []
    if asked.minutes is not None:
        words += ["--time", f"{asked.minutes:g}min"]
    for key, value in {**asked.pins, **pins}.items():
        words += ["--set", f"{key}={json.dumps(value, separators=(',', ':'))}"]
    return " ".join(words)
