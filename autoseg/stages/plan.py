"""Fingerprint → plan: the rules are asked in order, and their values and reasons written down.

What a person pins is fixed before the rules run, and the rest is decided around it. A generated
plan is made again when the fingerprint changes; one that was edited by hand is never overwritten.
"""

import logging
import math
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoseg.costs import StepBytes, StepTimes, operations
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.labels import LabelSet
from autoseg.documents.plan import Plan, read_plan
from autoseg.documents.presets.table import preset_named
from autoseg.errors import AutosegError, Stale
from autoseg.files import is_blank, read_json, replacing_folder, sha256_json, sweep, write_json
from autoseg.rules.memory import GB, usable_bytes
from autoseg.rules.planner import make_plan
from autoseg.rules.timed import SHORT_TRAINING
from autoseg.rules.world import Ask, Device
from autoseg.stage import Stamp, differences, read_made
from autoseg.workspace import DatasetPlaces

if TYPE_CHECKING:
    import torch

    from autoseg.device import CardFacts

log = logging.getLogger(__name__)

VERSION = 2
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
SIGNS = ("/dev/nvidiactl", "/dev/kfd")
"""What the drivers of NVIDIA's and AMD's cards leave."""
FAR_ABOVE = 1.1
"""A card sold as 24 GB has 23.6 GiB: only more than this is another card."""


@dataclass(frozen=True)
class Request:
    """What a person asks of the planner; kept beside the plan, so that it can be made again."""

    planner: Literal["autoseg", "nnunet"] = "autoseg"
    network: str = "plain"
    gpu_memory_gb: float | None = None
    minutes: float | None = None
    pins: Mapping[str, Any] = field(default_factory=dict)
    use_memory: bool = False


def card_there(device: str | None) -> "tuple[torch.device, CardFacts] | None":
    """The card that `device` names, the first where it names none; None: there is none, or `cpu`.

    torch, whose loading takes seconds, is asked only if it is loaded or if there may be a card.
    Raises AutosegError for a device that is not there, or none.
    """
    if device is not None and not DEVICE.fullmatch(device):
        raise AutosegError(f"--device {device!r} is unknown; use cpu, cuda or cuda:1")
    named = device is not None and device.startswith("cuda")
    may_be = named or "autoseg.device" in sys.modules or shutil.which("nvidia-smi") is not None
    if device == "cpu" or not (may_be or any(Path(sign).exists() for sign in SIGNS)):
        return None
    from autoseg.device import card_facts, is_card, pick_device

    try:
        place = pick_device(device)
    except AutosegError as error:
        raise AutosegError(f"{error}; --gpu-memory plans for a card of so many GB") from None
    return (place, card_facts(place)) if is_card(place) else None


def device_for(request: Request, device: str | None, labels: LabelSet | None = None) -> Device:
    """What the plan is to be fitted to: a card of so much memory, or this machine's cores.

    `labels` decide the loss that is counted with a step. Raises AutosegError for a device that is
    not there, or none.
    """
    given = request.gpu_memory_gb
    try:
        found = card_there(device)
    except AutosegError:
        if given is None or not DEVICE.fullmatch(device or ""):
            raise
        found = None
    if found is None and given is None:
        return Device(None, "no card is there", operations_of=operations)
    recipe = _recipe(request)
    if found is None or _for_another(given, found[1]):
        step_bytes = StepBytes(request.pins, recipe=recipe, labels=labels)
        return Device(given, "given by you", step_bytes, operations)
    place, facts = found
    memory = facts.memory_gb if given is None else given
    _warn_of_others(memory, place, facts)
    return Device(
        memory,
        "the card that is there" if given is None else "given by you",
        StepBytes(request.pins, facts.precision, recipe, labels),
        operations,
        precision=facts.precision,
        card=facts.name,
        place=device if device is not None and device.startswith("cuda") else "cuda",
    )


def times_on(request: Request, device: Device, labels: LabelSet | None = None) -> StepTimes:
    """What times the steps of a plan for `device`: on its card if that is there, else on cores."""
    if not device.card:
        return StepTimes(labels=labels)
    recipe = _recipe(request)
    return StepTimes(device.place, device.precision, request.pins, recipe, labels)


def _recipe(request: Request) -> dict[str, Any]:
    """The fields of the training that decide bytes and seconds: those of the network's authors.

    Within a time a short run may be planned, whose optimiser and averaged weights count then.
    """
    short = SHORT_TRAINING if request.minutes is not None and request.planner == "autoseg" else {}
    return {**short, **preset_named(request.network).training}


def _for_another(given: float | None, facts: "CardFacts") -> bool:
    """Whether the plan is for another card than the one that is there; said where it is."""
    if given is None or given <= FAR_ABOVE * facts.memory_gb:
        return False
    log.warning(
        "--gpu-memory %g is far above the %.1f GB of %s: this plan is for another machine",
        given, facts.memory_gb, facts.name,
    )  # fmt: skip
    return True


def _warn_of_others(memory_gb: float, place: "torch.device", facts: "CardFacts") -> None:
    """Say where other programs leave less of a card than a plan for so much memory may need.

    It is made for all of it even so: a plan that followed what is free would be another one each
    time.
    """
    from autoseg.device import free_card_bytes

    free = free_card_bytes(place) / GB
    if free < usable_bytes(memory_gb) / GB:
        log.warning(
            "only %.1f of the %.1f GB of %s are free, other programs use the rest: a step of this "
            "plan may not fit; end them, or plan for what is left with --gpu-memory %g",
            free, facts.memory_gb, facts.name, max(math.floor(10 * free) / 10, 0.1),
        )  # fmt: skip


def current_plan(
    places: DatasetPlaces,
    fingerprint: Fingerprint,
    name: str,
    request: Request | None = None,
    device: str | None = None,
) -> Plan:
    """The plan of this name, made or made again where needed.

    Without a `request` an existing plan keeps the one it was made with. Raises Stale if a plan
    that was edited by hand would have to change.
    """
    path, kept = places.plan(name), places.plan_stamp(name)
    digest = sha256_json(fingerprint.dump())
    there, old = _pair(path, kept)
    asked, previous = request or Request(), None
    if old is not None and (kept_request := _request_in(old[0])) is not None:
        asked = request or kept_request
        if there is not None and old[1] == sha256_json(there):
            # an option that did not exist then was not asked for
            earlier = replace(old[0], options=asdict(kept_request))
            reasons = differences(earlier, _stamp(digest, asked))
            if not reasons:
                return read_plan(path)
            log.info("plan %s of %s is made again: %s", name, places.name, "; ".join(reasons[:3]))
            previous, there = read_plan(path), None
    elif there is not None and request is not None:
        # its stamp was lost in a kill: a plan that would be made just so was not edited
        with suppress(AutosegError):
            made = _made(fingerprint, name, asked, None, device)
            if made.dump() == there:
                _write(path, kept, made, _stamp(digest, asked))
                return made
    if there is not None:
        return _edited(path, name, request)
    made = _made(fingerprint, name, asked, previous, device)
    _write(path, kept, made, _stamp(digest, asked))
    return made


def _stamp(digest: str, asked: Request) -> Stamp:
    return Stamp("plan", VERSION, {"fingerprint": digest}, asdict(asked))


def _request_in(stamp: Stamp) -> Request | None:
    """What was asked for then; None for options that are not known here."""
    try:
        return Request(**stamp.options)
    except TypeError:
        return None


def _pair(path: Path, kept: Path) -> tuple[Any, tuple[Stamp, str] | None]:
    """The document, None if there is none, and what is known of its making; of one and the same plan.

    An empty document, as a power cut leaves it, is none. Raises AutosegError for a damaged one.
    """
    while True:
        before = kept.read_bytes() if kept.exists() else None
        there = None if not path.exists() or is_blank(path) else read_json(path)
        if before == (kept.read_bytes() if kept.exists() else None):
            return there, read_made(kept)


def _write(path: Path, kept: Path, made: Plan, stamp: Stamp) -> None:
    """Write the plan and its stamp as one, beside what else lies in the folder."""
    folder = path.parent
    sweep(folder.parent)
    with replacing_folder(folder) as half:
        if folder.is_dir():
            shutil.copytree(folder, half, symlinks=True, dirs_exist_ok=True)
        made.write(half / path.name)
        document = {"stamp": asdict(stamp), "made": sha256_json(made.dump())}
        write_json(half / kept.name, document)


def _made(
    fingerprint: Fingerprint, name: str, asked: Request, previous: Plan | None, device: str | None
) -> Plan:
    """What the rules decide for a request."""
    found = device_for(asked, device, fingerprint.label_set)
    with times_on(asked, found, fingerprint.label_set) as times:
        if found.card or (found.memory_gb is None and asked.minutes is not None):
            found = replace(found, seconds_of=times)
        ask = Ask(
            name=name,
            planner=asked.planner,
            network=asked.network,
            minutes=asked.minutes,
            pins=asked.pins,
            device=found,
            use_memory=asked.use_memory,
        )
        return make_plan(fingerprint, ask, previous)


def _edited(path: Path, name: str, request: Request | None) -> Plan:
    if request is not None and request != Request():
        raise Stale(
            f"plan {name!r} was edited by hand and is kept as it is; make another with "
            f"`autoseg plan --name OTHER`, or remove {path}"
        )
    return read_plan(path)
