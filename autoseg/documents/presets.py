"""The sentences of well-known networks: from widths, strides and kernels to a NetworkSpec.

Here belongs what a published architecture fixes beyond the numbers that a planner derives from the
data. No torch: a sentence is a document.
"""

from collections.abc import Sequence

from autoseg.documents.plan import DecoderLevel, Level, NetworkSpec, Part
from autoseg.errors import PlanError

PLAIN_DEPTH = 2
RESENC_DEPTHS = (1, 3, 4, 6, 6, 6)
"""Residual blocks at each resolution, finest first; deeper ones repeat the last (nnU-Net Revisited,
Isensee et al. 2024, arXiv:2404.09556). The three sizes differ in patch and batch alone."""

PLAIN = Part(unit="plain")
RESIDUAL = Part(unit="pair", wraps=("residual",))


def network_spec(
    preset: str,
    in_channels: int,
    classes: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
    dimensions: int,
) -> NetworkSpec:
    """The sentence of `preset` for one grid; features, strides and kernels are finest first.

    Raises PlanError for an unknown preset, ValueError where the numbers do not fit together.
    """
    if preset not in PRESETS:
        raise PlanError(f"no network preset {preset!r}; there are {', '.join(PRESETS)}")
    if not len(features) == len(strides) == len(kernels) >= 2:
        raise ValueError(
            f"{len(features)} features, {len(strides)} strides and {len(kernels)} kernels: "
            "each needs one for each of at least two levels"
        )
    if any(len(x) != dimensions for x in (*strides, *kernels)):
        raise ValueError(f"strides and kernels need {dimensions} numbers at each level")
    encoder_part, encoder_depths, decoder_depth, stem, down = PRESETS[preset]
    levels = tuple(
        Level(
            part=encoder_part,
            depth=encoder_depths[min(i, len(encoder_depths) - 1)],
            kernel=tuple(kernels[i]),
            width=features[i],
            stride=tuple(strides[i]),
        )
        for i in range(len(features))
    )
    return NetworkSpec(
        preset=preset,
        in_channels=in_channels,
        classes=classes,
        encoder=levels[:-1],
        bottleneck=levels[-1],
        decoder=tuple(
            DecoderLevel(part=PLAIN, depth=decoder_depth, kernel=level.kernel)
            for level in levels[:-1]
        ),
        stem=features[0] if stem else None,
        down=down,
    )


PRESETS: dict[str, tuple[Part, tuple[int, ...], int, bool, str]] = {
    "plain": (PLAIN, (PLAIN_DEPTH,), PLAIN_DEPTH, False, "strided"),
    "resenc_m": (RESIDUAL, RESENC_DEPTHS, 1, True, "residual"),
    "resenc_l": (RESIDUAL, RESENC_DEPTHS, 1, True, "residual"),
    "resenc_xl": (RESIDUAL, RESENC_DEPTHS, 1, True, "residual"),
}
"""Name -> encoder part, its depth at each level, decoder depth, whether there is a stem, `down`."""
