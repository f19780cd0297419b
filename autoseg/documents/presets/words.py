"""The U-Nets of the literature that differ from the plain one in one mechanism, each a sentence.

Here belongs what is made of convolutions: which word stands at which position, and how often. All take
widths, strides and kernels from the planner, where the papers have 64 channels or so at the
finest level.
"""

from collections.abc import Callable
from typing import Any

from autoseg.documents.networks.sentence import DecoderLevel, Level, Part, Skip, Stem, UNetSpec
from autoseg.documents.networks.word import Setting, word
from autoseg.documents.presets.shape import Preset, Shape, adamw, per_level

OfWidth = Callable[[int], Part]


def part(unit: str, *wraps: str, **settings: Setting) -> Part:
    """A unit with settings, inside wraps, the innermost first."""
    return Part(unit=word(unit, **settings), wraps=tuple(word(name) for name in wraps))


PLAIN = part("plain")
RESIDUAL = part("pair", "residual")


def unet(
    name: str,
    shape: Shape,
    encoder: Part | OfWidth,
    decoder: Part | OfWidth,
    *,
    depths: tuple[int, ...] = (2,),
    decoder_depth: int = 2,
    bottleneck: Level | None = None,
    **words: Any,
) -> UNetSpec:
    """A sentence with one part, or one that depends on the width, in each half.

    `depths` are those of the encoder, finest first, deeper levels repeating the last; the step down
    counts as one. `words` are further fields of the sentence.
    """
    levels = [level(shape, encoder, i, per_level(depths, i)) for i in range(shape.levels)]
    ups = tuple(
        DecoderLevel(part=_part(decoder, width), depth=decoder_depth, kernel=kernel)
        for width, kernel in zip(shape.features[:-1], shape.kernels[:-1], strict=True)
    )
    return UNetSpec(
        preset=name, in_channels=shape.in_channels, classes=shape.classes,
        encoder=tuple(levels[:-1]), bottleneck=bottleneck or levels[-1], decoder=ups, **words,
    )  # fmt: skip


def level(
    shape: Shape, said: Part | OfWidth, index: int, depth: int, then: tuple[Part, ...] = ()
) -> Level:
    """One level of the encoder, finest first, or the bottleneck, which is -1."""
    width = shape.features[index]
    return Level(
        part=_part(said, width), then=then, depth=depth, kernel=shape.kernels[index],
        width=width, stride=shape.strides[index],
    )  # fmt: skip


def _part(said: Part | OfWidth, width: int) -> Part:
    return said if isinstance(said, Part) else said(width)


def everywhere(*wraps: str) -> Callable[[str, Shape], UNetSpec]:
    """Pairs of convolutions inside wraps, the last of them residual, at every level."""

    def made(name: str, shape: Shape) -> UNetSpec:
        said = part("pair", *wraps, "residual")
        return unet(name, shape, said, said, decoder_depth=1, down=word("residual"))

    return made


def instead(unit: str, *wraps: str, **settings: Setting) -> Callable[[str, Shape], UNetSpec]:
    """One unit at every level in the place of the plain U-Net's two convolutions."""

    def made(name: str, shape: Shape) -> UNetSpec:
        said = part(unit, *wraps, **settings)
        return unet(name, shape, said, said, depths=(1, 2), decoder_depth=1)

    return made


def dense_unet(name: str, shape: Shape) -> UNetSpec:
    """Four layers a unit, which together add as many channels as the level has."""

    def said(width: int) -> Part:
        return part("dense", growth=max(1, width // 4), layers=4)

    return unet(name, shape, said, said, depths=(1, 2), decoder_depth=1, down=word("pooled"))


def dilated_unet(name: str, shape: Shape) -> UNetSpec:
    """Three rates a unit on the way down, plain units on the way up."""
    said = part("dilated", rates=(1, 2, 5))
    return unet(name, shape, said, PLAIN, depths=(1, 2))


def ce_net(name: str, shape: Shape) -> UNetSpec:
    """A residual encoder, both context blocks at the bottom, narrow blocks and sums on the way up."""
    context = (part("dense_atrous"), part("pooled_pyramid"))
    return unet(
        name, shape, RESIDUAL, part("bottleneck", "residual"), decoder_depth=1,
        bottleneck=level(shape, RESIDUAL, -1, 2, then=context),
        down=word("residual"), skip=Skip(join=word("add")),
    )  # fmt: skip


def aspp_unet(name: str, shape: Shape) -> UNetSpec:
    """Plain but for the bottleneck, which ends with the pyramid."""
    bottom = level(shape, PLAIN, -1, 2, then=(part("pyramid"),))
    return unet(name, shape, PLAIN, PLAIN, bottleneck=bottom)


def split_attention_unet(name: str, shape: Shape) -> UNetSpec:
    """A residual encoder; on the way up each channel chooses between two rates."""
    said = part("split_attention", rates=(1, 2))
    return unet(name, shape, RESIDUAL, said, decoder_depth=1, down=word("residual"))


def psa_unet(name: str, shape: Shape) -> UNetSpec:
    """Residual blocks of pyramid split attention in both halves."""
    said = part("pyramid_split", "residual")
    stem = Stem(width=shape.features[0])
    return unet(name, shape, said, said, depths=(1, 2), decoder_depth=1, stem=stem)


def multires_unet(name: str, shape: Shape) -> UNetSpec:
    """Multi-scale blocks in both halves and residual paths between them."""
    said = part("multi_scale_residual")
    skip = Skip(before=(part("residual_path", steps=2),), join=word("concat"))
    return unet(
        name, shape, said, said, depths=(1, 2), decoder_depth=1, down=word("pooled"), skip=skip
    )


def mobile_unet(name: str, shape: Shape) -> UNetSpec:
    """Inverted bottlenecks on the way down, separable convolutions on the way up."""
    return unet(
        name, shape, part("mbconv", expand=4), part("separable"), stem=Stem(width=shape.features[0])
    )


def convnext_unet(name: str, shape: Shape) -> UNetSpec:
    """ConvNeXt blocks in both halves, two on the way down and one on the way up.

    The blocks' scale starts at 0.1 instead of the published 1e-6, which is meant for networks of
    18 blocks and more, and for Adam, whose steps do not shrink with the scale.
    """
    said = part("convnext", scale=0.1)
    stem = Stem(width=shape.features[0])
    return unet(name, shape, said, said, depths=(2, 3), decoder_depth=1, stem=stem)


def lstm_unet(name: str, shape: Shape) -> UNetSpec:
    """Plain halves, a densely connected bottleneck, and a recurrent join."""
    bottom = level(shape, part("dense", growth=max(1, shape.features[-1] // 4)), -1, 2)
    return unet(name, shape, PLAIN, PLAIN, bottleneck=bottom, skip=Skip(join=word("lstm")))


PRESETS = {
    "res_unet": Preset(
        everywhere(),
        "residual blocks in both halves (Zhang et al. 2018, arXiv:1711.10684)",
    ),
    "dense_unet": Preset(
        dense_unet, "dense blocks in both halves (FD-UNet, Guan et al. 2018, arXiv:1808.10848)"
    ),
    "inception_unet": Preset(
        instead("inception"),
        "inception blocks in both halves (Punn & Agarwal 2020, doi:10.1145/3376922)",
    ),
    "dilated_unet": Preset(
        dilated_unet,
        "convolutions of rates 1, 2, 5 on the way down (Wang et al. 2018, arXiv:1702.08502)",
    ),
    "ce_net": Preset(
        ce_net,
        "dense atrous convolution and multi-kernel pooling at the bottom of a residual encoder "
        "(Gu et al. 2019, arXiv:1903.02740)",
    ),
    "aspp_unet": Preset(
        aspp_unet,
        "atrous spatial pyramid pooling in the bottleneck (Chen et al. 2017, arXiv:1706.05587)",
    ),
    "se_unet": Preset(
        everywhere("squeeze_excite"),
        "residual blocks with squeeze-excite gates (Hu et al. 2018, arXiv:1709.01507; in a U-Net: "
        "Rundo et al. 2019, arXiv:1904.08254)",
    ),
    "eca_unet": Preset(
        everywhere("efficient_channel"),
        "residual blocks with efficient channel attention (Wang et al. 2020, arXiv:1910.03151)",
    ),
    "dual_attention_unet": Preset(
        everywhere("dual_attention"),
        "residual blocks with channel and spatial gates (CBAM, Woo et al. 2018, arXiv:1807.06521)",
    ),
    "split_attention_unet": Preset(
        split_attention_unet,
        "split attention between two rates on the way up (Zhang et al. 2020, arXiv:2004.08955)",
    ),
    "psa_unet": Preset(
        psa_unet,
        "pyramid split attention in both halves (EPSANet, Zhang et al. 2021, arXiv:2105.14447)",
    ),
    "csp_unet": Preset(
        instead("csp"),
        "cross-stage partial blocks in both halves (Wang et al. 2020, arXiv:1911.11929)",
    ),
    "multires_unet": Preset(
        multires_unet,
        "multi-scale blocks and residual paths (MultiResUNet, Ibtehaz & Rahman 2020, "
        "arXiv:1902.04049)",
    ),
    "mobile_unet": Preset(
        mobile_unet,
        "inverted bottlenecks down, separable convolutions up (MobileNetV2, Sandler et al. 2018, "
        "arXiv:1801.04381)",
    ),
    "convnext_unet": Preset(
        convnext_unet,
        "ConvNeXt blocks in both halves (Liu et al. 2022, arXiv:2201.03545)",
        training=adamw(1e-3),
    ),
    "lstm_unet": Preset(
        lstm_unet,
        "bidirectional ConvLSTM joins and a dense bottleneck (BCDU-Net, Azad et al. 2019, "
        "arXiv:1909.00166)",
    ),
}
