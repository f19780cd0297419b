"""The time kept for held-out cases: no less than they were measured to take, and the deadline holds."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg.documents.labels import LabelSet
from autoseg.documents.plan import Configuration, Training
from autoseg.documents.run import RunSpec
from autoseg.learn.pace import Pace
from autoseg.learn.watch import Clock, Watch
from autoseg.models import reserve
from autoseg.workspace import Fold

CT = (200, 512, 512)
MEASURED_CPU_S = 5.0
"""Of restoring, scoring and writing such a case of an organ and its lesions on one core."""
LIVER = LabelSet(names=("background", "liver", "tumour"), values=(0, 1, 2))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def configuration(trained_root: Path) -> Configuration:
    folds = trained_root / "results" / "Dataset001_Phantom" / "default" / "3d_fullres" / "default"
    return RunSpec.read(folds / "fold_0" / "run.json").configuration


def test_a_ct_case_gets_what_it_was_measured_to_take() -> None:
    kept = reserve.cases_s([CT], LIVER, reserve.RESTORE_S, 1.0)
    assert MEASURED_CPU_S <= kept <= 2 * MEASURED_CPU_S


def test_it_grows_with_voxels_outputs_and_cases() -> None:
    def kept(scans: list[tuple[int, ...]], structures: int) -> float:
        names = ("background", *(f"structure {i}" for i in range(structures)))
        labels = LabelSet(names=names, values=tuple(range(structures + 1)))
        return reserve.cases_s(scans, labels, reserve.RESTORE_S, 1.0)

    one = kept([CT], 2)
    assert kept([CT, CT], 2) == pytest.approx(2 * one)
    assert kept([(400, 512, 512)], 2) == pytest.approx(2 * one, rel=0.02)
    # as measured for 25 outputs on 40 x 320 x 320: 1.62 s restored, 0.66 s scored
    assert kept([(40, 320, 320)], 24) >= 1.62 + 0.66 + 0.04
    assert kept([(16, 16, 16)], 2) == pytest.approx(reserve.CASE_S, abs=0.01)


def test_a_slow_core_and_a_card_are_reckoned_with(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(measured: float, on_card: bool = False) -> float:
        monkeypatch.setattr(reserve, "restoring_s", lambda *_: measured)
        monkeypatch.setattr(reserve, "is_card", lambda _: on_card)
        return reserve.reserve_s([(16, 16, 16)], [CT], configuration, 0.001, CPU)

    usual = kept(reserve.RESTORE_S)
    assert kept(2 * reserve.RESTORE_S) > 1.8 * usual - reserve.LOADING_S
    assert kept(1e-9) == kept(reserve.RESTORE_S)  # a fast trial is not relied upon
    assert kept(1e9) < 5 * usual
    assert kept(0.0, on_card=True) < usual  # a card restores, a core scores
    assert kept(0.0, on_card=True) > reserve.LOADING_S + reserve.SCORE_S * 52


def test_restoring_is_measured_on_the_device() -> None:
    assert 0 < reserve.restoring_s(LIVER, CPU) < 10


class Bar:
    n = 0

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


class Time:
    """A clock that only steps and cases move."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("slows_down", [1.0, 1.4])
def test_a_deadline_holds_with_the_cases_that_come_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slows_down: float
) -> None:
    """Ten minutes for a training with eight CT cases held out, whose steps may get slower."""
    watch_time = Time()
    monkeypatch.setattr("autoseg.learn.watch.time", watch_time)
    scans, step_s, total_s = [CT] * 8, 0.25, 600.0
    clock = Clock(began=100.0, total_s=total_s)
    clock.reserve_s = reserve.LOADING_S + reserve.cases_s(scans, LIVER, reserve.RESTORE_S, 1.0)
    train = Training(
        steps=100_000, batch_size=2, supervision=(1.0,), validate_every=10**8, save_every_s=1e9
    )
    pace = Pace(train.steps)
    pace.decide(0, int(clock.left() / step_s))
    fold = Fold(tmp_path)
    watch = Watch(fold, train, clock, pace, lambda: None, Bar(), threading.Event())
    watch.paced = (watch_time.now, 0)
    watch.decided_at = watch.saved_at = watch_time.now

    class Running:
        step = 0

    run: Any = Running()
    monkeypatch.setattr(watch, "save", lambda _: None)
    monkeypatch.setattr(watch, "validate", lambda _: None)
    while True:
        run.step += 1
        watch_time.now += step_s * (slows_down if run.step > 300 else 1.0)
        if not watch.after_step(run, torch.tensor(0.5)):
            break
    watch_time.now += MEASURED_CPU_S * len(scans)
    used = watch_time.now - 100.0
    assert 0.9 * total_s <= used <= total_s
