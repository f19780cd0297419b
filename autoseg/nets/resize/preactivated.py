"""SegResNet's step down, which leaves norm and activation to the blocks after it."""

from collections.abc import Sequence

from torch import nn

from autoseg.nets.kit import Kit


def bare(kit: Kit, cin: int, cout: int, stride: Sequence[int], *, bias: bool = True) -> nn.Module:
    """A strided convolution alone (Myronenko 2018, arXiv:1810.11654, has it without bias)."""
    return kit.conv(cin, cout, stride=stride, bias=bias)
