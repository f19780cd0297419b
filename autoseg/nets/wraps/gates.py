"""Wraps that weigh what a unit found: each channel, each voxel, or both.

All are meant for the inside of `residual`: wraps = ("squeeze_excite", "residual").
"""

from collections.abc import Callable
from math import log2

import torch
from torch import Tensor, nn

from autoseg.nets.kit import Kit
from autoseg.nets.units.light import Gated, SqueezeExcite
from autoseg.nets.units.words import Unit

LEAST_HIDDEN = 4
"""The fewest numbers that a gate says of all channels together."""


class EfficientChannel(nn.Module):
    """A weight in (0, 1) for each channel, from the means of the few channels beside it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(2).mean(2).unsqueeze(1)
        return torch.sigmoid(self.conv(mean)).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


def neighbours(channels: int) -> int:
    """The size of ECA's kernel: |log2(C) / 2 + 1 / 2|, cut to a whole number and made odd."""
    size = int(abs(log2(channels) / 2 + 0.5))
    return size if size % 2 else size + 1


class SpatialGate(nn.Module):
    """A weight in (0, 1) for each voxel, (B, 1, *S), from mean and maximum of its channels."""

    def __init__(self, kit: Kit, size: int) -> None:
        super().__init__()
        self.conv = kit.conv(2, 1, kit.wide(size))

    def forward(self, x: Tensor) -> Tensor:
        told = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.conv(told))


class ChannelGate(nn.Module):
    """A weight in (0, 1) for each channel, from its mean and its maximum by the same layers."""

    def __init__(self, kit: Kit, channels: int, hidden: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            kit.conv(channels, hidden, 1), kit.act(), kit.conv(hidden, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        mean, most = x.mean(axes, keepdim=True), x.amax(axes, keepdim=True)
        return torch.sigmoid(self.weigh(mean) + self.weigh(most))


def _gated(unit: Unit, gate: Callable[[Kit, int], nn.Module]) -> Unit:
    def wrapped(kit: Kit, cin: int, cout: int) -> nn.Module:
        return Gated(unit(kit, cin, cout), gate(kit, cout))

    return wrapped


def _hidden(channels: int, ratio: int) -> int:
    return max(LEAST_HIDDEN, channels // ratio)


def squeeze_excite(unit: Unit, *, ratio: int = 16) -> Unit:
    """Each channel is weighed by what the means of all say, through C / ratio hidden numbers.

    Hu et al. 2018, arXiv:1709.01507.
    """
    return _gated(unit, lambda kit, c: SqueezeExcite(kit, c, _hidden(c, ratio)))


def efficient_channel(unit: Unit) -> Unit:
    """Each channel is weighed by the means of the k beside it, k growing with log2 of C.

    Wang et al. 2020, arXiv:1910.03151: k weights in all.
    """
    return _gated(unit, lambda _, c: EfficientChannel(neighbours(c)))


def spatial_attention(unit: Unit, *, size: int = 7) -> Unit:
    """Each voxel is weighed by mean and maximum of the channels around it.

    The second half of CBAM (Woo et al. 2018, arXiv:1807.06521).
    """
    return _gated(unit, lambda kit, _: SpatialGate(kit, size))


def dual_attention(unit: Unit, *, ratio: int = 16, size: int = 7) -> Unit:
    """First each channel is weighed, then each voxel.

    CBAM (Woo et al. 2018, arXiv:1807.06521).
    """
    channels = _gated(unit, lambda kit, c: ChannelGate(kit, c, _hidden(c, ratio)))
    return spatial_attention(channels, size=size)
