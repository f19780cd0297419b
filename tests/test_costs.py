"""Seconds of steps: on which device, in which precision, and what happens without room."""

import logging
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import pytest

from autoseg import costs
from autoseg.costs import StepTimes, labels_for, timed_step_on_card, training_of
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.presets.table import network_spec
from autoseg.stages.plan import Request, current_plan, device_for, times_on
from autoseg.workspace import open_workspace
from tests.card import FULL, TURING, card, simulated
from tests.rules.made import fingerprint

SMALL = network_spec("plain", 1, 2, (4, 8), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
PATCH = (16, 16)
LABELS = labels_for(SMALL)


class Inline:
    """A child process that is none: what is submitted runs at once, or fails as it is told."""

    def __init__(self, *_: object) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def submit(self, do: Callable[..., float], *given: Any) -> "Future[float]":
        self.calls.append((do.__name__, *given))
        answer: Future[float] = Future()
        if self.error is not None:
            answer.set_exception(self.error)
        else:
            answer.set_result(0.125)
        return answer

    def shutdown(self, **_: object) -> None:
        pass


def test_a_step_is_timed_on_a_card_or_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    train = training_of(SMALL, 2, {}, {"optimiser": "adamw", "lr": 1e-3})
    with simulated(monkeypatch, card(8), card(8), limit=2**26) as cards:
        seconds = timed_step_on_card(SMALL, PATCH, train, LABELS, "cuda:1", "float32")
        assert isfinite(seconds) and seconds > 0
        assert set(cards.waited) == {1}
    with simulated(monkeypatch, card(8), limit=2**14) as cards:
        assert timed_step_on_card(SMALL, PATCH, train, LABELS, "cuda", "float32") == inf
        assert cards.memory is not None and cards.memory.refused == 2


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_card_may_say_in_several_ways_that_a_step_has_no_room(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> float:
        raise error

    monkeypatch.setattr("autoseg.learn.trial.seconds_per_step", full)
    train = training_of(SMALL, 2, {}, {})
    with simulated(monkeypatch, card(8)):
        assert timed_step_on_card(SMALL, PATCH, train, LABELS, "cuda", "float32") == inf


def test_the_step_that_is_timed_is_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "ProcessPoolExecutor", Inline)
    request = Request(network="primus_s", pins={"train.momentum": 0.5})
    with simulated(monkeypatch, card(8), card(24, TURING)):
        times = times_on(request, device_for(request, "cuda:1"))
    with times:
        assert times(SMALL, PATCH, 2) == times(SMALL, PATCH, 2) == 0.125
    assert isinstance(times.pool, Inline)
    ((name, network, patch, train, _, device, precision),) = times.pool.calls
    assert (name, network, patch) == ("timed_step_on_card", SMALL, PATCH)
    assert (device, precision) == ("cuda:1", "float16")
    assert (train.optimiser, train.momentum, train.batch_size) == ("adamw", 0.5, 2)
    with StepTimes("cuda", "bfloat16", {"train.precision": "float32"}) as pinned:
        pinned(SMALL, PATCH, 2)
        assert isinstance(pinned.pool, Inline)
        assert pinned.pool.calls[0][-1] == "float32"


def test_a_card_that_cannot_time_leaves_the_plan_an_estimate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(costs, "ProcessPoolExecutor", Inline)
    with StepTimes("cuda") as times:
        times.pool = Inline()  # type: ignore[assignment]
        times.pool.error = BrokenExecutor("the child died\nsomewhere")
        assert times(SMALL, PATCH, 2) == inf
        assert times.pool is None
        assert times(SMALL, PATCH, 3) == 0.125
    (line,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert line == "a step could not be timed on cuda: the child died"


def test_a_plan_for_the_card_that_is_there_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(costs, "ProcessPoolExecutor", Inline)
    measured: Fingerprint = fingerprint()
    (tmp_path / "raw" / measured.dataset).mkdir(parents=True)
    places = open_workspace(tmp_path).places(measured.dataset)
    pins = {"width": 8, "2d.patch_vox": [32, 32], "3d_fullres.patch_vox": [8, 32, 32]}
    request = Request(pins=pins)
    with simulated(monkeypatch, card(8, name="RTX 3070")):
        here = current_plan(places, measured, "here", request)
        larger = replace(request, gpu_memory_gb=24.0)
        elsewhere = current_plan(places, measured, "elsewhere", larger)
    sources = [
        [c.cost.source for c in plan.configurations.values() if c.cost is not None]
        for plan in (here, elsewhere)
    ]
    assert set(sources[0]) == {"measured on RTX 3070"}
    assert all("unknown kind" in source for source in sources[1])
