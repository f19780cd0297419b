"""How good is a network on fixed patches, while it is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoseg.documents.labels import IGNORE, LabelSet
from autoseg.learn.losses import memberships
from autoseg.learn.variants import Variant

SMOOTHING = 0.9


@torch.no_grad()
def volume_dice(
    variant: Variant,
    net: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    labels: LabelSet,
    device: torch.device,
) -> float | None:
    """nnU-Net's pseudo Dice: mean over the structures, each counted over all batches.

    Structures are the foreground classes, or the regions, whose logits are above 0 where a network
    finds them. Images (B, C, *S), labels (B, *S) class indices of any integers, a batch after another
    on the device; voxels that nobody labelled do not
    count, nor do structures that neither occur nor are predicted; None if no structure does.
    """
    hits = torch.zeros(labels.outputs, dtype=torch.int64)
    sizes = torch.zeros(labels.outputs, dtype=torch.int64)
    count = _regions_counted if labels.regions else _classes_counted
    net.eval()
    speak = variant.speaking(net)
    with variant.pinned():
        for image, truth in batches:
            # labels travel as the small integers that they are held as
            found = count(speak(image.to(device))[0], truth.to(device).long(), labels)
            hits += found[0]
            sizes += found[1]
    if not labels.regions:
        hits, sizes = hits[1:], sizes[1:]
    seen = sizes > 0
    if not bool(seen.any()):
        return None
    return float((2 * hits[seen] / sizes[seen]).mean())


def _classes_counted(logits: Tensor, truth: Tensor, labels: LabelSet) -> tuple[Tensor, Tensor]:
    """(classes,) voxels of each class in both, and in prediction plus truth."""
    predicted = logits.argmax(1)
    if labels.ignore is not None:
        known = truth != IGNORE
        predicted, truth = predicted[known], truth[known]
    truth = truth.clamp(min=0)

    def counts(classes: Tensor) -> Tensor:
        return torch.bincount(classes.flatten(), minlength=labels.count)[: labels.count].cpu()

    return counts(truth[predicted == truth]), counts(predicted) + counts(truth)


def _regions_counted(logits: Tensor, truth: Tensor, labels: LabelSet) -> tuple[Tensor, Tensor]:
    """(regions,) voxels of each region in both, and in prediction plus truth."""
    predicted, known = logits > 0, (truth != IGNORE).unsqueeze(1)
    inside = memberships(truth, [region.classes for region in labels.regions], like=logits)
    over = (0, *range(2, logits.ndim))
    both = (predicted & inside).sum(over)  # no region holds what nobody labelled
    return both.cpu(), ((predicted & known).sum(over) + inside.sum(over)).cpu()


def smoothed_scores(scores: Sequence[float | None]) -> list[float | None]:
    """The exponential moving average that the best state is chosen by, as in nnU-Net (0.9)."""
    smooth: list[float | None] = []
    last: float | None = None
    for score in scores:
        if score is not None:
            last = score if last is None else SMOOTHING * last + (1 - SMOOTHING) * score
        smooth.append(last)
    return smooth
