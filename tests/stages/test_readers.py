"""How many processes read patches for a card: never more than the memory holds items of."""

from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.data.augment import draw, needed_box
from autoseg.data.batches import BatchSpec, item_bytes
from autoseg.stages import train
from autoseg.stages.train import _workers
from tests.card import card, simulated
from tests.stages.tiny_model import configuration

CPU = torch.device("cpu")


def spec() -> Any:
    return SimpleNamespace(configuration=configuration())


def test_an_item_is_as_large_as_what_is_read_for_a_step() -> None:
    made = configuration()
    what, channels = BatchSpec.of(made), made.network.in_channels
    sizes = [
        sum(
            prod(
                needed_box(
                    draw(what.augmentation, what.patch_vox, channels, 7, step, j), what.patch_vox
                )[1]
            )
            for j in range(what.batch_size)
        )
        for step in range(1, 200)
    ]
    # an image of half floats and labels of one byte
    assert item_bytes(what, channels) == pytest.approx(
        np.mean(sizes) * (2 * channels + 1), rel=0.15
    )


@pytest.mark.parametrize(("items", "readers"), [(10**6, 8), (31, 5), (6.5, 1), (0, 1)])
def test_readers_on_a_card_are_limited_by_the_memory(
    items: float, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the memory is for items: two that are ready and one that is read, for each reader."""
    made = configuration()
    item = item_bytes(BatchSpec.of(made), made.network.in_channels)
    monkeypatch.setattr(train, "cores", lambda: 16)
    monkeypatch.setattr(train, "free_bytes", lambda: int(items * item))
    with simulated(monkeypatch, card(8)):
        assert _workers(None, CPU, spec()) == readers
        assert _workers(3, CPU, spec()) == 3
        monkeypatch.setattr(train, "cores", lambda: 2)
        assert _workers(None, CPU, spec()) == 1


def test_on_cores_nobody_reads_beside_the_training() -> None:
    assert _workers(None, CPU, spec()) == 0
