"""Losses: functions (logits (B, K, *S), labels (B, *S) int64) -> a scalar, computed in float32.

Here belong region and voxel losses and how they are applied to several resolutions at once. Labels
are class indices; `loss_of` chooses the loss that a dataset's labels ask for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autoseg.documents.labels import IGNORE, LabelSet
from autoseg.documents.plan import Training

Loss = Callable[[Tensor, Tensor], Tensor]
DeepLoss = Callable[[Sequence[Tensor], Tensor], Tensor]


class DiceCrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy minus weighted soft Dice, with its gradient written out.

    With p = softmax(logits), I_k the sum of p_k where the label is k, P_k the sum of p_k and G_k
    the number of voxels of class k, over one sample or the whole batch:
    Dice_k = (2 I_k + smooth) / (P_k + G_k + smooth), averaged over the classes but background (and
    over the samples). Only p is kept for the backward pass: no one-hot labels, no second softmax.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        valid: Tensor | None,
        weights: tuple[float, float],
        smooth: float,
        batch_dice: bool,
    ) -> Tensor:
        exact = logits if logits.dtype == torch.float64 else logits.float()
        classes, space = exact.shape[1], tuple(range(2, exact.ndim))
        over = (0, *space) if batch_dice else space
        index = labels.unsqueeze(1)
        p = exact.log_softmax(1)
        at_label = p.gather(1, index)
        count = labels.numel() if valid is None else valid.sum(dtype=p.dtype).clamp(min=1)
        entropy = -(at_label if valid is None else at_label * valid).sum() / count
        p, at_label = p.exp_(), at_label.exp_()
        if valid is not None:
            p *= valid
            at_label *= valid
        overlap, size = p.new_empty(_sums(p, over)), p.new_empty(_sums(p, over))
        for k in range(classes):  # one class at a time: no array of all classes is made
            here = index == k
            overlap[..., k] = torch.where(here, at_label, 0).sum(over)[..., 0]
            here = here if valid is None else here & valid
            # a sum of booleans makes a copy in the type that it counts in: half as wide as usual
            size[..., k] = here.sum(over, dtype=torch.int32)[..., 0]
        predicted = p.sum(over)
        below = predicted + size + smooth
        dice = (2 * overlap + smooth) / below
        share = weights[0] / dice[..., 1:].numel()
        for_overlap, for_predicted = -2 * share / below, share * dice / below
        for_overlap[..., 0] = for_predicted[..., 0] = 0
        ctx.save_for_backward(p, at_label, labels, valid, for_overlap, for_predicted)
        ctx.entropy_share, ctx.dtype = weights[1] / count, logits.dtype
        return weights[1] * entropy - weights[0] * dice[..., 1:].mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, at_label, labels, valid, for_overlap, for_predicted = ctx.saved_tensors
        index = labels.unsqueeze(1)
        per_class = for_predicted.reshape(-1, p.shape[1], *[1] * (p.ndim - 2))
        if for_overlap.ndim == 1:
            weighted = for_overlap[index]
        else:
            weighted = for_overlap.gather(1, index.flatten(1)).view_as(index)
        weighted = weighted * at_label
        mean = (p * per_class).sum(1, keepdim=True) + weighted
        out = p * (per_class + ctx.entropy_share).sub(mean)
        extra = weighted - ctx.entropy_share
        if valid is not None:
            extra = extra * valid
        out.scatter_add_(1, index, extra)
        return (out.mul_(grad)).to(ctx.dtype), None, None, None, None, None


class DiceBinaryCrossEntropy(torch.autograd.Function):
    """Weighted binary cross-entropy minus weighted soft Dice, with its gradient written out.

    With p_r = sigmoid(logits_r) and `inside` (B, R, *S) whether a voxel belongs to region r; Dice as
    in `DiceCrossEntropy`, averaged over all regions. Autograd's own way keeps as many numbers again,
    which told in a step's memory where there are many regions; here p and `inside` are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        inside: Tensor,
        valid: Tensor | None,
        weights: tuple[float, float],
        smooth: float,
        batch_dice: bool,
    ) -> Tensor:
        exact = logits if logits.dtype == torch.float64 else logits.float()
        over = (0,) * batch_dice + tuple(range(2, exact.ndim))
        # the entropy of each voxel grows with how wrong its logit is
        each = functional.softplus(torch.where(inside, -exact, exact))
        entropy = (each if valid is None else each.mul_(valid)).sum()
        del each
        p = exact.sigmoid()
        del exact
        count = p.new_full((), inside.numel())
        if valid is not None:
            count = valid.sum(dtype=p.dtype).mul(p.shape[1]).clamp(min=1)
            p *= valid  # and so no gradient below
            inside = inside & valid
        overlap = torch.where(inside, p, 0).sum(over)
        below = p.sum(over) + inside.sum(over, dtype=torch.int32) + smooth
        dice = (2 * overlap + smooth) / below
        share = weights[0] / dice.numel()
        ctx.save_for_backward(p, inside, -2 * share / below, share * dice / below)
        ctx.entropy_share, ctx.dtype = weights[1] / count, logits.dtype
        return weights[1] * entropy / count - weights[0] * dice.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, inside, for_overlap, for_predicted = ctx.saved_tensors
        wide = (-1, p.shape[1], *[1] * (p.ndim - 2))
        missed = (for_overlap + for_predicted).reshape(wide)
        out = torch.where(inside, missed, for_predicted.reshape(wide))
        # in place, and with one array beside it at a time
        out.mul_(1 - p).add_(ctx.entropy_share).mul_(p)
        out.sub_(inside * ctx.entropy_share)
        return (out.mul_(grad)).to(ctx.dtype), None, None, None, None, None


def _sums(p: Tensor, over: Sequence[int]) -> tuple[int, ...]:
    return (p.shape[1],) if 0 in over else (p.shape[0], p.shape[1])


def dice_ce(train: Training, ignore: int | None = None) -> Loss:
    """nnU-Net's loss with the weights of a plan: cross-entropy minus soft Dice of the foreground.

    Voxels labelled `ignore` count nowhere; where nothing else is, the loss is 0. Dice is per
    sample, or of the whole batch as one volume where `batch_dice`. A class that is absent and not
    predicted scores 1, by the smoothing term.
    """
    weights = (train.dice_weight, train.ce_weight)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        valid = None
        if ignore is not None:
            kept = labels != ignore
            labels, valid = torch.where(kept, labels, 0), kept.unsqueeze(1)
        value: Tensor = DiceCrossEntropy.apply(  # type: ignore[no-untyped-call]
            logits, labels, valid, weights, train.dice_smooth, train.batch_dice
        )
        return value if valid is None else value * valid.any()

    return loss


def dice_bce(train: Training, members: NDArray[np.bool_], ignore: int | None = None) -> Loss:
    """nnU-Net's loss of regions: binary cross-entropy minus soft Dice, both of every region.

    `members` (R, classes) says which classes belong to a region; logits are (B, R, *S). The
    entropy is the mean over voxels and regions. The rest is as in `dice_ce`.
    """
    weights = (train.dice_weight, train.ce_weight)
    regions = [np.flatnonzero(row).tolist() for row in members]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        inside = memberships(labels, regions, like=logits)
        valid = None if ignore is None else (labels != ignore).unsqueeze(1)
        value: Tensor = DiceBinaryCrossEntropy.apply(  # type: ignore[no-untyped-call]
            logits, inside, valid, weights, train.dice_smooth, train.batch_dice
        )
        return value if valid is None else value * valid.any()

    return loss


def memberships(labels: Tensor, regions: Sequence[Sequence[int]], *, like: Tensor) -> Tensor:
    """(B, R, *S) whether the class of each voxel of (B, *S) belongs to each region.

    `regions` are class indices; the answer lies in memory as `like`, a tensor of its shape.
    """
    found = torch.zeros_like(like, dtype=torch.bool)
    for k in sorted({k for classes in regions for k in classes}):
        here = labels == k
        for r, classes in enumerate(regions):
            if k in classes:
                found[:, r] |= here
    return found


def loss_of(train: Training, labels: LabelSet) -> Loss:
    """The loss for the labels of a dataset: of its regions where it has some, else of its classes."""
    ignore = None if labels.ignore is None else IGNORE
    if labels.regions:
        return dice_bce(train, labels.members, ignore)
    return dice_ce(train, ignore)


def downsampled(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels (B, *S) on a coarser grid: the voxel nearest to each centre, the upper one of two.

    Raises ValueError unless the grid is coarser by whole numbers.
    """
    fine = labels.shape[1:]
    if any(n % m for n, m in zip(fine, shape, strict=True)):
        raise ValueError(f"a grid of {tuple(fine)} is no multiple of {tuple(shape)}")
    steps = [n // m for n, m in zip(fine, shape, strict=True)]
    return labels[(slice(None), *(slice(s // 2, None, s) for s in steps))]


def deeply(loss: Loss, weights: Sequence[float]) -> DeepLoss:
    """`loss` summed over resolutions, finest first, with the labels brought to each grid.

    Levels of weight zero are left out.
    """

    def total(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        parts = [
            weight * loss(level, downsampled(labels, level.shape[2:]))
            for level, weight in zip(logits, weights, strict=True)
            if weight
        ]
        return torch.stack(parts).sum()

    return total
