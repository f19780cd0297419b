"""Entropy and variance against scipy and numpy, and one number a case by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as scipys

from autoseg.infer.uncertainty import NEGLIGIBLE, Score, entropy, fold_variance


def shares(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_entropy_of_classes_is_scipys_to_the_base_of_their_number(classes):
    p = shares(classes, 3, 4, 5)
    p = p / p.sum(0)
    want = scipys(p.double().numpy(), base=classes, axis=0)
    got = entropy(p, regional=False)
    assert got.shape == (3, 4, 5) and got.dtype == torch.float32
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_entropy_of_regions_is_the_mean_of_each_and_its_complement():
    p = shares(3, 3, 4, 5)
    pairs = torch.stack([p, 1 - p]).double().numpy()
    want = scipys(pairs, base=2, axis=0).mean(0)
    np.testing.assert_allclose(entropy(p, regional=True), want, atol=1e-6)


def test_the_ends_of_the_scale_are_exact():
    sure = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1, 1)
    assert entropy(sure, regional=False).item() == entropy(sure, regional=True).item() == 0
    assert entropy(torch.full((7, 1, 1, 1), 1 / 7), regional=False).item() == pytest.approx(1)
    assert entropy(torch.full((7, 1, 1, 1), 0.5), regional=True).item() == 1


def test_variance_is_numpys_over_folds_and_its_mean_over_outputs():
    p = shares(5, 3, 2, 4, 6)
    want = np.var(p.double().numpy(), axis=0).mean(0)
    np.testing.assert_allclose(fold_variance(p), want, atol=1e-7)
    assert not fold_variance(p[:1]).any()
    split = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1)
    assert fold_variance(split).item() == 0.25


def test_a_case_is_scored_where_something_is_or_may_be():
    found = torch.tensor([0.0, 0.9 * NEGLIGIBLE, 0.5, 0.02, 0.4]).view(1, 1, 5)
    classes = torch.tensor([0, 0, 0, 1, 2], dtype=torch.int16).view(1, 1, 5)
    score = Score()
    score.add(found, classes)
    assert score.value == pytest.approx((0.5 + 0.02 + 0.4) / 3)
    score = Score()
    score.add(found, torch.zeros_like(classes))
    assert score.value == pytest.approx((0.5 + 0.4) / 2)


def test_certain_background_scores_zero():
    score = Score()
    assert score.value == 0
    score.add(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.int16))
    assert score.value == 0


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_chunks_do_not_change_the_score(sizes):
    found, classes = shares(12, 5, 6), (shares(12, 5, 6) > 0.6).to(torch.int16)
    whole, parts = Score(), Score()
    whole.add(found, classes)
    at = 0
    for size in [*sizes, 12]:
        parts.add(found[at : at + size], classes[at : at + size])
        at += size
    assert parts.voxels == whole.voxels
    assert parts.value == pytest.approx(whole.value, rel=1e-9)
