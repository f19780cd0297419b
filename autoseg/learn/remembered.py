"""What was measured of a step on this machine, kept for the runs to come.

One small JSON file for each kind of step: device, torch, network, patch, batch and recipe. A file
that is missing, damaged or of another kind only means that the step is measured again.
"""

import functools
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from autoseg.device import Precision, card_facts, is_card
from autoseg.documents.plan import Configuration
from autoseg.errors import AutosegError
from autoseg.files import read_json, sha256_json, write_json
from autoseg.learn.cores import usable_cores
from autoseg.learn.precision import resolved_precision
from autoseg.learn.variants import Layout, Timing, Variant, candidates, fastest, measure

log = logging.getLogger(__name__)

VERSION = 1
"""Counted up when the code of the step changes so that another variant may be the fastest."""


def memory_folder(beside: Path) -> Path:
    """Where measurements are kept: in AUTOSEG_CACHE where it is set, else beside the results."""
    chosen = os.environ.get("AUTOSEG_CACHE")
    return (Path(chosen) if chosen else beside) / "measured_steps"


@functools.cache
def processor() -> str:
    """The name of the processor, as the system gives it."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(device: torch.device) -> dict[str, Any]:
    """What of a machine the speed of a step depends on; two equal machines share what is known."""
    facts: dict[str, Any] = {"device": device.type, "torch": torch.__version__}
    if is_card(device):
        card = card_facts(device)
        # parts of one card, and cards of one name, may have other memory and fewer units
        memory = {"memory_gb": round(card.memory_gb), "capability": list(card.capability)}
        return facts | {"card": card.name} | memory
    able = {key: value for key, value in torch.cpu.get_capabilities().items() if value}
    return facts | {
        "processor": processor(),
        "cores": usable_cores(),
        "instructions": sha256_json({k: str(v) for k, v in able.items()})[:12],
        "limited_to": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
    }


def kind_of_step(
    configuration: Configuration, device: torch.device, *, explicit: bool = False
) -> dict[str, Any]:
    """All that the speed of a step depends on, the network and the labels as their digests.

    The precision is the one that is computed; "auto" on cores, where it is chosen by measuring.
    Raises AutosegError where an `explicit` one cannot be computed.
    """
    train = configuration.train
    names = ("batch_size", "optimiser", "layout", "threads", "batch_dice")
    precision, _ = resolved_precision(train.precision, device, explicit=explicit)
    measured = train.precision == "auto" and not is_card(device)
    return {
        "version": VERSION,
        **machine(device),
        "network": sha256_json(configuration.network.dump())[:12],
        "labels": sha256_json(configuration.preparation.labels.dump())[:12],
        "patch_vox": list(configuration.patch_vox),
        "average": train.ema_share > 0,
        "outputs": sum(weight > 0 for weight in train.supervision),
        "precision": "auto" if measured else precision,
        **{name: getattr(train, name) for name in names},
    }


@dataclass(frozen=True)
class Choice:
    """The variant of a run's steps, what was measured of all, and where the choice came from."""

    variant: Variant
    timings: tuple[Timing, ...]
    source: str
    """measured, remembered, or fixed where there was nothing to choose."""
    measured: str | None = None
    """When, in ISO 8601."""

    @property
    def seconds(self) -> float | None:
        """The seconds of a step of the chosen variant, where they were measured."""
        return next((t.seconds for t in self.timings if t.variant == self.variant), None)

    def facts(self) -> dict[str, Any]:
        """What a journal tells of the choice."""
        variant = self.variant
        return {
            "precision": variant.precision, "layout": variant.layout, "threads": variant.threads,
            "source": self.source, "measured": self.measured,
            "timings_s": [
                [t.variant.precision, t.variant.layout, t.variant.threads,
                 None if t.seconds is None else round(t.seconds, 4), t.why]
                for t in self.timings
            ],
        }  # fmt: skip


class Memory:
    """What is known of one kind of step: its timings, and what compiling it cost and gained."""

    def __init__(self, folder: Path, kind: Mapping[str, Any]) -> None:
        self.kind = dict(kind)
        self.path = folder / f"{sha256_json(self.kind)[:16]}.json"

    def recall(self) -> dict[str, Any]:
        """What was kept; empty where nothing readable was kept of this kind."""
        try:
            kept = read_json(self.path)
        except AutosegError:
            return {}
        if not isinstance(kept, dict) or kept.get("kind") != self.kind:
            return {}
        facts = kept.get("facts")
        return facts if isinstance(facts, dict) else {}

    def keep(self, facts: Mapping[str, Any]) -> None:
        """Add to what is kept; a folder that cannot be written to costs a warning, not the run."""
        try:
            write_json(self.path, {"kind": self.kind, "facts": self.recall() | dict(facts)})
        except AutosegError as error:
            log.warning("the speed of the step is not remembered: %s", error)

    def choice(self) -> Choice | None:
        """The choice that was kept, if all of it can be understood."""
        kept: Any = self.recall().get("choice")
        try:
            timings = tuple(
                Timing(Variant(**t["variant"]), t["seconds"], t["why"]) for t in kept["timings"]
            )
            if not all(map(_sound, timings)):
                return None
            return Choice(fastest(timings), timings, "remembered", str(kept["measured"]))
        except (KeyError, TypeError, ValueError):
            return None

    def keep_choice(self, choice: Choice) -> None:
        timings = [
            {"variant": asdict(t.variant), "seconds": t.seconds, "why": t.why}
            for t in choice.timings
        ]
        self.keep({"choice": {"timings": timings, "measured": choice.measured}})


def choose(
    memory: Memory,
    configuration: Configuration,
    device: torch.device,
    make_step: Callable[[Variant], Callable[[], object]],
    seconds: float,
    *,
    again: bool = False,
    explicit: bool = False,
) -> Choice:
    """The variant for these steps: remembered, else the fastest measured within about `seconds`.

    What the plan fixes is not varied. A measurement that had no time or no room for every candidate
    serves this run but is not kept. With `again` what is remembered does not count. Raises
    AutosegError where an `explicit` precision cannot be computed here, torch.OutOfMemoryError where
    no candidate fits into a card.
    """
    train = configuration.train
    kept = None if again else memory.choice()
    if kept is not None:
        return kept
    choices = candidates(
        device, train.precision, train.layout, train.threads, explicit=explicit
    )  # fmt: skip
    if len(choices) == 1:
        return Choice(choices[0], (Timing(choices[0], None, "the only candidate"),), "fixed")
    timings = measure(make_step, choices, seconds, device)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = Choice(fastest(timings), tuple(timings), "measured", now)
    if _complete(timings, choices):
        memory.keep_choice(made)
    return made


def _complete(timings: Sequence[Timing], choices: Sequence[Variant]) -> bool:
    return len(timings) == len(choices) and all(t.seconds is not None for t in timings)


def _sound(timing: Timing) -> bool:
    """Whether a timing that was read from a file says something that can be."""
    variant, seconds = timing.variant, timing.seconds
    known = variant.precision in get_args(Precision) and variant.layout in get_args(Layout)
    counted = variant.threads is None or (isinstance(variant.threads, int) and variant.threads > 0)
    timed = isinstance(seconds, (int, float)) and 0 < seconds < float("inf")
    return known and counted and timed
