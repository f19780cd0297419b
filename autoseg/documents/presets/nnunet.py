"""nnU-Net's two networks: the plain U-Net and the one with a residual encoder."""

from autoseg.documents.networks.sentence import DecoderLevel, Level, Part, Stem, UNetSpec
from autoseg.documents.networks.word import word
from autoseg.documents.presets.shape import Preset, Shape, per_level

PLAIN_DEPTH = 2
RESENC_DEPTHS = (1, 3, 4, 6, 6, 6)

PLAIN = Part(unit=word("plain"))
RESIDUAL = Part(unit=word("pair"), wraps=(word("residual"),))


def levels(shape: Shape, part: Part, depths: tuple[int, ...]) -> tuple[Level, ...]:
    """One part at every level, the bottleneck last; deeper levels repeat the last depth."""
    return tuple(
        Level(
            part=part,
            depth=per_level(depths, i),
            kernel=shape.kernels[i],
            width=shape.features[i],
            stride=shape.strides[i],
        )
        for i in range(shape.levels)
    )


def decoder(shape: Shape, part: Part, depth: int) -> tuple[DecoderLevel, ...]:
    """One part at every level of the decoder."""
    return tuple(
        DecoderLevel(part=part, depth=depth, kernel=kernel) for kernel in shape.kernels[:-1]
    )


def plain(name: str, shape: Shape) -> UNetSpec:
    """Two plain units a level, strided convolutions down, transposed ones up."""
    all_levels = levels(shape, PLAIN, (PLAIN_DEPTH,))
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        encoder=all_levels[:-1],
        bottleneck=all_levels[-1],
        decoder=decoder(shape, PLAIN, PLAIN_DEPTH),
    )


def resenc(name: str, shape: Shape) -> UNetSpec:
    """A residual encoder behind a stem, one plain unit a level in the decoder."""
    all_levels = levels(shape, RESIDUAL, RESENC_DEPTHS)
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        encoder=all_levels[:-1],
        bottleneck=all_levels[-1],
        decoder=decoder(shape, PLAIN, 1),
        stem=Stem(width=shape.features[0]),
        down=word("residual"),
    )


RESENC = (
    "nnU-Net's residual encoder, whose three sizes differ in the memory that they are planned for "
    "(Isensee et al. 2024, arXiv:2404.09556)"
)
PRESETS = {
    "plain": Preset(plain, "nnU-Net's U-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z)"),
    "resenc_m": Preset(resenc, RESENC),
    "resenc_l": Preset(resenc, RESENC),
    "resenc_xl": Preset(resenc, RESENC),
}
