"""The convolution with norm and activation that most other words are made of, and two of them.

Their first convolution takes a stride, for the use of `resize`.
"""

from torch import nn

from autoseg.nets.kit import Ints, Kit, chain


def plain(kit: Kit, cin: int, cout: int, *, stride: Ints = 1) -> nn.Module:
    """Convolution, dropout, norm, activation: the unit of nnU-Net (Isensee et al. 2021)."""
    return chain(kit.conv(cin, cout, stride=stride), kit.drop(), kit.norm_act(cout))


def pair(kit: Kit, cin: int, cout: int, *, stride: Ints = 1) -> nn.Module:
    """Two convolutions, the second without activation: the branch of a residual block."""
    first = plain(kit, cin, cout, stride=stride)
    return nn.Sequential(first, chain(kit.conv(cout, cout), kit.norm(cout)))
