"""Multiply-adds, counted operation by operation while a network runs."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _convolution(args: Sequence[Any], out: Tensor) -> int:
    """Each voxel of the result meets each weight of its channel; transposed, each of the input."""
    image, weight, transposed = args[0], args[1], args[6]
    grid = (image if transposed else out).shape[2:]
    return int(prod(grid) * image.shape[0] * weight.numel())


def _product(args: Sequence[Any], out: Tensor) -> int:
    return out.numel() * int(args[0].shape[-1])


def _added_product(args: Sequence[Any], out: Tensor) -> int:
    return out.numel() * int(args[1].shape[-1])


def _attention(args: Sequence[Any], _: object) -> int:
    """Every query meets every key, and every weight every value."""
    query, key, value = args[:3]
    return int(prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3]))


FORMULAS: dict[Any, Callable[[Sequence[Any], Any], int]] = {
    aten.convolution.default: _convolution,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _added_product,
    aten.baddbmm.default: _added_product,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
}


def scans(results: Sequence[Tensor]) -> int:
    """Multiply-adds of the selective scans that results were computed by, which are no operations.

    Each number of a state is decayed and fed, and read by the output.
    """
    todo: list[Any] = [r.grad_fn for r in results]
    seen, total = set[Any](), 0
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [before for before, _ in node.next_functions]
        if node.name() == "_ScanBackward":
            x, _, decay = node.saved_tensors[:3]
            total += 3 * int(x.numel()) * int(decay.shape[1])
    return total


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The multiply-adds of convolutions, products of matrices and attention while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in FORMULAS:
            self.total += FORMULAS[func](args, out)
        return out
