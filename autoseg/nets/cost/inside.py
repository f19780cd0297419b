"""What an operation allocates and frees again before it ends, where that is of a tensor's size.

Found by comparing with real allocations on the CPU; CUDA's operations are made of the same steps.
Workspace, which depends on the library that computes and not on the network, is left out.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Rounded = Callable[[int], int]

SUM_BYTES = 8


def _dense_copies(tensors: Sequence[Tensor], rounded: Rounded) -> int:
    """Copies of what does not lie as a convolution wants it: channels last where one of them is."""
    wanted = torch.contiguous_format
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensors[0].ndim)
    if last and any(not t.is_contiguous() and t.is_contiguous(memory_format=last) for t in tensors):
        wanted = last
    return sum(
        rounded(prod(t.shape) * t.element_size())
        for t in tensors
        if not t.is_contiguous(memory_format=wanted)
    )


def _sum(args: Sequence[Any], rounded: Rounded) -> int:
    """Truth values are first made the integers that their sum is."""
    return rounded(prod(args[0].shape) * SUM_BYTES) if args[0].dtype == torch.bool else 0


def _copied_result(args: Sequence[Any], rounded: Rounded) -> int:
    """The result is computed beside the tensor that it is then copied to."""
    return rounded(prod(args[0].shape) * args[0].element_size())


def _safe_softmax(args: Sequence[Any], rounded: Rounded) -> int:
    """Which numbers are minus infinity."""
    return rounded(prod(args[0].shape))


INSIDE: dict[Any, Callable[[Sequence[Any], Rounded], int]] = {
    aten.convolution.default: lambda args, rounded: _dense_copies(args[:2], rounded),
    aten.convolution_backward.default: lambda args, rounded: _dense_copies(args[:3], rounded),
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.native_batch_norm_backward.out: _copied_result,
    aten._safe_softmax.default: _safe_softmax,
}
"""Operation -> bytes from its arguments."""
