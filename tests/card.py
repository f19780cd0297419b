"""A simulated card: CPU tensors that count as a card's, and memory that ends.

`SimulatedCards` takes the place of `autoseg.device.driver`; while a `Memory` is entered, tensors
made in this thread count against its limit and torch.OutOfMemoryError is raised beyond it, as
CUDA's allocator raises it. Tensors may be real, for small networks, or fake (FakeTensorMode), for
networks as large as real cards hold.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch

from autoseg import device
from autoseg.device import CardFacts
from autoseg.nets.cost.cards import GRANULE
from autoseg.nets.cost.storages import Storages

T = TypeVar("T")
AMPERE, TURING = (8, 6), (7, 5)
FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
)
"""What is raised where a real card is full: by torch's allocator, by CUDA and by cuDNN."""


class Memory(Storages):
    """Counts the bytes of tensors, as the project's own counter does; beyond `limit` there are none.

    Every storage is rounded up as CUDA's allocator rounds. Only the thread that entered it counts.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(GRANULE)
        self.limit = limit
        self.refused = 0

    def _note(self, nbytes: int) -> None:
        if nbytes > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate beyond {self.limit / 2**30:.2f} GiB "
                "(simulated card)"
            )
        super()._note(nbytes)


class SimulatedCards:
    """Stands in for CUDA: cards of given facts, of which `device` picks one by its index."""

    def __init__(self, *cards: CardFacts, memory: Memory | None = None, taken: int = 0) -> None:
        self.cards, self.memory, self.taken = cards, memory, taken
        self.chosen = 0
        self.waited: list[int] = []
        self.prepared = 0

    def count(self) -> int:
        return len(self.cards)

    def why_none(self) -> str:
        return "this torch sees no card"

    def place(self, index: int) -> torch.device:
        self.chosen = index
        return torch.device("cpu")

    def owns(self, device: torch.device) -> bool:
        return bool(self.cards)

    def facts(self, device: torch.device) -> CardFacts:
        return self.cards[self.chosen]

    def free_bytes(self, device: torch.device) -> int:
        used = self.memory.live if self.memory is not None else 0
        return self.facts(device).total_bytes - self.taken - used

    def synchronise(self, device: torch.device) -> None:
        self.waited.append(self.chosen)

    def measured(self, device: torch.device, compute: Callable[[], T]) -> tuple[T, int]:
        if self.memory is None:
            return compute(), 0
        self.memory.restart()
        before = self.memory.live
        made = compute()
        return made, self.memory.peak - before

    def release(self) -> None:
        pass

    def prepare(self) -> None:
        self.prepared += 1


def card(memory_gb: float, capability: tuple[int, int] = AMPERE, name: str = "a card") -> CardFacts:
    """A card of so many GiB."""
    return CardFacts(name, int(memory_gb * 2**30), capability)


@contextmanager
def settings_kept() -> Iterator[None]:
    """What a card's settings change for the whole process is as before at the end."""
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)


@contextmanager
def simulated(
    patch: pytest.MonkeyPatch, *cards: CardFacts, limit: int | None = None, taken: int = 0
) -> Iterator[SimulatedCards]:
    """The machine has these cards; with `limit`, tensors made inside have so many bytes at most."""
    memory = None if limit is None else Memory(limit)
    found = SimulatedCards(*cards, memory=memory, taken=taken)
    with patch.context() as here, settings_kept():
        here.setattr(device, "driver", found)
        if memory is None:
            yield found
        else:
            with memory:
                yield found
