"""nnU-Net's search for patch and batch against costs that can be worked out by hand."""

from math import prod

import pytest

from autoseg.errors import PlanError
from autoseg.rules.budget import Budget, batch_size, fit_patch
from autoseg.rules.topology import Topology, topology_for


def bytes_of(topology: Topology, batch: int) -> float:
    """1000 bytes of weights and 4 bytes a voxel."""
    return 1000 + 4 * batch * prod(topology.patch_vox)


def budget(limit: float) -> Budget:
    """The bytes above, in which the batch that fills a limit is (limit - 1000) / (4 voxels)."""

    def batch_within(topology: Topology) -> int:
        return int((limit - 1000) / (4 * prod(topology.patch_vox)))

    return Budget(limit, "bytes", bytes_of, batch_within)


def test_patch_is_whole_where_it_fits() -> None:
    found = fit_patch((1.0, 1.0, 1.0), (36.0, 50.0, 35.0), budget(1e9))
    assert found.value.patch_vox == (40, 56, 40)
    assert "covers a median case of 36 x 50 x 35" in found.why


def test_patch_shrinks_along_its_relatively_longest_edge() -> None:
    limit = bytes_of(topology_for((128, 128, 128), (1.0, 1.0, 1.0)), 2)
    found = fit_patch((1.0, 1.0, 1.0), (400.0, 400.0, 400.0), budget(limit))
    assert found.value.patch_vox == (128, 128, 128)
    flat = fit_patch((1.0, 1.0, 1.0), (400.0, 100.0, 400.0), budget(limit))
    # The proportions of the case are kept: each edge is about half of its length.
    assert flat.value.patch_vox == (224, 48, 192)
    assert bytes_of(flat.value, 2) <= limit
    assert "shortened" in flat.why


def test_no_patch_step_is_skipped() -> None:
    # 256 must be divisible by 64, the 224 below it only by 32.
    limit = 4 * 2 * 224 * 256 + 1000
    found = fit_patch((1.0, 1.0), (256.0, 256.0), budget(limit))
    assert found.value.patch_vox == (256, 224)


def test_nothing_fits() -> None:
    with pytest.raises(PlanError, match="no patch fits the memory budget: even"):
        fit_patch((1.0, 1.0), (64.0, 64.0), budget(1000))


@pytest.mark.parametrize(
    ("limit", "dataset_vox", "share", "expected", "reason"),
    [
        (1000 + 4 * 64 * 10, 64e6, 0.05, 10, "within 5%"),
        (1000 + 4 * 64 * 10, 64 * 100, 0.05, 5, "more than 5%"),
        (1000 + 4 * 64 * 10, 64, 0.05, 2, "at least 2"),
        (1000 + 4 * 64 * 1, 64e6, 0.05, 2, "at least 2"),
    ],
)
def test_batch_is_bounded_by_memory_dataset_and_two(
    limit: float, dataset_vox: float, share: float, expected: int, reason: str
) -> None:
    topology = topology_for((8, 8), (1.0, 1.0))
    found = batch_size(topology, budget(limit), dataset_vox, share)
    assert found.value == expected
    assert reason in found.why
