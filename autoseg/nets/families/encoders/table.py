"""Every encoder that a document can name."""

from collections.abc import Callable, Sequence

from autoseg.documents.networks.classic import Encoded, at_scale
from autoseg.nets.families.encoders.efficientnet import EfficientNet
from autoseg.nets.families.encoders.encoder import Encoder, Steps
from autoseg.nets.families.encoders.mobilenet import MobileNetV3
from autoseg.nets.families.encoders.resnet import DEPTHS_34, DEPTHS_50, DEPTHS_101, ResNet
from autoseg.nets.families.encoders.vgg import VGG
from autoseg.nets.kit import Kit

FIRST = 64
"""Published width of the first layer of ResNet and VGG."""


def _resnet(depths: Sequence[int], bottleneck: bool) -> Callable[..., Encoder]:
    def make(
        kit: Kit, channels: int, steps: Steps, kernels: Steps, *, scale: float, rates: Sequence[int]
    ) -> Encoder:
        return ResNet(
            kit, channels, steps, kernels, first_width=at_scale(FIRST, scale), depths=depths,
            bottleneck=bottleneck, rates=rates,
        )  # fmt: skip

    return make


def vgg16(
    kit: Kit, channels: int, steps: Steps, kernels: Steps, *, scale: float, rates: Sequence[int]
) -> VGG:
    """VGG-16 at a scale of its widths."""
    return VGG(kit, channels, steps, kernels, first_width=at_scale(FIRST, scale), rates=rates)


ENCODERS: dict[str, Callable[..., Encoder]] = {
    "resnet34": _resnet(DEPTHS_34, bottleneck=False),
    "resnet50": _resnet(DEPTHS_50, bottleneck=True),
    "resnet101": _resnet(DEPTHS_101, bottleneck=True),
    "vgg16": vgg16,
    "efficientnet_b0": EfficientNet,
    "mobilenet_v3_large": MobileNetV3,
}
"""Built as encoder(kit, channels, steps, kernels, scale=…, rates=…)."""


def kit_of(spec: Encoded) -> Kit:
    """The layers of a document, with the kernel of its deepest level."""
    return Kit(spec.kernels[-1], spec.norm, spec.activation, spec.dropout)


def encoder_of(spec: Encoded) -> Encoder:
    """The encoder that a document names."""
    make = ENCODERS[spec.encoder]
    return make(
        kit_of(spec), spec.in_channels, spec.steps, spec.kernels, scale=spec.scale, rates=spec.rates
    )
