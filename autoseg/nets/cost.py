"""What a network costs before it is run: numbers of parameters and of multiplications."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from autoseg.documents.networks.family import NetworkSpec
from autoseg.nets.build import build

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parameters(net: nn.Module) -> int:
    """How many numbers are learnt."""
    return sum(p.numel() for p in net.parameters())


def multiply_adds(spec: NetworkSpec, patch_vox: Sequence[int]) -> int:
    """Multiply-adds of all convolutions in one forward pass of one patch, heads of all levels too.

    Nothing is allocated: the network is built and run on shapes alone. Training takes three times
    as many (forward, and backward to inputs and to weights).
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, CONVOLUTIONS)
        up = isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))
        # each input voxel of a transposed convolution, else each output voxel, meets each weight of
        # the channels on the other side once
        grid = (inputs[0] if up else output).shape[2:]
        total += prod(grid) * output.shape[0] * module.weight.numel()

    with torch.device("meta"):
        net = build(spec).train()
        for module in net.modules():
            if isinstance(module, CONVOLUTIONS):
                module.register_forward_hook(count)
        net(torch.empty(1, spec.in_channels, *patch_vox))
    return total
