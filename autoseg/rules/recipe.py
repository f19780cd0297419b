"""How long, how fast and with what is a network trained, and how is its patch disturbed?

On a card the patch fills the memory and the schedule is long; on cores the width, the patch and
the batch follow from the time that there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autoseg.rules.decision import Decision, Size, Spacing
from autoseg.rules.network import MOST_FEATURES
from autoseg.rules.nnunet import Preset
from autoseg.rules.topology import Topology

FIRST_WIDTH = 32
NNUNET_STEPS = 250_000
CARD_STEPS = 125_000
DUMMY_2D_ABOVE = 3.0
FLAT_PATCH_ABOVE = 1.5


@dataclass(frozen=True)
class Fixed:
    """What a person pinned of the things that these rules decide; None is free."""

    topology: Topology | None = None
    batch_size: int | None = None
    width: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Recipe:
    """Patch, batch, widths, and the fields of the plan's `train` and `predict` that follow."""

    topology: Decision[Topology]
    batch_size: Decision[int]
    features: Decision[Size]
    training: dict[str, Any]
    prediction: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def widths(levels: int, axes: int, first: int | None = None) -> Decision[Size]:
    """The channels of each level: `first` (32), doubled at each level, up to 512 (2D) or 320 (3D)."""
    start, most = first or FIRST_WIDTH, MOST_FEATURES[axes]
    value = tuple(min(most, start * 2**level) for level in range(levels))
    said = "pinned by you" if first else f"{start} channels, doubled at each level up to {most}."
    return Decision(value, said)


def supervision_weights(levels: int) -> list[float]:
    """nnU-Net's weights of the decoder levels, finest first: halved each time, the last 0; sum 1."""
    raw = [0.5**level for level in range(levels)]
    if levels > 1:
        raw[-1] = 0.0
    return [w / sum(raw) for w in raw]


def augmentation_for(patch_vox: Size) -> tuple[dict[str, Any], str]:
    """Rotation range, plane and mirrored axes for a patch, and why (nnU-Net's rule)."""
    axes = list(range(len(patch_vox)))
    if len(patch_vox) == 2:
        flat = max(patch_vox) / min(patch_vox) > FLAT_PATCH_ABOVE
        angle = 15.0 if flat else 180.0
        why = f"a 2D patch of {patch_vox[0]} x {patch_vox[1]} may be turned by up to {angle:g}°."
        return {"rotation_degrees": [angle], "mirror_axes": axes}, why
    if max(patch_vox) / patch_vox[0] > DUMMY_2D_ABOVE:
        why = (
            f"the patch is {max(patch_vox) / patch_vox[0]:.1f} times as wide as it is deep in "
            "voxels, so it is turned and scaled within its slices only."
        )
        return {"rotation_degrees": [180.0], "dummy_2d": True, "mirror_axes": axes}, why
    return {"rotation_degrees": [30.0] * 3, "mirror_axes": axes}, "nnU-Net's ranges for 3D patches."


def gpu_recipe(
    topology: Decision[Topology],
    batch: Decision[int],
    width: Decision[Size],
    *,
    planner: Literal["autoseg", "nnunet"],
    fixed: Fixed,
) -> Recipe:
    """nnU-Net's optimiser and schedule; the default planner halves its length."""
    steps = fixed.steps or (NNUNET_STEPS if planner == "nnunet" else CARD_STEPS)
    why = "nnU-Net's 1000 epochs of 250 steps."
    if fixed.steps:
        why = "pinned by you"
    elif planner == "autoseg":
        why = (
            "half of nnU-Net's 1000 epochs: in published curves 500 epochs cost 0 to 2 points of "
            "Dice against 1000 (nnActive's results), at half the time."
        )
    training: dict[str, Any] = {"steps": steps, "validate_every": 250}
    return Recipe(topology, batch, width, training, {}, {"train.steps": why})


def cpu_recipe(
    preset: Preset,
    spacing: Spacing,
    median: Sequence[float],
    dataset_vox: float,
    inputs: int,
    outputs: int,
    *,
    fixed: Fixed,
    minutes: float | None,
    macs_per_s: float | None,
) -> Recipe:
    raise NotImplementedError
