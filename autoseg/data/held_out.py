"""Which patches is a training scored by, and how many of them lie in memory?

As many as the plan asks for, up to a limit: the batches of a large card hold thousands of slices,
and a Dice over ten of these would take longer to read than the first steps, and 10 GiB and more.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import torch

from autoseg.data.batches import Batch, BatchSpec, validation_batches
from autoseg.data.sampling import Cases
from autoseg.data.workers import Ahead
from autoseg.timing import part

MOST_PATCHES = 500
"""nnU-Net scores 50 batches, of two patches in 3D; five times as many, since a slice shows less."""
MOST_BYTES = 2 << 30
"""Twenty patches of 160 x 192 x 160 voxels with four channels, ten batches of two, are 1.6 GiB."""
FEWEST = 2
"""A batch of one is placed on foreground by chance; of two, one always is."""


@dataclass(frozen=True)
class Amount:
    """How many batches of how many patches are held, and the bytes of them all at most."""

    batches: int
    batch_size: int
    nbytes: int


def amount(spec: BatchSpec, batches: int, channels: int) -> Amount:
    """What is held where the plan asks for so many batches; never larger batches than in training.

    `channels` are the network's. It depends on the plan alone, so that a run has the same score
    on any machine.
    """
    # float32 images, and labels of at most two bytes
    patch = prod(spec.patch_vox) * (4 * channels + 2)
    most = max(1, min(MOST_PATCHES, MOST_BYTES // patch))
    size = min(spec.batch_size, max(most // batches, min(FEWEST, most)))
    count = min(batches, max(1, most // size))
    return Amount(count, size, count * size * patch)


class HeldOut:
    """The batches that a training is scored by: read once, then held, labels as small integers.

    With `ahead` a thread reads them from now on, beside the first steps on a card; without, they
    are read when they are first asked for, since on cores a thread would only take its time from
    the steps. Call `close()` where they may not have been asked for.
    """

    def __init__(
        self, cases: Cases, spec: BatchSpec, batches: int, channels: int, *, ahead: bool
    ) -> None:
        self.amount = amount(spec, batches, channels)
        small = replace(spec, batch_size=self.amount.batch_size)
        read = map(_small, validation_batches(cases, small, self.amount.batches))
        self._ahead = Ahead(read, self.amount.batches) if ahead else None
        self._coming: Iterable[Batch] = read if self._ahead is None else self._ahead
        self._held: list[Batch] | None = None

    def batches(self) -> list[Batch]:
        """Images (B, C, *patch) float32 and labels (B, *patch) int8 or int16.

        Waits until they are read. Raises AutosegError naming a faulty case.
        """
        if self._held is None:
            with part("held-out batches"):
                self._held = list(self._coming)
        return self._held

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._ahead is not None:
            self._ahead.close()


def _small(batch: Batch) -> Batch:
    images, labels = batch
    fits = int(labels.max()) <= torch.iinfo(torch.int8).max
    return images, labels.to(torch.int8 if fits else torch.int16)
