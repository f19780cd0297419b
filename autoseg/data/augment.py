"""Augmentation: `draw` says what happens to a sample, `apply` does it to a batch.

`apply` is deterministic and works on the device where the samples are; only the placing is written
twice, for a processor in `augment_rows` and for a card in `augment_space`, where nothing makes the
processor wait. On a processor its sums depend on the number of threads, so it runs within
`one_thread()`; the result is then the same in any process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.data.augment_draw import UNCHANGED, SampleParameters, draw, needed_box
from autoseg.data.augment_intensity import change_intensities
from autoseg.data.augment_memory import blank, kept
from autoseg.data.augment_rows import moved_here
from autoseg.data.augment_space import offset_of, sample_images, sample_labels, source_places
from autoseg.documents.labels import OUTSIDE

__all__ = ["UNCHANGED", "Sample", "SampleParameters", "apply", "draw", "needed_box", "one_thread"]


@dataclass(frozen=True, eq=False)
class Sample:
    """What was read for one sample: the patch, or the box that its rotation and scaling need.

    Tensors, or on a processor arrays, which may be views of a case: they are only read. `shift` is
    the box's start relative to the patch's start, in voxels.
    """

    image: Tensor | NDArray[np.float32] | NDArray[np.float16]
    """(C, *box) float32, or half floats as they were stored"""
    labels: Tensor | NDArray[Any]
    """(*box) integers, -1 outside the case, -2 where nobody labelled"""
    shift: tuple[int, ...]
    previous: Tensor | NDArray[Any] | None = None
    """(*box) class indices of a cascade's earlier stage, 0 outside the case"""

    @property
    def device(self) -> torch.device:
        return self.image.device if isinstance(self.image, Tensor) else torch.device("cpu")


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
    outside = _equal(labels, OUTSIDE)
    if outside is not None:
        for layer in (*(images[:, channel] for channel in masked_channels), labels):
            _clear(layer, outside)
    if previous_classes:
        images = torch.cat([images, _one_hot(maps[:, 1], previous_classes)], dim=1)
    return images, blank(labels.shape, np.int64, labels.device).copy_(labels)


def _equal(x: Tensor, value: int) -> Tensor | None:
    """Where `x` has the value; None if a processor sees that nothing has: a card is not asked."""
    if x.device.type != "cpu":
        return x == value
    # of bytes NumPy compares many more at once than torch
    found = x.numpy() == value
    return torch.from_numpy(found) if found.any() else None


def _clear(x: Tensor, where: Tensor) -> None:
    """Let `x` be 0 there."""
    if x.device.type == "cpu":
        np.copyto(x.numpy(), 0, where=where.numpy())
    else:
        x.masked_fill_(where, 0)


def _one_hot(previous: Tensor, classes: int) -> Tensor:
    """(B, classes, *patch) float32: a channel for each of the classes 1 … `classes`."""
    indices = torch.arange(1, classes + 1, dtype=previous.dtype, device=previous.device)
    hot = previous[:, None] == indices.view(-1, *[1] * (previous.ndim - 1))
    return hot.to(torch.float32)


def _placed(
    samples: Sequence[Sample],
    parameters: Sequence[SampleParameters],
    patch: tuple[int, ...],
    cascade: bool = False,
) -> tuple[Tensor, Tensor]:
    """(images, maps (B, 1 or 2, *patch)) rotated, scaled and mirrored; the rest is copied."""
    device = samples[0].device
    # a byte a voxel where that is enough: the processor compares 64 of them at once
    small = not cascade and all(s.labels.dtype in (torch.int8, np.int8) for s in samples)
    images = blank((len(samples), samples[0].image.shape[0], *patch), np.float32, device)
    maps = blank((len(samples), 1 + cascade, *patch), np.int8 if small else np.int16, device)
    if device.type == "cpu":
        for sample, p, image, layers in zip(samples, parameters, images, maps, strict=True):
            _place_here(sample, p, image.numpy(), layers.numpy())
    else:
        _place_there(samples, parameters, images, maps)
    return images, maps


def _place_there(
    samples: Sequence[Sample], parameters: Sequence[SampleParameters], images: Tensor, maps: Tensor
) -> None:
    """Fill (B, C, *patch) and (B, 1 or 2, *patch) on a card."""
    patch, cascade = tuple(images.shape[2:]), maps.shape[1] == 2
    moved = [i for i, p in enumerate(parameters) if p.matrix is not None]
    for i, (sample, p) in enumerate(zip(samples, parameters, strict=True)):
        if p.matrix is None:
            images[i].copy_(_flipped(torch.as_tensor(sample.image), p, patch))
            maps[i].copy_(_flipped(_maps(sample, cascade), p, patch))
    if moved:
        # a card likes few large pieces of work
        found = _moved([samples[i] for i in moved], [parameters[i] for i in moved], patch, cascade)
        for i, image, layers in zip(moved, *found, strict=True):
            images[i].copy_(image)
            maps[i].copy_(layers)


def _maps(sample: Sample, cascade: bool) -> Tensor:
    """(1 or 2, *box) int16: the labels and, in a cascade, the earlier stage's label map."""
    labels = torch.as_tensor(sample.labels)[None].to(torch.int16)
    if not cascade or sample.previous is None:
        return labels
    # to the earlier stage background and outside are one: apart they would lose to a class between
    previous = torch.as_tensor(sample.previous)[None].to(torch.int16)
    return torch.cat([labels, previous.masked_fill(previous == 0, OUTSIDE)])


def _flipped(x: Tensor, p: SampleParameters, patch: tuple[int, ...]) -> Tensor:
    """A view or copy of `x` (layers, *box) mirrored along the axes that `p.matrix` leaves alone."""
    still = len(patch) - (0 if p.matrix is None else len(p.matrix))
    axes = [axis + 1 for axis in p.mirror if axis < still]
    return x.flip(axes) if axes else x


def _matrix_of(p: SampleParameters, patch: tuple[int, ...]) -> NDArray[np.float64]:
    """The matrix of a sample that has one, with its mirroring: what is mirrored runs backwards."""
    matrix = np.array(p.matrix, np.float64)
    still = len(patch) - len(matrix)
    for axis in p.mirror:
        if axis >= still:
            matrix[:, axis - still] *= -1
    return matrix


def _place_here(
    sample: Sample, p: SampleParameters, into: NDArray[np.float32], maps_into: NDArray[Any]
) -> None:
    """Fill (C, *patch) and (1 or 2, *patch) of one sample on the processor."""
    patch = into.shape[1:]
    still = len(patch) - (0 if p.matrix is None else len(p.matrix))
    # backwards in the source itself: a mirrored patch costs one copy, as any other
    back = tuple(
        slice(None, None, -1 if a in p.mirror and a < still else 1) for a in range(len(patch))
    )
    source = _float32(sample.image)[(slice(None), *back)]
    maps = [np.asarray(sample.labels)[back]]
    if len(maps_into) == 2:
        previous = np.asarray(sample.previous)[back]
        # to the earlier stage background and outside are one, as in `_maps`
        maps.append(np.where(previous == 0, OUTSIDE, previous).astype(maps_into.dtype))
    if p.matrix is None:
        into[...] = source
        for layer, target in zip(maps, maps_into, strict=True):
            target[...] = layer
        return
    matrix, moving = _matrix_of(p, patch), patch[still:]
    moved_here(
        # axes that stay (slices in dummy 2D) become layers
        source.reshape(-1, *source.shape[1 + still :]),
        [layer for one in maps for layer in one.reshape(-1, *one.shape[still:])],
        matrix,
        offset_of(matrix, np.array(sample.shift[still:], np.float64), moving),
        into.reshape(-1, *moving),
        maps_into.reshape(-1, *moving),
    )


def _float32(image: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    """The image as float32: itself, or in memory that the next sample writes over."""
    if np.asarray(image).dtype == np.float32:
        return np.asarray(image)
    whole = kept("float32", image.shape, np.float32)
    # torch converts half floats many times as fast as NumPy
    torch.from_numpy(whole).copy_(torch.as_tensor(image))
    return whole


def _moved(
    samples: Sequence[Sample],
    parameters: Sequence[SampleParameters],
    patch: tuple[int, ...],
    cascade: bool = False,
) -> tuple[Tensor, Tensor]:
    """(S, C, *patch) images and (S, 1 or 2, *patch) maps of samples that all have a matrix."""
    matrices = np.stack([_matrix_of(p, patch) for p in parameters])
    still = len(patch) - matrices.shape[1]
    images, maps = _stacked(samples, parameters, cascade)
    count, channels, *box = images.shape
    shifts = np.array([s.shift[still:] for s in samples], np.float64)
    places = source_places(matrices, shifts, patch[still:], images.device)
    # axes that stay (slices in dummy 2D) become channels of the image and layers of the maps
    image = sample_images(images.view(count, -1, *box[still:]), places)
    found = sample_labels(maps.view(count, -1, *box[still:]), places)
    return image.view(count, channels, *patch), found.view(count, -1, *patch)


def _stacked(
    samples: Sequence[Sample], parameters: Sequence[SampleParameters], cascade: bool
) -> tuple[Tensor, Tensor]:
    """(S, C, *box) images and (S, 1 or 2, *box) maps, filled up with what lies outside."""
    first = samples[0]
    box = [max(s.labels.shape[axis] for s in samples) for axis in range(first.labels.ndim)]
    device, count = first.device, len(samples)
    images = torch.zeros((count, first.image.shape[0], *box), device=device)
    maps = torch.full((count, 1 + cascade, *box), OUTSIDE, dtype=torch.int16, device=device)
    for image, layers, sample, p in zip(images, maps, samples, parameters, strict=True):
        for axis, n in enumerate(sample.labels.shape, 1):
            image, layers = image.narrow(axis, 0, n), layers.narrow(axis, 0, n)
        image.copy_(_flipped(torch.as_tensor(sample.image), p, tuple(sample.labels.shape)))
        layers.copy_(_flipped(_maps(sample, cascade), p, tuple(sample.labels.shape)))
    return images, maps
