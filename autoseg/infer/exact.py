"""Matrix products in full float32 on a card, whatever precision networks multiply in meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_lock = threading.Lock()
_inside = 0
_before = "highest"


def exact_products(device: torch.device) -> AbstractContextManager[None]:
    """A card's TF32 keeps ten bits, three digits; inside the block it is not used. The processor has
    none, and setting it there made restoring take 1.1 to 1.2 times as long.

    Holds for all threads, so the last one to leave puts back what the first one found; a network
    that runs meanwhile is but more exact.
    """
    return nullcontext() if device.type == "cpu" else _highest()


@contextmanager
def _highest() -> Iterator[None]:
    global _inside, _before
    with _lock:
        if not _inside:
            _before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_float32_matmul_precision(_before)
