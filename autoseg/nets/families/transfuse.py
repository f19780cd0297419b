"""TransFuse: a residual encoder and a transformer side by side, fused on several grids."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoseg.documents.networks.hybrids import TransFuseSpec
from autoseg.nets.families.transunet import Transformer, last_of_each_grid, resnet
from autoseg.nets.joins import AttentionGate
from autoseg.nets.kit import Kit, chain, initialise
from autoseg.nets.network import Network
from autoseg.nets.resize.plain import Linear
from autoseg.nets.tokens import patches
from autoseg.nets.units.plain import pair, plain
from autoseg.nets.units.preactivated import Preactivated, norm_act
from autoseg.nets.wraps.residual import residual

SPATIAL_KERNEL = 7
MOST_SQUEEZED = 4
"""The channel attention of the coarsest fusion squeezes so much, each finer one half as much."""


class BiFusion(nn.Module):
    """Features of both branches (g convolved, t transformed) as one: (B, g), (B, t) -> (B, g).

    t is weighted by channel, g by voxel, both meet in a product of their projections, and a
    pre-activated residual block merges the three (Zhang et al. 2021, arXiv:2102.08005).
    """

    def __init__(self, kit: Kit, local: int, broad: int, squeeze: int) -> None:
        super().__init__()
        seven = tuple(SPATIAL_KERNEL if k > 1 else 1 for k in kit.kernel)
        narrow = max(1, broad // squeeze)
        self.channels = nn.Sequential(
            kit.conv(broad, narrow, 1), nn.ReLU(), kit.conv(narrow, broad, 1)
        )
        self.voxels = kit.conv(2, 1, seven)
        self.project_local = chain(kit.conv(local, local, 1), kit.norm(local))
        self.project_broad = chain(kit.conv(broad, local, 1), kit.norm(local))
        self.product = plain(kit, local, local)
        self.merge = _merge(kit, 2 * local + broad, local)

    def weight_of_channels(self, broad: Tensor) -> Tensor:
        """(B, t, 1, …) in (0, 1), from the mean of each channel."""
        mean = broad.mean(tuple(range(2, broad.ndim)), keepdim=True)
        return torch.sigmoid(self.channels(mean))

    def weight_of_voxels(self, local: Tensor) -> Tensor:
        """(B, 1, *S) in (0, 1), from the largest and the mean over the channels."""
        both = torch.cat([local.amax(1, keepdim=True), local.mean(1, keepdim=True)], 1)
        return torch.sigmoid(self.voxels(both))

    def forward(self, local: Tensor, broad: Tensor) -> Tensor:
        product = self.product(self.project_local(local) * self.project_broad(broad))
        near = local * self.weight_of_voxels(local)
        far = broad * self.weight_of_channels(broad)
        out: Tensor = self.merge(torch.cat([near, far, product], 1))
        return out


def _merge(kit: Kit, cin: int, cout: int) -> nn.Module:
    """A pre-activated residual bottleneck, half as wide inside."""
    half = max(1, cout // 2)
    branch = nn.Sequential(
        norm_act(kit, cin, half), norm_act(kit, half, half), kit.conv(half, half),
        norm_act(kit, half, cout),
    )  # fmt: skip
    return Preactivated(branch, kit.conv(cin, cout, 1))


class Refine(nn.Module):
    """Up by interpolation; the finer fusion, gated by what came up, beside it; a residual block.

    The gate is that of Attention U-Net, without the batch norms that the authors have inside.
    """

    def __init__(self, kit: Kit, below: int, kept: int, step: Sequence[int]) -> None:
        super().__init__()
        self.up = Linear(step)
        self.gate = AttentionGate(kit, kept, below)
        self.unit = residual(pair)(kit, self.gate.width, kept)

    def forward(self, below: Tensor, kept: Tensor) -> Tensor:
        out: Tensor = self.unit(self.gate(kept, self.up(below)))
        return out


class Head(nn.Module):
    """Features of one grid -> logits on the grid of the image, `by` times as fine."""

    def __init__(self, kit: Kit, cin: int, width: int, classes: int, by: Sequence[int]) -> None:
        super().__init__()
        narrow = kit.conv(cin, width, 1) if cin != width else nn.Identity()
        self.speak = nn.Sequential(narrow, plain(kit, width, width), kit.conv(width, classes))
        self.up = Linear(by)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.speak(x))
        return out


class TransFuse(Network):
    """ResNet-34's first layers beside a DeiT-S of eight blocks, met by BiFusion on three grids.

    Zhang et al. 2021, arXiv:2102.08005. The transformer sees patches as large as the coarsest
    voxel and is brought up step by step; the fusions are joined through attention gates. Three
    outputs on the grid of the image: the joined one, the transformer's finest features, the
    coarsest fusion.
    """

    def __init__(self, spec: TransFuseSpec) -> None:
        super().__init__(spec)
        kit = Kit(spec.kernels[-1], spec.norm, spec.activation, spec.dropout)
        self.encode = resnet(kit, spec, bottleneck=False)
        self.kept = last_of_each_grid(self.encode)[-spec.fused :]
        widths = [self.encode.widths[i] for i in self.kept]
        strides = [self.encode.strides[i] for i in self.kept]
        levels = range(len(spec.steps) - spec.fused, len(spec.steps))
        kits = [kit.at(spec.kernels[level]) for level in levels]
        steps = [spec.steps[level] for level in levels]
        embed = patches(spec.in_channels, spec.hidden, strides[-1])
        self.transform = Transformer(embed, spec)
        broad = [*widths[:-1], spec.hidden]
        # entry i leads from grid i + 1 to grid i, as those of `refine` do
        self.rise = nn.ModuleList(
            nn.Sequential(Linear(steps[i + 1]), residual(pair)(kits[i], broad[i + 1], broad[i]))
            for i in range(spec.fused - 1)
        )
        self.fuse = nn.ModuleList(
            BiFusion(kits[i], widths[i], broad[i], max(1, MOST_SQUEEZED >> (spec.fused - 1 - i)))
            for i in range(spec.fused)
        )
        self.refine = nn.ModuleList(
            Refine(kits[i], widths[i + 1], widths[i], steps[i + 1]) for i in range(spec.fused - 1)
        )
        self.heads = nn.ModuleList(
            Head(kits[i], cin, widths[0], spec.classes, strides[i])
            for i, cin in ((0, widths[0]), (0, broad[0]), (-1, widths[-1]))
        )
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.encode(x, self.run)
        local = [features[i] for i in self.kept]
        broad = [self.transform(x, self.run)]
        for rise in reversed(self.rise):
            broad.insert(0, self.run(rise, broad[0]))
        fused = [self.run(fuse, *both) for fuse, *both in zip(self.fuse, local, broad, strict=True)]
        x = fused[-1]
        for refine, kept in zip(reversed(self.refine), reversed(fused[:-1]), strict=True):
            x = self.run(refine, x, kept)
        spoken = (x, broad[0], fused[-1]) if self.training else (x,)
        return [head(y) for head, y in zip(self.heads, spoken, strict=False)]
