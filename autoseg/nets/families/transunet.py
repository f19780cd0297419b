"""TransUNet: a residual encoder, a transformer on its coarsest grid, a decoder with skips.

The pieces that a hybrid of convolutions and a transformer is made of stand here too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.documents.networks.hybrids import Hybrid, TransUNetSpec
from autoseg.nets.families.encoders.encoder import Encoder
from autoseg.nets.families.encoders.resnet import ResNet
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.network import Network
from autoseg.nets.resize.plain import Linear
from autoseg.nets.tokens import OnTokens, PerVoxelNorm, Positions, patches
from autoseg.nets.units.attention import Attention, block
from autoseg.nets.units.plain import plain

MLP_RATIO = 4.0


class Transformer(nn.Module):
    """`embed`, learnt positions, pre-norm blocks over all voxels of that grid, a norm; (B, C, *S).

    Dosovitskiy et al. 2020, arXiv:2010.11929. Positions are interpolated to other grids than their
    own.
    """

    def __init__(self, embed: nn.Module, spec: Hybrid) -> None:
        super().__init__()
        self.embed, self.positions = embed, Positions(spec.hidden, spec.positions)
        self.blocks = nn.ModuleList(
            OnTokens(block(spec.hidden, _attention(spec), MLP_RATIO, spec.dropout))
            for _ in range(spec.depth)
        )
        self.norm = PerVoxelNorm(spec.hidden)

    def forward(self, x: Tensor, run: Callable[..., Any]) -> Tensor:
        """`run(part, x)` is how a block is called: `Network.run`."""
        x = self.positions(self.embed(x))
        for one in self.blocks:
            x = run(one, x)
        out: Tensor = self.norm(x)
        return out


def _attention(spec: Hybrid) -> Attention:
    return Attention(spec.hidden, spec.heads, rotary=False)


def resnet(kit: Kit, spec: Hybrid, *, bottleneck: bool) -> ResNet:
    """The encoder of a hybrid's document."""
    return ResNet(
        kit,
        spec.in_channels,
        spec.steps,
        spec.kernels,
        first_width=spec.encoder_width,
        depths=spec.encoder_depths,
        bottleneck=bottleneck,
    )


def last_of_each_grid(encoder: Encoder) -> list[int]:
    """Which features are the last on their grid, finest first: where a plan has few levels an
    encoder has several features on the coarsest one."""
    ahead = (*encoder.strides[1:], None)
    return [i for i, (a, b) in enumerate(zip(encoder.strides, ahead, strict=True)) if a != b]


class Rise(nn.Module):
    """Up by interpolation, beside the features kept on that grid if there are any, two plain units."""

    def __init__(self, kit: Kit, below: int, kept: int, width: int, step: Sequence[int]) -> None:
        super().__init__()
        self.up = Linear(step)
        self.units = nn.Sequential(plain(kit, below + kept, width), plain(kit, width, width))

    def forward(self, below: Tensor, *kept: Tensor) -> Tensor:
        out: Tensor = self.units(torch.cat([self.up(below), *kept], 1))
        return out


class TransUNet(Network):
    """ResNet-50's first layers -> ViT on their coarsest grid, patch 1 -> cascaded upsampler.

    Chen et al. 2021, arXiv:2102.04306. One output. Norm and activation are the document's, where
    the authors have weight-standardised convolutions with group norm in the encoder and batch norm
    in the decoder; interpolation keeps the centres of voxels, so that it does not depend on the
    size of a tile.
    """

    def __init__(self, spec: TransUNetSpec) -> None:
        super().__init__(spec)
        kit = Kit(spec.kernels[-1], spec.norm, spec.activation, spec.dropout)
        self.encode = resnet(kit, spec, bottleneck=True)
        self.kept = last_of_each_grid(self.encode)
        widths = [self.encode.widths[i] for i in self.kept]
        self.transform = Transformer(patches(widths[-1], spec.hidden, (1,) * kit.ndim), spec)
        self.enter = plain(kit, spec.hidden, spec.entry_width)
        # on the grid of the image nothing is kept, on the coarsest it went through the transformer
        kept = [0, *widths[:-1]]
        below = [*spec.decoder_widths[1:], spec.entry_width]
        self.rise = nn.ModuleList(
            Rise(kit.at(spec.kernels[i]), below[i], kept[i], width, spec.steps[i + 1])
            for i, width in enumerate(spec.decoder_widths)
        )
        self.head = kit.at(spec.kernels[0]).conv(spec.decoder_widths[0], spec.classes)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.encode(x, self.run)
        kept = [features[i] for i in self.kept]
        x = self.run(self.enter, self.transform(kept.pop(), self.run))
        for i in reversed(range(len(self.rise))):
            x = self.run(self.rise[i], x, *kept[i - 1 : i])
        return [self.head(x)]
