"""The U-Net that speaks a sentence: every architecture of the family has this one forward pass."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from torch import Tensor, nn

from autoseg.documents.plan import NetworkSpec, Part
from autoseg.errors import PlanError
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.resize import DOWNS, UPS
from autoseg.nets.skips import SKIPS
from autoseg.nets.units import UNITS, Unit, plain
from autoseg.nets.wraps import WRAPS

W = TypeVar("W")


def word(vocabulary: dict[str, W], kind: str, name: str) -> W:
    """The word of that name. Raises PlanError naming those that there are."""
    if name not in vocabulary:
        raise PlanError(f"no {kind} {name!r} in the network; there are {', '.join(vocabulary)}")
    return vocabulary[name]


def spoken(part: Part) -> Unit:
    """The unit of `part` inside its wraps, the first of them innermost."""
    unit = word(UNITS, "unit", part.unit)
    for name in part.wraps:
        unit = word(WRAPS, "wrap", name)(unit)
    return unit


def stage(kit: Kit, part: Part, cin: int, cout: int, depth: int) -> nn.Module:
    """`depth` units of one part; nothing at all for depth 0."""
    unit = spoken(part)
    return nn.Sequential(*(unit(kit, cin if i == 0 else cout, cout) for i in range(depth)))


class UNet(nn.Module):
    """image (B, C, *S) -> logits [(B, K, *S), (B, K, *S / stride), …], finest first.

    When training, one tensor for each decoder level, on the grids that `supervision_strides`
    names; in evaluation the finest alone. S must be a multiple of the sentence's divisor.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        kit = Kit(spec.bottleneck.kernel, spec.norm, spec.activation, spec.dropout)
        down, up = word(DOWNS, "down", spec.down), word(UPS, "up", spec.up)
        skip = word(SKIPS, "skip", spec.skip)
        first, widths = spec.encoder[0], [level.width for level in spec.levels]
        enter = spec.in_channels
        stem: nn.Module = nn.Identity()
        if spec.stem is not None:
            stem, enter = plain(kit.at(first.kernel), enter, spec.stem), spec.stem
        self.stem = stem
        self.enter = stage(kit.at(first.kernel), first.part, enter, first.width, first.depth)
        below = list(pairwise(spec.levels))
        self.down = _modules(down(kit.at(b.kernel), a.width, b.width, b.stride) for a, b in below)
        self.encode = _modules(
            stage(kit.at(b.kernel), b.part, b.width, b.width, b.depth - 1) for _, b in below
        )
        self.up = _modules(up(kit.at(a.kernel), b.width, a.width, b.stride) for a, b in below)
        skips = [skip(kit, width, width) for width in widths[:-1]]
        self.skip = _modules(skips)
        self.decode = _modules(
            stage(kit.at(level.kernel), level.part, joined.width, width, level.depth)
            for level, joined, width in zip(spec.decoder, skips, widths, strict=False)
        )
        self.head = _modules(kit.conv(width, spec.classes, 1) for width in widths[:-1])
        self.supervision_strides: tuple[tuple[int, ...], ...] = tuple(
            accumulate((level.stride for level in spec.encoder), _product)
        )
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = [self.enter(self.stem(x))]
        for down, encode in zip(self.down, self.encode, strict=True):
            kept.append(encode(down(kept[-1])))
        x, logits = kept.pop(), []
        for i in reversed(range(len(kept))):
            x = self.decode[i](self.skip[i](kept.pop(), self.up[i](x)))
            if self.training or i == 0:
                logits.append(self.head[i](x))
        return logits[::-1]


def _modules(parts: Iterable[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(parts)


def _product(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x * y for x, y in zip(a, b, strict=True))
