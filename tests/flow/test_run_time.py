"""`run --time` on a simulated card: clock and steps are stand-ins, the way through the rooms is real.

What is planned, which configurations and folds are trained and for how long is decided as it would
be; trainings then advance a clock.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from autoseg.documents.plan import Plan, read_plan
from autoseg.documents.run import lines
from autoseg.flow import make, run, shrink
from autoseg.flow.make import Job
from autoseg.rules.recipe import STEP_SHARE
from autoseg.rules.timed import LEAST_USEFUL
from autoseg.workspace import open_workspace
from tests.card import card, simulated
from tests.rules.made import bytes_of, fingerprint, operations_of

MEASURING_S, PREPARING_S, CHOOSING_S, TAIL_S = 6.0, 8.0, 20.0, 15.0
CT = {"shape": (512, 512, 430), "spacing_mm": (0.77, 0.77, 1.0), "cases": 100}


@dataclass
class Machine:
    """A card of so many TFLOP/s, and a clock that only its work moves."""

    teraflops: float
    now: float = 1000.0
    trained: list[tuple[str, str, float]] = field(default_factory=list)
    """Configuration, fold, and steps that its time held."""

    def clock(self) -> float:
        return self.now

    def step(self, network: Any, patch_vox: tuple[int, ...], batch: int) -> float:
        work = 6 * batch * operations_of(network, patch_vox)
        return 0.003 + work / (self.teraflops * 1e12)

    def times(self, *_: Any, **__: Any) -> "Times":
        return Times(self)

    def fold(self, job: Job, _: Any, __: Any, *, time_s: float | None, began: float) -> None:
        """A training that uses what it was given up to its reserve for the held-out cases."""
        if time_s is None:  # it is there already
            return
        found = read_plan(job.places.plan(job.plan)).configurations[job.configuration]
        took = self.step(found.network, found.patch_vox, found.train.batch_size)
        self.now = began + time_s - TAIL_S
        self.trained.append((job.configuration, job.fold, time_s * STEP_SHARE / took))
        job.fold_places.folder.mkdir(parents=True)
        job.fold_places.stamp.write_text("{}")

    def validation(self, job: Job, *_: Any, **__: Any) -> None:
        report = job.fold_places.validation / "report.json"
        if not report.exists():
            self.now += TAIL_S
            report.parent.mkdir(parents=True)
            report.write_text("{}")

    def passes(self, seconds: float, result: Any = None) -> Callable[..., Any]:
        def work(*_: Any, **__: Any) -> Any:
            self.now += seconds
            return result

        return work


class Times:
    """Measures steps of a machine, each of which takes a while."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.known: dict[Any, float] = {}

    def __enter__(self) -> "Times":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, network: Any, patch_vox: tuple[int, ...], batch: int) -> float:
        key = network, patch_vox, batch
        if key not in self.known:
            self.machine.now += MEASURING_S
            self.known[key] = self.machine.step(*key)
        return self.known[key]


Run = Callable[..., tuple[Plan, Machine]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a dataset within a time on a machine, and gives its plan."""

    def go(job: Job, machine: Machine, minutes: float, **given: Any) -> tuple[Plan, Machine]:
        monkeypatch.setattr(time, "monotonic", machine.clock)
        monkeypatch.setattr("autoseg.stages.plan.StepTimes", machine.times)
        monkeypatch.setattr("autoseg.stages.plan.StepBytes", lambda *_, **__: bytes_of)
        monkeypatch.setattr(shrink, "within_run", machine.fold)
        monkeypatch.setattr(make, "prepared", machine.passes(PREPARING_S))
        monkeypatch.setattr(make, "validation", machine.validation)
        monkeypatch.setattr(run, "best", machine.passes(CHOOSING_S, result="chosen"))
        monkeypatch.setattr(run, "export", machine.passes(1.0))
        with simulated(monkeypatch, card(8, name="NVIDIA GeForce RTX 3070")):
            run.run(job, total_s=minutes * 60, **given)
        return read_plan(job.places.plan(job.plan)), machine

    return go


@pytest.fixture
def ct(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A dataset that has the fingerprint of a large CT, with a cascade where nobody gives a time."""
    shutil.rmtree(tiny / "preprocessed" / "Dataset001_Phantom" / "plans")
    job = Job(open_workspace(tiny).dataset("1"))
    dataset, _ = make.fingerprint(job)
    monkeypatch.setattr(make, "fingerprint", lambda *_, **__: (dataset, fingerprint(**CT)))
    return job


@pytest.fixture
def lung(real_data: Path, tmp_path: Path) -> Job:
    """The real lung nodules, measured."""
    shutil.copytree(real_data / "Dataset005_LungNodule", tmp_path / "raw" / "Dataset005_LungNodule")
    return Job(open_workspace(tmp_path).dataset("5"), workers=1)


def check(job: Job, machine: Machine, minutes: float) -> None:
    """The deadline is held within 10 % on both sides, and each training has enough steps."""
    used = (machine.now - 1000.0) / (minutes * 60)
    assert 0.9 <= used <= 1.0
    few = [one for one in machine.trained if one[2] < LEAST_USEFUL]
    assert not few or len(machine.trained) == 1
    assert len({(name, fold) for name, fold, _ in machine.trained}) == len(machine.trained)


@pytest.mark.parametrize("teraflops", [5.0, 40.0])
@pytest.mark.parametrize("minutes", [12.0, 60.0, 600.0])
def test_a_large_ct_is_trained_as_often_as_it_can_be_trained_well(
    ct: Job, runs: Run, minutes: float, teraflops: float
) -> None:
    plan, machine = runs(ct, Machine(teraflops), minutes)
    check(ct, machine, minutes)
    names = {name for name, _, _ in machine.trained}
    assert "3d_fullres" in names
    if minutes <= 60:
        assert names == {"3d_fullres"}
    shares = fold_minutes(machine, minutes)
    assert plan.train_minutes == pytest.approx(shares, rel=0.1)
    for name in names:
        assert plan.configurations[name].train.warmup_share > 0


def fold_minutes(machine: Machine, minutes: float) -> float:
    return 0.97 * minutes / len(machine.trained)


def test_lung_nodules_within_half_an_hour(lung: Job, runs: Run) -> None:
    plan, machine = runs(lung, Machine(10.0), 30.0)
    check(lung, machine, 30.0)
    assert [fold for _, fold, _ in machine.trained] == list("01234")
    assert {name for name, _, _ in machine.trained} == {"3d_fullres"}
    found = plan.configurations["3d_fullres"].train
    assert found.steps >= LEAST_USEFUL


def test_a_slow_card_trains_fewer_folds_and_says_so_and_goes_on_so(ct: Job, runs: Run) -> None:
    _, machine = runs(ct, Machine(0.15), 30.0)
    check(ct, machine, 30.0)
    trained = len(machine.trained)
    assert 1 <= trained < 5
    ledger = run.ledger_of(ct)
    (noted,) = [e for e in lines(ledger.path) if e["event"] == "configurations"]
    assert noted["folds"] == [str(i) for i in range(trained)]
    assert f"Of 5 folds {trained}" in noted["why"]
    runs(ct, machine, 30.0)  # nothing is left to be done
    assert len(machine.trained) == trained


def test_configurations_that_are_asked_for_are_all_trained(ct: Job, runs: Run) -> None:
    _, machine = runs(ct, Machine(20.0), 30.0, configurations=("2d", "3d_fullres"))
    check(ct, machine, 30.0)
    assert {name for name, _, _ in machine.trained} == {"2d", "3d_fullres"}
