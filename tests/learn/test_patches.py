"""Which patch a step sees follows the pace; the time that is left is reckoned with what lies ahead."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoseg.documents.plan import PatchStage, Training
from autoseg.learn.pace import Pace
from autoseg.learn.patches import PatchSchedule, in_stages, measured_seconds
from autoseg.learn.state import Run
from autoseg.learn.watch import SAFETY_S, Clock, Watch


@dataclass
class Growing:
    """As much of a configuration as a schedule reads."""

    train: Training
    patch_vox: tuple[int, ...] = (32, 32, 32)


def schedule(until: Sequence[float] = (0.25, 0.5), steps: int = 100) -> PatchSchedule:
    stages = tuple(
        PatchStage(until=u, patch_vox=(8 * (i + 1),) * 3, batch_size=2) for i, u in enumerate(until)
    )
    train = Training(steps=steps, batch_size=2, supervision=(1.0,), patch_schedule=stages)
    return PatchSchedule(Growing(train), Pace(steps))  # type: ignore[arg-type]


def test_stages_follow_each_other_and_the_own_patch_is_last() -> None:
    found = schedule()
    assert [found.index(step) for step in range(100)] == [0] * 25 + [1] * 25 + [2] * 50
    assert found.stages == [((8,) * 3, 2), ((16,) * 3, 2), ((32,) * 3, 2)]


def test_without_stages_there_is_one_patch() -> None:
    found = schedule(until=())
    assert {found.index(step) for step in range(101)} == {0}
    assert found.seconds_ahead(3) == found.seconds_behind(0, 3) == found.seconds[-1]


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(81, 400)), max_size=4))
def test_a_decision_changes_no_stage_of_a_step_before_it(
    decisions: list[tuple[int, int]],
) -> None:
    found = schedule(until=(0.1, 0.2, 0.4, 0.7))
    for step, total in sorted(decisions):
        before = [found.index(s) for s in range(step + 1)]
        found.pace.decide(step, total)
        assert [found.index(s) for s in range(step + 1)] == before
    stages = [found.index(s) for s in range(found.pace.total)]
    assert stages == sorted(stages)
    assert set(stages) >= {4}
    assert found.index(found.pace.total) == 4


@pytest.mark.parametrize("step", [0, 7, 25, 40, 50, 99])
def test_seconds_are_averages_over_the_steps(step: int) -> None:
    found = schedule()
    found.seconds = [1.0, 5.0, 8.0]
    each = [found.seconds[found.index(s)] for s in range(100)]
    assert found.seconds_ahead(step) == pytest.approx(sum(each[step:]) / (100 - step))
    if step:
        assert found.seconds_behind(step // 2, step) == pytest.approx(
            sum(each[step // 2 : step]) / (step - step // 2)
        )


@pytest.mark.parametrize("last", [30, 60, 100])
def test_a_run_goes_through_its_stages_until_it_is_to_end(last: int) -> None:
    found, begun, seen = schedule(), [], []
    run = Run(torch.nn.Identity(), None, step=10)  # type: ignore[arg-type]

    def advance(stage: int, on_step) -> None:
        goes_on = True
        while goes_on:
            seen.append(stage)
            run.step += 1
            goes_on = on_step(run, torch.zeros(()))

    in_stages(run, found, lambda run, _: run.step < last, advance, lambda *what: begun.append(what))
    assert seen == [found.index(step) for step in range(10, last)]
    assert begun == [b for b in [(10, 0), (25, 1), (50, 2)] if b[0] < last]


def test_what_is_at_its_end_or_does_not_move_ends() -> None:
    found, begun = schedule(), []
    for step in (100, 5):
        run = Run(torch.nn.Identity(), None, step=step)  # type: ignore[arg-type]
        in_stages(run, found, lambda *_: True, lambda *_: None, lambda *what: begun.append(what))
    assert begun == [(5, 0)]


def test_seconds_are_measured_once_and_anew_where_a_run_begins(tmp_path) -> None:
    found, journal = schedule(), tmp_path / "journal.jsonl"
    took = iter(range(9))
    ask = lambda again: measured_seconds(journal, found, lambda _: float(next(took)), again=again)  # noqa: E731
    assert ask(True) == [0.0, 1.0, 2.0]
    assert ask(False) == [0.0, 1.0, 2.0]
    assert ask(True) == [3.0, 4.0, 5.0]
    assert ask(False) == [3.0, 4.0, 5.0]


def test_a_deadline_reckons_with_dearer_steps_ahead(tmp_path) -> None:
    """In the first, cheap stage 10 steps took a second; the rest takes 4 and 8 times as long."""
    patches = schedule()
    patches.seconds = [0.1, 0.4, 0.8]
    now = time.monotonic()
    clock = Clock(now, total_s=20.0 + SAFETY_S)
    fold = SimpleNamespace(journal=tmp_path / "journal.jsonl")
    watch = Watch(fold, None, clock, patches.pace, None, SimpleNamespace(total=0),  # type: ignore[arg-type]
                  threading.Event(), patches=patches)  # fmt: skip
    watch.paced = (now - 1.0, 0)
    watch.decide(SimpleNamespace(step=10))  # type: ignore[arg-type]
    left = patches.pace.total - 10
    # of the schedule 15, 25 and 50 of 90 hundredths are left
    mean = (15 * 0.1 + 25 * 0.4 + 50 * 0.8) / 90
    assert left == pytest.approx(20.0 / mean, abs=1.5)
    spent = sum(patches.seconds[patches.index(s)] for s in range(10, patches.pace.total))
    assert spent == pytest.approx(20.0, rel=0.05)
