"""Within a time, a card trains what the time holds: checked by counts and speeds of steps by hand."""

from math import prod
from typing import Any

import pytest

from autoseg.documents.plan import Configuration, Plan
from autoseg.rules.planner import make_plan
from autoseg.rules.recipe import STEP_SHARE
from autoseg.rules.timed import LEAST_USEFUL, LONG, MOST_MEASURED
from autoseg.rules.world import Ask, Device
from tests.rules.made import bytes_of, fingerprint, operations_of

DATA = fingerprint(shape=(200, 180, 170), spacing_mm=(1.0, 1.0, 1.0), cases=60)


class Timer:
    """Seconds of a step by its operations, and which steps were measured."""

    def __init__(self, teraflops: float) -> None:
        self.teraflops = teraflops
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, network: Any, patch_vox: tuple[int, ...], batch: int) -> float:
        self.asked.append((patch_vox, batch))
        return 0.004 + 6 * batch * operations_of(network, patch_vox) / (self.teraflops * 1e12)


def planned(minutes: float | None, timer: Timer | None, **given: Any) -> Plan:
    card = "NVIDIA GeForce RTX 3090" if timer else ""
    device = Device(8.0, "given", bytes_of, operations_of, timer, card=card)
    return make_plan(DATA, Ask(minutes=minutes, device=device, **given))


def seconds(timer: Timer, c: Configuration) -> float:
    return timer(c.network, c.patch_vox, c.train.batch_size)


def test_a_time_that_holds_the_full_schedule_changes_nothing() -> None:
    timer = Timer(20.0)
    plain, timed = planned(None, timer), planned(1e6, timer)
    for name, found in timed.configurations.items():
        wanted = plain.configurations[name]
        assert found.train == wanted.train
        assert (found.patch_vox, found.network) == (wanted.patch_vox, wanted.network)


def test_a_time_that_holds_most_of_it_ends_the_same_schedule_earlier() -> None:
    timer = Timer(20.0)
    plain = planned(None, timer).configurations["3d_fullres"]
    minutes = 1.3 * LONG * seconds(timer, plain) / 60 / STEP_SHARE
    found = planned(minutes, timer).configurations["3d_fullres"]
    assert found.patch_vox == plain.patch_vox
    assert found.train.optimiser == plain.train.optimiser == "sgd"
    assert found.train.schedule == "poly"
    assert found.train.steps == pytest.approx(1.3 * LONG, rel=0.001)
    assert 0 < found.train.warmup_share < 0.02


@pytest.mark.parametrize("minutes", [3.0, 10.0, 40.0, 200.0])
@pytest.mark.parametrize("teraflops", [4.0, 20.0, 100.0])
def test_a_short_time_is_filled_with_enough_steps_of_nothing_larger(
    minutes: float, teraflops: float
) -> None:
    timer = Timer(teraflops)
    plain = planned(None, timer)
    timer.asked.clear()
    plan = planned(minutes, timer)
    assert len(timer.asked) <= (MOST_MEASURED + 1) * len(plan.configurations)
    for name, found in plan.configurations.items():
        # on a shorter patch, a low resolution may be worth it that was not
        before = plain.configurations.get(name, plain.configurations["3d_fullres"])
        took = seconds(timer, found)
        assert took * found.train.steps <= 1.02 * minutes * 60 * STEP_SHARE
        assert (
            found.train.steps >= LEAST_USEFUL
            or took > 0.9 * minutes * 60 * STEP_SHARE / LEAST_USEFUL
        )
        assert took <= seconds(timer, before)
        assert found.train.batch_size <= before.train.batch_size
        if name == "3d_fullres":
            assert prod(found.patch_vox) <= prod(before.patch_vox)
        if found.train.steps < LONG:
            assert (found.train.optimiser, found.train.schedule) == ("muon", "cosine")
            assert found.train.warmup_share > 0 and found.train.ema_share > 0
        assert found.cost is not None
        assert found.cost.step_s == pytest.approx(took, rel=0.1)


def test_the_rate_belongs_to_the_batch() -> None:
    timer = Timer(20.0)
    rates = {}
    for batch in (2, 4, 8, 32):
        plan = planned(1.0, timer, pins={"2d.batch_size": batch})
        rates[batch] = plan.configurations["2d"].train.lr
        assert plan.configurations["2d"].train.batch_size == batch
    assert rates[2] == 0.02
    assert rates[4] == pytest.approx(0.02 * 2**0.5, abs=1e-4)
    assert rates[8] == rates[32] == 0.04


def test_without_the_card_seconds_are_estimated_and_it_says_so() -> None:
    plan = planned(10.0, None)
    found = plan.configurations["3d_fullres"]
    assert found.train.steps >= LEAST_USEFUL
    assert "10 minutes hold" in plan.why["configurations.3d_fullres.train.steps"]


def test_what_is_pinned_stays() -> None:
    timer = Timer(1.0)
    pins = {"3d_fullres.patch_vox": [96, 96, 96], "3d_fullres.batch_size": 3, "width": 32}
    found = planned(5.0, timer, pins=pins).configurations["3d_fullres"]
    assert (found.patch_vox, found.train.batch_size) == ((96, 96, 96), 3)
    assert found.network.widths[0] == 32
    pinned = planned(5.0, timer, pins={"steps": 777}).configurations["3d_fullres"]
    assert pinned.train.steps == 777


def test_the_authors_optimiser_is_kept() -> None:
    timer = Timer(20.0)
    found = planned(10.0, timer, network="mednext_s").configurations["3d_fullres"]
    assert found.train.optimiser == "adamw"
    assert (
        found.train.lr
        == planned(None, timer, network="mednext_s").configurations["3d_fullres"].train.lr
    )
    assert found.train.warmup_share > 0


def test_nnunets_planner_knows_no_time() -> None:
    timer = Timer(20.0)
    timed, plain = (planned(m, timer, planner="nnunet") for m in (10.0, None))
    for name in plain.configurations:
        assert timed.configurations[name].train == plain.configurations[name].train
