"""The parts of `make card`, in their order, and how the eight minutes are shared among them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 480.0
"""All parts together, the start of processes included."""
WRITING_S = 5.0
"""Kept for the page and for ending what overran."""


@dataclass(frozen=True)
class Part:
    """A module of this folder, its question, and its seconds: the most, and what a start needs."""

    name: str
    what: str
    seconds: float
    least: float = 15.0


PARTS = (
    Part("gpu", "the tests that need a card", 75),
    Part("memory", "predicted against measured memory", 130),
    Part("steps", "a step beside nnU-Net's", 80),
    Part("loading", "feeding the card", 45),
    Part("volume", "a whole CT predicted", 45),
    Part("fold", "a small fold trained in the rest of the time", SECONDS),
)


@dataclass(frozen=True)
class Asked:
    """What a part is told. `rows` of its module yields rows, each with a "key" of its own."""

    device: str = "cuda"
    dry: bool = False
    """Small sizes, to try the program and not the machine."""
    done: frozenset[str] = frozenset()
    """The keys of rows that are kept from an earlier call."""
    until: float = float("inf")
    """On `clock`, when the part is stopped."""
    clock: Callable[[], float] = time.time

    def left(self) -> float:
        return self.until - self.clock()


def budget(index: int, left: float, parts: tuple[Part, ...] = PARTS) -> float:
    """The seconds of a part: its own, less where the later ones need theirs; 0: too few to start."""
    later = sum(part.least for part in parts[index + 1 :])
    given = min(parts[index].seconds, left - WRITING_S - later)
    return given if given >= parts[index].least else 0.0


def paths(out: Path) -> Mapping[str, Path]:
    """Part -> its JSON; all lie in one folder."""
    return {part.name: out / f"{part.name}.json" for part in PARTS}


Row = dict[str, Any]
