"""The batches of a training run, in order, loaded here or by worker processes.

A batch depends on (seed, step) alone, so it is the same whoever loads it. On a processor the
workers augment too; for a card they only read, and the augmentation runs on the card.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.data.augment import (
    UNCHANGED,
    Sample,
    SampleParameters,
    apply,
    draw,
    needed_box,
    one_thread,
)
from autoseg.data.sampling import VALIDATION, Cases, Draw, draw_batch
from autoseg.data.store import StoredCase, read_patch
from autoseg.data.workers import Item, Loader
from autoseg.documents.plan import Augmentation, Configuration, Sampling
from autoseg.errors import AutosegError

Batch = tuple[Tensor, Tensor]
"""Images (B, C, *patch) float32 and labels (B, *patch) int64; two spatial axes for a 2D patch."""


@dataclass(frozen=True)
class BatchSpec:
    """All that a batch depends on, besides the cases and the step."""

    patch_vox: tuple[int, ...]
    batch_size: int
    sampling: Sampling
    augmentation: Augmentation
    seed: int
    masked_channels: tuple[int, ...] = ()
    """Channels that were normalised within the mask: they stay 0 outside it."""

    @classmethod
    def of(cls, configuration: Configuration) -> "BatchSpec":
        """The spec that a plan's configuration gives."""
        channels = configuration.preparation.channels
        return cls(
            patch_vox=tuple(configuration.patch_vox),
            batch_size=configuration.train.batch_size,
            sampling=configuration.sampling,
            augmentation=configuration.augmentation,
            seed=configuration.train.seed,
            masked_channels=tuple(i for i, c in enumerate(channels) if c.use_mask),
        )


@dataclass(frozen=True, eq=False)
class RawSample:
    """A sample as read from disk, with what is to be done to it; arrays, so that it can travel."""

    image: NDArray[np.float32]
    labels: NDArray[Any]
    shift: tuple[int, ...]
    parameters: SampleParameters


def read_step(cases: Cases, spec: BatchSpec, step: int) -> list[RawSample]:
    """The samples of one step before augmentation. Raises AutosegError naming a faulty case."""
    draws = draw_batch(cases, spec.patch_vox, spec.batch_size, spec.sampling, spec.seed, step)
    samples = []
    for j, drawn in enumerate(draws):
        case = cases[drawn.case]
        parameters = draw(spec.augmentation, spec.patch_vox, case.channels, spec.seed, step, j)
        samples.append(_read(case, drawn, spec.patch_vox, parameters))
    return samples


def _read(
    case: StoredCase, drawn: Draw, patch_vox: Sequence[int], parameters: SampleParameters
) -> RawSample:
    flat = 3 - len(patch_vox)
    shift, size = needed_box(parameters, patch_vox)
    moved = 0 if parameters.matrix is None else len(parameters.matrix)
    lower, box = [], []
    for axis, (start, n) in enumerate(zip((0,) * flat + shift, (1,) * flat + size, strict=True)):
        first = drawn.lower[axis] + start
        last = first + n
        if axis >= 3 - moved:
            # beyond the border all is 0 and -1 anyway: reading it would only cost memory
            first = min(max(first, 0), case.shape[axis] - 1)
            last = max(min(last, case.shape[axis]), first + 1)
        lower.append(first)
        box.append(last - first)
    start_read = tuple(f - low for f, low in zip(lower, drawn.lower, strict=True))[flat:]
    try:
        image, labels = read_patch(case, lower, box)
    except (OSError, ValueError) as error:
        raise AutosegError(
            f"{case.name}: a patch cannot be read ({error}); run preprocess again"
        ) from error
    if flat:
        image, labels = image[:, 0], labels[0]
    return RawSample(image, labels, start_read, parameters)


def packed(samples: Sequence[RawSample]) -> Item:
    """The samples as two long tensors and what is needed to part them: two transfers, not many."""
    return {
        "images": torch.cat([torch.from_numpy(s.image).reshape(-1) for s in samples]),
        "labels": torch.cat([torch.from_numpy(s.labels).reshape(-1) for s in samples]),
        "boxes": [s.labels.shape for s in samples],
        "shifts": [s.shift for s in samples],
        "parameters": [s.parameters for s in samples],
    }


def unpacked(item: Item, device: torch.device) -> list[Sample]:
    """The samples of `packed`, on `device`; a card gets them from pinned memory."""
    images, labels = torch.as_tensor(item["images"]), torch.as_tensor(item["labels"])
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
        labels = labels.pin_memory().to(device, non_blocking=True)
    channels = images.numel() // labels.numel()
    samples, start = [], 0
    for box, shift in zip(item["boxes"], item["shifts"], strict=True):
        stop = start + prod(box)
        image = images[channels * start : channels * stop].view(channels, *box)
        samples.append(Sample(image, labels[start:stop].view(box), shift))
        start = stop
    return samples


def augmented(
    samples: Sequence[Sample], parameters: Sequence[SampleParameters], spec: BatchSpec
) -> Batch:
    """The batch made from what was read, augmented on the device where it is."""
    if samples[0].image.device.type != "cpu":
        return apply(samples, parameters, spec.patch_vox, spec.masked_channels)
    with one_thread():
        return apply(samples, parameters, spec.patch_vox, spec.masked_channels)


def augmented_here(samples: Sequence[RawSample], spec: BatchSpec) -> Batch:
    """The batch made from what was read, augmented on the processor."""
    tensors = [
        Sample(torch.from_numpy(s.image), torch.from_numpy(s.labels), s.shift) for s in samples
    ]
    return augmented(tensors, [s.parameters for s in samples], spec)


@dataclass(frozen=True)
class Produce:
    """The work of one step as a worker does it; picklable, so it can start anywhere."""

    cases: Cases
    spec: BatchSpec
    augment: bool

    def __call__(self, step: int) -> Item:
        samples = read_step(self.cases, self.spec, step)
        if not self.augment:
            return packed(samples)
        images, labels = augmented_here(samples, self.spec)
        return {"images": images, "labels": labels.to(torch.int16)}


class Batches:
    """The batches of steps start … stop - 1, in order; the same for any number of workers.

    `workers` processes load and, unless `augment_here`, augment; with 0 all happens here, when a
    batch is asked for. `augment_here` is None for the usual choice: on a card yes, else no. Use as
    a context manager, or call `close()`, to end the workers before the last batch. Raises
    AutosegError if a case cannot be read or a worker died.
    """

    def __init__(
        self,
        cases: Cases,
        spec: BatchSpec,
        start: int,
        stop: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
        *,
        augment_here: bool | None = None,
    ) -> None:
        if workers < 0 or start < 0 or stop < start:
            raise ValueError(f"no batches {start} … {stop} from {workers} workers")
        self.spec, self.start, self.stop = spec, start, stop
        self.workers = min(workers, stop - start)
        self.device = torch.device(device)
        here = self.device.type != "cpu" if augment_here is None else augment_here
        self._produce = Produce(cases, spec, augment=not here)
        self._loader: Loader | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Batch]:
        if self.workers == 0:
            yield from (self._finished(self._produce(s)) for s in range(self.start, self.stop))
            return
        self.close()
        self._loader = Loader(self._produce, self.start, self.stop, self.workers)
        try:
            yield from (self._finished(item) for item in self._loader)
        finally:
            self.close()

    def _finished(self, item: Item) -> Batch:
        if "parameters" in item:
            return augmented(unpacked(item, self.device), item["parameters"], self.spec)
        images, labels = torch.as_tensor(item["images"]), torch.as_tensor(item["labels"])
        return images.to(self.device), labels.to(self.device, torch.int64)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def validation_batches(
    cases: Cases, spec: BatchSpec, count: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """`count` batches without augmentation, the same ones each time, to score a training by.

    Placed as in training, with as large a share on foreground; read here, when asked for.
    """
    where = torch.device(device)
    for step in range(count):
        draws = draw_batch(
            cases, spec.patch_vox, spec.batch_size, spec.sampling, spec.seed, step, VALIDATION
        )
        samples = [_read(cases[d.case], d, spec.patch_vox, UNCHANGED) for d in draws]
        images, labels = augmented_here(samples, spec)
        yield images.to(where), labels.to(where)
