"""Swin UNETR: window transformers on the way down, residual convolutions on skips and way up."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.documents.networks.transformers import SwinUNETRSpec
from autoseg.nets.families.unet import Decode
from autoseg.nets.joins import Concat
from autoseg.nets.kit import Kit, chain, initialise
from autoseg.nets.network import Network
from autoseg.nets.resize.merging import PatchMerging
from autoseg.nets.tokens import OnTokens, patches
from autoseg.nets.units.attention import flattened, swin_blocks
from autoseg.nets.units.plain import pair
from autoseg.nets.wraps.residual import residual

residual_pair = residual(pair)


def residual_decode(kit: Kit, width: int, below: int, stride: tuple[int, ...]) -> Decode:
    """One level on the way up: transposed convolution, [below, kept], a residual block."""
    up = kit.transposed(below, width, stride)
    return Decode(up, Concat(kit, width, width), residual_pair(kit, 2 * width, width))


class Normed(nn.Module):
    """Each voxel's channels to mean 0 and variance 1; nothing is learnt."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class SwinUNETR(Network):
    """Blocks of voxels become tokens; each stage of window attention ends by merging tokens.

    What enters and leaves the stages is normed and kept: through a residual block each, but as it
    is at the level above the coarsest. Windows are flat where a level's kernel is (Hatamizadeh et
    al. 2022, arXiv:2201.01266; `convolved`: He et al. 2023, doi:10.1007/978-3-031-43901-8_40).
    Biases and the weights of norms, which the published convolutions lack, change nothing at first
    but that a residual branch starts at zero. With two levels there is one stage and no merging.
    """

    def __init__(self, spec: SwinUNETRSpec) -> None:
        super().__init__(spec)
        levels, widths = spec.levels, spec.widths
        kits = [Kit(x.kernel, spec.norm, spec.activation, spec.dropout) for x in levels]
        last = len(levels) - 1
        self.embed = patches(spec.in_channels, widths[1], levels[1].stride)
        self.stages = nn.ModuleList(_stage(spec, kits[i + 1], i) for i in range(len(spec.depths)))
        self.normed = Normed()
        self.keep = nn.ModuleList(
            nn.Identity() if i == last - 1 else residual_pair(kit, width, width)
            for i, (kit, width) in enumerate(zip(kits, widths, strict=True))
            if i > 0
        )
        self.enter = residual_pair(kits[0], spec.in_channels, widths[0])
        self.decode = nn.ModuleList(
            residual_decode(kit, a.width, b.width, b.stride)
            for kit, (a, b) in zip(kits, pairwise(levels), strict=False)
        )
        self.head = kits[0].conv(widths[0], spec.classes, 1)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = [self.run(self.enter, x)]
        x = self.embed(x)
        seen = [x] if len(self.keep) > 1 else []
        for stage in self.stages:
            x = self.run(stage, x)
            seen.append(x)
        for keep, level in zip(self.keep, seen, strict=True):
            kept.append(self.run(keep, self.normed(level)))
        x = kept.pop()
        for decode in reversed(self.decode):
            x = self.run(decode, x, kept.pop())
        return [self.head(x)]


def _stage(spec: SwinUNETRSpec, kit: Kit, i: int) -> nn.Module:
    """The blocks of stage `i` on level `i` + 1, and the merging that leads to the next level."""
    width = spec.widths[i + 1]
    window = flattened(kit, spec.window)
    blocks = swin_blocks(width, spec.heads[i], window, spec.mlp, spec.depths[i], spec.dropout)
    parts: list[nn.Module] = [OnTokens(blocks)]
    if spec.convolved:
        parts.insert(0, residual_pair(kit, width, width))
    if i + 2 < len(spec.levels):
        parts.append(PatchMerging(width, spec.widths[i + 2], spec.levels[i + 2].stride))
    return chain(*parts)
