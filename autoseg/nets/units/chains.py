"""Units whose convolutions stand one after another: bottlenecks, dense, dilated and split chains."""

import torch
from torch import Tensor, nn

from autoseg.nets.kit import Ints, Kit, chain


def layer(
    kit: Kit, cin: int, cout: int, kernel: Ints | None = None, *, rate: int = 1, groups: int = 1
) -> nn.Module:
    """Convolution, dropout, norm, activation: what the units of this room are made of."""
    conv = kit.conv(cin, cout, kernel, rate=rate, groups=groups)
    return chain(conv, kit.drop(), kit.norm_act(cout))


def divisor(wished: int, *channels: int) -> int:
    """The largest number up to `wished` that divides all of `channels`: how many groups fit."""
    return next(g for g in range(wished, 0, -1) if all(c % g == 0 for c in channels))


def bottleneck(kit: Kit, cin: int, cout: int, *, ratio: int = 4) -> nn.Module:
    """1x1 to cout / ratio, convolution, 1x1 to cout: the branch of a deep residual block.

    He et al. 2016, arXiv:1512.03385. It ends without activation, for the wrap `residual`.
    """
    return _narrowed(kit, cin, cout, max(1, cout // ratio), groups=1)


def grouped(kit: Kit, cin: int, cout: int, *, cardinality: int = 8, ratio: int = 2) -> nn.Module:
    """The bottleneck whose middle has `cardinality` groups, each blind to the others' channels.

    ResNeXt (Xie et al. 2017, arXiv:1611.05431) has 32 groups in networks eight times as wide as a
    U-Net. There are fewer groups where the middle width does not divide by as many.
    """
    middle = max(1, cout // ratio)
    return _narrowed(kit, cin, cout, middle, divisor(cardinality, middle))


def _narrowed(kit: Kit, cin: int, cout: int, middle: int, groups: int) -> nn.Module:
    return nn.Sequential(
        layer(kit, cin, middle, 1),
        layer(kit, middle, middle, groups=groups),
        chain(kit.conv(middle, cout, 1), kit.norm(cout)),
    )


class Dense(nn.Module):
    """x_l = H_l([x_0, ..., x_(l-1)]), and all of them together through the transition."""

    def __init__(self, layers: list[nn.Module], transition: nn.Module) -> None:
        super().__init__()
        self.layers, self.transition = nn.ModuleList(layers), transition

    def forward(self, x: Tensor) -> Tensor:
        for one in self.layers:
            x = torch.cat([x, one(x)], 1)
        out: Tensor = self.transition(x)
        return out


def dense(kit: Kit, cin: int, cout: int, *, growth: int = 16, layers: int = 4) -> nn.Module:
    """Each layer sees all before it and adds `growth` channels; a 1x1 transition leads to cout.

    Huang et al. 2017, arXiv:1608.06993. Norm and activation stand behind each convolution, not
    before it, as in all other words: what comes in is normalised already.
    """
    made = [layer(kit, cin + i * growth, growth) for i in range(layers)]
    return Dense(made, layer(kit, cin + layers * growth, cout, 1))


def dilated(kit: Kit, cin: int, cout: int, *, rates: tuple[int, ...] = (1, 2, 5)) -> nn.Module:
    """One convolution for each rate, which see (k - 1) * sum(rates) + 1 voxels along an axis.

    Yu & Koltun 2016, arXiv:1511.07122. Rates without a common divisor leave no holes in what is
    seen (hybrid dilated convolution, Wang et al. 2018, arXiv:1702.08502).
    """
    widths = (cin, *[cout] * len(rates))
    return nn.Sequential(
        *(layer(kit, a, b, rate=r) for a, b, r in zip(widths, widths[1:], rates, strict=False))
    )


class Csp(nn.Module):
    """Half of the channels as they are beside the other half through `part`, then merged."""

    def __init__(self, enter: nn.Module, part: nn.Module, merge: nn.Module, kept: int) -> None:
        super().__init__()
        self.enter, self.part, self.merge, self.kept = enter, part, merge, kept

    def crossed(self, x: Tensor) -> Tensor:
        """[the first half, the second half through the part]."""
        return torch.cat([x[:, : self.kept], self.part(x[:, self.kept :])], 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.merge(self.crossed(self.enter(x)))
        return out


def csp(kit: Kit, cin: int, cout: int, *, layers: int = 2) -> nn.Module:
    """Cross-stage partial: half the channels skip the unit's convolutions, a 1x1 merges both.

    Wang et al. 2020, arXiv:1911.11929. A 1x1 convolution comes first where the width changes.
    """
    kept = cout // 2
    rest = cout - kept
    enter = nn.Identity() if cin == cout else layer(kit, cin, cout, 1)
    part = nn.Sequential(*(layer(kit, rest, rest) for _ in range(layers)))
    return Csp(enter, part, layer(kit, cout, cout, 1), kept)
