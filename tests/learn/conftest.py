"""Toys to learn from: a recipe, a small network that knows dropout, batches of discs."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Training
from autoseg.documents.presets.table import network_spec


@pytest.fixture
def recipe() -> Training:
    return Training(steps=12, batch_size=2, supervision=(2 / 3, 1 / 3))


@pytest.fixture
def toy_spec() -> NetworkSpec:
    spec = network_spec(
        "plain", 1, 3, [8, 12, 16], [[1, 1], [2, 2], [2, 2]], [[3, 3]] * 3
    )  # fmt: skip
    return spec.model_copy(update={"dropout": 0.1})


def disc_batch(seed: int, step: int, size: int = 32, count: int = 2) -> tuple[Tensor, Tensor]:
    """Bright discs (class 1) and squares (class 2) in noise; a function of (seed, step)."""
    rng = np.random.default_rng((seed, step))
    y, x = np.mgrid[:size, :size]
    images, labels = [], []
    for _ in range(count):
        label = np.zeros((size, size), np.int64)
        at = rng.uniform(8, size - 8, (2, 2))
        label[np.hypot(y - at[0, 0], x - at[0, 1]) < 5] = 1
        label[np.maximum(abs(y - at[1, 0]), abs(x - at[1, 1])) < 4] = 2
        images.append(np.array([0.0, 1.5, 3.0])[label] + 0.3 * rng.standard_normal(label.shape))
        labels.append(label)
    return torch.tensor(np.array(images)[:, None], dtype=torch.float32), torch.tensor(
        np.array(labels)
    )


@pytest.fixture
def discs():
    def batches(start: int, seed: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
        step = start
        while True:
            yield disc_batch(seed, step)
            step += 1

    return batches
