"""Does the patch grow while a network is trained, and in which stages?

Progressive growing of the patch (Fischer et al. 2025, arXiv:2510.23241, and MICCAI 2024,
arXiv:2407.07853): a run begins with the smallest patch that the network's strides allow, in which
classes are better balanced and whose steps cost less, and the patch grows by the smallest steps, the
shortest edge first, over stages of equally many steps.

Not as there: the coarsest level keeps two voxels along each axis, not one, since one has no norm;
at most MOST_STAGES sizes are used; and the patches of a batch come from as many cases as ever.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.patch_stages import PatchStage
from autoseg.errors import PlanError
from autoseg.rules.decision import Decision, Size, sizes
from autoseg.rules.shrink import LEAST_DEEP

MOST_STAGES = 6
"""So many evenly spaced sizes of those on the way are used: a network is compiled for each, and each
starts its own processes for loading."""
CONSTANT, EFFICIENCY, PERFORMANCE = "constant", "efficiency", "performance"
MODES = (CONSTANT, EFFICIENCY, PERFORMANCE)
"""What may be pinned in the place of stages: none, or the paper's two modes."""

BytesOf = Callable[[NetworkSpec, Size, int], float]
"""(network, patch, batch) -> peak bytes of one training step."""


def growing_sizes(patch_vox: Size, divisor: Size) -> Iterator[Size]:
    """Every size on the way from the smallest patch to `patch_vox`, one step along one axis each."""
    size = tuple(min(edge, LEAST_DEEP * by) for edge, by in zip(patch_vox, divisor, strict=True))
    while size != patch_vox:
        yield size
        short = [axis for axis in range(len(size)) if size[axis] < patch_vox[axis]]
        axis = min(short, key=lambda a: (size[a] + divisor[a], a))
        size = (*size[:axis], size[axis] + divisor[axis], *size[axis + 1 :])
    yield size


def growing_patches(
    network: NetworkSpec,
    patch_vox: Size,
    batch_size: int,
    mode: str,
    bytes_of: BytesOf | None = None,
) -> list[dict[str, Any]]:
    """A plan's `patch_schedule` in one of MODES; [] where the patch is the smallest already.

    `efficiency` keeps the batch; `performance` fills it up to the voxels of a full step and, where
    `bytes_of` is known, to its bytes.
    """
    if mode == CONSTANT:
        return []
    every = list(growing_sizes(patch_vox, network.divisor))
    count = min(len(every), MOST_STAGES)
    chosen = [every[round(i * (len(every) - 1) / max(1, count - 1))] for i in range(count)]
    most = bytes_of(network, patch_vox, batch_size) if bytes_of is not None else None
    stages = []
    for index, size in enumerate(chosen[:-1]):
        batch = batch_size
        if mode == PERFORMANCE:
            batch = batch_size * prod(patch_vox) // prod(size)
            while (
                bytes_of and most and batch > batch_size and bytes_of(network, size, batch) > most
            ):
                batch = max(batch_size, batch * 9 // 10)
        until = round((index + 1) / count, 4)
        stages.append({"until": until, "patch_vox": list(size), "batch_size": batch})
    return stages


def voxel_share(stages: Sequence[Mapping[str, Any]], patch_vox: Size, batch_size: int) -> float:
    """What a step with these stages shows on average, of the voxels of a full step."""
    share, before, full = 0.0, 0.0, prod(patch_vox) * batch_size
    for stage in stages:
        length = stage["until"] - before
        share += length * prod(stage["patch_vox"]) * stage["batch_size"] / full
        before = stage["until"]
    return share + 1 - before


def patch_schedule(
    pinned: Any,
    network: NetworkSpec,
    patch_vox: Size,
    batch_size: int,
    bytes_of: BytesOf | None = None,
) -> Decision[list[Any]]:
    """The stages of a configuration, and why; no reason where they are nobody's decision.

    Raises PlanError for a pin that is neither a mode nor a list of stages.
    """
    if isinstance(pinned, (list, tuple)):
        stages = [PatchStage.parse(s, "a stage of train.patch_schedule").dump() for s in pinned]
        return Decision(stages, "pinned by you")
    if pinned is not None and pinned not in MODES:
        raise PlanError(
            f"train.patch_schedule is pinned to {pinned!r}; give {', '.join(MODES)} or a list of "
            "stages with until, patch_vox and batch_size"
        )
    mode = pinned or CONSTANT
    stages = growing_patches(network, patch_vox, batch_size, mode, bytes_of)
    if not stages:
        return Decision([], "pinned by you" if pinned else "")
    first, last = stages[0], sizes(patch_vox)
    told = (
        f"pinned by you: in {len(stages) + 1} stages of equally many steps the patch grows from "
        f"{sizes(tuple(first['patch_vox']))} in batches of {first['batch_size']} to {last} in "
        f"batches of {batch_size}."
    )
    return Decision(stages, told)
