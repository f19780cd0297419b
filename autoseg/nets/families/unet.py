"""The U-Net that speaks a sentence: every architecture of the family has this one forward pass."""

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from autoseg.documents.networks.sentence import DecoderLevel, Sentence, Skip
from autoseg.nets.joins import JOINS, Join
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.network import Network
from autoseg.nets.resize.words import DOWNS, UPS
from autoseg.nets.speech import meaning, spoken, stage


class Meeting(Join):
    """A skip: parts on the kept features, the join with those from below, parts after it."""

    def __init__(self, kit: Kit, skip: Skip, kept: int, below: int) -> None:
        super().__init__()
        self.before = nn.Sequential(*(spoken(part)(kit, kept, kept) for part in skip.before))
        self.join = meaning(JOINS, "join", skip.join)(kit, kept, below)
        width, after = self.join.width, []
        for part in skip.after:
            after.append(spoken(part)(kit, width, kept))
            width = kept
        self.after = nn.Sequential(*after)
        self.width = width

    def forward(self, kept: Tensor, below: Tensor) -> Tensor:
        out: Tensor = self.after(self.join(self.before(kept), below))
        return out


class Decode(nn.Module):
    """One level on the way up: the step up, the skip, the level's units."""

    def __init__(self, up: nn.Module, skip: nn.Module, units: nn.Module) -> None:
        super().__init__()
        self.up, self.skip, self.units = up, skip, units

    def forward(self, kept: Tensor, below: Tensor) -> Tensor:
        out: Tensor = self.units(self.skip(kept, self.up(below)))
        return out


class UNet(Network):
    """A sentence as a network; every level of the decoder is supervised."""

    def __init__(self, spec: Sentence) -> None:
        super().__init__(spec)
        kit = Kit(spec.bottleneck.kernel, spec.norm, spec.activation, spec.dropout)
        down, up = meaning(DOWNS, "down", spec.down), meaning(UPS, "up", spec.up)
        first, widths = spec.encoder[0], spec.widths
        enter: list[nn.Module] = []
        width = spec.in_channels
        if spec.stem is not None:
            enter.append(spoken(spec.stem.part)(kit.at(first.kernel), width, spec.stem.width))
            width = spec.stem.width
        enter.append(stage(kit.at(first.kernel), first, width, first.width, first.depth))
        below = list(pairwise(spec.levels))
        self.encode = _modules(
            [
                nn.Sequential(*enter),
                *(
                    nn.Sequential(
                        down(kit.at(b.kernel), a.width, b.width, b.stride),
                        stage(kit.at(b.kernel), b, b.width, b.width, b.depth - 1),
                    )
                    for a, b in below
                ),
            ]
        )
        self.decode = _modules(
            _decode(kit.at(level.kernel), spec.skip, up(kit.at(a.kernel), b.width, a.width, b.stride),
                    level, a.width)
            for level, (a, b) in zip(spec.decoder, below, strict=True)
        )  # fmt: skip
        self.head = _modules(kit.conv(width, spec.classes, 1) for width in widths[:-1])
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        for encode in self.encode:
            x = self.run(encode, x)
            kept.append(x)
        x, logits = kept.pop(), []
        for i in reversed(range(len(kept))):
            x = self.run(self.decode[i], kept.pop(), x)
            if self.training or i == 0:
                logits.append(self.head[i](x))
        return logits[::-1]


def _decode(kit: Kit, skip: Skip, up: nn.Module, level: DecoderLevel, width: int) -> Decode:
    meeting = Meeting(kit, skip, width, width)
    return Decode(up, meeting, stage(kit, level, meeting.width, width, level.depth))


def _modules(parts: Iterable[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(parts)
