"""Every network that has a name: one line for each file of presets."""

from collections.abc import Sequence

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.presets import (
    classic,
    hybrids,
    mamba,
    nnunet,
    published,
    transformers,
    words,
)
from autoseg.documents.presets.shape import Preset, Shape
from autoseg.errors import PlanError, nearest

PRESETS: dict[str, Preset] = {
    **hybrids.PRESETS,
    **nnunet.PRESETS,
    **mamba.PRESETS,
    **transformers.PRESETS,
    **classic.PRESETS,
    **published.PRESETS,
    **words.PRESETS,
}


def preset_named(name: str) -> Preset:
    """Raises PlanError naming the nearest preset that there is."""
    if name not in PRESETS:
        raise PlanError(
            f"there is no network {name!r}{nearest(name, list(PRESETS))}; "
            "`autoseg networks` lists them"
        )
    return PRESETS[name]


def network_spec(
    name: str,
    in_channels: int,
    classes: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
) -> NetworkSpec:
    """The document of a preset for one grid; features, strides and kernels are finest first.

    Raises PlanError for an unknown preset, ValueError where the numbers do not fit together.
    """
    shape = Shape(
        in_channels,
        classes,
        tuple(features),
        tuple(tuple(stride) for stride in strides),
        tuple(tuple(kernel) for kernel in kernels),
    )
    return preset_named(name).make(name, shape)
