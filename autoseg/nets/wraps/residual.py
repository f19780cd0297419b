"""The residual wrap: a unit's output is added to its input."""

from math import prod

from torch import Tensor, nn

from autoseg.nets.kit import Ints, Kit, chain
from autoseg.nets.units.words import Unit


class Residual(nn.Module):
    """act(branch(x) + shortcut(x)).

    A norm that ends the branch starts at zero, so that a fresh block passes its input on
    (Goyal et al. 2017, arXiv:1706.02677). With an activation behind it the norm starts at one: a
    rectifier passes no gradient at zero.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.act = branch, shortcut, act
        last = list(branch.modules())[-1]
        weight = getattr(last, "weight", None)
        rectified = isinstance(last, nn.PReLU) or getattr(last, "slope", None) is not None
        if weight is not None and weight.ndim == 1 and not rectified:
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


def shortcut(kit: Kit, cin: int, cout: int, stride: Ints = 1) -> nn.Module:
    """x itself, pooled by its mean where there is a stride, projected where the width changes.

    The pooling before a 1x1 convolution is that of ResNet-D (He et al. 2019, arXiv:1812.01187).
    """
    pool = kit.mean_pool(stride) if prod(kit.each(stride)) > 1 else nn.Identity()
    if cin == cout:
        return pool
    return chain(pool, kit.conv(cin, cout, 1, bias=False), kit.norm(cout))


def residual(unit: Unit) -> Unit:
    """x -> act(unit(x) + x), projected by a 1x1 convolution where the width changes."""

    def wrapped(kit: Kit, cin: int, cout: int) -> nn.Module:
        return Residual(unit(kit, cin, cout), shortcut(kit, cin, cout), kit.act())

    return wrapped
