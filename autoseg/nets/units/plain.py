"""The convolution with norm and activation that most other words are made of, and two of them.

Here also stands their form with a step, for the use of `resize`.
"""

from torch import nn

from autoseg.nets.kit import Ints, Kit, chain


def plain(kit: Kit, cin: int, cout: int) -> nn.Module:
    """Convolution, dropout, norm, activation: the unit of nnU-Net (Isensee et al. 2021)."""
    return stepping(kit, cin, cout, 1)


def pair(kit: Kit, cin: int, cout: int) -> nn.Module:
    """Two convolutions, the second without activation: the branch of a residual block."""
    return stepping_pair(kit, cin, cout, 1)


def stepping(kit: Kit, cin: int, cout: int, stride: Ints) -> nn.Module:
    """The plain unit with a step, which a unit of a sentence never has."""
    return chain(kit.conv(cin, cout, stride=stride), kit.drop(), kit.norm_act(cout))


def stepping_pair(kit: Kit, cin: int, cout: int, stride: Ints) -> nn.Module:
    """The pair with a step in its first convolution."""
    first = stepping(kit, cin, cout, stride)
    return nn.Sequential(first, chain(kit.conv(cout, cout), kit.norm(cout)))
