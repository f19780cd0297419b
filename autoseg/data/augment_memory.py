"""Memory of the augmentation on a processor: kept for the next patch, or got in large pages.

To get tens of MB from the system afresh, page by page, costs more time than to compute on them.
"""

import threading
from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

Number = TypeVar("Number", bound=np.generic)


class _Held(threading.local):
    """Each thread's own arrays."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, type[np.generic]], NDArray[Any]] = {}


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
    """A new tensor that holds anything; NumPy asks the system for large pages, torch does not."""
    array = np.empty(tuple(shape) if device.type == "cpu" else (0,), kind)
    if device.type == "cpu":
        return torch.from_numpy(array)
    return torch.empty(tuple(shape), dtype=torch.from_numpy(array).dtype, device=device)
