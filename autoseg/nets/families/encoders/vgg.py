"""VGG-16 as an encoder (Simonyan and Zisserman 2015, arXiv:1409.1556)."""

from collections.abc import Sequence

from torch import nn

from autoseg.documents.networks.network import accumulated
from autoseg.nets.families.encoders.encoder import (
    REDUCTIONS,
    Encoder,
    Grid,
    Steps,
    norm_act,
    reductions,
    sized,
)
from autoseg.nets.kit import Kit

DEPTHS = (2, 2, 3, 3, 3)
FACTORS = (1, 2, 4, 8, 8)


class VGG(Encoder):
    """Five blocks of 3x3 convolutions, each but the last followed by pooling and the next block.

    Six features: of each block, and the last pooled. The kit's norm decides whose weights fit:
    `none` those of VGG-16, any other those of VGG-16 with batch norm. `rates` are the dilations of
    the blocks. A reduction without step has no pooling.
    """

    first = 0

    def __init__(
        self,
        kit: Kit,
        in_channels: int,
        steps: Steps,
        kernels: Steps,
        *,
        first_width: int = 64,
        rates: Sequence[int] = (1,) * REDUCTIONS,
    ) -> None:
        super().__init__()
        self.steps = reductions(steps)
        block_widths = tuple(first_width * factor for factor in FACTORS)
        layers: list[nn.Module] = []
        self.spans: list[tuple[int, int]] = []
        cin = in_channels
        for i, (depth, width) in enumerate(zip(DEPTHS, block_widths, strict=True)):
            at, start = kit.at(sized(kit, kernels, i, 3)), len(layers)
            for _ in range(depth):
                layers.append(at.conv(cin, width, rate=rates[i]))
                layers.extend([at.act()] if kit.norm_name == "none" else norm_act(at, width))
                cin = width
            self.spans.append((start, len(layers)))
            layers.append(_pool(kit, self.steps[i]))
        self.features = nn.Sequential(*layers)
        self.widths = (*block_widths, block_widths[-1])
        self.strides = accumulated([(1,) * kit.ndim, *self.steps])

    def blocks(self) -> list[nn.Module]:
        """The convolutions between two poolings, finest first."""
        return [self.features[start:stop] for start, stop in self.spans]

    def pools(self) -> list[nn.Module]:
        """What comes after each block."""
        return [self.features[stop] for _, stop in self.spans]

    def parts(self) -> list[nn.Module]:
        blocks, pools = self.blocks(), self.pools()
        between = zip(pools[:-1], blocks[1:], strict=True)
        return [blocks[0], *(nn.Sequential(pool, block) for pool, block in between), pools[-1]]


def _pool(kit: Kit, step: Grid) -> nn.Module:
    return nn.Identity() if set(step) == {1} else kit.max_pool(step)
