"""What happens beside the steps of a run: history, scores, saving, the deadline, signals.

The loop calls `Watch.after_step`. Whatever a step's numbers depend on (the pace) is written to the
journal before it is used; the rest may come at any time without changing a weight.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from autoseg.documents.plan import Training
from autoseg.documents.run import append_line
from autoseg.learn.pace import Pace
from autoseg.learn.scores import smoothed_scores
from autoseg.learn.state import Run, save_state
from autoseg.learn.weights import save_weights
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
    saved_at: float = field(default_factory=time.monotonic)
    decided_at: float = field(default_factory=time.monotonic)
    paced: tuple[float, int] = (0.0, 0)
    finished: bool = False

    def after_step(self, run: Run, loss: torch.Tensor) -> bool:
        """Called by the loop after each step; False ends the loop."""
        self.unwritten.append((run.step, loss))
        if loss.device.type == "cpu" or len(self.unwritten) >= 25:
            self.write_losses()
        self.bar.update(run.step - self.bar.n)
        now = time.monotonic()
        if run.step % self.train.validate_every == 0 or run.step == self.pace.total:
            self.validate(run)
        if self.clock.total_s is not None and now - self.decided_at >= DECIDE_EVERY_S:
            self.decide(run)
        self.finished = run.step >= self.pace.total or self.should_stop_early()
        if self.finished or self.stopped.is_set() or now - self.saved_at >= self.train.save_every_s:
            self.save(run)
        return not (self.finished or self.stopped.is_set())

    def write_losses(self) -> None:
        for step, loss in self.unwritten:
            append_line(self.fold.history, {"step": step, "loss": float(loss)})
        if self.unwritten:
            self.bar.set_postfix(loss=f"{float(self.unwritten[-1][1]):.3f}", dice=self._dice())
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
                save_weights(self.fold.best, run.speaker, {"step": run.step, "score": smooth[-1]})

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
        self.write_losses()
        with part("saving"):
            save_state(self.fold.last, run)
        append_line(
            self.fold.journal,
            {"event": "saved", "step": run.step, "spent_s": round(self.clock.spent(), 2)},
        )
        self.saved_at = time.monotonic()
