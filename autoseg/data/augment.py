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
    """(*box) integers, -1 outside the case"""
    shift: tuple[int, ...]


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
) -> tuple[Tensor, Tensor]:
    """(images (B, C, *patch) float32, labels (B, *patch) int64 with background where -1 was).

    `masked_channels` were normalised within the mask: they are 0 wherever the label is -1.
    """
    images, labels = _placed(samples, parameters, tuple(patch_vox))
    change_intensities(images, parameters)
    if masked_channels:
        outside = labels == OUTSIDE
        for channel in masked_channels:
            images[:, channel].masked_fill_(outside, 0.0)
    for sample, p in enumerate(parameters):
        if p.mirror:
            axes = [axis - len(patch_vox) for axis in p.mirror]
            images[sample] = images[sample].flip(axes)
            labels[sample] = labels[sample].flip(axes)
    return images, labels.clamp_(min=0).to(torch.int64)


def _placed(
    samples: Sequence[Sample], parameters: Sequence[SampleParameters], patch: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The batch after rotation and scaling; samples without them are copied."""
    first = samples[0].image
    images = torch.empty((len(samples), first.shape[0], *patch), device=first.device)
    labels = torch.empty((len(samples), *patch), dtype=torch.int16, device=first.device)
    moved = [i for i, p in enumerate(parameters) if p.matrix is not None]
    for i, (sample, p) in enumerate(zip(samples, parameters, strict=True)):
        if p.matrix is None:
            images[i].copy_(sample.image)
            labels[i].copy_(sample.labels)
    # a card likes few large pieces of work, a processor small ones without padding
    for group in [moved] if first.is_cuda and moved else [[i] for i in moved]:
        image, label = _moved([samples[i] for i in group], [parameters[i] for i in group], patch)
        images[group], labels[group] = image, label
    return images, labels


def _moved(
    samples: Sequence[Sample], parameters: Sequence[SampleParameters], patch: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """(S, C, *patch) images and (S, *patch) labels of samples that all have a matrix."""
    matrices = np.array([p.matrix for p in parameters], np.float64)
    still = len(patch) - matrices.shape[1]
    images, labels = _stacked(samples)
    count, channels, *box = images.shape
    shifts = np.array([s.shift[still:] for s in samples], np.float64)
    places = source_places(matrices, shifts, patch[still:], images.device)
    # axes that stay (slices in dummy 2D) become channels of the image and layers of the labels
    image = sample_images(images.view(count, -1, *box[still:]), places)
    label = sample_labels(labels.view(count, -1, *box[still:]), places)
    return image.view(count, channels, *patch), label.view(count, *patch)


def _stacked(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(S, C, *box) images and (S, *box) labels, smaller boxes filled up with what lies outside."""
    if len(samples) == 1:
        return samples[0].image[None], samples[0].labels[None].to(torch.int16)
    first = samples[0]
    box = [max(s.labels.shape[axis] for s in samples) for axis in range(first.labels.ndim)]
    device, count = first.image.device, len(samples)
    images = torch.zeros((count, first.image.shape[0], *box), device=device)
    labels = torch.full((count, *box), OUTSIDE, dtype=torch.int16, device=device)
    for image, label, sample in zip(images, labels, samples, strict=True):
        for axis, n in enumerate(sample.labels.shape):
            image, label = image.narrow(axis + 1, 0, n), label.narrow(axis, 0, n)
        image.copy_(sample.image)
        label.copy_(sample.labels)
    return images, labels
