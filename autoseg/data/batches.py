"""The batches of a training run, in order, loaded here or by worker processes.

A batch depends on (seed, step) alone, so it is the same whoever loads it. On a processor the
workers augment too; for a card they only read, a thread here brings the next batches to the card
while it computes, and the augmentation runs on the card.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from autoseg.data.augment_memory import kept
from autoseg.data.sampling import VALIDATION, Cases, Draw, draw_batch
from autoseg.data.spoiling import spoilt
from autoseg.data.store import Image, StoredCase, read_patch, read_previous
from autoseg.data.workers import Ahead, Item, Loader, NoWorkers
from autoseg.device import is_card
from autoseg.documents.plan import Augmentation, Configuration, Previous, Sampling
from autoseg.errors import AutosegError

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
"""Images (B, C, *patch) float32 and labels (B, *patch) int64; two spatial axes for a 2D patch.

In a cascade C counts the image's channels and then one for each class of the earlier stage. Labels
are -2 where nobody labelled.
"""


AHEAD = 2
"""Batches brought to a card before they are asked for."""


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
    previous_classes: int = 0
    """The foreground classes of a cascade's earlier stage that are shown; 0: no cascade."""
    spoiling: Previous | None = None
    """How the earlier stage's label maps are spoilt in training; None: they are shown as they are."""

    @classmethod
    def of(cls, configuration: Configuration) -> "BatchSpec":
        """The spec that a plan's configuration gives."""
        channels = configuration.preparation.channels
        classes = configuration.preparation.labels.count - 1
        return cls(
            patch_vox=tuple(configuration.patch_vox),
            batch_size=configuration.train.batch_size,
            sampling=configuration.sampling,
            augmentation=configuration.augmentation,
            seed=configuration.train.seed,
            masked_channels=tuple(i for i, c in enumerate(channels) if c.use_mask),
            previous_classes=classes if configuration.previous else 0,
            spoiling=configuration.previous,
        )


@dataclass(frozen=True, eq=False)
class RawSample:
    """A sample as read from disk, with what is to be done to it."""

    image: Image
    labels: NDArray[Any]
    shift: tuple[int, ...]
    parameters: SampleParameters
    previous: NDArray[Any] | None = None


def read_step(cases: Cases, spec: BatchSpec, step: int) -> list[RawSample]:
    """The samples of one step before augmentation, a cascade's earlier label maps spoilt.

    Raises AutosegError naming a faulty case.
    """
    return [
        _read(box, spec, _spoiling(spec, step, j))
        for j, box in enumerate(_boxes(cases, spec, step))
    ]


def packed_step(cases: Cases, spec: BatchSpec, step: int, *, lent: bool = False) -> Item:
    """The same samples, packed: images are read straight to their place in the row.

    With `lent` the row's memory is that of this thread's last one.
    """
    boxes = _boxes(cases, spec, step)
    sizes = [box.case.channels * prod(box.size) for box in boxes]
    kind = np.result_type(*(box.case.kind for box in boxes)).type
    row = kept("images", [sum(sizes)], kind) if lent else np.empty(sum(sizes), kind)
    samples, start = [], 0
    for j, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        into = row[start : start + size].reshape(box.case.channels, *box.size)
        samples.append(_read(box, spec, _spoiling(spec, step, j), into))
        start += size
    return _with_images(samples, torch.from_numpy(row))


def item_bytes(spec: BatchSpec, channels: int, drawn: int = 64) -> int:
    """About how many bytes are read for a step: half floats and small labels, in the mean of boxes
    that are larger than the patch by its rotation and scaling."""
    boxes = (
        needed_box(
            draw(spec.augmentation, spec.patch_vox, channels, spec.seed, 0, j), spec.patch_vox
        )
        for j in range(drawn)
    )
    return spec.batch_size * sum(prod(size) for _, size in boxes) // drawn * (2 * channels + 1)


@dataclass(frozen=True, eq=False)
class _Box:
    """What is to be read of a case for one sample: three axes, also for a 2D patch."""

    case: StoredCase
    lower: tuple[int, ...]
    size: tuple[int, ...]
    shift: tuple[int, ...]
    parameters: SampleParameters


def _boxes(cases: Cases, spec: BatchSpec, step: int) -> list[_Box]:
    draws = draw_batch(cases, spec.patch_vox, spec.batch_size, spec.sampling, spec.seed, step)
    boxes = []
    for j, drawn in enumerate(draws):
        case = cases[drawn.case]
        parameters = draw(spec.augmentation, spec.patch_vox, case.channels, spec.seed, step, j)
        boxes.append(_box(case, drawn, spec, parameters))
    return boxes


Spoiling = Callable[[NDArray[Any]], NDArray[Any]]


def _spoiling(spec: BatchSpec, step: int, sample: int) -> Spoiling | None:
    """What is done to the earlier stage's label map of a sample, if anything."""
    if spec.spoiling is None:
        return None
    return partial(
        spoilt, classes=spec.previous_classes, settings=spec.spoiling, seed=spec.seed, step=step,
        sample=sample, planar=spec.augmentation.dummy_2d and len(spec.patch_vox) == 3,
    )  # fmt: skip


def _box(case: StoredCase, drawn: Draw, spec: BatchSpec, parameters: SampleParameters) -> _Box:
    if spec.previous_classes and case.previous is None:
        raise ValueError(f"{case.name}: a cascade needs its cases opened with `previous`")
    flat = 3 - len(spec.patch_vox)
    shift, size = needed_box(parameters, spec.patch_vox)
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
    return _Box(case, tuple(lower), tuple(box), start_read, parameters)


def _read(
    box: _Box, spec: BatchSpec, spoil: Spoiling | None = None, into: Image | None = None
) -> RawSample:
    case, previous = box.case, None
    try:
        image, labels = read_patch(case, box.lower, box.size, into)
        if spec.previous_classes:
            previous = read_previous(case, box.lower, box.size, spec.previous_classes)
    except (OSError, ValueError) as error:
        raise AutosegError(
            f"{case.name}: a patch cannot be read ({error}); run preprocess again"
        ) from error
    if len(spec.patch_vox) == 2:
        image, labels = image[:, 0], labels[0]
        previous = None if previous is None else previous[0]
    if previous is not None and spoil is not None:
        previous = spoil(previous)
    return RawSample(image, labels, box.shift, box.parameters, previous)


def packed(samples: Sequence[RawSample]) -> Item:
    """The samples as long tensors and what is needed to part them: few transfers, not many."""
    return _with_images(samples, _joined([s.image for s in samples]))


def _with_images(samples: Sequence[RawSample], images: Tensor) -> Item:
    previous = [s.previous for s in samples if s.previous is not None]
    return {
        "images": images,
        "labels": _joined([s.labels for s in samples]),
        "previous": _joined(previous) if previous else None,
        "boxes": [s.labels.shape for s in samples],
        "shifts": [s.shift for s in samples],
        "parameters": [s.parameters for s in samples],
    }


def _joined(arrays: Sequence[NDArray[Any]]) -> Tensor:
    """All numbers of the arrays one after the other, each copied once."""
    row = np.empty(sum(a.size for a in arrays), np.result_type(*arrays))
    start = 0
    for array in arrays:
        row[start : start + array.size].reshape(array.shape)[...] = array
        start += array.size
    return torch.from_numpy(row)


ARRAYS = ("images", "labels", "previous")
"""What of an item is brought to the device."""


def unpacked(item: Item) -> list[Sample]:
    """The samples of `packed`, where its tensors are."""
    images, labels, previous = (
        None if item[name] is None else torch.as_tensor(item[name]) for name in ARRAYS
    )
    assert images is not None and labels is not None
    channels = images.numel() // labels.numel()
    samples, start = [], 0
    for box, shift in zip(item["boxes"], item["shifts"], strict=True):
        stop = start + prod(box)
        image = images[channels * start : channels * stop].view(channels, *box)
        before = None if previous is None else previous[start:stop].view(box)
        samples.append(Sample(image, labels[start:stop].view(box), shift, before))
        start = stop
    return samples


class Bringer:
    """Brings items to a device; to a card on a stream of its own, beside what it computes.

    `bring` runs in any thread. Arrays that are `lent` last only until it returns, so it copies them.
    Who uses the item calls `arrived` first: it makes the card's current work wait for the copy,
    never the processor.
    """

    def __init__(self, device: torch.device, *, lent: bool = False) -> None:
        self.device, self.lent = device, lent
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def bring(self, item: Item) -> tuple[Item, Any]:
        """(the item with its arrays on the device, what to wait for)."""
        here = {k: torch.as_tensor(item[k]) for k in ARRAYS if item.get(k) is not None}
        if self._stream is None:
            return item | {k: v.to(self.device, copy=self.lent) for k, v in here.items()}, None
        with torch.cuda.stream(self._stream):
            # torch keeps pinned memory that was freed, and gives a block away again only once the
            # copy that was begun from it has ended: after the first steps nothing is pinned anew
            there = {k: v.pin_memory().to(self.device, non_blocking=True) for k, v in here.items()}
            return item | there, self._stream.record_event()

    def arrived(self, item: Item, copied: Any) -> Item:
        """The item, safe to use on the device's current stream."""
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for name in ARRAYS:
                if item.get(name) is not None:
                    # its memory must not be given away before the current stream has used it
                    item[name].record_stream(current)
        return item


def augmented(
    samples: Sequence[Sample], parameters: Sequence[SampleParameters], spec: BatchSpec
) -> Batch:
    """The batch made from what was read, augmented on the device where it is."""
    extras = (spec.masked_channels, spec.previous_classes)
    if samples[0].device.type != "cpu":
        return apply(samples, parameters, spec.patch_vox, *extras)
    with one_thread():
        return apply(samples, parameters, spec.patch_vox, *extras)


def augmented_here(samples: Sequence[RawSample], spec: BatchSpec) -> Batch:
    """The batch made from what was read, augmented on the processor."""
    read = [Sample(s.image, s.labels, s.shift, s.previous) for s in samples]
    return augmented(read, [s.parameters for s in samples], spec)


@dataclass(frozen=True)
class Produce:
    """The work of one step as a worker does it; picklable, so it can start anywhere."""

    cases: Cases
    spec: BatchSpec
    augment: bool
    travels: bool = True
    """To another process, which is sent small labels."""

    def __call__(self, step: int) -> Item:
        if not self.augment:
            return packed_step(self.cases, self.spec, step, lent=self.travels)
        images, labels = augmented_here(read_step(self.cases, self.spec, step), self.spec)
        return {"images": images, "labels": labels.to(torch.int16) if self.travels else labels}


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
        here = is_card(self.device) if augment_here is None else augment_here
        # a thread beside a training on the processor would only take its cores
        self.ahead = AHEAD if is_card(self.device) else 0
        self._produce = Produce(cases, spec, augment=not here, travels=self.workers > 0)
        self._loader: Loader | None = None
        self._ahead: Ahead[tuple[Item, Any]] | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        items: Iterator[Item] = map(self._produce, range(self.start, self.stop))
        if self.workers:
            try:
                self._loader = Loader(self._produce, self.start, self.stop, self.workers)
                items = iter(self._loader)
            except NoWorkers as error:
                log.warning("%s. Until then patches are loaded by the training itself", error)
                produce = replace(self._produce, travels=False)
                items = map(produce, range(self.start, self.stop))
        bringer = Bringer(self.device, lent=self._loader is not None)
        coming: Iterable[tuple[Item, Any]] = map(bringer.bring, items)
        if self.ahead:
            coming = self._ahead = Ahead(iter(coming), self.ahead)
        try:
            for item, copied in coming:
                yield self._finished(bringer.arrived(item, copied))
        finally:
            self.close()

    def _finished(self, item: Item) -> Batch:
        if "parameters" in item:
            return augmented(unpacked(item), item["parameters"], self.spec)
        images, labels = item["images"], item["labels"]
        return images, labels.to(torch.int64)

    def close(self) -> None:
        """End the workers and the thread, if there are any."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
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

    Placed as in training, with as large a share on foreground; read here, when asked for. Shows a
    cascade the earlier stage's label maps as they are.
    """
    where = torch.device(device)
    for step in range(count):
        draws = draw_batch(
            cases, spec.patch_vox, spec.batch_size, spec.sampling, spec.seed, step, VALIDATION
        )
        samples = [_read(_box(cases[d.case], d, spec, UNCHANGED), spec) for d in draws]
        images, labels = augmented_here(samples, spec)
        yield images.to(where), labels.to(where)
