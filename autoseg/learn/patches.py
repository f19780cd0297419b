"""Which patch does a step of a run see, where the patch grows while a network is trained?

A stage is decided by the place of a step in the schedule, which the pace tells: a step sees the
same patch when a run goes on, and stages move with the end of a run that has to meet a deadline.
"""

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from torch import Tensor

from autoseg.documents.plan import Configuration
from autoseg.documents.run import append_line, lines
from autoseg.learn.pace import Pace
from autoseg.learn.state import Run

OnStep = Callable[[Run, Tensor], bool]
Stage = tuple[tuple[int, ...], int]
"""(patch, batch)."""


class PatchSchedule:
    """The stages of a configuration's `patch_schedule`, and then its own patch, along a pace.

    `seconds` are those of a step of each stage; until they are measured only their relations mean
    something, those of the voxels of a step.
    """

    def __init__(self, configuration: Configuration, pace: Pace) -> None:
        self.pace = pace
        train = configuration.train
        self.until = [stage.until for stage in train.patch_schedule]
        self.stages: list[Stage] = [
            (stage.patch_vox, stage.batch_size) for stage in train.patch_schedule
        ]
        self.stages.append((configuration.patch_vox, train.batch_size))
        self.seconds: Sequence[float] = [float(prod(patch) * n) for patch, n in self.stages]

    def index(self, step: int) -> int:
        """Which of `stages` the step with this number sees."""
        share = self.pace.at(step) / self.pace.planned
        return sum(share >= until for until in self.until)

    def seconds_ahead(self, step: int) -> float:
        """Of a step from `step` to the end of the run, on average."""
        share = min(self.pace.at(step) / self.pace.planned, 1 - 1e-9)
        ends = [max(end, share) for end in (*self.until, 1.0)]
        parts = zip([share, *ends[:-1]], ends, self.seconds, strict=True)
        return sum((end - start) * seconds for start, end, seconds in parts) / (1 - share)

    def seconds_behind(self, start: int, stop: int) -> float:
        """Of the steps from `start` up to, but without `stop`, on average."""
        steps = range(start, max(stop, start + 1))
        return sum(self.seconds[self.index(step)] for step in steps) / len(steps)


def in_stages(
    run: Run,
    patches: PatchSchedule,
    on_step: OnStep,
    advance: Callable[[int, OnStep], object],
    begun: Callable[[int, int], None],
) -> None:
    """Go through the stages that are left of a run, until `on_step` says to end.

    `advance` goes on in the stage with this number until what it is given says to end, which it
    does with the stage or the run. `begun` is told the step and the stage before it is used.
    """
    ended = run.step >= patches.pace.total

    def within(run: Run, loss: Tensor) -> bool:
        nonlocal ended
        ended = not on_step(run, loss)
        return not ended and patches.index(run.step) == stage

    while not ended:
        first, stage = run.step, patches.index(run.step)
        begun(first, stage)
        advance(stage, within)
        ended = ended or run.step == first


def measured_seconds(
    journal: Path, patches: PatchSchedule, measure: Callable[[Stage], float], *, again: bool
) -> list[float]:
    """Of a step of each stage, as the journal tells; or, with `again`, measured and written there."""
    known = [e["seconds"] for e in lines(journal) if e["event"] == "seconds of stages"]
    if known and not again:
        return list(known[-1])
    seconds = [measure(stage) for stage in patches.stages]
    append_line(journal, {"event": "seconds of stages", "seconds": seconds})
    return seconds
