"""The loss against a naive one in float64, and its written-out gradient against autograd."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.documents.labels import IGNORE, parse_labels
from autoseg.documents.plan import Training
from autoseg.documents.presets.table import network_spec
from autoseg.learn.losses import Loss, deeply, dice_bce, dice_ce, downsampled, loss_of
from autoseg.learn.optimisers import optimiser
from autoseg.nets.cost import training_bytes

MEMBERS = np.array([[0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0]], bool)
"""A whole, a part of it, and what overlaps the whole alone."""


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


def naive_regions(
    logits: Tensor, labels: Tensor, batch_dice: bool, ignore: int | None = None
) -> Tensor:
    """Binary cross-entropy minus soft Dice, region by region and voxel list by voxel list."""
    keep = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    entropies, dices = [], []
    for r, row in enumerate(MEMBERS):
        truth = torch.isin(labels, torch.tensor(np.flatnonzero(row))).to(logits.dtype)
        prob = logits[:, r].sigmoid()
        each = -(truth * prob.log() + (1 - truth) * (1 - prob).log())
        entropies.append(each[keep].mean())
        groups = [slice(None)] if batch_dice else range(len(labels))
        for b in groups:
            p, t = prob[b][keep[b]], truth[b][keep[b]]
            dices.append((2 * (p * t).sum() + 1e-5) / ((p + t).sum() + 1e-5))
    return torch.stack(entropies).mean() - torch.stack(dices).mean()


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
    assert value.item() == 0
    assert torch.equal(grad, torch.zeros_like(grad))


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


@pytest.mark.parametrize("ignore", [None, IGNORE])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_regions_equal_the_naive_loss_and_its_gradient(recipe, shape, batch_dice, ignore):
    logits, labels = cloud(*shape)
    logits = logits.detach()[:, :3].requires_grad_()
    if ignore is not None:
        labels[:, ::2] = ignore
        labels[1, 1] = ignore
    loss = dice_bce(recipe.model_copy(update={"batch_dice": batch_dice}), MEMBERS, ignore)
    want = naive_regions(logits, labels, batch_dice, ignore)
    (want_grad,) = torch.autograd.grad(want, logits)
    got = loss(logits, labels)
    (got_grad,) = torch.autograd.grad(got, logits)
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    assert torch.allclose(got_grad, want_grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_is_that_of_finite_differences(recipe, regional, layout):
    torch.manual_seed(2)
    logits = torch.randn(2, 3, 3, 2, dtype=torch.float64).to(memory_format=layout)
    labels = torch.randint(0, 3, (2, 3, 2))
    labels[0, 1] = IGNORE
    loss = dice_bce(recipe, MEMBERS[:, :3], IGNORE) if regional else dice_ce(recipe, IGNORE)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


def test_ignored_voxels_change_neither_loss_nor_gradient(recipe):
    """What stands in them, and how many there are, is nothing to any loss on any level."""
    torch.manual_seed(3)
    labels = torch.randint(0, 3, (2, 4, 8, 8))
    labels[:, 1::2] = IGNORE
    for loss in (dice_ce(recipe, IGNORE), dice_bce(recipe, MEMBERS[:, :3], IGNORE)):
        logits = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).requires_grad_()
        other = logits.detach().clone()
        other[:, :, 1::2] = 1e3
        half = loss(logits.detach()[:, :, ::2], labels[:, ::2]).item()
        value = loss(logits, labels)
        assert value.item() == pytest.approx(half, rel=1e-12)
        assert loss(other, labels).item() == pytest.approx(half, rel=1e-12)
        (grad,) = torch.autograd.grad(value, logits)
        assert not grad[:, :, 1::2].any()
        assert grad[:, :, ::2].any()


def test_regions_without_a_labelled_voxel_give_no_gradient(recipe):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    deep = deeply(dice_bce(recipe, MEMBERS, IGNORE), (0.7, 0.3))
    value = deep([logits, logits[..., ::2, ::2]], torch.full((2, 4, 4), IGNORE))
    (grad,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_ignored_slices_stay_ignored_on_coarser_grids(recipe):
    labels = torch.full((1, 4, 4, 4), IGNORE)
    labels[:, 3] = 1
    assert downsampled(labels, (2, 2, 2)).unique().tolist() == [IGNORE, 1]
    assert downsampled(labels, (2, 2, 2))[0, 1].unique().tolist() == [1]


def test_confident_and_wrong_regions_stay_finite(recipe):
    logits = torch.tensor([[[-1e4, 1e4]], [[-1e4, 1e4]], [[1e4, 1e4]]])[None].requires_grad_()
    value = dice_bce(recipe, MEMBERS)(logits, torch.tensor([[[3, 0]]]))
    value.backward()
    # 6 of 6 answers are wrong, each by 1e4
    assert value.item() == pytest.approx(1e4, rel=1e-4)
    assert torch.isfinite(logits.grad).all()


def test_regions_in_low_precision_are_computed_in_float32(recipe):
    logits, labels = cloud(6, 5)
    low = logits.detach()[:, :3].bfloat16().requires_grad_()
    value = dice_bce(recipe, MEMBERS)(low, labels)
    want = naive_regions(low.detach().double(), labels, batch_dice=False)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(want.item(), rel=1e-5)
    value.backward()
    assert low.grad.dtype == torch.bfloat16


def test_region_weights_scale_the_parts(recipe):
    logits, labels = cloud(6, 5)
    logits = logits.detach()[:, :3]

    def weighed(dice: float, entropy: float) -> float:
        weights = {"dice_weight": dice, "ce_weight": entropy}
        return dice_bce(recipe.model_copy(update=weights), MEMBERS)(logits, labels).item()

    assert -1 < weighed(1, 0) < 0 < weighed(0, 1)
    assert weighed(0.5, 2.0) == pytest.approx(0.5 * weighed(1, 0) + 2 * weighed(0, 1))


def test_the_labels_of_a_dataset_choose_the_loss(recipe):
    logits, labels = cloud(6, 5)
    logits, labels = logits.detach(), labels.clone()
    declared = {"background": 0, "whole": [1, 2, 3], "part": [2, 3], "other": 1}
    order = [3, 2, 1]
    names = {"background": 0, "a": 1, "b": 2, "c": 3}
    classes, regions = parse_labels(names), parse_labels(declared, order)
    assert loss_of(recipe, classes)(logits, labels) == dice_ce(recipe)(logits, labels)
    three = logits[:, :3]
    assert loss_of(recipe, regions)(three, labels) == dice_bce(recipe, MEMBERS)(three, labels)
    labels[:, :2] = IGNORE
    classes, regions = (
        parse_labels(names | {"ignore": 4}),
        parse_labels(declared | {"ignore": 4}, order),
    )
    assert loss_of(recipe, classes)(logits, labels).item() == pytest.approx(
        naive(logits, labels, False, IGNORE).item()
    )
    assert loss_of(recipe, regions)(three, labels).item() == pytest.approx(
        naive_regions(three, labels, False, IGNORE).item()
    )


def test_regions_need_no_more_memory_than_as_many_classes():
    """So the planner may reckon every network with the loss of classes."""
    count = 24
    spec = network_spec("plain", 1, count, [16, 32], [[1] * 3, [2] * 3], [[3] * 3] * 2)
    train = Training(steps=1, batch_size=2, supervision=spec.output_weights)
    nested = np.triu(np.ones((count, count + 1), bool), 1)

    def needed(loss: Loss) -> int:
        return training_bytes(
            spec, (32, 32, 32), 2, precision="float16", loss=deeply(loss, train.supervision),
            optimiser=partial(optimiser, train),
        )  # fmt: skip

    assert needed(dice_bce(train, nested)) < 1.04 * needed(dice_ce(train))
