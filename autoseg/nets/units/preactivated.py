"""Units that activate before they convolve, so that sums pass from block to block untouched.

`bare` begins such a network and `norm_act` ends it.
"""

from torch import Tensor, nn

from autoseg.nets.kit import Kit, chain


def bare(kit: Kit, cin: int, cout: int, *, kernel: int = 0, bias: bool = True) -> nn.Module:
    """A convolution and dropout alone, `kernel` wide on every axis (0: the level's own)."""
    return chain(kit.conv(cin, cout, kernel or None, bias=bias), kit.drop())


def norm_act(kit: Kit, cin: int, cout: int) -> nn.Module:
    """Norm and activation alone; a 1x1 convolution after them where the width changes."""
    mapped = nn.Identity() if cin == cout else kit.conv(cin, cout, 1)
    return chain(_activated(kit, cin), mapped)


class Preactivated(nn.Module):
    """conv(act(norm(conv(act(norm(x)))))) + shortcut(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


def preact(kit: Kit, cin: int, cout: int) -> nn.Module:
    """The pre-activated residual block (He et al. 2016, arXiv:1603.05027), as SegResNet has it.

    Its convolutions have no bias (Myronenko 2018, arXiv:1810.11654).
    """
    first = chain(_activated(kit, cin), kit.conv(cin, cout, bias=False))
    second = chain(_activated(kit, cout), kit.conv(cout, cout, bias=False))
    shortcut = nn.Identity() if cin == cout else kit.conv(cin, cout, 1, bias=False)
    return Preactivated(nn.Sequential(first, second), shortcut)


def _activated(kit: Kit, channels: int) -> nn.Module:
    """Norm and activation of a tensor that others still need: without a norm, not in place."""
    made = kit.norm_act(channels)
    if isinstance(made, (nn.ReLU, nn.LeakyReLU)):
        made.inplace = False
    return made
