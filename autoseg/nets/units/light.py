"""Units that save parameters by depthwise convolutions, and the gate that one of them contains."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nets.kit import Kit, chain
from autoseg.nets.units.chains import layer

LAYER_NORM_EPS = 1e-6
"""ConvNeXt's."""


class SqueezeExcite(nn.Module):
    """(B, C, *S) to a weight in (0, 1) for each channel, (B, C, 1, ...), from the channels' means.

    Hu et al. 2018, arXiv:1709.01507. There is no norm: the means are one number a channel.
    """

    def __init__(self, kit: Kit, channels: int, hidden: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            kit.conv(channels, hidden, 1), kit.act(), kit.conv(hidden, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return torch.sigmoid(self.weigh(mean))


class Gated(nn.Module):
    """y = unit(x), times what the gate says of y.

    The unit is registered last, so that a residual wrap outside finds the norm that ends it.
    """

    def __init__(self, unit: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.gate, self.unit = gate, unit

    def forward(self, x: Tensor) -> Tensor:
        y = self.unit(x)
        out: Tensor = y * self.gate(y)
        return out


def separable(kit: Kit, cin: int, cout: int) -> nn.Module:
    """A convolution within each channel, then a 1x1 across them: k^n C + C C' weights.

    Howard et al. 2017, arXiv:1704.04861: norm and activation behind both.
    """
    return nn.Sequential(layer(kit, cin, cin, groups=cin), layer(kit, cin, cout, 1))


class Added(nn.Module):
    """branch(x) + x, and nothing after it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + x
        return out


def mbconv(kit: Kit, cin: int, cout: int, *, expand: int = 4, squeeze: int = 4) -> nn.Module:
    """1x1 to `expand` times the width, depthwise convolution, gate, 1x1 back without activation.

    MobileNetV2's inverted bottleneck (Sandler et al. 2018, arXiv:1801.04381) with EfficientNet's
    gate of cin / `squeeze` (Tan & Le 2019, arXiv:1905.11946), whose `expand` is 6 and whose
    activation is SiLU. Where the width stays the input is added: the wrap `residual` is inside.
    """
    wide = cin * expand
    branch = chain(
        layer(kit, cin, wide, 1) if expand > 1 else nn.Identity(),
        Gated(
            layer(kit, wide, wide, groups=wide), SqueezeExcite(kit, wide, max(1, cin // squeeze))
        ),
        kit.conv(wide, cout, 1),
        kit.norm(cout),
    )
    return Added(branch) if cin == cout else branch


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        return F.layer_norm(y, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS).movedim(
            -1, 1
        )


class Scaled(nn.Module):
    """One learnt factor for each channel, small at first."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((channels,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor.view(-1, *[1] * (x.ndim - 2))


def convnext(
    kit: Kit, cin: int, cout: int, *, size: int = 7, ratio: int = 4, scale: float = 1e-6
) -> nn.Module:
    """x + scale * (depthwise convolution, layer norm, 1x1 to ratio * C, GELU, 1x1 back).

    Liu et al. 2022, arXiv:2201.03545. Norm and activation are the block's own, whatever the
    document says. A convolution 1x1 with the document's norm comes first where the width changes.
    """
    branch = nn.Sequential(
        kit.conv(cout, cout, kit.wide(size), groups=cout),
        ChannelNorm(cout),
        kit.conv(cout, cout * ratio, 1),
        nn.GELU(),
        kit.conv(cout * ratio, cout, 1),
        kit.drop(),
        Scaled(cout, scale),
    )
    enter = nn.Identity() if cin == cout else chain(kit.conv(cin, cout, 1), kit.norm(cout))
    return chain(enter, Added(branch))
