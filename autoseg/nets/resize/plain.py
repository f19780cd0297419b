"""The steps down and up that are made of convolutions, poolings and interpolation."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nets.kit import Kit, chain
from autoseg.nets.units.plain import pair, plain
from autoseg.nets.wraps.residual import Residual, shortcut


def strided(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """A plain unit whose convolution steps: nnU-Net's way down."""
    return plain(kit, cin, cout, stride=stride)


def pooled(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """The largest of each block, then a plain unit (Ronneberger et al. 2015)."""
    return chain(kit.max_pool(stride), plain(kit, cin, cout))


def residual(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """A residual block whose first convolution steps and whose shortcut is pooled."""
    branch = pair(kit, cin, cout, stride=stride)
    return Residual(branch, shortcut(kit, cin, cout, stride), kit.act())


def transposed(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """A transposed convolution, kernel = stride: nnU-Net's way up."""
    return kit.transposed(cin, cout, stride)


class Linear(nn.Module):
    """Linear interpolation by `stride`."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(float(s) for s in stride)

    def forward(self, x: Tensor) -> Tensor:
        mode = "bilinear" if x.ndim == 4 else "trilinear"
        return F.interpolate(x, scale_factor=self.stride, mode=mode, align_corners=False)


def linear(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """A 1x1 convolution on the coarse grid, then linear interpolation: no checkerboards."""
    return nn.Sequential(kit.conv(cin, cout, 1), Linear(stride))
