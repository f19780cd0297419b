"""A plan for a card: which card, how much of it, in which precision, and what is said of it."""

import logging
from typing import Any

import pytest

from autoseg.costs import StepBytes
from autoseg.documents.plan import Plan
from autoseg.documents.presets.table import network_spec
from autoseg.errors import AutosegError
from autoseg.rules.memory import GB, usable_bytes
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask
from autoseg.stages.plan import Request, device_for
from tests.card import TURING, card, simulated
from tests.rules.made import CARD, CORES, fingerprint

SMALL = {"width": 8, "patch_vox": [16, 32, 32]}


def planned(request: Request, device: str | None = None) -> Plan:
    """The plan of a made-up dataset, for the device that is there."""
    found = device_for(request, device)
    ask = Ask(planner=request.planner, pins=request.pins, device=found)
    return make_plan(fingerprint(), ask)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_the_card_that_is_named_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(monkeypatch, card(8, name="small"), card(24, TURING, name="large")):
        first, second = (device_for(Request(), d) for d in (None, "cuda:1"))
        assert (first.memory_gb, first.card, first.precision) == (8, "small", "bfloat16")
        assert (second.memory_gb, second.card, second.precision) == (24, "large", "float16")
        assert device_for(Request(), "cuda").card == "small"
        assert device_for(Request(), "cpu").memory_gb is None
        with pytest.raises(AutosegError, match=r"there are 2 cards.*--gpu-memory"):
            device_for(Request(), "cuda:2")


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(AutosegError, match=r"--device cuda.*--gpu-memory plans for a card"):
        device_for(Request(), "cuda")
    assert device_for(Request(gpu_memory_gb=24.0), "cuda").memory_gb == 24
    with pytest.raises(AutosegError, match="'tpu' is unknown"):
        device_for(Request(gpu_memory_gb=24.0), "tpu")


@pytest.mark.parametrize(
    ("capability", "precision", "told"),
    [((8, 6), "bfloat16", "no scaling"), (TURING, "float16", "older than Ampere")],
)
def test_the_cards_precision_stands_in_the_plan(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str, told: str
) -> None:
    with simulated(monkeypatch, card(8, capability, "the card")):
        for planner in ("autoseg", "nnunet"):
            plan = planned(Request(planner=planner, pins=SMALL if planner == "autoseg" else {}))
            for name, made in plan.configurations.items():
                assert made.train.precision == precision
                assert told in plan.why[f"configurations.{name}.train.precision"]


def test_without_a_card_to_ask_it_is_bfloat16_and_on_cores_it_is_timed() -> None:
    plan = make_plan(fingerprint(), Ask(device=CARD))
    assert plan.configurations["2d"].train.precision == "bfloat16"
    assert "older one takes float16" in plan.why["configurations.2d.train.precision"]
    assert (
        make_plan(fingerprint(), Ask(device=CORES)).configurations["2d"].train.precision == "auto"
    )


def test_a_pinned_precision_is_counted_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are those of the precision that stands in the plan, whichever that is."""
    counted = []

    def counting(**given: Any) -> int:
        counted.append(given["precision"])
        return 2**30

    monkeypatch.setattr("autoseg.nets.cost.training_bytes", lambda *_, **given: counting(**given))
    for pins in ({}, {"train.precision": "float32"}):
        counted.clear()
        with simulated(monkeypatch, card(8, TURING)):
            plan = planned(Request(pins=SMALL | pins))
        assert set(counted) == {plan.configurations["2d"].train.precision}
    assert counted[0] == "float32"
    assert plan.why["configurations.2d.train.precision"] == "pinned by you"


@pytest.mark.parametrize("name", ["plain", "swin_unetr", "umamba_bot"])
def test_both_16_bit_floats_take_equal_bytes(name: str) -> None:
    strides = ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2))
    network = network_spec(name, 1, 2, (32, 64, 128, 256, 512), strides, ((3, 3),) * 5)
    sixteen, other = (StepBytes(precision=p)(network, (64, 64), 2) for p in ("bfloat16", "float16"))
    assert sixteen == other


def test_the_widest_precision_that_is_pinned_counts_and_the_authors_optimiser() -> None:
    network = network_spec("plain", 1, 2, (32, 64), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    pins = {"3d_fullres.train.precision": "float32", "2d.train.precision": "bfloat16"}
    turned = dict(reversed(pins.items()))
    wide = StepBytes({"train.precision": "float32"})(network, (32, 32), 2)
    assert StepBytes(pins)(network, (32, 32), 2) == StepBytes(turned)(network, (32, 32), 2) == wide
    adamw = StepBytes({"train.optimiser": "adamw"})(network, (32, 32), 2)
    assert StepBytes(recipe={"optimiser": "adamw"})(network, (32, 32), 2) == adamw
    assert adamw > StepBytes()(network, (32, 32), 2)


def test_memory_far_above_the_cards_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with simulated(monkeypatch, card(8, name="RTX 3070")):
        assert device_for(Request(gpu_memory_gb=24.0), None).memory_gb == 24
    (line,) = said(caplog)
    assert "--gpu-memory 24 is far above the 8.0 GB of RTX 3070" in line
    caplog.clear()
    with simulated(monkeypatch, card(23.6)):
        device_for(Request(gpu_memory_gb=24.0), None)
    assert said(caplog) == []


def test_a_card_that_others_use_is_said_with_how_much(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The plan is for the whole card all the same; planned for what is left, nothing is said."""
    with simulated(monkeypatch, card(8, name="RTX 3070"), taken=4 * GB):
        assert device_for(Request(), None).memory_gb == 8
        (line,) = said(caplog)
        assert "only 4.0 of the 8.0 GB of RTX 3070 are free" in line
        assert line.endswith("--gpu-memory 4")
        caplog.clear()
        device_for(Request(gpu_memory_gb=4.0), None)
    slack = 8 * GB - int(usable_bytes(8))
    with simulated(monkeypatch, card(8), taken=slack - GB // 10):
        device_for(Request(), None)
    assert said(caplog) == []
