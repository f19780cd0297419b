"""What logits mean: against numpy for classes, by hand for regions."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from autoseg.documents.labels import parse_labels
from autoseg.infer.meaning import certain_background, highest, painted, probabilities

CLASSES = parse_labels({"background": 0, "kidney": 1, "tumour": 4})
REGIONS = parse_labels(
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, order=[1, 2, 3]
)


def column(*scores):
    """Scores of voxels in a row (K, 1, 1, N), written voxel by voxel."""
    return torch.tensor(scores, dtype=torch.float32).T[:, None, None]


def test_certain_background_is_exactly_background():
    for labels, regional in ((CLASSES, False), (REGIONS, True)):
        outside = column(certain_background(labels))
        shares = probabilities(outside, regional=regional).flatten().tolist()
        assert shares == ([0.0, 0.0, 0.0] if regional else [1.0, 0.0, 0.0])
        assert painted(outside, labels, of="logits").item() == 0
        halved = (outside + column((0.0, 0.0, 0.0))) / 2
        assert painted(halved, labels, of="logits").item() == 0


def test_probabilities_are_scipys_with_and_without_folds():
    logits = 4 * torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    got = probabilities(logits, regional=False)
    np.testing.assert_allclose(got, softmax(logits.double().numpy(), 1), atol=1e-6)
    np.testing.assert_allclose(got[1], probabilities(logits[1], regional=False), atol=1e-7)
    got = probabilities(logits, regional=True)
    np.testing.assert_allclose(got, expit(logits.double().numpy()), atol=1e-6)


def test_the_highest_class_is_numpys_argmax_also_at_ties():
    scores = torch.randint(0, 4, (5, 6, 7, 8), generator=torch.Generator().manual_seed(0)).float()
    assert (scores == scores.amax(0)).sum() > scores[0].numel()
    got = highest(scores)
    assert got.dtype == torch.int16
    np.testing.assert_array_equal(got, scores.numpy().argmax(0))
    assert highest(column((-torch.inf,) * 3)).item() == 0


def test_logits_and_probabilities_are_painted_alike():
    logits = 3 * torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for labels, regional in ((CLASSES, False), (REGIONS, True)):
        want = painted(logits, labels, of="logits")
        shares = probabilities(logits, regional=regional)
        assert torch.equal(painted(shares, labels, of="probabilities"), want)
        assert set(want.unique().tolist()) == set(range(labels.count))


def test_a_region_holds_above_one_half_of_what_float32_can_tell():
    logits = torch.linspace(-3e-7, 3e-7, 6001).expand(3, 1, 1, -1)
    want = painted(logits.sigmoid(), REGIONS, of="probabilities")
    assert torch.equal(painted(logits, REGIONS, of="logits"), want)
    above = int((want == 0).sum())
    assert 0 < logits[0, 0, 0, above - 1] < 9e-8 and want[0, 0, above] == 3


def test_regions_are_painted_in_their_order_where_over_one_half():
    shares = column(
        (0.9, 0.1, 0.1),  # whole
        (0.9, 0.8, 0.1),  # core over whole
        (0.9, 0.8, 0.6),  # all three
        (0.5, 0.5, 0.5),  # one half is not over one half
        (0.2, 0.1, 0.9),  # a later region needs no earlier one
        (0.1, 0.9, 0.4),
    )
    assert painted(shares, REGIONS, of="probabilities").flatten().tolist() == [1, 2, 3, 0, 3, 2]
    turned = REGIONS.model_copy(update={"regions": REGIONS.regions[::-1]})
    got = painted(shares.flip(0), turned, of="probabilities").flatten().tolist()
    assert got == [1, 1, 1, 0, 3, 2]


def test_other_counts_than_the_labels_have_are_misuse():
    with pytest.raises(ValueError, match="4 scores a voxel, the labels have 3 outputs"):
        painted(torch.zeros(4, 1, 1, 1), REGIONS, of="logits")
