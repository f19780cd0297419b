"""The precision is decided once, by what was asked and what the device can do, and only layouts are tried."""

import pytest
import torch

from autoseg.device import pick_device
from autoseg.errors import AutosegError
from autoseg.learn import precision
from autoseg.learn.precision import Asked, resolved_precision
from autoseg.learn.variants import candidates
from tests.card import AMPERE, TURING, card, simulated

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "capability", "got", "told"),
    [
        ("auto", AMPERE, "bfloat16", False),
        ("auto", TURING, "float16", False),
        ("float32", AMPERE, "float32", False),
        ("float32", TURING, "float32", False),
        ("float16", AMPERE, "float16", False),
        ("bfloat16", AMPERE, "bfloat16", False),
        ("bfloat16", TURING, "float16", True),
    ],
)
def test_a_card_computes_what_it_has_units_for(
    asked: Asked, capability: tuple[int, int], got: str, told: bool, monkeypatch
) -> None:
    with simulated(monkeypatch, card(8, capability, "an old card")):
        found, warning = resolved_precision(asked, CPU)
        tried = {v.precision for v in candidates(CPU, asked)}
    assert found == got
    assert bool(warning) == told
    if told:
        assert "an old card (compute capability 7.5)" in warning and "\n" not in warning
    # float32 is never tried beside what was decided: it needs nearly twice the bytes
    assert tried == {got}


def test_on_a_card_layouts_alone_are_timed(monkeypatch) -> None:
    with simulated(monkeypatch, card(8)):
        assert [(v.layout, v.threads) for v in candidates(CPU)] == [
            ("channels_last", None), ("contiguous", None)
        ]  # fmt: skip
        assert len(candidates(CPU, "float32", "contiguous")) == 1


def test_a_plan_for_a_card_is_trained_on_cores_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_works", lambda: pytest.fail("asked a child"))
    for asked in ("bfloat16", "float16"):
        found, warning = resolved_precision(asked, CPU)
        assert found == "float32"
        assert warning == f"{asked} is for cards; on cores float32 is computed"
    assert resolved_precision("auto", CPU) == ("float32", "")
    assert resolved_precision("float32", CPU, explicit=True) == ("float32", "")


@pytest.mark.parametrize("works", [True, False])
def test_what_is_asked_for_in_the_command_is_computed_or_refused(works, monkeypatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_works", lambda: works)
    if works:
        assert resolved_precision("bfloat16", CPU, explicit=True) == ("bfloat16", "")
    else:
        with pytest.raises(AutosegError, match="this processor cannot compute"):
            resolved_precision("bfloat16", CPU, explicit=True)
    with pytest.raises(AutosegError, match="only a card computes"):
        resolved_precision("float16", CPU, explicit=True)


def test_settings_of_cards_are_made_for_cards_alone(monkeypatch) -> None:
    def settings() -> tuple[bool, str]:
        return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()

    before = settings()
    assert pick_device("cpu") == CPU
    assert settings() == before == (False, "highest")
    with simulated(monkeypatch, card(8)) as cards:
        pick_device(None)
        assert settings() == (True, "high")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert cards.prepared == 1
        pick_device("cpu")
        assert cards.prepared == 1
    assert settings() == before
