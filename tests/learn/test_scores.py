"""The score of fixed patches against counting voxel by voxel."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.documents.labels import IGNORE, LabelSet, parse_labels
from autoseg.learn.scores import volume_dice
from autoseg.learn.variants import Variant

CLASSES = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "whole": [1, 2], "lesion": 2}


class Saying(nn.Module):
    """A network whose logits are its input, said at two resolutions."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, image[..., ::2, ::2]]


def scored(labels: LabelSet, *batches: tuple[Tensor, Tensor]) -> float | None:
    return volume_dice(Variant(threads=1), Saying(), batches, labels, torch.device("cpu"))


def naive(labels: LabelSet, batches: list[tuple[Tensor, Tensor]]) -> float:
    """2 |A and B| / (|A| + |B|) of each structure over the labelled voxels of all batches."""
    pairs = []
    for logits, truth in batches:
        known = truth.numpy() != IGNORE
        said = np.moveaxis(logits.numpy(), 1, -1)[known]
        pairs.append((said, truth.numpy()[known]))
    said, truth = (np.concatenate(part) for part in zip(*pairs, strict=True))
    scores = []
    for r in range(labels.outputs):
        if labels.regions:
            a, b = said[:, r] > 0, np.isin(truth, labels.regions[r].classes)
        elif r == 0:
            continue
        else:
            a, b = said.argmax(-1) == r, truth == r
        scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("declared", [CLASSES, REGIONS])
def test_equals_counting_voxels(declared: dict, ignored: bool) -> None:
    torch.manual_seed(4)
    labels = parse_labels(declared | ({"ignore": 3} if ignored else {}), [1, 2])
    batches = []
    for _ in range(3):
        truth = torch.randint(0, 3, (2, 6, 6))
        if ignored:
            truth[:, ::2] = IGNORE
        batches.append((torch.randn(2, labels.outputs, 6, 6), truth))
    assert scored(labels, *batches) == pytest.approx(naive(labels, batches))


def test_nothing_labelled_has_no_score() -> None:
    truth = torch.full((1, 4, 4), IGNORE)
    for declared in (CLASSES, REGIONS):
        labels = parse_labels(declared | {"ignore": 3}, [1, 2])
        assert scored(labels, (torch.randn(1, labels.outputs, 4, 4), truth)) is None


def test_a_structure_that_is_nowhere_does_not_count() -> None:
    labels = parse_labels(REGIONS, [1, 2])
    truth = torch.tensor([[[0, 1], [1, 1]]])
    whole = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    logits = torch.stack([whole, -torch.ones(2, 2)])[None]
    assert scored(labels, (logits, truth)) == pytest.approx(2 * 2 / (2 + 3))
