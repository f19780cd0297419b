"""The U-Net that speaks a sentence: every architecture of the family has this one forward pass.

Its halves stand alone, since the composed networks are built from them.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.documents.networks.sentence import DecoderLevel, Sentence, Skip
from autoseg.nets.joins import JOINS, Join
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.network import Network
from autoseg.nets.resize.words import DOWNS, UPS
from autoseg.nets.speech import meaning, spoken, stage

Run = Callable[..., Any]
"""`Network.run`: the output of a part, which may be computed again going back."""


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
    """One level on the way up: the step up, the skip, the level's units.

    `below` comes from the next coarser level, `kept` are all features of this level that it meets.
    """

    def __init__(self, up: nn.Module, skip: nn.Module, units: nn.Module) -> None:
        super().__init__()
        self.up, self.skip, self.units = up, skip, units

    def forward(self, below: Tensor, *kept: Tensor) -> Tensor:
        met = kept[0] if len(kept) == 1 else torch.cat(kept, 1)
        out: Tensor = self.units(self.skip(met, self.up(below)))
        return out


class UNet(Network):
    """A sentence as a network; every level of the decoder is supervised."""

    def __init__(self, spec: Sentence) -> None:
        super().__init__(spec)
        self.encode = encoder(spec, spec.in_channels)
        self.decode = modules(decoding(spec, i) for i in range(len(spec.decoder)))
        self.head = heads(spec)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = descend(self.run, self.encode, x)
        return ascend(self.run, self.decode, self.head, kept, self.training)[1]


def kit_of(spec: Sentence) -> Kit:
    """The layers of a sentence, with the kernel of its bottleneck."""
    return Kit(spec.bottleneck.kernel, spec.norm, spec.activation, spec.dropout)


def encoder(spec: Sentence, cin: int) -> nn.ModuleList:
    """One module a level, the bottleneck last, for an image of `cin` channels."""
    kit, first = kit_of(spec), spec.encoder[0]
    enter: list[nn.Module] = []
    if spec.stem is not None:
        enter.append(spoken(spec.stem.part)(kit.at(first.kernel), cin, spec.stem.width))
        cin = spec.stem.width
    enter.append(stage(kit.at(first.kernel), first, cin, first.width, first.depth))
    levels: list[nn.Module] = [nn.Sequential(*enter)]
    for a, b in pairwise(spec.levels):
        here = kit.at(b.kernel)
        down = meaning(DOWNS, "down", b.step or spec.down)(here, a.width, b.width, b.stride)
        levels.append(nn.Sequential(down, stage(here, b, b.width, b.width, b.depth - 1)))
    return modules(levels)


def decoding(spec: Sentence, level: int, met: int = 1) -> Decode:
    """The decoder's module at a level, which meets `met` features of the level's width."""
    said: DecoderLevel = spec.decoder[level]
    kit, width, below = kit_of(spec).at(said.kernel), spec.widths[level], spec.levels[level + 1]
    # the step up belongs to the encoder's kernel, as the step down beside it does
    up = meaning(UPS, "up", said.step or spec.up)(
        kit.at(spec.encoder[level].kernel), below.width, width, below.stride
    )
    meeting = Meeting(kit, spec.skip, met * width, width)
    return Decode(up, meeting, stage(kit, said, meeting.width, width, said.depth))


def heads(spec: Sentence) -> nn.ModuleList:
    """The layer from features to logits at each level of the decoder."""
    kit = kit_of(spec)
    return modules(kit.conv(width, spec.classes, 1) for width in spec.widths[:-1])


def descend(run: Run, encode: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """The features of all levels, finest first."""
    kept: list[Tensor] = []
    for level in encode:
        x = run(level, x)
        kept.append(x)
    return kept


def ascend(
    run: Run, decode: nn.ModuleList, head: nn.ModuleList, kept: list[Tensor], every: bool
) -> tuple[Tensor, list[Tensor]]:
    """The finest features, and the logits finest first: of every level, or of the finest alone.

    Empties `kept`, so that nothing lives longer than it is needed.
    """
    x, logits = kept.pop(), []
    for i in reversed(range(len(kept))):
        x = run(decode[i], x, kept.pop())
        if every or i == 0:
            logits.append(head[i](x))
    return x, logits[::-1]


def modules(parts: Iterable[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(parts)
