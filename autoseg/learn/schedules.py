"""Schedules: how the learning rate goes, as pure functions of the step.

A schedule maps (step, total) to a factor of the plan's rate. A cool-down is decided while a run is
under way (its time is nearly up, or nothing improves); the journal holds it, so that the rate of a
step is the same when the run goes on after a stop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autoseg.documents.plan import Training

Schedule = Callable[[float, int], float]


def poly(step: float, total: int) -> float:
    """(1 - step / total) ** 0.9 (Chen et al. 2017, DeepLab), nnU-Net's schedule by steps."""
    return math.pow(1 - min(step, total) / total, 0.9)


def cosine(step: float, total: int) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * min(step, total) / total))


def constant(step: float, total: int) -> float:  # noqa: ARG001
    return 1.0


SCHEDULES: dict[str, Schedule] = {"poly": poly, "cosine": cosine, "constant": constant}


def warmed(schedule: Schedule, warmup_steps: int) -> Schedule:
    """`schedule` over the steps after a linear rise that begins at 1 / warmup_steps."""

    def factor(step: float, total: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return schedule(step - warmup_steps, max(total - warmup_steps, 1))

    return factor


@dataclass(frozen=True)
class Cooldown:
    """The decision, taken before step `start`, that the rate shall reach zero at step `end`."""

    start: int
    end: int
    shape: Literal["linear", "sqrt"] = "sqrt"

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"a cool-down from step {self.start} to {self.end} has no steps")


def cooled(schedule: Schedule, cooldown: Cooldown) -> Schedule:
    """`schedule` up to the cool-down's start, then from its value there to 0 at the end.

    "sqrt" is 1 - sqrt(progress) (Hägele et al. 2024, arXiv:2405.18392).
    """

    def factor(step: float, total: int) -> float:
        if step < cooldown.start:
            return schedule(step, total)
        progress = min(1.0, (step - cooldown.start) / (cooldown.end - cooldown.start))
        left = 1 - (progress if cooldown.shape == "linear" else math.sqrt(progress))
        return schedule(cooldown.start, total) * left

    return factor


def rate(train: Training, cooldown: Cooldown | None = None) -> Callable[[int], float]:
    """The learning rate at each step of a plan's training, and of the cool-down decided for it."""
    schedule = warmed(SCHEDULES[train.schedule], train.warmup_steps)
    if cooldown is not None:
        schedule = cooled(schedule, cooldown)
    return lambda step: train.lr * schedule(step, train.steps)
