"""Units whose convolutions stand side by side, each with a view of its own.

What they see is concatenated, added, or weighed against each other.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nets.kit import Kit, chain
from autoseg.nets.units.chains import divisor, layer
from autoseg.nets.units.light import SqueezeExcite


class Beside(nn.Module):
    """[branch(x) for each branch], concatenated along the channels."""

    def __init__(self, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Summed(nn.Module):
    """The sum of what all branches make of x, and an activation after it."""

    def __init__(self, branches: Iterable[nn.Module], act: nn.Module) -> None:
        super().__init__()
        self.branches, self.act = nn.ModuleList(branches), act

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = (branch(x) for branch in self.branches)
        out: Tensor = self.act(sum(rest, first))
        return out


def shares(whole: int, parts: int) -> tuple[int, ...]:
    """`whole` in nearly equal parts, the first ones larger; zeros where it is too small."""
    return tuple(whole // parts + (i < whole % parts) for i in range(parts))


def inception(kit: Kit, cin: int, cout: int) -> nn.Module:
    """One, no and two convolutions and a pooling side by side, each behind a 1x1; a share each.

    Szegedy et al. 2016, arXiv:1512.00567: the 5x5 as two 3x3; the pooling stands before its 1x1.
    Below four channels the last branches are left out.
    """
    a, b, c, d = shares(cout, 4)
    pool = (nn.MaxPool2d, nn.MaxPool3d)[kit.ndim - 2](
        kit.kernel, 1, tuple(k // 2 for k in kit.kernel)
    )
    made: list[nn.Module] = [nn.Sequential(layer(kit, cin, a, 1), layer(kit, a, a))]
    made += [layer(kit, cin, b, 1)] if b else []
    made += [nn.Sequential(layer(kit, cin, c, 1), layer(kit, c, c), layer(kit, c, c))] if c else []
    made += [nn.Sequential(pool, layer(kit, cin, d, 1))] if d else []
    return Beside(made)


def inception_dilated(
    kit: Kit, cin: int, cout: int, *, rates: tuple[int, ...] = (1, 3, 5)
) -> nn.Module:
    """A 1x1 convolution beside one of each rate behind a 1x1, with a share of the channels each.

    Inception (Szegedy et al. 2016, arXiv:1512.00567) with dilated instead of larger kernels.
    """
    own, *others = shares(cout, 1 + len(rates))
    made = [layer(kit, cin, own, 1)]
    for width, rate in zip(others, rates, strict=True):
        if width:
            made.append(
                nn.Sequential(layer(kit, cin, width, 1), layer(kit, width, width, rate=rate))
            )
    return Beside(made)


class DenseAtrous(nn.Module):
    """x + the ends of four cascades of one, one, two and three convolutions that share weights."""

    def __init__(self, kit: Kit, channels: int) -> None:
        super().__init__()
        self.one, self.three, self.five = (kit.conv(channels, channels, rate=r) for r in (1, 3, 5))
        self.point = kit.conv(channels, channels, 1)
        self.ends = nn.ModuleList(kit.norm_act(channels) for _ in range(4))
        self.in_place = kit.norm_name == "none"

    def cascades(self, x: Tensor) -> list[Tensor]:
        """What sees 3, 7, 9 and 19 voxels along an axis."""
        one = self.one(x)
        both = self.three(one)
        # without a norm the activation would overwrite what the second convolution has seen
        first = one.clone() if self.in_place else one
        return [first, *(self.point(y) for y in (self.three(x), both, self.five(both)))]

    def forward(self, x: Tensor) -> Tensor:
        ends = (end(y) for end, y in zip(self.ends, self.cascades(x), strict=True))
        out: Tensor = sum(ends, x)
        return out


def dense_atrous(kit: Kit, cin: int, cout: int) -> nn.Module:
    """x and four cascades of dilated convolutions, added; they see 3, 7, 9 and 19 voxels.

    CE-Net's dense atrous convolution block (Gu et al. 2019, arXiv:1903.02740): rates 1; 3; 1, 3;
    1, 3, 5, then a 1x1 but in the first, with weights that the cascades share, as in the authors'
    code. There is a norm at the end of each cascade, which the published block has not: the sum of
    five would grow. A 1x1 convolution comes first where the width changes.
    """
    enter = nn.Identity() if cin == cout else _projection(kit, cin, cout)
    return chain(enter, DenseAtrous(kit, cout))


def _fitting(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The convolution with the dilation of each axis cut to half of its length."""
    rates = [min(r, max(1, n // 2)) for r, n in zip(layer.dilation, x.shape[2:], strict=True)]
    padding = [r * (k // 2) for r, k in zip(rates, layer.kernel_size, strict=True)]
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    return convolve(x, layer.weight, layer.bias, 1, padding, rates)


class Fitting2d(nn.Conv2d):
    """A dilated convolution whose rate is at most half of the axis."""

    def forward(self, input: Tensor) -> Tensor:
        return _fitting(self, input)


class Fitting3d(nn.Conv3d):
    """The same in 3D."""

    def forward(self, input: Tensor) -> Tensor:
        return _fitting(self, input)


class WholeImage(nn.Module):
    """The mean of all voxels through a 1x1 convolution and activation, at every voxel."""

    def __init__(self, conv: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv, act

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        said: Tensor = self.act(self.conv(mean))
        return said.expand(-1, -1, *x.shape[2:])


def pyramid(
    kit: Kit, cin: int, cout: int, *, rates: tuple[int, ...] = (6, 12, 18), ratio: int = 4
) -> nn.Module:
    """A 1x1 convolution, one of each rate and the image's mean, concatenated, then 1x1 to cout.

    Atrous spatial pyramid pooling (Chen et al. 2017, arXiv:1706.05587). Branches are cout / ratio
    wide; as wide as the output (ratio 1) in the paper. A rate that comes near the length of an axis
    leaves of its kernel the centre alone, so a rate is cut to half of that length: U-Nets are deeper
    than the networks for which the rates were meant. The branch of the mean has no norm, which
    one voxel a channel does not allow.
    """
    width = max(1, cout // ratio)
    convolution = (Fitting2d, Fitting3d)[kit.ndim - 2]
    atrous = [
        chain(convolution(cin, width, kit.kernel, dilation=r), kit.drop(), kit.norm_act(width))  # type: ignore[arg-type]
        for r in rates
    ]
    image = WholeImage(kit.conv(cin, width, 1), kit.act())
    beside = Beside([layer(kit, cin, width, 1), *atrous, image])
    return nn.Sequential(beside, layer(kit, width * (2 + len(rates)), cout, 1))


class PooledPyramid(nn.Module):
    """[x, one map for each size of pooling window], the maps interpolated to the grid of x."""

    def __init__(self, sizes: Iterable[tuple[int, ...]], convs: Iterable[nn.Module]) -> None:
        super().__init__()
        self.sizes, self.convs = tuple(sizes), nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[2:]
        pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
        mode = "bilinear" if x.ndim == 4 else "trilinear"
        seen = [x]
        for size, conv in zip(self.sizes, self.convs, strict=True):
            window = [min(s, n) for s, n in zip(size, grid, strict=True)]
            small = conv(pool(x, window, window))
            seen.append(F.interpolate(small, size=grid, mode=mode, align_corners=False))
        return torch.cat(seen, 1)


def pooled_pyramid(
    kit: Kit, cin: int, cout: int, *, sizes: tuple[int, ...] = (2, 3, 5, 6)
) -> nn.Module:
    """x beside one map from each of several poolings, then 1x1 to cout.

    CE-Net's residual multi-kernel pooling (Gu et al. 2019, arXiv:1903.02740), which has no last
    convolution. A window is cut to the length of the axis.
    """
    convs = [kit.conv(cin, 1, 1) for _ in sizes]
    pools = PooledPyramid([kit.wide(size) for size in sizes], convs)
    return nn.Sequential(pools, layer(kit, cin + len(sizes), cout, 1))


class Growing(nn.Module):
    """[a(x), b(a(x)), c(b(a(x))), ...], concatenated along the channels."""

    def __init__(self, steps: Iterable[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for step in self.steps:
            x = step(x)
            seen.append(x)
        return torch.cat(seen, 1)


def multi_scale_residual(kit: Kit, cin: int, cout: int) -> nn.Module:
    """Three convolutions in a row, all three kept, a sixth, a third and half of the channels.

    MultiResUNet's block (Ibtehaz & Rahman 2020, arXiv:1902.04049): they see as much as 3x3, 5x5 and
    7x7, and a 1x1 shortcut is added. The paper makes it 1.67 times as wide as the U-Net's, which
    is the planner's to decide here, and norms once more after the sum.
    """
    widths = [w for w in (cout // 6, cout // 3, cout - cout // 6 - cout // 3) if w]
    steps = [layer(kit, a, b) for a, b in zip((cin, *widths), widths, strict=False)]
    branch = chain(Growing(steps), kit.norm(cout))
    return Summed([branch, _projection(kit, cin, cout)], kit.act())


def residual_path(kit: Kit, cin: int, cout: int, *, steps: int = 2) -> nn.Module:
    """`steps` times act(convolution + 1x1 convolution): what MultiResUNet has in its skips.

    Ibtehaz & Rahman 2020, arXiv:1902.04049, who have four steps at the finest level and one fewer
    at each below; a sentence has one number for all.
    """
    return nn.Sequential(
        *(
            Summed(
                [
                    chain(kit.conv(cin if i == 0 else cout, cout), kit.norm(cout)),
                    _projection(kit, cin if i == 0 else cout, cout),
                ],
                kit.act(),
            )
            for i in range(steps)
        )
    )


def _projection(kit: Kit, cin: int, cout: int) -> nn.Module:
    return chain(kit.conv(cin, cout, 1), kit.norm(cout))


class PyramidSplit(nn.Module):
    """Branches of equal width, each channel of them weighed against its fellows, concatenated."""

    def __init__(self, branches: Iterable[nn.Module], gates: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches, self.gates = nn.ModuleList(branches), nn.ModuleList(gates)

    def weights(self, seen: list[Tensor]) -> Tensor:
        """(branches, B, width, 1, ...), which sum to 1 over the branches."""
        told = [gate(y) for gate, y in zip(self.gates, seen, strict=True)]
        return torch.stack(told).softmax(0)

    def forward(self, x: Tensor) -> Tensor:
        seen = [branch(x) for branch in self.branches]
        weighed = [y * w for y, w in zip(seen, self.weights(seen).unbind(0), strict=True)]
        return torch.cat(weighed, 1)


def pyramid_split(
    kit: Kit, cin: int, cout: int, *, sizes: tuple[int, ...] = (3, 5, 7, 9)
) -> nn.Module:
    """Kernels of several sizes side by side, weighed by a squeeze-and-softmax, then 1x1 to cout.

    EPSANet's pyramid split attention (Zhang et al. 2021, arXiv:2105.14447). Larger kernels have
    more groups: 2^((k - 1) / 2), but 1 where k is 3, and fewer where the widths do not divide by as
    many. It ends without activation, for the wrap `residual`.
    """
    width = -(-cout // len(sizes))
    branches, gates = [], []
    for size in sizes:
        groups = divisor(2 ** (size // 2) if size > 3 else 1, cin, width)
        branches.append(kit.conv(cin, width, kit.wide(size), groups=groups))
        gates.append(SqueezeExcite(kit, width, max(1, width // 4)))
    whole = width * len(sizes)
    return nn.Sequential(
        PyramidSplit(branches, gates),
        chain(kit.drop(), kit.norm_act(whole)),
        _projection(kit, whole, cout),
    )


class SplitAttention(nn.Module):
    """The branches' sum, each channel weighed by a softmax over the branches."""

    def __init__(self, branches: list[nn.Module], weigh: nn.Module) -> None:
        super().__init__()
        self.weigh, self.branches = weigh, nn.ModuleList(branches)

    def weights(self, together: Tensor) -> Tensor:
        """(B, branches, C, 1, ...), which sum to 1 over the branches."""
        mean = together.mean(tuple(range(2, together.ndim)), keepdim=True)
        said: Tensor = self.weigh(mean)
        return said.reshape(len(said), len(self.branches), -1, *said.shape[2:]).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [branch(x) for branch in self.branches]
        weights = self.weights(sum(seen[1:], seen[0])).unbind(1)
        first, *rest = (y * w for y, w in zip(seen, weights, strict=True))
        out: Tensor = sum(rest, first)
        return out


def split_attention(
    kit: Kit, cin: int, cout: int, *, rates: tuple[int, ...] = (1, 2), ratio: int = 4
) -> nn.Module:
    """One convolution of each rate; each channel takes its mixture of them, found from their sum.

    ResNeSt (Zhang et al. 2020, arXiv:2004.08955), whose radix is the number of rates here and whose
    branches have the same rate; different ones let a channel choose how far it looks. The
    layers that weigh have no norm, which one voxel a channel does not allow.
    """
    hidden = max(1, cout * len(rates) // ratio)
    weigh = nn.Sequential(
        kit.conv(cout, hidden, 1), kit.act(), kit.conv(hidden, cout * len(rates), 1)
    )
    return SplitAttention([layer(kit, cin, cout, rate=r) for r in rates], weigh)
