"""Networks made of attention: Swin UNETR, UNETR, Primus, and the U-Net of window attention."""

from functools import partial

from autoseg.documents.networks.sentence import DecoderLevel, Level, Part, UNetSpec
from autoseg.documents.networks.transformers import PrimusSpec, Rung, SwinUNETRSpec, UNETRSpec
from autoseg.documents.networks.word import word
from autoseg.documents.presets.shape import Preset, Shape, adamw

SWIN_HEADS = 3
"""Heads of the first stage; each stage has twice as many as the one before, as its width is."""
SWIN_DEPTH = 2
VIT_DEPTH, VIT_HEADS, VIT_WIDTH = 12, 12, 768
VIT_POSITIONS = {2: (14, 14), 3: (6, 6, 6)}
"""Tokens along each axis for which positions are learnt: 224/16, and UNETR's 96/16."""
PRIMUS_POSITIONS = {2: (28, 28), 3: (12, 12, 12)}
"""For tokens of half that size."""
PRIMUS_SIZES = {
    "primus_s": (396, 12, 6),
    "primus_b": (792, 12, 12),
    "primus_m": (864, 16, 12),
    "primus_l": (1056, 24, 16),
}
"""Name -> width, depth, heads."""


def rungs(shape: Shape, widths: tuple[int, ...]) -> tuple[Rung, ...]:
    """The levels of the shape with other widths."""
    return tuple(
        Rung(width=width, stride=stride, kernel=kernel)
        for width, stride, kernel in zip(widths, shape.strides, shape.kernels, strict=True)
    )


def swin_unetr(name: str, shape: Shape, *, convolved: bool = False) -> SwinUNETRSpec:
    """48 channels at the two finest levels, then doubled; stages of two blocks, 3, 6, … heads."""
    first, stages = shape.scaled(48, 4 * SWIN_HEADS), max(1, shape.levels - 2)
    return SwinUNETRSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        levels=rungs(shape, (first, *(first * 2**i for i in range(shape.levels - 1)))),
        depths=(SWIN_DEPTH,) * stages,
        heads=tuple(SWIN_HEADS * 2**i for i in range(stages)),
        convolved=convolved,
    )


def unetr(name: str, shape: Shape) -> UNETRSpec:
    """ViT-B on the coarsest level, which feeds the levels between in equal steps."""
    first, last = shape.scaled(16), shape.levels - 1
    widths = tuple(first * 2**i for i in range(last))
    return UNETRSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        levels=rungs(shape, (*widths, shape.scaled(VIT_WIDTH, 4 * VIT_HEADS))),
        depth=VIT_DEPTH,
        heads=VIT_HEADS,
        taps=tuple(round(VIT_DEPTH * i / last) for i in range(1, last)),
        positions=VIT_POSITIONS[shape.dimensions],
    )


def primus(name: str, shape: Shape, *, width: int, depth: int, heads: int) -> PrimusSpec:
    """The widths between tokens and classes fall by equal factors, to twice the classes.

    A head's channels are a multiple of six, so that three axes turn as many pairs each.
    """
    tokens = shape.scaled(width, 6 * heads)
    steps = shape.levels - 1
    factor = (tokens / (2 * shape.classes)) ** (1 / steps)
    between = (max(8, round(tokens / factor**i / 8) * 8) for i in range(1, steps))
    return PrimusSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        levels=rungs(shape, (shape.classes, *reversed(list(between)), tokens)),
        depth=depth,
        heads=heads,
        positions=PRIMUS_POSITIONS[shape.dimensions],
    )


def swin_unet(name: str, shape: Shape) -> UNetSpec:
    """Two window blocks a level on both ways, patches merged and expanded.

    The finest level is plain convolutions, where the paper has none and enlarges logits fourfold;
    windows stand where a level is fed by merging.
    """
    fine, coarse = Part(unit=word("plain")), Part(unit=word("swin"))
    levels = tuple(
        Level(part=coarse if i else fine, depth=2, kernel=kernel, width=width, stride=stride)
        for i, (kernel, width, stride) in enumerate(
            zip(shape.kernels, shape.features, shape.strides, strict=True)
        )
    )
    decoder = tuple(
        DecoderLevel(part=coarse if i else fine, depth=1 if i else 2, kernel=kernel)
        for i, kernel in enumerate(shape.kernels[:-1])
    )
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        encoder=levels[:-1],
        bottleneck=levels[-1],
        decoder=decoder,
        down=word("merging"),
        up=word("expanding"),
    )


PRESETS = {
    "swin_unetr": Preset(
        swin_unetr,
        "Swin UNETR (Hatamizadeh et al. 2022, arXiv:2201.01266)",
        most_levels=6,
        training=adamw(1e-4, 1e-5),
    ),
    "swin_unetr_v2": Preset(
        partial(swin_unetr, convolved=True),
        "Swin UNETR with a residual block before each stage (He et al. 2023, "
        "doi:10.1007/978-3-031-43901-8_40)",
        most_levels=6,
        training=adamw(1e-4, 1e-5),
    ),
    "unetr": Preset(
        unetr,
        "UNETR (Hatamizadeh et al. 2021, arXiv:2103.10504)",
        most_levels=5,
        training=adamw(1e-4, 1e-5),
    ),
    "swin_unet": Preset(
        swin_unet,
        "a U-Net of window attention, after Swin-Unet (Cao et al. 2021, arXiv:2105.05537)",
        training=adamw(1e-4),
    ),
    **{
        name: Preset(
            partial(primus, width=width, depth=depth, heads=heads),
            f"Primus: {depth} blocks on {width} channels (Wald et al. 2025, arXiv:2503.01835)",
            most_levels=4,
            training=adamw(3e-4, beta2=0.98),
        )
        for name, (width, depth, heads) in PRIMUS_SIZES.items()
    },
}
