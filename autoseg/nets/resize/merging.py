"""The steps of a window transformer: blocks of voxels become one token, and a token a block."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from autoseg.nets.kit import Kit
from autoseg.nets.tokens import linear


class PatchMerging(nn.Module):
    """The channels of each block of `stride` voxels, normed together and projected.

    (B, C, *S) -> (B, D, *S / stride) (Liu et al. 2021, arXiv:2103.14030).
    """

    def __init__(self, cin: int, cout: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.norm = nn.LayerNorm(prod(stride) * cin)
        self.project = linear(prod(stride) * cin, cout, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        d, (batch, channels, *grid) = len(self.stride), x.shape
        fewer = [n // s for n, s in zip(grid, self.stride, strict=True)]
        blocks = [n for pair in zip(fewer, self.stride, strict=True) for n in pair]
        order = [0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1]
        y = x.movedim(1, -1).reshape(batch, *blocks, channels).permute(order)
        merged: Tensor = self.project(self.norm(y.flatten(1 + d)))
        return merged.movedim(-1, 1)


class PatchExpanding(nn.Module):
    """Each voxel projected to a block of `stride` voxels, which are then normed one by one.

    (B, C, *S) -> (B, D, *S * stride) (Cao et al. 2021, arXiv:2105.05537).
    """

    def __init__(self, cin: int, cout: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.project = linear(cin, prod(stride) * cout, bias=False)
        self.norm = nn.LayerNorm(cout)

    def forward(self, x: Tensor) -> Tensor:
        d, (batch, _, *grid) = len(self.stride), x.shape
        y = self.project(x.movedim(1, -1)).reshape(batch, *grid, *self.stride, -1)
        order = [0, *(axis for i in range(d) for axis in (1 + i, 1 + d + i)), 2 * d + 1]
        more = [n * s for n, s in zip(grid, self.stride, strict=True)]
        expanded: Tensor = self.norm(y.permute(order).reshape(batch, *more, -1))
        return expanded.movedim(-1, 1)


def merging(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:  # noqa: ARG001
    """The voxels of a block side by side as channels, normed and projected: Swin's way down."""
    return PatchMerging(cin, cout, stride)


def expanding(kit: Kit, cin: int, cout: int, stride: Sequence[int]) -> nn.Module:  # noqa: ARG001
    """A projection of each voxel to the channels of a block: Swin-Unet's way up."""
    return PatchExpanding(cin, cout, stride)
