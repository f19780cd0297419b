"""How unsure an ensemble is: the entropy of the mean of its probabilities, whoever is the loudest."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipys

from autoseg.infer.meaning import probabilities
from autoseg.models.segment import Uncertainty

ROWS = slice(0, 1)


def one_voxel(*logits: tuple[float, ...]) -> torch.Tensor:
    """Logits (F, K, 1, 1, 1) of the folds of one member."""
    return torch.tensor(logits)[..., None, None, None]


def entropy_of(members: list[torch.Tensor]) -> float:
    found = Uncertainty((1, 1, 1))
    said = [probabilities(m, regional=False) for m in members]
    found.add(ROWS, said, torch.ones(1, 1, 1, dtype=torch.int16), False)
    assert found.folds == sum(len(m) for m in members)
    return float(found.entropy[0, 0, 0])


def test_two_folds_that_contradict_each_other_are_unsure() -> None:
    """They say 1.00 and 0.05; the mean of their logits hides it (entropy 0.016 of 0.998)."""
    folds = one_voxel((-8.0, 8.0), (1.5, -1.5))
    each = probabilities(folds, regional=False)[:, :, 0, 0, 0].numpy()
    expected = scipys(each.mean(0), base=2)
    assert expected == pytest.approx(0.998, abs=0.01)
    assert entropy_of([folds]) == pytest.approx(expected, abs=1e-5)


def test_members_count_alike_whatever_the_number_of_their_folds() -> None:
    many, single = one_voxel((3.0, 0.0), (2.0, 0.0), (4.0, 1.0)), one_voxel((0.0, 2.0))
    means = [
        probabilities(m, regional=False)[:, :, 0, 0, 0].numpy().mean(0) for m in (many, single)
    ]
    assert entropy_of([many, single]) == pytest.approx(scipys(np.mean(means, 0), base=2), abs=1e-5)
