"""Schedules: how the learning rate goes, as pure functions of the step.

A schedule maps (step, total) to a factor of the plan's rate. How fast it is gone through when the
time is short is decided in `pace`.
"""

import math
from collections.abc import Callable

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
