"""FCN, SegNet, the DeepLabs, and the U-Nets on ResNet, VGG, EfficientNet and MobileNet."""

from functools import partial
from typing import Any

from autoseg.documents.networks.classic import (
    ONES,
    STAGES,
    DeepLabSpec,
    EncoderName,
    EncoderUNetSpec,
    FCNSpec,
    SegNetSpec,
)
from autoseg.documents.presets.shape import PUBLISHED_FIRST, Preset, Shape

HEAD = 1024
"""Width of the layers that were the classifier's, as DeepLab has it."""

STRIDE_8, STRIDE_16 = 4, 5
"""Levels down to these output strides."""


def _grid(name: str, shape: Shape, levels: int = STAGES + 1) -> dict[str, Any]:
    """What all these documents say; levels beyond the encoder's reductions are left out."""
    return {
        "preset": name,
        "in_channels": shape.in_channels,
        "classes": shape.classes,
        "scale": shape.features[0] / PUBLISHED_FIRST,
        "steps": shape.strides[:levels],
        "kernels": shape.kernels[:levels],
    }


def fcn8s(name: str, shape: Shape) -> FCNSpec:
    """FCN-8s on VGG-16."""
    return FCNSpec(**_grid(name, shape), head=shape.scaled(HEAD, 4))


def segnet(name: str, shape: Shape) -> SegNetSpec:
    """VGG-16 and its mirror image."""
    return SegNetSpec(**_grid(name, shape))


def deeplab_v1(name: str, shape: Shape) -> DeepLabSpec:
    """DeepLab-LargeFOV: VGG-16 at output stride 8, published for crops of 321 voxels."""
    return DeepLabSpec(
        **_grid(name, shape, STRIDE_8),
        encoder="vgg16",
        rates=(1, 1, 1, 1, 2),
        head="large_fov",
        head_width=shape.scaled(HEAD, 4),
        head_rates=(12,),
        rates_grid=41,
    )


def deeplab_v2(name: str, shape: Shape) -> DeepLabSpec:
    """ResNet at output stride 8 and four summed branches, published for crops of 321 voxels."""
    return DeepLabSpec(
        **_grid(name, shape, STRIDE_8),
        encoder="resnet50",
        rates=(1, 1, 1, 2, 4),
        head="summed",
        head_width=shape.scaled(256, 4),
        head_rates=(6, 12, 18, 24),
        rates_grid=41,
    )


def deeplab_v3plus(name: str, shape: Shape) -> DeepLabSpec:
    """ResNet at output stride 16, parallel branches, a decoder; published for crops of 513."""
    return DeepLabSpec(
        **_grid(name, shape, STRIDE_16),
        encoder="resnet50",
        rates=(1, 1, 1, 1, 2),
        head="decoder",
        head_width=shape.scaled(256, 4),
        head_rates=(6, 12, 18),
        rates_grid=33,
        finer_width=shape.scaled(48, 4),
    )


def encoder_unet(encoder: EncoderName, name: str, shape: Shape) -> EncoderUNetSpec:
    """A U-Net on an encoder, its decoder as wide as the plan's levels."""
    grid = _grid(name, shape)
    widths = shape.features[: len(grid["steps"]) - 1]
    return EncoderUNetSpec(**grid, encoder=encoder, rates=ONES, decoder=widths)


def _unet(encoder: EncoderName, about: str) -> Preset:
    return Preset(partial(encoder_unet, encoder), f"U-Net on {about}", STAGES + 1)


PRESETS = {
    "fcn8s": Preset(fcn8s, "FCN-8s (Long et al. 2015, arXiv:1411.4038)", STAGES + 1),
    "segnet": Preset(segnet, "SegNet (Badrinarayanan et al. 2017, arXiv:1511.00561)", STAGES + 1),
    "deeplab_v1": Preset(
        deeplab_v1, "DeepLab-LargeFOV on VGG-16 (Chen et al. 2015, arXiv:1412.7062)", STRIDE_8
    ),
    "deeplab_v2": Preset(
        deeplab_v2, "DeepLab v2 on ResNet-50 (Chen et al. 2016, arXiv:1606.00915)", STRIDE_8
    ),
    "deeplab": Preset(
        deeplab_v3plus, "DeepLab v3+ on ResNet-50 (Chen et al. 2018, arXiv:1802.02611)", STRIDE_16
    ),
    "unet_resnet34": _unet("resnet34", "ResNet-34 (He et al. 2016, arXiv:1512.03385)"),
    "unet_vgg16": _unet(
        "vgg16", "VGG-16 (Iglovikov and Shvets 2018, arXiv:1801.05746, has VGG-11)"
    ),
    "unet_efficientnet_b0": _unet(
        "efficientnet_b0", "EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946)"
    ),
    "unet_mobilenet_v3": _unet(
        "mobilenet_v3_large", "MobileNetV3-Large (Howard et al. 2019, arXiv:1905.02244)"
    ),
}
