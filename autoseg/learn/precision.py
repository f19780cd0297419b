"""In which floats are networks computed: what was asked for, and what the device can do."""

from typing import Literal

import torch

from autoseg.device import Precision, card_facts, is_card
from autoseg.errors import AutosegError
from autoseg.learn.cores import bfloat16_works

Asked = Literal["auto", "float32", "bfloat16", "float16"]


def resolved_precision(
    asked: Asked, device: torch.device, *, explicit: bool = False
) -> tuple[Precision, str]:
    """The precision that a device computes where `asked` is wanted, and a warning or "".

    "auto" is a card's own 16 bits, and float32 on cores. Where a plan or a model was made for
    another device, the nearest that this one computes is taken and said; what a person asked for
    in this very command (`explicit`) is refused on cores that cannot compute it (AutosegError).
    """
    if is_card(device):
        return _on_card(asked, device)
    if asked == "auto" or asked == "float32":
        return "float32", ""
    if not explicit:
        return "float32", f"{asked} is for cards; on cores float32 is computed"
    refuse_impossible(device, asked)
    return asked, ""


def _on_card(asked: Asked, device: torch.device) -> tuple[Precision, str]:
    if asked == "float32":
        return "float32", ""
    facts = card_facts(device)
    if asked == "bfloat16" and facts.precision != "bfloat16":
        version = ".".join(map(str, facts.capability))
        return "float16", (
            f"{facts.name} (compute capability {version}) has no units for bfloat16, which cards "
            "have from 8.0 on; float16 is computed, in training with a scaled loss"
        )
    return (facts.precision if asked == "auto" else asked), ""


def refuse_impossible(device: torch.device, precision: Precision) -> None:
    """Raise AutosegError where a precision cannot be computed on a device."""
    if is_card(device) or precision == "float32":
        return
    if precision == "float16":
        raise AutosegError("the precision is float16, which only a card computes; choose float32")
    if not bfloat16_works():
        raise AutosegError(
            "the precision is bfloat16, which this processor cannot compute; choose float32"
        )
