"""How fast a schedule is gone through, when the number of steps is decided while a run goes on.

A plan's schedule is a function of (step, steps). Each decision "from this step on, the end is at
that total" stretches or compresses what is left of it, so the rate always reaches its end with the
last step. The journal holds the decisions: the rate of a step is the same when a run goes on.
"""

from collections.abc import Callable

from autoseg.documents.plan import Training
from autoseg.learn.schedules import SCHEDULES, warmed


class Pace:
    """Where in the plan's schedule each step is; begins as the plan says, without any decision."""

    def __init__(self, planned: int) -> None:
        self.planned = planned
        self.knots: list[tuple[int, float, int]] = [(0, 0.0, planned)]

    @property
    def total(self) -> int:
        """The step at which the run ends, as decided now."""
        return self.knots[-1][2]

    def at(self, step: int) -> float:
        """The place of `step` in the plan's schedule, 0 to `planned`."""
        start, place, total = next(k for k in reversed(self.knots) if k[0] <= step)
        share = min(1.0, (step - start) / max(1, total - start))
        return place + share * (self.planned - place)

    def decide(self, step: int, total: int) -> None:
        """From `step` on, let the run end at `total`. Raises ValueError if that is not ahead."""
        if total <= step and step > 0:
            raise ValueError(f"a run at step {step} cannot end at {total}")
        self.knots.append((step, self.at(step), total))


def paced_rate(train: Training, pace: Pace) -> Callable[[int], float]:
    """The learning rate of each step: the plan's schedule, gone through at this pace."""
    schedule = warmed(SCHEDULES[train.schedule], round(train.warmup_share * train.steps))
    return lambda step: train.lr * schedule(pace.at(step), train.steps)
