"""What a fold costs: operations against a count by hand, seconds from where they may come."""

from math import inf
from typing import Any

import pytest

from autoseg.documents.plan import Configuration
from autoseg.documents.presets.table import network_spec
from autoseg.rules.operations import plain_operations
from autoseg.rules.planner import make_plan
from autoseg.rules.throughput import DATASHEETS, EPOCH_TIMES, TYPICAL, throughput_of
from autoseg.rules.work import fold_told, is_measured, total_told
from autoseg.rules.world import Ask, Device
from tests.rules.made import CARD, bytes_of, fingerprint, operations_of


def on_card(**given: Any) -> Device:
    return Device(8.0, "the card that is there", bytes_of, operations_of, **given)


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX A6000", "RTX A6000"),
    ],
)
def test_a_card_is_known_by_the_longest_name_in_its_own(card: str, name: str) -> None:
    found, wanted = throughput_of(card), throughput_of(name)
    assert found.tflops == wanted.tflops
    assert card in found.source and found.source.startswith("estimated")
    assert "unknown" not in found.source


def test_an_unknown_card_is_taken_for_a_typical_one() -> None:
    for card in ("", "Voodoo 2"):
        found = throughput_of(card)
        assert found.tflops == throughput_of(TYPICAL).tflops
        assert "unknown kind" in found.source


@pytest.mark.parametrize("card", sorted(EPOCH_TIMES))
def test_the_rule_for_other_cards_says_what_the_epoch_times_say(card: str) -> None:
    """Within 15 %, of the bandwidths of those cards' datasheets."""
    bandwidth = {
        "A100": 1555, "V100": 900, "Quadro RTX 6000": 672, "TITAN RTX": 672, "RTX 2080 Ti": 616,
    }[card]  # fmt: skip
    assert 0.023 * bandwidth == pytest.approx(EPOCH_TIMES[card], rel=0.15)
    assert not set(EPOCH_TIMES) & set(DATASHEETS)


def test_the_epoch_times_are_those_of_nnunets_plans() -> None:
    """128³ in a batch of 2, as for Liver: 41.49 s an epoch on an A100 are near its throughput."""
    three = ((3, 3, 3),) * 6
    strides = ((1, 1, 1), *((2, 2, 2),) * 5)
    network = network_spec("plain", 1, 3, (32, 64, 128, 256, 320, 320), strides, three)
    forward = plain_operations(network, (128, 128, 128))
    assert forward is not None
    flop = 2 * 2 * forward * (250 * 3 + 50)
    assert flop / 41.49 / 1e12 == pytest.approx(EPOCH_TIMES["A100"], rel=0.1)


def made(device: Device, **pins: Any) -> Configuration:
    return make_plan(fingerprint(), Ask(device=device, pins=pins)).configurations["3d_fullres"]


def test_operations_of_a_step_and_of_a_fold() -> None:
    found = made(on_card())
    assert found.cost is not None
    forward = operations_of(found.network, found.patch_vox)
    work = 3 * forward * found.train.batch_size
    assert found.cost.multiply_adds == work
    assert found.cost.exaflop == pytest.approx(2 * work * found.train.steps / 1e18)
    assert found.cost.step_bytes == round(
        bytes_of(found.network, found.patch_vox, found.train.batch_size)
    )
    twice = made(on_card(), **{"network.recompute": True})
    assert twice.cost is not None
    again = operations_of(twice.network, twice.patch_vox) * twice.train.batch_size
    assert twice.cost.multiply_adds == 4 * again


def test_seconds_are_measured_where_the_card_is_there_else_estimated() -> None:
    asked = []

    def seconds(network: Any, patch: tuple[int, ...], batch: int) -> float:
        asked.append((patch, batch))
        return 0.25

    found = made(on_card(card="RTX 3070", seconds_of=seconds))
    assert found.cost is not None and is_measured(found.cost)
    assert (found.cost.step_s, found.cost.source) == (0.25, "measured on RTX 3070")
    assert (found.patch_vox, found.train.batch_size) in asked
    # ten batches are scored each 250 steps, going forward only
    hours = found.train.steps * 0.25 * (1 + 10 / 250 / 3) / 3600
    assert found.cost.hours_per_fold == pytest.approx(hours)
    for device in (on_card(card="RTX 3070"), on_card(card="RTX 3070", seconds_of=lambda *_: inf)):
        guess = made(device).cost
        assert guess is not None and not is_measured(guess)
        rate = throughput_of("RTX 3070").tflops * 1e12
        assert guess.step_s == pytest.approx(2 * guess.multiply_adds / rate)
    full = made(on_card(card="RTX 3070"), **{"train.precision": "float32"}).cost
    assert full is not None and "in float32" in full.source


def test_what_nobody_can_count_has_no_cost() -> None:
    plan = make_plan(fingerprint(), Ask(device=CARD))
    assert plan.configurations["2d"].cost is None
    assert "cost" not in plan.configurations["2d"].dump()
    assert total_told(plan) == ""


def test_cores_tell_theirs() -> None:
    cores = Device(None, "no card is there", operations_of=operations_of)
    timed = Device(None, "no card is there", seconds_of=lambda *_: 0.5, operations_of=operations_of)
    guess, measured = (
        make_plan(fingerprint(), Ask(device=d, minutes=10.0)).configurations["2d"].cost
        for d in (cores, timed)
    )
    assert guess is not None and measured is not None
    assert "estimated for cores" in guess.source and guess.step_bytes is None
    assert measured.source == "measured on the cores of this machine"
    assert measured.hours_per_fold == pytest.approx(10 / 60, rel=0.2)


def test_all_folds_together() -> None:
    plan = make_plan(fingerprint(), Ask(device=on_card()))
    costs = [c.cost for c in plan.configurations.values()]
    total = sum(c.hours_per_fold for c in costs if c is not None)
    assert f"about {5 * total:.0f} h of training in all: 5 folds of 2 conf" in total_told(plan)
    one = plan.configurations["2d"].cost
    assert one is not None
    assert "(estimate)" in fold_told(one)
    assert f"3 folds of 1 configuration {'(estimate)'}" in total_told(plan, ["2d"], 3)
