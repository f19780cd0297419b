"""Networks of more than one path: in series, side by side, one encoder for each modality."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from autoseg.documents.networks.compound import (
    HyperDenseSpec,
    ModalitySpec,
    ParallelSpec,
    SerialSpec,
)
from autoseg.documents.networks.sentence import Level, UNetSpec
from autoseg.nets.families.unet import (
    UNet,
    ascend,
    decoding,
    descend,
    encoder,
    heads,
    kit_of,
    modules,
)
from autoseg.nets.kit import Kit, chain, initialise
from autoseg.nets.network import Network
from autoseg.nets.speech import spoken, stage


class Serial(Network):
    """The second U-Net sees [image, softmax of the first's finest logits] and gives the result."""

    def __init__(self, spec: SerialSpec) -> None:
        super().__init__(spec)
        self.first, self.second = UNet(spec.first), UNet(spec.second)

    def forward(self, x: Tensor) -> list[Tensor]:
        firsts = self.first(x)
        seconds = self.second(torch.cat([x, firsts[0].softmax(1)], 1))
        if not self.training:
            return list(seconds)
        return [logits for level in zip(seconds, firsts, strict=True) for logits in level]


class Way(nn.Module):
    """Encoder, decoder and heads of one sentence, for networks in which several meet."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.encode = encoder(spec, spec.in_channels)
        self.decode = modules(decoding(spec, i) for i in range(len(spec.decoder)))
        self.head = heads(spec)


class Exchange(nn.Module):
    """Each of two features, and what a 1x1 convolution makes of the other."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        self.to_first, self.to_second = kit.conv(width, width, 1), kit.conv(width, width, 1)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return first + self.to_first(second), second + self.to_second(first)


class Parallel(Network):
    """Two U-Nets whose skips see each other, and the logits that both come to."""

    def __init__(self, spec: ParallelSpec) -> None:
        super().__init__(spec)
        kit, widths = kit_of(spec), spec.widths
        self.first, self.second = Way(spec.first), Way(spec.second)
        self.exchange = modules(Exchange(kit, width) for width in widths[:-1])
        merged = spec.merge == "concat"
        self.merge = kit.conv(2 * widths[0], spec.classes, 1) if merged else None
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        one, two = (descend(self.run, way.encode, x) for way in (self.first, self.second))
        for i, exchange in enumerate(self.exchange):
            one[i], two[i] = exchange(one[i], two[i])
        (a, ones), (b, twos) = (
            ascend(self.run, way.decode, way.head, kept, self.training)
            for way, kept in ((self.first, one), (self.second, two))
        )
        if self.merge is None:
            finest = (ones[0] + twos[0]) / 2
        else:
            finest = self.merge(torch.cat([a, b], 1))
        if not self.training:
            return [finest]
        return [finest, *(each for pair in zip(ones, twos, strict=True) for each in pair)]


class Mean(nn.Module):
    """The mean of features of one shape."""

    def forward(self, *features: Tensor) -> Tensor:
        return sum(features[1:], start=features[0]) / len(features)


class Mix(nn.Module):
    """A 1x1 convolution of features side by side, norm and activation."""

    def __init__(self, kit: Kit, cin: int, cout: int) -> None:
        super().__init__()
        self.mix = chain(kit.conv(cin, cout, 1), kit.norm_act(cout))

    def forward(self, *features: Tensor) -> Tensor:
        out: Tensor = self.mix(torch.cat(features, 1))
        return out


def _fusing(kit: Kit, how: str, paths: int, width: int) -> nn.Module:
    if paths == 1:
        return nn.Identity()
    return Mix(kit, paths * width, width) if how == "concat" else Mean()


class Modalities(Network):
    """At each level the encoders' features are fused to what one decoder meets."""

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__(spec)
        kit, paths = kit_of(spec), spec.in_channels
        encoders = [encoder(spec, 1) for _ in range(paths)]
        # level after level, in each the modalities in their order
        self.encode = modules(part for level in zip(*encoders, strict=True) for part in level)
        self.fuse = modules(_fusing(kit, spec.fuse, paths, width) for width in spec.widths)
        self.decode = modules(decoding(spec, i) for i in range(len(spec.decoder)))
        self.head = heads(spec)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        paths, kept = list(x.chunk(x.shape[1], 1)), []
        for i, fuse in enumerate(self.fuse):
            here = self.encode[i * len(paths) : (i + 1) * len(paths)]
            paths = [self.run(part, path) for part, path in zip(here, paths, strict=True)]
            kept.append(self.run(fuse, *paths))
        return ascend(self.run, self.decode, self.head, kept, self.training)[1]


class Abreast(nn.Module):
    """A unit for each of several features."""

    def __init__(self, units: Iterable[nn.Module]) -> None:
        super().__init__()
        self.units = modules(units)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [unit(x) for unit, x in zip(self.units, features, strict=True)]


class HyperDenseLevel(nn.Module):
    """One resolution of all paths: what was seen -> what is seen now, and what the decoder meets.

    Each path has `depth` layers, and all paths together the level's width. In the first layer of
    all, path m sees channel m of the image alone.
    """

    def __init__(self, kit: Kit, level: Level, paths: int, seen: int, is_first: bool) -> None:
        super().__init__()
        self.is_first, self.paths = is_first, paths
        self.pool = nn.Identity() if is_first else kit.max_pool(level.stride)
        unit, width = spoken(level.part), -(-level.width // paths)
        layers: list[Abreast] = []
        for depth in range(level.depth):
            cin = 1 if is_first and depth == 0 else seen
            layers.append(Abreast(unit(kit, cin, width) for _ in range(paths)))
            seen += paths * width
        self.layers = modules(layers)
        self.seen = seen
        self.fuse = Mix(kit, paths * width, level.width)
        self.then = stage(kit, level, level.width, level.width, 0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(x)
        new: list[Tensor] = []
        for depth, layer in enumerate(self.layers):
            alone = self.is_first and depth == 0
            new = layer(x.chunk(x.shape[1], 1) if alone else [x] * self.paths)
            x = torch.cat([x, *new], 1)
        return x, self.then(self.fuse(*new))


class HyperDense(Network):
    """Hyper-dense paths on the way down, the sentence's decoder on the way up."""

    def __init__(self, spec: HyperDenseSpec) -> None:
        super().__init__(spec)
        kit, paths, seen = kit_of(spec), spec.in_channels, spec.in_channels
        self.encode = nn.ModuleList()
        for i, level in enumerate(spec.levels):
            made = HyperDenseLevel(kit.at(level.kernel), level, paths, seen, i == 0)
            self.encode.append(made)
            seen = made.seen
        self.decode = modules(decoding(spec, i) for i in range(len(spec.decoder)))
        self.head = heads(spec)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        for level in self.encode:
            x, met = self.run(level, x)
            kept.append(met)
        return ascend(self.run, self.decode, self.head, kept, self.training)[1]
