"""Fingerprint → plan: the rules are asked in order, and their values and reasons written down.

What a person pins is fixed before the rules run, and the rest is decided around it. A generated
plan is made again when the fingerprint changes; one that was edited by hand is never overwritten.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from autoseg.costs import StepBytes, StepTimes, operations
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Plan, read_plan
from autoseg.errors import AutosegError, Stale
from autoseg.files import read_json, sha256_json, write_json
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask, Device
from autoseg.stage import Stamp, differences
from autoseg.workspace import DatasetPlaces

log = logging.getLogger(__name__)

VERSION = 2
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Request:
    """What a person asks of the planner; kept beside the plan, so that it can be made again."""

    planner: Literal["autoseg", "nnunet"] = "autoseg"
    network: str = "plain"
    gpu_memory_gb: float | None = None
    minutes: float | None = None
    pins: Mapping[str, Any] = field(default_factory=dict)


def card_memory_gb() -> float | None:
    """The memory of the first NVIDIA card in GB, or None; torch is asked only if there may be one."""
    if not (Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 2**30


def device_for(request: Request, device: str | None) -> Device:
    """What the plan is to be fitted to: a card of so much memory, or this machine's cores.

    Raises AutosegError for a device that is not there, or none.
    """
    if device is not None and not DEVICE.fullmatch(device):
        raise AutosegError(f"--device {device!r} is unknown; use cpu, cuda or cuda:1")
    step_bytes = StepBytes(request.pins)
    if request.gpu_memory_gb is not None:
        return Device(request.gpu_memory_gb, "given by you", step_bytes)
    if device != "cpu" and (found := card_memory_gb()) is not None:
        return Device(found, "the card that is there", step_bytes)
    if device is not None and device.startswith("cuda"):
        raise AutosegError(
            f"--device {device}: no card is there; --gpu-memory plans for one of so many GB"
        )
    return Device(None, "no card is there", operations_of=operations)


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
    old = read_json(kept) if kept.exists() else None
    if path.exists():
        if old is None or old["made"] != sha256_json(read_json(path)):
            return _edited(path, name, request)
        earlier = Stamp(**old["stamp"])
        asked = request or Request(**earlier.options)
        wanted = Stamp("plan", VERSION, {"fingerprint": digest}, asdict(asked))
        reasons = differences(earlier, wanted)
        if not reasons:
            return read_plan(path)
        log.info("plan %s of %s is made again: %s", name, places.name, "; ".join(reasons[:3]))
        previous: Plan | None = read_plan(path)
    else:
        asked, previous = request or Request(), None
        wanted = Stamp("plan", VERSION, {"fingerprint": digest}, asdict(asked))
    with StepTimes() as times:
        found = device_for(asked, device)
        if found.memory_gb is None and asked.minutes is not None:
            found = replace(found, seconds_of=times)
        ask = Ask(
            name=name,
            planner=asked.planner,
            network=asked.network,
            minutes=asked.minutes,
            pins=asked.pins,
            device=found,
        )
        made = make_plan(fingerprint, ask, previous)
    made.write(path)
    write_json(kept, {"stamp": asdict(wanted), "made": sha256_json(made.dump())})
    return made


def _edited(path: Path, name: str, request: Request | None) -> Plan:
    if request is not None and request != Request():
        raise Stale(
            f"plan {name!r} was edited by hand and is kept as it is; make another with "
            f"`autoseg plan --name OTHER`, or remove {path}"
        )
    return read_plan(path)
