"""Elements and parameters against a walk through the convolutions and against nnU-Net's figures."""

from math import prod

import pytest

from autoseg.rules.network import Architecture, conv_elements, features, parameters
from autoseg.rules.nnunet import PRESETS, architecture
from autoseg.rules.topology import topology_for


def test_features_double_up_to_the_cap() -> None:
    assert features(6, 3).value == (32, 64, 128, 256, 320, 320)
    assert features(7, 2).value == (32, 64, 128, 256, 512, 512, 512)
    assert "holds back 2" in features(6, 3).why
    assert features(5, 3, 24).value == (24, 48, 96, 192, 320)
    assert "24 (set by hand)" in features(5, 3, 24).why


@pytest.mark.parametrize(
    ("network", "patch", "spacing", "inputs", "outputs", "elements", "weights"),
    [
        # Estimate and parameter count of nnU-Net 2.8.1's planner for these patches.
        ("plain", (56, 40), (1, 1), 1, 3, 651_840, 1_928_489),
        ("plain", (40, 56, 40), (1, 1, 1), 1, 3, 19_174_400, 5_603_177),
        ("resenc_l", (40, 56, 40), (1, 1, 1), 1, 3, 23_609_600, 25_895_593),
        ("plain", (128, 128, 128), (1, 1, 1), 4, 4, 454_893_568, 31_199_796),
        ("resenc_m", (128, 128, 128), (1, 1, 1), 4, 4, 559_517_696, 102_353_972),
        ("plain", (20, 320, 256), (3.6, 0.625, 0.625), 2, 3, 483_315_200, 44_578_770),
        ("resenc_xl", (192, 256, 256), (1, 0.768, 0.768), 1, 3, 3_345_168_384, 141_481_138),
    ],
)
def test_equals_nnunet(
    network: str,
    patch: tuple[int, ...],
    spacing: tuple[float, ...],
    inputs: int,
    outputs: int,
    elements: int,
    weights: int,
) -> None:
    net = architecture(PRESETS[network], topology_for(patch, spacing), inputs, outputs)
    assert net.topology.patch_vox == patch
    assert conv_elements(net) == elements
    assert parameters(net) == weights


def walked(net: Architecture) -> tuple[int, int]:
    """Elements and parameters of a plain network, one convolution after the other."""
    elements = weights = 0
    size, channels, skips = net.topology.patch_vox, net.inputs, []

    def conv(outputs: int, kernel: tuple[int, ...], extra: int = 2) -> None:
        nonlocal elements, weights, channels
        elements += outputs * prod(size)
        weights += channels * outputs * prod(kernel) + outputs + extra * outputs
        channels = outputs

    for level, stride in enumerate(net.topology.strides):
        size = tuple(n // s for n, s in zip(size, stride))
        for _ in range(net.encoder_blocks[level]):
            conv(net.features[level], net.topology.kernels[level])
        skips.append((size, channels))
    for level in reversed(range(net.topology.levels - 1)):
        size, width = skips[level]
        conv(width, net.topology.strides[level + 1], extra=0)
        channels = 2 * width
        for _ in range(net.decoder_convs[level]):
            conv(width, net.topology.kernels[level])
        weights += (width + 1) * net.outputs
    return elements + net.outputs * prod(size), weights


@pytest.mark.parametrize("blocks", [(2, 2, 2, 2, 2), (1, 3, 2, 4, 1)])
def test_plain_network_equals_a_walk_through_it(blocks: tuple[int, ...]) -> None:
    topology = topology_for((12, 96, 80), (5.0, 1.0, 1.0))
    assert topology.levels == 5
    net = Architecture(
        "plain", topology, features(5, 3).value, blocks, (2, 1, 3, 1), inputs=3, outputs=5
    )
    assert (conv_elements(net), parameters(net)) == walked(net)
