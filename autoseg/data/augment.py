"""Augmentation: `draw` says what happens to a sample, `apply` does it to a batch.

`apply` is deterministic, the same code on a card and on a processor, and works on the device where
the samples are. On a processor its sums depend on the number of threads, so it runs within
`one_thread()`; the result is then the same in any process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoseg.data.augment_draw import UNCHANGED, SampleParameters, draw, needed_box
from autoseg.data.augment_intensity import change_intensities
from autoseg.data.augment_space import sample_images, sample_labels, source_places
from autoseg.documents.labels import OUTSIDE

__all__ = ["UNCHANGED", "Sample", "SampleParameters", "apply", "draw", "needed_box", "one_thread"]


@dataclass(frozen=True, eq=False)
class Sample:
    """What was read for one sample: the patch, or the box that its rotation and scaling need.

    `shift` is the box's start relative to the patch's start, in voxels.
    """

    image: Tensor
    """(C, *box) float32"""
    labels: Tensor
    """(*box) integers, -1 outside the case, -2 where nobody labelled"""
    shift: tuple[int, ...]
    previous: Tensor | None = None
    """(*box) class indices of a cascade's earlier stage, 0 outside the case"""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one processor thread inside the block, on as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def apply(
    samples: Sequence[Sample],
    parameters: Sequence[SampleParameters],
    patch_vox: Sequence[int],
    masked_channels: Sequence[int] = (),
    previous_classes: int = 0,
) -> tuple[Tensor, Tensor]:
    """(images (B, C, *patch) float32, labels (B, *patch) int64 with background where -1 was).

    `masked_channels` were normalised within the mask: they are 0 wherever the label is -1. Of a
    cascade with `previous_classes`, the images have one more channel for each of these classes, 1
    where the earlier stage saw it and 0 elsewhere: placed as the labels are, otherwise unchanged.
    """
    if previous_classes and any(s.previous is None for s in samples):
        raise ValueError("a sample lacks the label map of the earlier stage")
    images, maps = _placed(samples, parameters, tuple(patch_vox), bool(previous_classes))
    labels = maps[:, 0]
    change_intensities(images, parameters)
    if masked_channels:
        outside = labels == OUTSIDE
        for channel in masked_channels:
            images[:, channel].masked_fill_(outside, 0.0)
    if previous_classes:
        images = torch.cat([images, _one_hot(maps[:, 1], previous_classes)], dim=1)
    for sample, p in enumerate(parameters):
        if p.mirror:
            axes = [axis - len(patch_vox) for axis in p.mirror]
            images[sample] = images[sample].flip(axes)
            labels[sample] = labels[sample].flip(axes)
    return images, labels.masked_fill_(labels == OUTSIDE, 0).to(torch.int64)


def _one_hot(previous: Tensor, classes: int) -> Tensor:
    """(B, classes, *patch) float32: a channel for each of the classes 1 … `classes`."""
    indices = torch.arange(1, classes + 1, dtype=previous.dtype, device=previous.device)
    hot = previous[:, None] == indices.view(-1, *[1] * (previous.ndim - 1))
    return hot.to(torch.float32)


def _maps(sample: Sample, cascade: bool) -> Tensor:
    """(1 or 2, *box) int16: the labels and, in a cascade, the earlier stage's label map."""
    labels = sample.labels[None].to(torch.int16)
    if not cascade or sample.previous is None:
        return labels
    # to the earlier stage background and outside are one: apart they would lose to a class between
    previous = sample.previous[None].to(torch.int16)
    return torch.cat([labels, previous.masked_fill(previous == 0, OUTSIDE)])


def _placed(
    samples: Sequence[Sample],
    parameters: Sequence[SampleParameters],
    patch: tuple[int, ...],
    cascade: bool = False,
) -> tuple[Tensor, Tensor]:
    """(images, maps (B, 1 or 2, *patch)) rotated and scaled; samples without that are copied."""
    first = samples[0].image
    images = torch.empty((len(samples), first.shape[0], *patch), device=first.device)
    maps = torch.empty((len(samples), 1 + cascade, *patch), dtype=torch.int16, device=first.device)
    moved = [i for i, p in enumerate(parameters) if p.matrix is not None]
    for i, (sample, p) in enumerate(zip(samples, parameters, strict=True)):
        if p.matrix is None:
            images[i].copy_(sample.image)
            maps[i].copy_(_maps(sample, cascade))
    # a card likes few large pieces of work, a processor small ones without padding
    for group in [moved] if first.is_cuda and moved else [[i] for i in moved]:
        images[group], maps[group] = _moved(
            [samples[i] for i in group], [parameters[i] for i in group], patch, cascade
        )
    return images, maps


def _moved(
    samples: Sequence[Sample],
    parameters: Sequence[SampleParameters],
    patch: tuple[int, ...],
    cascade: bool = False,
) -> tuple[Tensor, Tensor]:
    """(S, C, *patch) images and (S, 1 or 2, *patch) maps of samples that all have a matrix."""
    matrices = np.array([p.matrix for p in parameters], np.float64)
    still = len(patch) - matrices.shape[1]
    images, maps = _stacked(samples, cascade)
    count, channels, *box = images.shape
    shifts = np.array([s.shift[still:] for s in samples], np.float64)
    places = source_places(matrices, shifts, patch[still:], images.device)
    # axes that stay (slices in dummy 2D) become channels of the image and layers of the maps
    image = sample_images(images.view(count, -1, *box[still:]), places)
    found = sample_labels(maps.view(count, -1, *box[still:]), places)
    return image.view(count, channels, *patch), found.view(count, -1, *patch)


def _stacked(samples: Sequence[Sample], cascade: bool) -> tuple[Tensor, Tensor]:
    """(S, C, *box) images and (S, 1 or 2, *box) maps, filled up with what lies outside."""
    if len(samples) == 1:
        return samples[0].image[None], _maps(samples[0], cascade)[None]
    first = samples[0]
    box = [max(s.labels.shape[axis] for s in samples) for axis in range(first.labels.ndim)]
    device, count = first.image.device, len(samples)
    images = torch.zeros((count, first.image.shape[0], *box), device=device)
    maps = torch.full((count, 1 + cascade, *box), OUTSIDE, dtype=torch.int16, device=device)
    for image, layers, sample in zip(images, maps, samples, strict=True):
        for axis, n in enumerate(sample.labels.shape, 1):
            image, layers = image.narrow(axis, 0, n), layers.narrow(axis, 0, n)
        image.copy_(sample.image)
        layers.copy_(_maps(sample, cascade))
    return images, maps
