"""Optimisers, by the names that a plan uses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoseg.documents.plan import Training


def sgd(train: Training, net: nn.Module) -> Optimizer:
    """Stochastic gradient descent with Nesterov's momentum; all weights decay, as in nnU-Net."""
    return torch.optim.SGD(
        net.parameters(),
        lr=train.lr,
        momentum=train.momentum,
        nesterov=train.momentum > 0,
        weight_decay=train.weight_decay,
        fused=_can_fuse(net),
    )


def adamw(train: Training, net: nn.Module) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019); norms and biases do not decay."""
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in net.parameters() if p.ndim > 1],
            "weight_decay": train.weight_decay,
        },
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.lr,
        betas=(train.momentum, train.beta2),
        fused=_can_fuse(net),
    )


OPTIMISERS: dict[str, Callable[[Training, nn.Module], Optimizer]] = {"sgd": sgd, "adamw": adamw}


def optimiser(train: Training, net: nn.Module) -> Optimizer:
    """The optimiser of a plan for a network that is already on its device."""
    return OPTIMISERS[train.optimiser](train, net)


def align(made: Optimizer) -> None:
    """Bring the moments to the device and the memory layout of their weights, in place.

    Fused kernels walk through both as they lie in memory, and do not notice if they differ.
    """
    for group in made.param_groups:
        for weight in group["params"]:
            state = made.state.get(weight, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    if value.stride() != weight.stride() or value.device != weight.device:
                        state[key] = torch.empty_like(weight, requires_grad=False).copy_(value)
                elif isinstance(value, Tensor) and group.get("fused"):
                    state[key] = value.to(weight.device)


def _can_fuse(net: nn.Module) -> bool:
    """Whether one kernel can update all weights: where they are floats on a CPU or a CUDA card."""
    return all(p.is_floating_point() and p.device.type in {"cpu", "cuda"} for p in net.parameters())
