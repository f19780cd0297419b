"""Memory of the augmentation on a processor: kept for the next patch, and got in large pages.

To get tens of MB from the system afresh, page by page, costs more time than to compute on them.
"""

import threading
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

Number = TypeVar("Number", bound=np.generic)

LENT = 4
"""Pieces of memory that are remembered after they were handed out: images and labels of two batches,
one in use and one in the making."""


class _Held(threading.local):
    """Each thread's own arrays."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, type[np.generic]], NDArray[Any]] = {}
        self.lent: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[Any]]]] = []


_held = _Held()


def kept(name: str, shape: Sequence[int], kind: type[Number]) -> NDArray[Number]:
    """An array whose memory stays for the next call with this name and kind in this thread.

    It holds anything at first. Never hand it out: the next patch writes into it.
    """
    arrays, count, key = _held.arrays, prod(shape), (name, kind)
    if key not in arrays or arrays[key].size < count:
        arrays[key] = np.empty(count, kind)
    found: NDArray[Number] = arrays[key][:count].reshape(tuple(shape))
    return found


def blank(shape: Sequence[int], kind: DTypeLike, device: torch.device) -> Tensor:
    """A tensor that holds anything, to be handed out; nothing else in use shares its memory.

    A processor's is that of an earlier one that nobody has any more, or got by NumPy, which asks
    the system for large pages, as torch does not.
    """
    if device.type != "cpu":
        like = torch.from_numpy(np.empty(0, kind))
        return torch.empty(tuple(shape), dtype=like.dtype, device=device)
    size = prod(shape) * np.dtype(kind).itemsize
    lent = _held.lent
    free = (k for k, (memory, user) in enumerate(lent) if memory.size == size and user() is None)
    place = next(free, None)
    memory = np.empty(size, np.uint8) if place is None else lent.pop(place)[0]
    array = memory.view(kind).reshape(tuple(shape))
    # the tensor, its views and their arrays keep this array alive, and nothing else does
    lent.append((memory, weakref.ref(array)))
    del lent[:-LENT]
    return torch.from_numpy(array)
