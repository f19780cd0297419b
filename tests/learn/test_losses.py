"""The loss against a naive one in float64, and its written-out gradient against autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.learn.losses import deeply, dice_ce, downsampled


def naive(logits: Tensor, labels: Tensor, batch_dice: bool, ignore: int | None = None) -> Tensor:
    """Cross-entropy minus soft Dice of the foreground, from one-hot arrays and masks."""
    keep = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    entropy = F.cross_entropy(logits, torch.where(keep, labels, -100))
    known = torch.where(keep, labels, 0)
    truth = F.one_hot(known, logits.shape[1]).movedim(-1, 1) * keep.unsqueeze(1)
    prob = logits.softmax(1) * keep.unsqueeze(1)
    axes = ((0,) if batch_dice else ()) + tuple(range(2, logits.ndim))
    dice = (2 * (prob * truth).sum(axes) + 1e-5) / ((prob + truth).sum(axes) + 1e-5)
    return entropy - dice[..., 1:].mean()


def cloud(*shape: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    logits = (3 * torch.randn(2, classes, *shape, dtype=torch.float64)).requires_grad_()
    return logits, torch.randint(0, classes - 1, (2, *shape))  # the last class is absent


@pytest.mark.parametrize("ignore", [None, 2])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_equals_the_naive_loss_and_its_gradient(recipe, shape, batch_dice, ignore):
    logits, labels = cloud(*shape)
    loss = dice_ce(recipe.model_copy(update={"batch_dice": batch_dice}), ignore)
    want = naive(logits, labels, batch_dice, ignore)
    (want_grad,) = torch.autograd.grad(want, logits)
    got = loss(logits, labels)
    (got_grad,) = torch.autograd.grad(got, logits)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    assert torch.allclose(got_grad, want_grad, rtol=1e-9, atol=1e-14)


def test_weights_scale_the_parts(recipe):
    logits, labels = cloud(6, 5)
    parts = {
        pair: dice_ce(recipe.model_copy(update={"dice_weight": pair[0], "ce_weight": pair[1]}))(
            logits, labels
        ).item()
        for pair in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0))
    }
    assert parts[0.0, 1.0] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert parts[0.5, 2.0] == pytest.approx(0.5 * parts[1.0, 0.0] + 2 * parts[0.0, 1.0])


def test_low_precision_is_computed_in_float32(recipe):
    logits, labels = cloud(6, 5)
    low = logits.detach().bfloat16().requires_grad_()
    value = dice_ce(recipe)(low, labels)
    want = naive(low.detach().double(), labels, batch_dice=False)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(want.item(), rel=1e-5)
    value.backward()
    assert low.grad.dtype == torch.bfloat16


def test_nothing_but_ignored_voxels_gives_no_gradient(recipe):
    logits, _ = cloud(4, 4)
    value = dice_ce(recipe, ignore=4)(logits, torch.full((2, 4, 4), 4))
    (grad,) = torch.autograd.grad(value, logits)
    assert value.item() == pytest.approx(-1)
    assert not grad.any()


def test_confident_and_wrong_stays_finite(recipe):
    logits = torch.tensor([[[[1e4]], [[-1e4]]]], requires_grad=True)
    value = dice_ce(recipe)(logits, torch.ones(1, 1, 1, dtype=torch.int64))
    value.backward()
    assert value.item() == pytest.approx(2e4, rel=1e-3)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("fine", "coarse"), [((8, 6), (4, 3)), ((9, 8), (3, 8)), ((8, 8, 4), (2, 4, 4))]
)
def test_labels_are_downsampled_to_the_nearest_voxel(fine, coarse):
    labels = torch.randint(0, 9, (2, *fine))
    want = F.interpolate(labels[:, None].double(), coarse, mode="nearest-exact")[:, 0].long()
    assert torch.equal(downsampled(labels, coarse), want)


def test_uneven_grids_are_refused():
    with pytest.raises(ValueError, match="no multiple"):
        downsampled(torch.zeros(1, 9, 9, dtype=torch.int64), (4, 9))


def test_supervision_is_a_weighted_sum(recipe):
    loss = dice_ce(recipe)
    labels = torch.randint(0, 3, (2, 8, 8))
    levels = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4), torch.full((2, 3, 2, 2), torch.nan)]
    want = 0.75 * loss(levels[0], labels) + 0.25 * loss(levels[1], downsampled(labels, (4, 4)))
    assert deeply(loss, (0.75, 0.25, 0.0))(levels, labels).item() == pytest.approx(want.item())
