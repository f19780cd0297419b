"""How many tiles and mirrored copies go through a network at once, by the device's memory.

On cores two: torch computes a single small 3D sample with a slow way of its own (four times as
long for 8 channels of 40 x 56 x 40), and more than two gained nothing on any network tried. On a
card as many as its free memory holds, by what one sample took there; half of them after an error.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

from autoseg.device import (
    free_card_bytes,
    is_card,
    measured_on_card,
    out_of_memory,
    release_card_memory,
)
from autoseg.errors import AutosegError
from autoseg.pool import free_bytes

ON_CORES = 2
CORE_SHARE = 0.4
"""Two samples must fit into this share of the free memory, or there is one."""
CARD_SHARE = 0.7
CARD_VOXELS = 1 << 23
"""A card is busy with so many voxels at once: four patches of 128 x 128 x 128."""
CARD_MOST = 64

ALONE = threading.Lock()
"""Held while a card is measured, and by a reader's thread while it computes there."""


class NoRoom(AutosegError):
    """A card's memory does not hold what prediction needs at the least."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}; {FREE_IT}")

    def __reduce__(self) -> tuple[type["NoRoom"], tuple[str]]:
        return type(self), (self.what,)  # a worker's error reaches the process that asked


@contextmanager
def explained(device: torch.device) -> Iterator[None]:
    """Raises NoRoom where a card's memory ends in the block, and nothing smaller could be tried."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        free = free_card_bytes(device) / 2**30
        raise NoRoom(f"{device} has no room for this ({free:.2f} GiB of it are free)") from None


FREE_IT = (
    "close other programs that use the card, give --device cpu, or use a model with a smaller patch "
    "(planned with a smaller --gpu-memory)"
)

Speaker = Callable[[Tensor], Sequence[Tensor]]
"""A network: a float32 batch (N, C, *patch) to a list of logits, finest first."""


class Together:
    """The number of samples at once on a device; learnt for each shape of a sample.

    `sample_bytes` is what one sample about needs on cores, where too little memory is no error
    that could be caught; 0: not known.
    """

    def __init__(self, device: torch.device | str, sample_bytes: int = 0) -> None:
        self.device = torch.device(device)
        self.on_cores = not is_card(self.device)
        scarce = self.on_cores and ON_CORES * sample_bytes > CORE_SHARE * free_bytes()
        self.first = ON_CORES if self.on_cores and not scarce else 1
        self._sizes: dict[tuple[int, ...], int] = {}

    def size(self, shape: Sequence[int]) -> int:
        """How many samples (C, *patch) of this shape at once; 1 on a card that saw none yet."""
        return self._sizes.get(tuple(shape), self.first)

    def said(self, net: Speaker, batch: Tensor) -> Tensor | None:
        """The finest logits (N, K, *patch), float32; None where the card had no room for so many.

        `size` is smaller then. Raises NoRoom if there is no room for one.
        """
        if self.on_cores:
            return net(batch)[0].float()
        shape = tuple(batch.shape[1:])
        try:
            if shape in self._sizes:
                return net(batch)[0].float()
            logits, taken = _measured(self.device, lambda: net(batch)[0].float())
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise NoRoom(
                    f"{self.device} has no room for one patch of {' x '.join(map(str, shape[1:]))} "
                    f"voxels ({free_card_bytes(self.device) / 2**30:.2f} GiB of its memory are free)"
                ) from None
            self._sizes[shape] = len(batch) // 2
        else:
            # what is stacked, and turned back, is there beside what the network needs
            each = taken // len(batch) + 4 * (batch[0].numel() + 2 * logits[0].numel())
            most = min(CARD_MOST, max(2, CARD_VOXELS // prod(shape[1:])))
            room = int(CARD_SHARE * free_card_bytes(self.device)) // max(1, each)
            self._sizes[shape] = max(1, min(most, room))
            return logits
        release_card_memory()
        return None


def _measured(device: torch.device, compute: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What is computed on a card, and the most bytes that it took beside what was there."""
    with ALONE:
        return measured_on_card(device, compute)
