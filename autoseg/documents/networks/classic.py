"""Networks older than nnU-Net, and U-Nets on an image classifier: documents that are no sentence."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from autoseg.documents.networks.network import Network, Spatial, accumulated

EncoderName = Literal[
    "resnet34", "resnet50", "resnet101", "vgg16", "efficientnet_b0", "mobilenet_v3_large"
]

PUBLISHED: dict[str, tuple[int, ...]] = {
    "resnet34": (0, 64, 64, 128, 256, 512),
    "resnet50": (0, 64, 256, 512, 1024, 2048),
    "resnet101": (0, 64, 256, 512, 1024, 2048),
    "vgg16": (64, 128, 256, 512, 512, 512),
    "efficientnet_b0": (0, 16, 24, 40, 112, 1280),
    "mobilenet_v3_large": (0, 16, 24, 40, 112, 960),
}
"""Channels of each encoder's features after 0 … 5 reductions; 0 where it has none."""

MULTIPLE = 4
"""What scaled widths are a multiple of; all published ones are."""

STAGES = 5
ONES = (1,) * STAGES


def at_scale(published: int, scale: float) -> int:
    """A published width on another scale: a multiple of MULTIPLE, and at least that."""
    return max(1, round(published * scale / MULTIPLE)) * MULTIPLE


class Encoded(Network):
    """A network on a classifier's encoder.

    The encoder reduces the grid five times; each reduction takes the step of the plan's next level,
    and none where the plan has no more. `scale` multiplies the published widths; weight files fit at
    1 alone. Batch norm is the default because the published weights come with its statistics; for
    training from random weights with two samples a batch, `instance` may serve better. The
    document's activation is that of ResNet, VGG and everything behind the encoder; EfficientNet and
    MobileNet keep their own, which are part of their definition.
    """

    encoder: EncoderName
    norm: Literal["instance", "batch", "group", "none"] = "batch"
    activation: Literal["relu", "leaky_relu", "prelu", "mish", "gelu"] = "relu"
    scale: PositiveFloat = 1.0
    steps: tuple[Spatial, ...] = Field(min_length=2, max_length=STAGES + 1)
    kernels: tuple[Spatial, ...]
    rates: tuple[PositiveInt, ...] = Field(ONES, min_length=STAGES, max_length=STAGES)
    """The dilation of each of the encoder's stages: for ResNet the first convolution (which has
    none) and the four layers, for VGG the blocks, for the others what lies between reductions."""

    @model_validator(mode="after")
    def _fits(self) -> "Encoded":
        if len(self.kernels) != len(self.steps):
            raise ValueError(
                f"{len(self.steps)} steps need as many kernels, found {len(self.kernels)}"
            )
        sizes = {len(x) for x in (*self.steps, *self.kernels)}
        if len(sizes) != 1 or not sizes <= {2, 3}:
            raise ValueError("steps and kernels must all have 2 or all have 3 numbers")
        if any(s != 1 for s in self.steps[0]):
            raise ValueError("the finest level's step must be all ones")
        if any(k % 2 == 0 for kernel in self.kernels for k in kernel):
            raise ValueError("kernels must be odd")
        return self

    @property
    def strides(self) -> tuple[Spatial, ...]:
        return self.steps

    @property
    def widths(self) -> tuple[int, ...]:
        """The finest level is the image itself where the encoder has no features on its grid."""
        published = PUBLISHED[self.encoder]
        levels = (*published[: len(self.steps) - 1], published[-1])
        return tuple(at_scale(w, self.scale) if w else self.in_channels for w in levels)


class FCNSpec(Encoded):
    """FCN-8s: scores of three grids summed (Long et al. 2015, arXiv:1411.4038)."""

    family: Literal["fcn8s"] = "fcn8s"
    encoder: Literal["vgg16"] = "vgg16"
    head: PositiveInt
    """Channels of the two layers between encoder and scores; published 4096 (see the module)."""


class SegNetSpec(Encoded):
    """SegNet: an encoder and its mirror image (Badrinarayanan et al. 2017, arXiv:1511.00561)."""

    family: Literal["segnet"] = "segnet"
    encoder: Literal["vgg16"] = "vgg16"


class DeepLabSpec(Encoded):
    """DeepLab: a dilated encoder, a head with a large field of view, linear interpolation.

    `steps` end at the output stride; what would have stepped later is dilated (`rates`).
    """

    family: Literal["deeplab"] = "deeplab"
    head: Literal["large_fov", "summed", "decoder"]
    """`large_fov`: one dilated convolution (v1); `summed`: scores of parallel ones, added (v2);
    `decoder`: parallel ones concatenated, and a decoder with one finer feature (v3+)."""
    head_width: PositiveInt
    head_rates: tuple[PositiveInt, ...] = Field(min_length=1)
    """Dilations of the head as published, for a grid of `rates_grid` voxels an axis."""
    rates_grid: PositiveInt
    """An axis with fewer voxels gets rates that are smaller in proportion."""
    finer_width: PositiveInt = 48
    """Channels that the finer feature is reduced to, in the head `decoder`."""


class EncoderUNetSpec(Encoded):
    """A U-Net whose encoder is a classifier's; every level of the decoder is supervised."""

    family: Literal["encoder_unet"] = "encoder_unet"
    decoder: tuple[PositiveInt, ...]
    """Channels of each level of the decoder, finest first."""

    @model_validator(mode="after")
    def _levels(self) -> "EncoderUNetSpec":
        if len(self.decoder) != len(self.steps) - 1:
            raise ValueError(
                f"{len(self.steps)} levels need {len(self.steps) - 1} widths of the decoder, "
                f"found {len(self.decoder)}"
            )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        first, *rest = super().widths
        return (first if PUBLISHED[self.encoder][0] else self.decoder[0], *rest)

    @property
    def output_strides(self) -> tuple[Spatial, ...]:
        return accumulated(self.steps)[:-1]
