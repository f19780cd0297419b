"""The steps down and up that are made of convolutions, poolings and interpolation."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nets.kit import Kit, chain
from autoseg.nets.units.plain import pair, plain, stepping, stepping_pair
from autoseg.nets.wraps.residual import Residual, shortcut


def strided(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """A plain unit whose convolution steps: nnU-Net's way down."""
    return stepping(kit, cin, cout, stride)


def pooled(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """The largest of each block, then a plain unit (Ronneberger et al. 2015)."""
    return chain(kit.max_pool(stride), plain(kit, cin, cout))


def mean_pooled(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """The mean of each block, then a plain unit: nothing is aliased."""
    return chain(kit.mean_pool(stride), plain(kit, cin, cout))


def pooled_residual(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """The largest of each block, then a residual block."""
    block = Residual(pair(kit, cin, cout), shortcut(kit, cin, cout), kit.act())
    return chain(kit.max_pool(stride), block)


def residual(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """A residual block whose first convolution steps and whose shortcut is pooled."""
    branch = stepping_pair(kit, cin, cout, stride)
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


class Nearest(nn.Module):
    """Each voxel becomes a block of `stride`."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(float(s) for s in stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.stride, mode="nearest")


def nearest(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:
    """Each voxel becomes a block, then a plain unit on the fine grid (Oktay et al. 2018)."""
    return nn.Sequential(Nearest(stride), plain(kit, cin, cout))
