"""The networks of state spaces: residual U-Nets with scans in them, and U-Nets of scans.

Here belongs at which level which block stands. What the blocks are is said in `autoseg.nets.units`.
Those that cut the image into patches first have plain convolutions at the finest level here,
where the papers have none and enlarge the logits.
"""

from autoseg.documents.networks.sentence import DecoderLevel, Level, Part, Skip, Stem, UNetSpec
from autoseg.documents.networks.word import word
from autoseg.documents.presets.shape import Preset, Shape, adamw

PLAIN = Part(unit=word("plain"))
RESIDUAL = Part(unit=word("pair"), wraps=(word("residual"),))
MAMBA = Part(unit=word("mamba", residual=False))
DEPTH = 2


def _level(shape: Shape, i: int, part: Part, depth: int, *then: Part) -> Level:
    return Level(
        part=part,
        then=then,
        depth=depth,
        kernel=shape.kernels[i],
        width=shape.features[i],
        stride=shape.strides[i],
    )


def _up(shape: Shape, i: int, part: Part, depth: int) -> DecoderLevel:
    return DecoderLevel(part=part, depth=depth, kernel=shape.kernels[i])


def _umamba(name: str, shape: Shape, first: int) -> UNetSpec:
    """Residual blocks, two a level in the finer half, one below, a Mamba layer from level `first` on.

    On the way up one a level in the finer half, two below, as the authors' code has it.
    """
    levels = [
        _level(
            shape,
            i,
            RESIDUAL,
            DEPTH if i < -(-shape.levels // 2) else 1,
            *([MAMBA] if i >= first else []),
        )
        for i in range(shape.levels)
    ]
    finest_single = shape.levels - 2 - -(-shape.levels // 2)
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        encoder=tuple(levels[:-1]),
        bottleneck=levels[-1],
        decoder=tuple(
            _up(shape, i, RESIDUAL, 1 if i <= finest_single else DEPTH)
            for i in range(shape.levels - 1)
        ),
        stem=Stem(width=shape.features[0]),
        down=word("residual"),
    )


def umamba_bot(name: str, shape: Shape) -> UNetSpec:
    """A Mamba layer behind the bottleneck's residual blocks."""
    return _umamba(name, shape, shape.levels - 1)


def umamba_enc(name: str, shape: Shape) -> UNetSpec:
    """A Mamba layer behind the residual blocks of every level of the encoder and the bottleneck."""
    return _umamba(name, shape, 0)


def _of_patches(name: str, shape: Shape, part: Part) -> UNetSpec:
    """Two units a level on both ways, patches merged and expanded, skips summed."""
    levels = [_level(shape, i, part if i else PLAIN, DEPTH) for i in range(shape.levels)]
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        encoder=tuple(levels[:-1]),
        bottleneck=levels[-1],
        decoder=tuple(_up(shape, i, part if i else PLAIN, DEPTH) for i in range(shape.levels - 1)),
        down=word("merging"),
        up=word("expanding"),
        skip=Skip(join=word("add")),
    )


def vm_unet(name: str, shape: Shape) -> UNetSpec:
    """Scans in four or six orders at every level but the finest."""
    return _of_patches(name, shape, Part(unit=word("mamba_cross")))


def hc_mamba(name: str, shape: Shape) -> UNetSpec:
    """HC-Mamba's hybrid unit at every level but the finest."""
    return _of_patches(name, shape, Part(unit=word("hc_mamba")))


def segmamba(name: str, shape: Shape) -> UNetSpec:
    """Gated spatial convolution and two three-way scans a level, residual blocks elsewhere.

    The published network halves by a 7x7x7 convolution first, has a pointwise MLP before the
    residual block of each skip, and doubles its widths from 48; here the planner's hold.
    """
    scanned = Part(unit=word("seg_mamba", gated=False))
    gated = Part(unit=word("gated_spatial"))
    levels = [
        _level(shape, 0, RESIDUAL, 1),
        *(_level(shape, i, gated, 2, scanned, scanned) for i in range(1, shape.levels - 1)),
        _level(shape, shape.levels - 1, gated, 2, scanned, scanned, RESIDUAL),
    ]
    return UNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        encoder=tuple(levels[:-1]),
        bottleneck=levels[-1],
        decoder=tuple(_up(shape, i, RESIDUAL, 1) for i in range(shape.levels - 1)),
        down=word("bare"),
        skip=Skip(before=(RESIDUAL,), join=word("concat")),
    )


PRESETS = {
    "umamba_bot": Preset(
        umamba_bot, "U-Mamba, scans at the bottleneck (Ma et al. 2024, arXiv:2401.04722)"
    ),
    "umamba_enc": Preset(
        umamba_enc, "U-Mamba, scans in the whole encoder (Ma et al. 2024, arXiv:2401.04722)"
    ),
    "vm_unet": Preset(
        vm_unet, "VM-UNet (Ruan & Xiang 2024, arXiv:2402.02491)", training=adamw(1e-3, 0.01)
    ),
    "hc_mamba": Preset(
        hc_mamba, "HC-Mamba (Xu 2024, arXiv:2405.05007)", training=adamw(1e-3, 0.01)
    ),
    "segmamba": Preset(segmamba, "SegMamba (Xing et al. 2024, arXiv:2401.13560)", most_levels=5),
}
