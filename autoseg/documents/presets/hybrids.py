"""The published networks that are half convolutions, half a transformer."""

from autoseg.documents.networks.hybrids import TransFuseSpec, TransUNetSpec
from autoseg.documents.presets.shape import Preset, Shape, adamw
from autoseg.documents.presets.transformers import VIT_POSITIONS

MOST_LEVELS = 5
HEAD_CHANNELS = 8
"""Channels of a head are a multiple of this, for the kernels of cards."""


def transunet(name: str, shape: Shape) -> TransUNetSpec:
    """R50-ViT-B/16: layers of 3, 4 and 9 blocks, a transformer of 768 channels and 12 blocks."""
    heads = 12
    return TransUNetSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        norm="group",
        activation="relu",
        steps=shape.strides[:MOST_LEVELS],
        kernels=shape.kernels[:MOST_LEVELS],
        encoder_width=shape.scaled(64, 4),
        encoder_depths=(3, 4, 9)[: max(1, shape.levels - 2)],
        hidden=shape.scaled(768, heads * HEAD_CHANNELS),
        depth=12,
        heads=heads,
        positions=VIT_POSITIONS[shape.dimensions],
        entry_width=shape.scaled(512, 4),
        decoder_widths=tuple(
            shape.scaled(width, 4) for width in (16, 64, 128, 256)[: shape.levels - 1]
        ),
    )


def transfuse(name: str, shape: Shape) -> TransFuseSpec:
    """TransFuse-S: layers of 3, 4 and 6 blocks, a transformer of 384 channels and 8 blocks.

    With instance norm: the published batch norm needs larger batches than volumes allow.
    """
    heads = 6
    return TransFuseSpec(
        preset=name,
        in_channels=shape.in_channels,
        classes=shape.classes,
        activation="relu",
        steps=shape.strides[:MOST_LEVELS],
        kernels=shape.kernels[:MOST_LEVELS],
        encoder_width=shape.scaled(64, 4),
        encoder_depths=(3, 4, 6)[: max(1, shape.levels - 2)],
        hidden=shape.scaled(384, heads * HEAD_CHANNELS),
        depth=8,
        heads=heads,
        positions=VIT_POSITIONS[shape.dimensions],
    )


PRESETS = {
    "transunet": Preset(
        transunet,
        "residual encoder, transformer on its coarsest grid, decoder with skips "
        "(Chen et al. 2021, arXiv:2102.04306)",
        MOST_LEVELS,
    ),
    "transfuse": Preset(
        transfuse,
        "residual encoder and transformer side by side, fused on three grids "
        "(Zhang et al. 2021, arXiv:2102.08005)",
        MOST_LEVELS,
        adamw(1e-4, 1e-5),
    ),
}
