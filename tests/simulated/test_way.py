"""The whole way on a simulated card, with real tensors: plan, variant, steps.

Networks are tiny and so is what the card leaves them: its memory is a little more than what the
planner keeps for the context. 16-bit numbers are computed without oneDNN, which some processors
cannot give them.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg import api
from autoseg.costs import StepTimes
from autoseg.device import CardFacts
from autoseg.documents.plan import Configuration, read_plan
from autoseg.rules.memory import usable_bytes
from autoseg.workspace import DatasetPlaces, open_workspace
from tests.card import SimulatedCards, card, simulated

SMALL = (
    "width=4", "3d_fullres.patch_vox=[16,16,16]", "2d.patch_vox=[16,16]", "steps=3",
    "train.threads=1", "train.validation_batches=1", "predict.mirror=false",
)  # fmt: skip


@contextmanager
def on(
    patch: pytest.MonkeyPatch, *cards: CardFacts, limit: int | None = None
) -> Iterator[SimulatedCards]:
    """A machine with these cards, on which a step takes 10 ms wherever the planner asks."""
    patch.setattr(StepTimes, "_on_card", lambda *_: 0.01)
    without_onednn = torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
    with simulated(patch, *cards, limit=limit) as found, without_onednn:
        yield found


def planned(root: Path, network: str, *more: str, device: str = "cuda") -> Configuration:
    api.plan_and_preprocess(
        "1", root=root, network=network, set=(*SMALL, *more), configuration=("3d_fullres",),
        device=device, workers=1,
    )  # fmt: skip
    return configuration(root)


def places(root: Path) -> DatasetPlaces:
    return open_workspace(root).dataset("1")


def configuration(root: Path) -> Configuration:
    return read_plan(places(root).plan("default")).configuration("3d_fullres")


def train(root: Path, **rest: Any) -> None:
    api.train("1", "3d_fullres", ("0",), root=root, workers=0, compile="off", **rest)


def journal(root: Path) -> list[dict[str, Any]]:
    (path,) = root.glob("results/*/default/3d_fullres/*/fold_0/journal.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_card_trains_in_its_precision_within_its_memory(
    tmp_path: Path, phantoms: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    phantoms(tmp_path)
    small = card(1.75)
    with on(monkeypatch, small):
        made = planned(tmp_path, "plain")
    assert made.train.precision == "bfloat16"
    with on(monkeypatch, small, limit=int(usable_bytes(1.75)) + (8 << 20)) as cards:
        train(tmp_path, device="cuda")
        assert cards.memory is not None and cards.memory.refused == 0
    (variant,) = [e for e in journal(tmp_path) if e["event"] == "variant"]
    assert variant["precision"] == "bfloat16"
    timed = {t["precision"] for t in variant.get("timings", [])}
    assert timed <= {"bfloat16"}


def test_the_second_card_is_planned_for_and_waited_for(
    tmp_path: Path, phantoms: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    phantoms(tmp_path)
    with on(monkeypatch, card(80, name="first"), card(1.75, name="second")) as cards:
        planned(tmp_path, "plain", device="cuda:1")
        assert read_plan(places(tmp_path).plan("default")).gpu_memory_gb == 1.75
        cards.waited.clear()
        train(tmp_path, device="cuda:1")
        assert set(cards.waited) == {1}
        assert cards.chosen == 1
    assert "second" in str([e.get("machine") for e in journal(tmp_path) if e["event"] == "variant"])
