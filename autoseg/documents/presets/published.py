"""Networks that were published whole: MedNeXt, SegResNet, Attention U-Net, UNet++; and composed ones.

Where one is published with fewer levels than a plan has, deeper levels repeat the deepest.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from autoseg.documents.networks.compound import (
    HyperDenseSpec,
    ModalitySpec,
    NestedSpec,
    ParallelSpec,
    SerialSpec,
)
from autoseg.documents.networks.sentence import (
    DecoderLevel,
    Level,
    Part,
    Sentence,
    Skip,
    Stem,
    UNetSpec,
)
from autoseg.documents.networks.word import word
from autoseg.documents.presets.nnunet import plain
from autoseg.documents.presets.shape import Preset, Shape, adamw, per_level

S = TypeVar("S", bound=Sentence)

SEGRESNET_DOWN = (1, 2, 2, 4)
DILATED = Part(unit=word("dilated", rates=(2,)))


@dataclass(frozen=True)
class MedNeXt:
    """Blocks and expansion ratios: of the encoder finest first, of the bottleneck.

    The decoder's are those of the encoder beside it.
    """

    blocks: tuple[int, ...]
    ratios: tuple[int, ...]
    bottleneck_blocks: int
    bottleneck_ratio: int


MEDNEXT = {
    "mednext_s": MedNeXt((2, 2, 2, 2), (2, 2, 2, 2), 2, 2),
    "mednext_b": MedNeXt((2, 2, 2, 2), (2, 3, 4, 4), 2, 4),
    "mednext_m": MedNeXt((3, 4, 4, 4), (2, 3, 4, 4), 4, 4),
    "mednext_l": MedNeXt((3, 4, 8, 8), (3, 4, 8, 8), 8, 8),
}


def doubled(shape: Shape) -> tuple[int, ...]:
    """Widths that double at each level from the first, without a cap."""
    return tuple(shape.features[0] * 2**level for level in range(shape.levels))


def mednext(name: str, shape: Shape) -> UNetSpec:
    """MedNeXt's blocks and steps; the step into a level has the ratio of the level.

    The published network also supervises the bottleneck; nnU-Net's weights count that head as 0,
    so it is left out.
    """
    size, deepest = MEDNEXT[name], shape.levels - 1

    def block(level: int) -> tuple[int, int]:
        if level == deepest:
            return size.bottleneck_blocks, size.bottleneck_ratio
        return per_level(size.blocks, level), per_level(size.ratios, level)

    levels, decoder = [], []
    for i, width in enumerate(doubled(shape)):
        blocks, ratio = block(i)
        said = word("mednext", ratio=ratio)
        part, kernel = Part(unit=said), shape.kernels[i]
        step = said if i else None
        levels.append(
            Level(part=part, depth=blocks + (i > 0), kernel=kernel, step=step, width=width,
                  stride=shape.strides[i])
        )  # fmt: skip
        decoder.append(DecoderLevel(part=part, depth=blocks, kernel=kernel, step=said))
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        activation="gelu",
        encoder=tuple(levels[:-1]),
        bottleneck=levels[-1],
        decoder=tuple(decoder[:-1]),
        stem=Stem(part=Part(unit=word("bare", kernel=1)), width=shape.features[0]),
        down=word("mednext"),
        up=word("mednext"),
        skip=Skip(join=word("add")),
    )


def segresnet(name: str, shape: Shape) -> UNetSpec:
    """SegResNet without its autoencoder branch.

    Two additions: the heads of the coarser levels, which nnU-Net supervises, and the bias of the
    1x1 convolutions on the way up, which begins at 0.
    """
    part, bare = Part(unit=word("preact")), word("bare", bias=False)
    levels = tuple(
        Level(
            part=part,
            depth=per_level(SEGRESNET_DOWN, i) + (i > 0),
            kernel=shape.kernels[i],
            width=width,
            stride=shape.strides[i],
        )
        for i, width in enumerate(doubled(shape))
    )
    ends = Part(unit=word("norm_act"))
    decoder = tuple(
        DecoderLevel(part=part, then=() if i else (ends,), depth=1, kernel=kernel)
        for i, kernel in enumerate(shape.kernels[:-1])
    )
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        norm="group",
        activation="relu",
        encoder=levels[:-1],
        bottleneck=levels[-1],
        decoder=decoder,
        stem=Stem(part=Part(unit=bare), width=shape.features[0]),
        down=bare,
        up=word("linear"),
        skip=Skip(join=word("add")),
    )


def _spoken_by(family: type[S], name: str, shape: Shape, **more: Any) -> S:
    """The plain sentence in another family, with what that family or preset says besides."""
    said = plain(name, shape)
    fields = {field: getattr(said, field) for field in Sentence.model_fields}
    return family(**{**fields, **more})


def attention_unet(name: str, shape: Shape) -> UNetSpec:
    """The plain network whose skips pass a gate."""
    return _spoken_by(UNetSpec, name, shape, skip=Skip(join=word("attention_gate")))


def unetpp(name: str, shape: Shape) -> NestedSpec:
    """Nested rows of plain units; pooled on the way down, as published."""
    return _spoken_by(NestedSpec, name, shape, down=word("pooled"))


def serial(name: str, shape: Shape) -> SerialSpec:
    """The plain network, and one of half its widths that corrects it."""
    halves = tuple(max(1, width // 2) for width in shape.features)
    return _spoken_by(SerialSpec, name, shape, second_widths=halves)


def parallel(name: str, shape: Shape) -> ParallelSpec:
    """The plain network beside one whose kernels have holes, both of half the widths."""
    halves = tuple(max(1, width // 2) for width in shape.features)
    return _spoken_by(ParallelSpec, name, replace(shape, features=halves), other=DILATED)


def modalities(name: str, shape: Shape) -> ModalitySpec:
    """A plain encoder for each modality, fused by a 1x1 convolution at each level."""
    return _spoken_by(ModalitySpec, name, shape)


def hyperdense(name: str, shape: Shape) -> HyperDenseSpec:
    """Plain units in the paths and in the decoder."""
    return _spoken_by(HyperDenseSpec, name, shape, down=word("pooled"))


MEDNEXT_ABOUT = (
    "convolutions within channels, then wide layers across them, {} (Roy et al. 2023, "
    "arXiv:2303.09975)"
)
PRESETS = {
    "mednext_s": Preset(mednext, MEDNEXT_ABOUT.format("small"), 5, adamw(1e-3, 3e-5)),
    "mednext_b": Preset(mednext, MEDNEXT_ABOUT.format("base"), 5, adamw(1e-3, 3e-5)),
    "mednext_m": Preset(mednext, MEDNEXT_ABOUT.format("medium"), 5, adamw(1e-3, 3e-5)),
    "mednext_l": Preset(mednext, MEDNEXT_ABOUT.format("large"), 5, adamw(1e-3, 3e-5)),
    "segresnet": Preset(
        segresnet,
        "pre-activated residual blocks (Myronenko 2018, arXiv:1810.11654)",
        4,
        adamw(1e-4, 1e-5),
    ),
    "attention_unet": Preset(
        attention_unet, "a U-Net with gated skips (Oktay et al. 2018, arXiv:1804.03999)"
    ),
    "unetpp": Preset(unetpp, "UNet++, nested skips (Zhou et al. 2018, arXiv:1807.10165)", 5),
    "serial_unet": Preset(
        serial,
        "two U-Nets, the second corrects the first (after Jha et al. 2020, arXiv:2006.04868)",
    ),
    "parallel_unet": Preset(
        parallel,
        "two U-Nets of different view side by side (after Tran et al. 2021, "
        "doi:10.3390/healthcare9010054)",
    ),
    "modality_unet": Preset(
        modalities,
        "an encoder for each image channel, one decoder (after Havaei et al. 2016, "
        "arXiv:1607.05194)",
    ),
    "hyperdense": Preset(
        hyperdense,
        "densely connected paths of the image channels (Dolz et al. 2018, arXiv:1804.02967)",
        5,
    ),
}
