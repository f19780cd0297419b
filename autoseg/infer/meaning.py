"""What logits mean: probabilities, label maps, and what is said where no network looked.

A network has one output a class, of which one holds (softmax), or, where structures overlap, one a
region, each of which holds or not (sigmoid). Outputs are the axis before the three of space.
"""

from typing import Literal

import torch
from torch import Tensor

from autoseg.documents.labels import LabelSet

Slab = tuple[slice, Tensor]
"""Some rows of axis 0 of a volume, and what is said there (..., K, rows, Y, X)."""

CERTAIN = 1e4
"""A logit that float32 turns into exactly 0 or 1, and that can be added and averaged like others."""

EVEN = 1.5 * 2.0**-24 * (1 - 2.0**-24)
"""The highest float32 logit whose probability is not above one half, once it is float32 itself."""

OUTPUTS = -4
"""The axis of the outputs in (..., K, Z, Y, X)."""


def certain_background(labels: LabelSet) -> tuple[float, ...]:
    """One logit an output (K,) that together say: background, certainly."""
    if labels.regions:
        return (-CERTAIN,) * labels.outputs
    return (0.0, *(-CERTAIN,) * (labels.outputs - 1))


def probabilities(logits: Tensor, *, regional: bool) -> Tensor:
    """The softmax over outputs of logits (..., K, Z, Y, X), or the sigmoid of each region's."""
    return logits.sigmoid() if regional else logits.softmax(OUTPUTS)


def painted(scores: Tensor, labels: LabelSet, *, of: Literal["logits", "probabilities"]) -> Tensor:
    """Class indices (Z, Y, X), int16, of scores (K, Z, Y, X).

    The highest class holds, the lower one of equals. Regions with a probability above one half are
    painted one after the other. Raises ValueError if there is not one score an output.
    """
    if len(scores) != labels.outputs:
        raise ValueError(f"{len(scores)} scores a voxel, the labels have {labels.outputs} outputs")
    if not labels.regions:
        return highest(scores)
    limit = EVEN if of == "logits" else 0.5
    classes = torch.zeros(scores.shape[1:], dtype=torch.int16, device=scores.device)
    for score, region in zip(scores, labels.regions, strict=True):
        classes[score > limit] = region.paint
    return classes


def highest(scores: Tensor) -> Tensor:
    """The index (Z, Y, X), int16, of the highest of scores (K, Z, Y, X), the first one of equals."""
    # class by class: torch's argmax over the first axis takes four times as long, and 8 bytes a voxel
    best = scores[0].clone()
    classes = torch.zeros(best.shape, dtype=torch.int16, device=scores.device)
    for index, score in enumerate(scores[1:], 1):
        higher = (score > best).to(torch.int16).mul_(index)
        torch.maximum(classes, higher, out=classes)
        torch.maximum(best, score, out=best)
    return classes
