"""The few layers that differ between 2D and 3D and from plan to plan; every part is built from these.

Here belong single layers and how they are initialised. What they are combined to stands in
`units`, `wraps`, `skips` and `resize`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from autoseg.nets.layout import Pointwise2d, Pointwise3d
from autoseg.nets.norm import InstanceNorm

NEGATIVE_SLOPE = 0.01
NORM_EPS = 1e-5
GROUPS = 8

Ints = int | Sequence[int]

NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "instance": lambda _, channels: InstanceNorm(channels, NORM_EPS),
    "batch": lambda ndim, channels: (nn.BatchNorm2d, nn.BatchNorm3d)[ndim - 2](channels, NORM_EPS),
    "group": lambda _, channels: nn.GroupNorm(_groups(channels), channels, NORM_EPS),
    "none": lambda *_: nn.Identity(),
}
"""Name -> layer, from the number of spatial axes and of channels."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
    "prelu": nn.PReLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
}

SLOPES = {"relu": 0.0, "leaky_relu": NEGATIVE_SLOPE}


@dataclass(frozen=True)
class Kit:
    """The layers of one level of one network; `kernel` is that of its convolutions."""

    kernel: tuple[int, ...]
    norm_name: str = "instance"
    act_name: str = "leaky_relu"
    dropout: float = 0.0

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    def at(self, kernel: Sequence[int]) -> "Kit":
        """The kit of a level with another kernel."""
        return replace(self, kernel=tuple(kernel))

    def each(self, value: Ints) -> tuple[int, ...]:
        """One number for each spatial axis."""
        return (value,) * self.ndim if isinstance(value, int) else tuple(value)

    def wide(self, size: int) -> tuple[int, ...]:
        """`size` along the axes that the level convolves, 1 along its flat ones."""
        return tuple(size if k > 1 else 1 for k in self.kernel)

    def conv(
        self,
        cin: int,
        cout: int,
        kernel: Ints | None = None,
        *,
        stride: Ints = 1,
        rate: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> nn.Module:
        """A convolution that keeps the grid, but for `stride`; `kernel` None is the level's own."""
        size = self.each(self.kernel if kernel is None else kernel)
        layer: Any = (nn.Conv2d, nn.Conv3d)[self.ndim - 2]
        if set(size) == {groups} == {1}:
            layer = (Pointwise2d, Pointwise3d)[self.ndim - 2]
        padding = tuple(rate * (k // 2) for k in size)
        made: nn.Module = layer(
            cin, cout, size, self.each(stride), padding, rate, groups=groups, bias=bias
        )
        return made

    def transposed(self, cin: int, cout: int, stride: Ints) -> nn.Module:
        """A transposed convolution whose kernel is its stride: each voxel becomes a block."""
        layer: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[self.ndim - 2]
        size = self.each(stride)
        made: nn.Module = layer(cin, cout, size, size)
        return made

    def norm(self, channels: int) -> nn.Module:
        return NORMS[self.norm_name](self.ndim, channels)

    def act(self) -> nn.Module:
        return ACTIVATIONS[self.act_name]()

    def norm_act(self, channels: int) -> nn.Module:
        """The norm and the activation after it, in one step where that is faster."""
        if self.norm_name == "instance" and self.act_name in SLOPES:
            return InstanceNorm(channels, NORM_EPS, SLOPES[self.act_name])
        return chain(self.norm(channels), self.act())

    def drop(self) -> nn.Module:
        """Whole channels are dropped, since neighbouring voxels tell the same."""
        layer = (nn.Dropout2d, nn.Dropout3d)[self.ndim - 2]
        return layer(self.dropout) if self.dropout else nn.Identity()

    def mean_pool(self, stride: Ints) -> nn.Module:
        size = self.each(stride)
        layer: Any = (nn.AvgPool2d, nn.AvgPool3d)[self.ndim - 2]
        made: nn.Module = layer(size, size)
        return made

    def max_pool(self, stride: Ints) -> nn.Module:
        size = self.each(stride)
        return (nn.MaxPool2d, nn.MaxPool3d)[self.ndim - 2](size, size)


def chain(*parts: nn.Module) -> nn.Module:
    """The parts one after another, without those that do nothing."""
    kept = [part for part in parts if not isinstance(part, nn.Identity)]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept)


def initialise(net: nn.Module) -> None:
    """He's initialisation for leaky rectifiers, biases zero (He et al. 2015), as nnU-Net has it.

    A module with a true attribute `own_init` is left as it is, with all that is inside.
    """
    for module in _without_own(net):
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _without_own(net: nn.Module) -> Iterator[nn.Module]:
    if not getattr(net, "own_init", False):
        yield net
        for child in net.children():
            yield from _without_own(child)


def _groups(channels: int) -> int:
    """The largest number of groups up to GROUPS that divides `channels`."""
    return next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
