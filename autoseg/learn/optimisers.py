"""Optimisers, by the names that a plan uses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoseg.documents.plan import Training
from autoseg.learn.muon import Muon, decays, is_free

SMALLEST_MATRIX = 5


def sgd(train: Training, net: nn.Module) -> Optimizer:
    """Stochastic gradient descent with Nesterov's momentum; norms and biases decay, as in nnU-Net."""
    return torch.optim.SGD(
        _groups(net, train.weight_decay, is_free),
        lr=train.lr,
        momentum=train.momentum,
        nesterov=train.momentum > 0,
        fused=_can_fuse(net),
    )


def adamw(train: Training, net: nn.Module) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019); norms and biases do not decay."""
    return torch.optim.AdamW(
        _groups(net, train.weight_decay, decays),
        lr=train.lr,
        betas=(train.momentum, train.beta2),
        fused=_can_fuse(net),
    )


def _groups(
    net: nn.Module, weight_decay: float, chosen: Callable[[nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """The weights that decay and those that do not, each group only if it has any."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in net.parameters() if chosen(p)], "weight_decay": weight_decay},
        {"params": [p for p in net.parameters() if not chosen(p)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def muon(train: Training, net: nn.Module) -> Optimizer:
    """Muon for convolutions wider than one voxel between hidden channels, AdamW for the rest."""
    hidden = [p for p in net.parameters() if _between_hidden_channels(p)]
    chosen = {id(p) for p in hidden}
    return Muon(
        hidden,
        [p for p in net.parameters() if id(p) not in chosen],
        lr=train.lr,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
    )


def _between_hidden_channels(weight: nn.Parameter) -> bool:
    """Whether it is a kernel (out, in, *size) that is odd and wide, and reads no image channel.

    Transposed convolutions, whose kernels are even, and heads, whose kernels are 1, are left out.
    """
    size = weight.shape[2:]
    odd = all(n % 2 for n in size) and any(n > 1 for n in size)
    return weight.ndim >= 4 and odd and min(weight.shape[:2]) >= SMALLEST_MATRIX


OPTIMISERS: dict[str, Callable[[Training, nn.Module], Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "muon": muon,
}


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
