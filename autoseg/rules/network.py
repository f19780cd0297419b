"""How wide and how heavy is a U-Net: features, convolution elements, parameters, by formula.

Convolution elements (the outputs of all convolutions for one sample) are nnU-Net's measure of
memory; nnU-Net counts them by building each candidate network, here they are summed. The plain
network is nnU-Net's PlainConvUNet, the residual one its ResidualEncoderUNet, both with biases
and affine instance norms.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from autoseg.rules.decision import Decision, Size
from autoseg.rules.topology import Topology

FIRST_FEATURES = 32
MOST_FEATURES = {2: 512, 3: 320}

Kind = Literal["plain", "residual"]


@dataclass(frozen=True)
class Architecture:
    """A U-Net as far as its cost goes; the tuples hold one entry a level, finest first.

    `encoder_blocks` counts convolutions in a plain network and residual blocks of two
    convolutions in a residual one; `decoder_convs` has one entry less, for the decoder has no
    deepest level.
    """

    kind: Kind
    topology: Topology
    features: Size
    encoder_blocks: Size
    decoder_convs: Size
    inputs: int
    outputs: int


def features(
    levels: int, axes: int, first: int | None = None, most: int | None = None
) -> Decision[Size]:
    """The feature maps of each level: 32 (or `first`), doubled, up to 512 (2D), 320 (3D) or `most`."""
    start, most = first or FIRST_FEATURES, most or MOST_FEATURES[axes]
    wished = [start * 2**level for level in range(levels)]
    value = tuple(min(most, width) for width in wished)
    capped = sum(width > most for width in wished)
    return Decision(
        value,
        f"{start}{' (set by hand)' if first else ''} are doubled from level to level, {levels} in "
        f"all; the cap of {most} for {axes}D holds back {capped} of them.",
    )


def conv_elements(net: Architecture) -> int:
    """The number of values that the convolutions of one forward pass of one patch put out."""
    voxels = [prod(size) for size in net.topology.level_sizes()]
    encoder = sum(_encoder_outputs(net, level) * voxels[level] for level in range(len(voxels)))
    decoder = sum(
        (net.decoder_convs[level] + 1) * net.features[level] * voxels[level]
        for level in range(len(voxels) - 1)
    )
    return encoder + decoder + net.outputs * voxels[0]


def _encoder_outputs(net: Architecture, level: int) -> int:
    """The channels that the convolutions of one encoder level put out together.

    A residual shortcut counts wherever stride or width changes, although a change of stride alone
    is a pooling: so does nnU-Net.
    """
    width = net.features[level]
    if net.kind == "plain":
        return net.encoder_blocks[level] * width
    stem = width if level == 0 else 0
    before = net.features[max(level - 1, 0)]
    shortcut = before != width or prod(net.topology.strides[level]) > 1
    return stem + (2 * net.encoder_blocks[level] + shortcut) * width


def parameters(net: Architecture) -> int:
    """The number of trainable parameters, with a segmentation head at every decoder level."""
    levels = net.topology.levels
    return sum(_encoder_parameters(net, level) for level in range(levels)) + sum(
        _decoder_parameters(net, level) for level in range(levels - 1)
    )


def _conv(inputs: int, outputs: int, kernel: Size) -> int:
    """Weights, biases and the two parameters of the norm behind a convolution."""
    return inputs * outputs * prod(kernel) + outputs + 2 * outputs


def _encoder_parameters(net: Architecture, level: int) -> int:
    width, kernel = net.features[level], net.topology.kernels[level]
    before = net.features[level - 1] if level else net.inputs
    if net.kind == "plain":
        further = net.encoder_blocks[level] - 1
        return _conv(before, width, kernel) + further * _conv(width, width, kernel)
    stem = 0
    if level == 0:
        stem, before = _conv(net.inputs, width, kernel), width
    further = 2 * net.encoder_blocks[level] - 1
    # The 1x1 convolution of the shortcut has a norm but no bias.
    shortcut = (before + 2) * width if before != width else 0
    return stem + _conv(before, width, kernel) + further * _conv(width, width, kernel) + shortcut


def _decoder_parameters(net: Architecture, level: int) -> int:
    width, kernel = net.features[level], net.topology.kernels[level]
    upsampling = net.features[level + 1] * width * prod(net.topology.strides[level + 1]) + width
    further = net.decoder_convs[level] - 1
    convs = _conv(2 * width, width, kernel) + further * _conv(width, width, kernel)
    return upsampling + convs + (width + 1) * net.outputs
