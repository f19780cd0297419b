"""MedNeXt's block: a convolution within each channel, then a wide layer across the channels."""

from torch import Tensor, nn

from autoseg.nets.kit import Kit

RATIO = 2
"""How many times as wide as its input the block is inside, in the small variant."""


class MedNeXt(nn.Module):
    """compress(act(expand(norm(spread(x))))) + shortcut(x), where `spread` may change the grid.

    Roy et al. 2023, arXiv:2303.09975. Published with GELU and one group norm a channel, which is
    what the document's "gelu" and "instance" are. Weights begin as torch has it, as published.
    """

    own_init = True

    def __init__(
        self, spread: nn.Module, shortcut: nn.Module, kit: Kit, cin: int, cout: int, ratio: int
    ) -> None:
        super().__init__()
        self.spread, self.norm = spread, kit.norm(cin)
        self.expand, self.act = kit.conv(cin, ratio * cin, 1), kit.act()
        self.compress = kit.conv(ratio * cin, cout, 1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        wide = self.act(self.expand(self.norm(self.spread(x))))
        out: Tensor = self.compress(wide) + self.shortcut(x)
        return out


def mednext(kit: Kit, cin: int, cout: int, *, ratio: int = RATIO) -> nn.Module:
    """The block with the level's kernel, `ratio` times as wide inside; projected to a new width."""
    shortcut = nn.Identity() if cin == cout else kit.conv(cin, cout, 1)
    return MedNeXt(kit.conv(cin, cin, groups=cin), shortcut, kit, cin, cout, ratio)
