"""What happens beside the steps of a run: history, scores, saving, the deadline, signals.

The loop calls `Watch.after_step`. Whatever a step's numbers depend on (the pace) is written to the
journal before it is used; the rest may come at any time without changing a weight.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from autoseg.device import is_card
from autoseg.documents.plan import Training
from autoseg.documents.run import append_line
from autoseg.learn.loop import CHECK_EVERY_ON_CARD, diverged, weights_finite
from autoseg.learn.pace import Pace, paced_rate
from autoseg.learn.patches import PatchSchedule
from autoseg.learn.saving import Writer
from autoseg.learn.scores import smoothed_scores
from autoseg.learn.state import Run, state_of
from autoseg.timing import part
from autoseg.workspace import Fold

DECIDE_EVERY_S = 10.0
SLACK = 0.01
"""A new estimate of the steps left is acted upon if it differs by more than this."""
SAFETY_S = 4.0


@dataclass
class Clock:
    """The time that a run may take, counted over all its processes; None is without end."""

    began: float
    spent_before: float = 0.0
    total_s: float | None = None
    reserve_s: float = 0.0

    def spent(self) -> float:
        return self.spent_before + time.monotonic() - self.began

    def left(self) -> float:
        """Seconds left for steps, the final validation set aside."""
        assert self.total_s is not None
        return self.total_s - self.spent() - self.reserve_s - SAFETY_S


@dataclass
class Watch:
    """What happens beside the steps: history, validation, saving, the deadline, signals."""

    fold: Fold
    train: Training
    clock: Clock
    pace: Pace
    score: Callable[[], float | None]
    bar: Any
    stopped: threading.Event
    unwritten: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    writer: Writer = field(default_factory=Writer)
    unsaved_s: float = 0.0
    """Seconds of steps since the last state was taken: validating and saving do not count."""
    resumed_at: float = field(default_factory=time.monotonic)
    """When the steps began or went on."""
    decided_at: float = field(default_factory=time.monotonic)
    paced: tuple[float, int] = (0.0, 0)
    patches: PatchSchedule | None = None
    """How the patch grows; None: it does not."""

    def stage_begun(self, step: int, stage: int) -> None:
        """Write down from which step on a patch of another size is shown."""
        if self.patches is not None and len(self.patches.stages) > 1:
            patch, batch = self.patches.stages[stage]
            append_line(
                self.fold.journal,
                {"event": "patch", "step": step, "patch_vox": patch, "batch_size": batch},
            )

    def after_step(self, run: Run, loss: torch.Tensor) -> bool:
        """Called by the loop after each step; False ends the loop, with all on the disk.

        Raises AutosegError where a state could not be written, at the latest at the end.
        """
        self.writer.check()
        self.unwritten.append((run.step, loss))
        if not is_card(loss.device) or len(self.unwritten) >= CHECK_EVERY_ON_CARD:
            self.write_losses()
        self.bar.update(run.step - self.bar.n)
        now = time.monotonic()
        self.unsaved_s += now - self.resumed_at
        if run.step % self.train.validate_every == 0 or run.step == self.pace.total:
            self.validate(run)
        if self.clock.total_s is not None and now - self.decided_at >= DECIDE_EVERY_S:
            self.decide(run)
        ends = self.over(run) or self.stopped.is_set()
        # a state that is due while the last is being written is taken once that is done: waiting
        # would stop the training, and a queue would hold a copy more
        due = self.unsaved_s >= self.train.save_every_s and not self.writer.writes(self.fold.last)
        if ends or due:
            self.save(run)
        if ends:
            self.writer.wait()
        self.resumed_at = time.monotonic()
        return not ends

    def write_losses(self) -> None:
        """Write the losses since the last time, read from a card at once.

        Raises TrainingDiverged for the first that is no number, before anything is made of the
        weights that it left.
        """
        if not self.unwritten:
            return
        values = torch.stack([loss for _, loss in self.unwritten]).tolist()
        for (step, _), value in zip(self.unwritten, values, strict=True):
            if not math.isfinite(value):
                lr = paced_rate(self.train, self.pace)(step - 1)
                raise diverged(step - 1, lr, f"the loss is {value}")
            append_line(self.fold.history, {"step": step, "loss": value})
        self.bar.set_postfix(loss=f"{values[-1]:.3f}", dice=self._dice())
        self.unwritten.clear()

    def _dice(self) -> str:
        last = next((s for s in reversed(self.scores) if s is not None), None)
        return "–" if last is None else f"{last:.3f}"

    def validate(self, run: Run) -> None:
        self.write_losses()
        with part("validation"):
            score = self.score()
        self.scores.append(score)
        append_line(
            self.fold.history,
            {"step": run.step, "dice": score, "lr": run.optimiser.param_groups[0]["lr"],
             "seconds": round(self.clock.spent(), 2)},
        )  # fmt: skip
        smooth = smoothed_scores(self.scores)
        if (
            smooth
            and smooth[-1] is not None
            and smooth[-1] >= max(s for s in smooth if s is not None)
        ):
            with part("saving"):
                facts = {"step": run.step, "score": smooth[-1]}
                self.writer.write(self.fold.best, run.speaker.state_dict(), facts)

    def over(self, run: Run) -> bool:
        """Whether the run is at its end; the same for a run that goes on from the state there."""
        return run.step >= self.pace.total or self.should_stop_early()

    def should_stop_early(self) -> bool:
        patience = self.train.early_stop
        smooth = [s for s in smoothed_scores(self.scores) if s is not None]
        if patience is None or len(smooth) <= patience:
            return False
        return max(smooth[-patience:]) <= max(smooth[:-patience])

    def decide(self, run: Run) -> None:
        """Fit the steps that are left to the time that is left, and write it down first."""
        now = time.monotonic()
        since, step = self.paced
        if run.step - step < 3:
            return
        seconds = (now - since) / (run.step - step)
        if self.patches is not None:
            seconds *= self.patches.seconds_ahead(run.step)
            seconds /= self.patches.seconds_behind(step, run.step)
        self.decided_at = now
        self.paced = (now, run.step)
        left = max(1, int(self.clock.left() / seconds))
        total = run.step + left
        if abs(total - self.pace.total) <= SLACK * max(1, self.pace.total - run.step):
            return
        append_line(
            self.fold.journal,
            {"event": "pace", "step": run.step, "total": total,
             "why": f"{seconds:.3f} s a step, {self.clock.left():.0f} s left for steps"},
        )  # fmt: skip
        self.pace.decide(run.step, total)
        self.bar.total = total

    def save(self, run: Run) -> None:
        """Begin to write the state, the losses up to it first: a history is cut to its state.

        The journal tells of it once the file is in place. Raises TrainingDiverged, and keeps the
        last state, where weights are no longer numbers.
        """
        self.write_losses()
        if not weights_finite(run):
            lr = run.optimiser.param_groups[0]["lr"]
            raise diverged(run.step - 1, lr, "weights are no longer numbers")
        with part("saving"):
            self.writer.write(self.fold.last, *state_of(run), then=partial(self._saved, run.step))
        self.unsaved_s = 0.0

    def _saved(self, step: int) -> None:
        append_line(
            self.fold.journal,
            {"event": "saved", "step": step, "spent_s": round(self.clock.spent(), 2)},
        )
