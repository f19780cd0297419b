"""Units, the words of encoder, bottleneck and decoder: (B, cin, *S) -> (B, cout, *S).

A unit never changes the grid, so that any of them fits into any position of the sentence; only the
first convolution of `plain` and `pair` takes a stride, for the use of `resize`.
"""

from collections.abc import Callable

from torch import nn

from autoseg.nets.kit import Ints, Kit, chain

Unit = Callable[[Kit, int, int], nn.Module]


def plain(kit: Kit, cin: int, cout: int, *, stride: Ints = 1) -> nn.Module:
    """Convolution, dropout, norm, activation: the unit of nnU-Net (Isensee et al. 2021)."""
    return chain(kit.conv(cin, cout, stride=stride), kit.drop(), kit.norm_act(cout))


def pair(kit: Kit, cin: int, cout: int, *, stride: Ints = 1) -> nn.Module:
    """Two convolutions, the second without activation: the branch of a residual block."""
    first = plain(kit, cin, cout, stride=stride)
    return nn.Sequential(first, chain(kit.conv(cout, cout), kit.norm(cout)))


UNITS: dict[str, Unit] = {"plain": plain, "pair": pair}
