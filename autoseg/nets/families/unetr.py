"""UNETR: a vision transformer whose blocks feed the levels of a convolutional decoder."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from autoseg.documents.networks.transformers import UNETRSpec
from autoseg.nets.families.swin_unetr import residual_decode, residual_pair
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.network import Network
from autoseg.nets.tokens import OnTokens, PerVoxelNorm, Positions, patches
from autoseg.nets.units.attention import Attention, block


class UNETR(Network):
    """Tokens are blocks of voxels as large as all strides together (Hatamizadeh et al. 2021).

    arXiv:2103.10504. What has gone through the first of the blocks is taken up by transposed
    convolutions to the level that it feeds; the last goes through the decoder. The paper taps the
    third, sixth and ninth of twelve blocks; its published code the fourth, seventh and tenth.
    Learnt positions are interpolated where the grid of tokens is not the one they were made for.
    """

    def __init__(self, spec: UNETRSpec) -> None:
        super().__init__(spec)
        kits = [Kit(x.kernel, spec.norm, spec.activation, spec.dropout) for x in spec.levels]
        width, widths, strides = spec.widths[-1], spec.widths, spec.strides
        self.taps = spec.taps
        self.embed = patches(spec.in_channels, width, spec.divisor)
        self.positions = Positions(width, spec.positions)
        self.blocks = nn.ModuleList(
            OnTokens(block(width, _attention(width, spec.heads), spec.mlp, spec.dropout))
            for _ in range(spec.depth)
        )
        self.norm = PerVoxelNorm(width)
        self.enter = residual_pair(kits[0], spec.in_channels, widths[0])
        self.branches = nn.ModuleList(
            _branch(kits[i:-1], width, widths[i], strides[i + 1 :])
            for i in range(1, len(widths) - 1)
        )
        self.decode = nn.ModuleList(
            residual_decode(kit, a.width, b.width, b.stride)
            for kit, (a, b) in zip(kits, pairwise(spec.levels), strict=False)
        )
        self.head = kits[0].conv(widths[0], spec.classes, 1)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = [self.run(self.enter, x)]
        x = self.positions(self.embed(x))
        for done, blocks in enumerate(self.blocks, start=1):
            x = self.run(blocks, x)
            for tap, branch in zip(self.taps, self.branches, strict=True):
                if tap == done:
                    kept.append(self.run(branch, x))
        x = self.norm(x)
        for decode in reversed(self.decode):
            x = self.run(decode, x, kept.pop())
        return [self.head(x)]


def _attention(width: int, heads: int) -> Attention:
    return Attention(width, heads, biases=(False, False, False), rotary=False)


def _branch(
    kits: Sequence[Kit], width: int, narrow: int, strides: Sequence[tuple[int, ...]]
) -> nn.Module:
    """From the tokens up through `strides`, finest first, to `narrow` channels."""
    *above, coarsest = strides
    parts = [kits[-1].transposed(width, narrow, coarsest)]
    for kit, stride in zip(reversed(kits[:-1]), reversed(above), strict=True):
        parts += [kit.transposed(narrow, narrow, stride), residual_pair(kit, narrow, narrow)]
    return nn.Sequential(*parts)
