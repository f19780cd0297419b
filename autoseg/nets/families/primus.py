"""Primus: a plain vision transformer with many small tokens, and as little else as possible."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from autoseg.documents.networks.transformers import PrimusSpec
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.network import Network
from autoseg.nets.tokens import OnTokens, PerVoxelNorm, Positions, patches
from autoseg.nets.units.attention import Attention, Block, Branch, GatedMlp


class Primus(Network):
    """One convolution makes tokens, EVA-02 blocks mix them, transposed convolutions end at logits.

    Wald et al. 2025, arXiv:2503.01835: rotary positions along each axis beside learnt ones, SwiGLU
    with a norm inside, a norm inside attention, LayerScale, stochastic depth; layer norm and GELU
    between the convolutions. Learnt positions are interpolated to other grids than their own. No
    register tokens, which the published sizes do without.
    """

    def __init__(self, spec: PrimusSpec) -> None:
        super().__init__(spec)
        width = spec.widths[-1]
        kit = Kit(spec.levels[-1].kernel)
        self.embed = patches(spec.in_channels, width, spec.divisor)
        self.positions = Positions(width, spec.positions)
        self.blocks = nn.ModuleList(OnTokens(_block(spec, i)) for i in range(spec.depth))
        self.norm = PerVoxelNorm(width)
        up: list[nn.Module] = []
        for finer, coarser in reversed(list(pairwise(spec.levels))):
            if up:
                up += [PerVoxelNorm(coarser.width, eps=1e-6), nn.GELU()]
            up.append(kit.transposed(coarser.width, finer.width, coarser.stride))
        self.up = nn.Sequential(*up)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.positions(self.embed(x))
        for block in self.blocks:
            x = self.run(block, x)
        return [self.run(self.up, self.norm(x))]


def _block(spec: PrimusSpec, i: int) -> Block:
    """Deeper blocks start smaller, and are left out more often (EVA-02, arXiv:2303.11331)."""
    width = spec.widths[-1]
    path = spec.path * i / max(1, spec.depth - 1)
    mixer = Attention(width, spec.heads, biases=(True, False, True), inner_norm=True)
    mlp = GatedMlp(width, int(width * spec.mlp))
    with torch.no_grad():
        for layer in (mixer.out, mlp.out):
            layer.weight /= (2 * (i + 1)) ** 0.5
    halves = (Branch(width, part, spec.dropout, spec.scale, path) for part in (mixer, mlp))
    return Block(*halves)
