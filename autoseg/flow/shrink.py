"""A fold that does not fit into memory: which smaller plan would, and training that one instead."""

import gc
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from autoseg.costs import TrainedBytes
from autoseg.documents.dataset import Dataset
from autoseg.documents.model import Precision
from autoseg.documents.plan import Configuration, Plan, read_plan
from autoseg.documents.run import RunSpec, lines
from autoseg.documents.settings import patched
from autoseg.errors import OutOfMemory
from autoseg.files import read_json, sha256_json
from autoseg.flow import make
from autoseg.flow.make import Job
from autoseg.pool import free_bytes, give_freed_memory_back
from autoseg.rules.decision import Decision, sizes
from autoseg.rules.shrink import SHARES, Room, card_room, fitting, ram_room, room_after
from autoseg.stage import read_made
from autoseg.stages.plan import Request

if TYPE_CHECKING:
    from autoseg.learn.manner import Manner

log = logging.getLogger(__name__)
ATTEMPTS = len(SHARES)
"""Plans that are computed for one that did not fit; the first should do."""


@dataclass(frozen=True)
class Failure:
    """What an error said of a step for which there was no room, without what it computed."""

    text: str
    configuration: str
    lasting: bool
    attempt: int
    """How many plans were computed before."""


@dataclass(frozen=True)
class Counted:
    """What the memory that is there now leaves a step, and what a configuration's steps need."""

    room: Room
    bytes_of: TrainedBytes

    def need(self, configuration: Configuration) -> float:
        """Bytes of a step."""
        batch = configuration.train.batch_size
        return self.bytes_of(configuration.network, configuration.patch_vox, batch)


def folds(
    job: Job,
    names: Sequence[str],
    *,
    overrides: Mapping[str, Any] | None,
    encoder_weights: Path | None,
    time_s: float | None,
    began: float,
    redo: bool,
    auto: bool,
    manner: "Manner | None" = None,
) -> Iterator[tuple[Job, Dataset]]:
    """Each of the folds as `make.fold` trains it, with its job; a plan that fits is computed where
    memory does not suffice.

    With `auto` that plan is made beside the first (`NAME_s1`), and trained for the fold and those
    after it. Raises OutOfMemory, with the command that makes the plan; with `auto`, if two plans
    that should fit do not.
    """
    for name in names:
        attempt, again, job = 0, redo, replace(job, fold=name)
        while True:
            try:
                trained = make.fold(
                    job, overrides=overrides, encoder_weights=encoder_weights, time_s=time_s,
                    began=began, redo=again, manner=manner,
                )  # fmt: skip
                break
            except OutOfMemory as error:
                failure = failure_of(error, job, attempt)
            job, overrides = smaller_job(job, failure, auto=auto, changes=overrides)
            attempt, again = attempt + 1, False
        yield trained
        began = time.monotonic()


def within_run(
    job: Job,
    settings: Mapping[str, Any],
    note: Callable[[Mapping[str, Any], dict[str, str]], None],
    *,
    time_s: float | None,
    began: float,
) -> None:
    """A fold of `run`, as `make.fold` trains it; where memory does not suffice, with smaller settings.

    `settings` are those that the configuration was given before. New ones hold for all its folds:
    `note` is told them, and what they change, before the fold is trained again. Folds of one
    configuration are averaged, so where some are trained already, or this one is half trained, only
    the batch may be smaller. Raises OutOfMemory where that does not suffice, and where two settings
    that should fit do not.
    """
    attempt, places = 0, job.fold_places
    begun = places.stamp.exists() or places.last.exists()
    others = _trained(job)
    while True:
        try:
            # what was begun keeps the settings that it was begun with
            given = None if begun else settings or None
            make.fold(job, overrides=given, time_s=time_s, began=began, redo=given is not None)
            return
        except OutOfMemory as error:
            failure = failure_of(error, job, attempt)
        log.warning("%s; what fits is being computed", failure.text)
        before = _as_trained(job, failure.configuration, settings)
        counted = _counted(job, failure.configuration, before)
        if begun:
            raise OutOfMemory(f"{failure.text}; {_fitted_once(job, [job.fold], counted.room)}")
        found = computed(before, counted, failure, batch_alone=bool(others))
        if found is None and others:
            raise OutOfMemory(f"{failure.text}; {_fitted_once(job, others, counted.room)}")
        if found is None:
            raise OutOfMemory(_nothing(failure, counted.room))
        settings = {**settings, **found.value}
        after = Configuration.parse(patched(before.dump(), found.value), "the smaller settings")
        log.warning("%s The folds of %s are trained so", found.why, job.configuration)
        told = {"before": numbers_of(before), "after": numbers_of(after), "why": found.why}
        note(found.value, told)
        if failure.lasting:
            raise OutOfMemory(
                f"{failure.text}; what fits is noted, but oneDNN does not recover within a process: "
                "give the same command again"
            )
        attempt += 1


def _trained(job: Job) -> list[str]:
    """The folds of the job's configuration and run that are trained."""
    runs = job.fold_places.folder.parent
    return sorted(p.parent.name.removeprefix("fold_") for p in runs.glob("fold_*/stamp.json"))


def _fitted_once(job: Job, names: Sequence[str], room: Room) -> str:
    """Why nothing is made smaller for a fold whose like was trained with the plan as it is."""
    return (
        f"{room.why}, but fold {', '.join(names)} of {job.configuration} had room with the same "
        "patches, and all folds of a configuration must have one network: close other programs "
        "that use the memory and give the same command again, it goes on"
    )


def failure_of(error: OutOfMemory, job: Job, attempt: int) -> Failure:
    """What is kept of an error; its frames held the network and all that it had computed."""
    return Failure(str(error), error.configuration or job.configuration, error.lasting, attempt)


def smaller_job(
    job: Job, failure: Failure, *, auto: bool, changes: Mapping[str, Any] | None = None
) -> tuple[Job, dict[str, Any] | None]:
    """The job with a plan that fits, made, and the `changes` of the run that still hold.

    Call it when the error of the failure is gone, and with it what it kept in memory. A smaller
    plan of an earlier call is taken where it fits, so that the folds of a configuration have one.
    Raises OutOfMemory if none is to be made.
    """
    log.warning("%s; what fits is being computed", failure.text)
    path, name = job.places.plan(job.plan), failure.configuration
    before = _as_trained(job, name, changes)
    counted = _counted(job, name, before)
    there = None if changes else _made_before(job, name, counted, counted.need(before))
    if there is not None:
        other = replace(job, plan=there.name)
        if not auto:
            raise OutOfMemory(
                f"{failure.text}; plan {there.name}, which was computed before, fits: "
                f"`{other.command()}`, or train with --auto-shrink"
            )
        log.warning("plan %s, which was computed before, fits and is taken", there.name)
        _warn_of_others(job, other)
        _end_if_lasting(failure, other.plan, other.command())
        return other, None
    found = computed(before, counted, failure)
    if found is None:
        raise OutOfMemory(_nothing(failure, counted.room))
    pins = {f"{name}.{key}": value for key, value in found.value.items()}
    kept = read_made(job.places.plan_stamp(job.plan))
    if kept is None or kept[1] != sha256_json(read_json(path)):
        wanted = ", ".join(f"{key}={json.dumps(value)}" for key, value in pins.items())
        raise OutOfMemory(
            f"{failure.text}; {found.why} Plan {job.plan!r} was written by hand: make a copy of it "
            f"under another name with {wanted}"
        )
    asked = Request(**kept[0].options)
    smaller = replace(job, plan=_free_name(job))
    left = {key: value for key, value in (changes or {}).items() if key not in found.value}
    train = smaller.command(changes=left)
    if not auto:
        raise OutOfMemory(
            f"{failure.text}; {found.why} To go on: `{_command(smaller, asked, pins)}`, then "
            f"`{train}`; or train with --auto-shrink"
        )
    log.warning("%s It is planned as %s", found.why, smaller.plan)
    _warn_of_others(job, smaller)
    make.plan(smaller, replace(asked, pins={**asked.pins, **pins}))
    _end_if_lasting(failure, smaller.plan, train)
    return smaller, left or None


def _end_if_lasting(failure: Failure, plan: str, train: str) -> None:
    """Raises OutOfMemory with the command to go on with, where this process cannot."""
    if failure.lasting:
        raise OutOfMemory(
            f"{plan} is planned, but oneDNN does not recover within a process; to go on: "
            f"`{train} --auto-shrink`"
        )


def computed(
    before: Configuration, counted: Counted, failure: Failure, *, batch_alone: bool = False
) -> Decision[dict[str, Any]] | None:
    """What of a configuration must be smaller, by dotted keys, and why; None if nothing fits.

    Raises OutOfMemory where as many plans as are tried did not fit.
    """
    if failure.attempt >= ATTEMPTS:
        raise OutOfMemory(
            f"{failure.text}; {ATTEMPTS} plans that were computed to fit did not fit either "
            f"({counted.room.why}): another program may be using it, or memory is counted too low "
            "for this network; plan with a smaller --set batch_size=… or patch_vox=…"
        )
    room = room_after(counted.need(before), counted.room, failure.attempt)
    found = fitting(before, room.step_bytes, counted.bytes_of, batch_alone=batch_alone)
    return None if found is None else replace(found, why=f"{room.why}: {found.why}")


def _counted(job: Job, name: str, before: Configuration) -> Counted:
    """The room that is there, what was let go included, and how steps are counted."""
    from autoseg.device import card_facts, free_card_bytes, is_card, pick_device

    gc.collect()
    give_freed_memory_back()
    device = pick_device(job.device)
    if on_card := is_card(device):
        facts = card_facts(device)
        room, usual = card_room(free_card_bytes(device), facts.total_bytes), facts.precision
    else:
        room, usual = ram_room(free_bytes()), "float32"
    pinned = before.train.precision
    precision = _trained_precision(job, name) or (usual if pinned == "auto" else pinned)
    labels = before.preparation.labels
    return Counted(room, TrainedBytes(before.train, labels, precision, on_card))


def _trained_precision(job: Job, name: str) -> Precision | None:
    """The precision that the journal of the fold names, if it came so far."""
    journal = replace(job, configuration=name).fold_places.journal
    found = [e["precision"] for e in lines(journal) if e["event"] == "variant"]
    return found[-1] if found and found[-1] in get_args(Precision) else None


def _as_trained(job: Job, name: str, changes: Mapping[str, Any] | None) -> Configuration:
    """The configuration of a plan, with what the run changed of it."""
    run = replace(job, configuration=name).fold_places.run
    if run.exists():
        return RunSpec.read(run).configuration
    found = read_plan(job.places.plan(job.plan)).configuration(name)
    if changes and name == job.configuration:
        return Configuration.parse(patched(found.dump(), changes), f"the run {job.run!r}")
    return found


def _made_before(job: Job, name: str, counted: Counted, need: float) -> Plan | None:
    """A plan that was computed for this one before, with smaller steps, which fit what is there."""
    for number in range(1, ATTEMPTS + 1):
        path = job.places.plan(_named(job.plan, number))
        if path.exists() and (made := read_plan(path)).configurations.get(name) is not None:
            cost = counted.need(made.configurations[name])
            if cost < need and cost <= counted.room.step_bytes:
                return made
    return None


def _warn_of_others(job: Job, smaller: Job) -> None:
    """Say that folds of the first plan, which fitted once, are not averaged with the smaller one's."""
    trained = _trained(job)
    if trained:
        log.warning(
            "fold %s of plan %s is trained already; folds of two plans are not averaged: train all "
            "of them with --plan %s", ", ".join(trained), job.plan, smaller.plan
        )  # fmt: skip


def _nothing(failure: Failure, room: Room) -> str:
    return (
        f"{failure.text}; {room.why}: nothing smaller is sensible. Close other programs that use "
        "it, or plan a lighter network (`autoseg networks` lists what each needs)"
    )


def _free_name(job: Job) -> str:
    """The first name of a smaller plan that is not taken."""
    taken, number = job.places.plan_names(), 1
    while _named(job.plan, number) in taken:
        number += 1
    return _named(job.plan, number)


def _named(name: str, number: int) -> str:
    """`NAME_s1`, and for that as `NAME_s2`."""
    stem, _, last = name.rpartition("_s")
    if stem and last.isdigit():
        return f"{stem}_s{int(last) + number}"
    return f"{name}_s{number}"


def numbers_of(configuration: Configuration) -> str:
    """What decides a step's memory, in words."""
    again = ", computed again" if configuration.network.recompute else ""
    batch = configuration.train.batch_size
    return f"{batch} patches of {sizes(configuration.patch_vox)}{again}"


def _command(job: Job, asked: Request, pins: Mapping[str, Any]) -> str:
    """The command that makes the smaller plan."""
    words = ["autoseg", "plan", "-d", job.places.name, "--name", job.plan, "--network"]
    words += [asked.network]
    if asked.planner != "autoseg":
        words += ["--planner", asked.planner]
    if asked.gpu_memory_gb is not None:
        words += ["--gpu-memory", f"{asked.gpu_memory_gb:g}"]
    words += ["--use-memory"] if asked.use_memory else []
    if asked.minutes is not None:
        words += ["--time", f"{asked.minutes:g}min"]
    for key, value in {**asked.pins, **pins}.items():
        words += ["--set", f"{key}={json.dumps(value, separators=(',', ':'))}"]
    return " ".join(words)
