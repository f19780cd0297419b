"""MedNeXt's steps down and up: its block, whose inner convolution and shortcut change the grid."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nets.kit import Kit
from autoseg.nets.units.mednext import RATIO, MedNeXt


def down(kit: Kit, cin: int, cout: int, stride: Sequence[int], *, ratio: int = RATIO) -> nn.Module:
    """The block with a strided inner convolution and a strided 1x1 shortcut (Roy et al. 2023).

    A grid that the stride does not divide is rounded up.
    """
    spread = kit.conv(cin, cin, stride=stride, groups=cin)
    return MedNeXt(spread, kit.conv(cin, cout, 1, stride=stride), kit, cin, cout, ratio)


class Led(nn.Module):
    """A block's output behind stride - 1 planes of zeros on each axis.

    A transposed convolution with an odd kernel reaches only (n - 1) * stride + 1 voxels of the
    n * stride, the first of which the published network leaves empty.
    """

    def __init__(self, block: nn.Module, stride: Sequence[int]) -> None:
        super().__init__()
        self.block = block
        # F.pad counts from the last axis back: (before, after) of each
        self.planes = [n for step in reversed(stride) for n in (step - 1, 0)]

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.block(x), self.planes)


def up(kit: Kit, cin: int, cout: int, stride: Sequence[int], *, ratio: int = RATIO) -> nn.Module:
    """The block with a transposed inner convolution and a transposed 1x1 shortcut."""
    spread = _transposed(kit, cin, cin, kit.kernel, stride, groups=cin)
    shortcut = _transposed(kit, cin, cout, kit.each(1), stride)
    return Led(MedNeXt(spread, shortcut, kit, cin, cout, ratio), stride)


def _transposed(
    kit: Kit, cin: int, cout: int, kernel: Sequence[int], stride: Sequence[int], groups: int = 1
) -> nn.Module:
    layer: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[kit.ndim - 2]
    padding = tuple(k // 2 for k in kernel)
    made: nn.Module = layer(cin, cout, tuple(kernel), tuple(stride), padding, groups=groups)
    return made
