"""Which smaller patches does a training begin with, and what may they be?"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod

from pydantic import Field, PositiveInt

from autoseg.documents.document import Document
from autoseg.documents.networks.network import Spatial


class PatchStage(Document):
    """Up to which share of a run's steps a smaller patch is shown than the configuration's own."""

    until: float = Field(gt=0.0, lt=1.0)
    patch_vox: Spatial
    batch_size: PositiveInt


def check_shares(stages: Sequence[PatchStage]) -> None:
    """Raises ValueError where the shares of the stages do not rise."""
    shares = [stage.until for stage in stages]
    if any(after <= before for before, after in pairwise(shares)):
        raise ValueError(f"the shares `until` of patch_schedule must rise, found {shares}")


def wrong_stages(
    stages: Sequence[PatchStage], patch_vox: Spatial, batch_size: int, divisor: Spatial
) -> Iterator[str]:
    """What is wrong with the stages of a configuration, in sentences."""
    most = prod(patch_vox) * batch_size
    for index, stage in enumerate(stages):
        patch, name = list(stage.patch_vox), f"train.patch_schedule[{index}].patch_vox"
        if len(patch) != len(patch_vox):
            yield f"{name} has {len(patch)} numbers, patch_vox {len(patch_vox)}"
        elif any(size > own for size, own in zip(patch, patch_vox, strict=True)):
            yield f"{name} {patch} is larger than patch_vox {list(patch_vox)}"
        elif any(size % by for size, by in zip(patch, divisor, strict=True)):
            yield f"{name} {patch} is no multiple of {list(divisor)}, the network's strides"
        elif prod(patch) == prod(divisor):
            yield f"{name} {patch} leaves the network's coarsest level a single voxel"
        elif prod(patch) * stage.batch_size > most:
            yield (
                f"{name} {patch} in batches of {stage.batch_size} holds more voxels than the {most} "
                "of a step with patch_vox, for which memory was counted"
            )
