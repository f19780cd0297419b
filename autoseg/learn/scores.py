"""How good is a network on fixed patches, while it is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoseg.learn.variants import Variant

SMOOTHING = 0.9


@torch.no_grad()
def volume_dice(
    variant: Variant,
    net: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    classes: int,
    device: torch.device,
) -> float | None:
    """nnU-Net's pseudo Dice: mean over the foreground classes, each counted over all batches.

    Images (B, C, *S), labels (B, *S); classes that neither occur nor are predicted do not count;
    None if no class does.
    """
    hits = torch.zeros(classes, dtype=torch.int64)
    sizes = torch.zeros(classes, dtype=torch.int64)
    net.eval()
    speak = variant.speaking(net)
    with variant.pinned():
        for image, labels in batches:
            predicted = speak(image.to(device))[0].argmax(1)
            truth = labels.to(device).clamp(min=0)
            same = torch.bincount(truth[predicted == truth], minlength=classes)
            hits += same[:classes].cpu()
            for found in (predicted, truth):
                sizes += torch.bincount(found.flatten(), minlength=classes)[:classes].cpu()
    seen = sizes[1:] > 0
    if not bool(seen.any()):
        return None
    return float((2 * hits[1:][seen] / sizes[1:][seen]).mean())


def smoothed_scores(scores: Sequence[float | None]) -> list[float | None]:
    """The exponential moving average that the best state is chosen by, as in nnU-Net (0.9)."""
    smooth: list[float | None] = []
    last: float | None = None
    for score in scores:
        if score is not None:
            last = score if last is None else SMOOTHING * last + (1 - SMOOTHING) * score
        smooth.append(last)
    return smooth
