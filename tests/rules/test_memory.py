"""The reckoner against costs that it cannot see but where it asks."""

from collections.abc import Callable
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.rules.memory import GB, OVERHEADS, Reckoner, target_for, usable_bytes
from autoseg.rules.topology import Topology, topology_for

EVEN = (1.0, 1.0, 1.0)
Cost = Callable[[Topology, int], float]


def cubes(*edges: int) -> list[Topology]:
    return [topology_for((edge,) * 3, EVEN) for edge in edges]


def linear(topology: Topology, batch: int) -> float:
    """2 GB, and a kilobyte a voxel; deeper networks have heavier weights."""
    return 2e9 + 5e7 * topology.levels + 1000 * batch * prod(topology.patch_vox)


def kinked(topology: Topology, batch: int) -> float:
    """The weights' update decides for small patches, the activations for large ones."""
    return max(4e9, 1e9 + 1000 * batch * prod(topology.patch_vox))


def quadratic(topology: Topology, batch: int) -> float:
    """Attention that keeps a number for each pair of voxels 8 apart."""
    tokens = prod(topology.patch_vox) / 512
    return 1e9 + batch * (200 * tokens * 512 + 4 * 12 * tokens**2)


def asked(cost: Cost, limit: float) -> tuple[Reckoner, list[tuple[Topology, int]]]:
    """A reckoner and the list of what it asked."""
    calls: list[tuple[Topology, int]] = []

    def bytes_of(topology: Topology, batch: int) -> float:
        calls.append((topology, batch))
        return cost(topology, batch)

    return Reckoner(bytes_of, limit), calls


def test_what_a_card_leaves_is_nine_tenths_less_a_part() -> None:
    assert usable_bytes(8) == pytest.approx(5.7 * GB)
    assert usable_bytes(1) < 0
    assert "until measured" in OVERHEADS["card"].source


@given(st.floats(1e8, 1e11))
def test_the_target_for_a_step_is_the_least_that_holds_it(step_bytes: float) -> None:
    target = target_for(step_bytes)
    assert usable_bytes(target) >= step_bytes * (1 - 1e-12)
    assert usable_bytes(target - 0.1001) < step_bytes


def test_clear_answers_are_not_asked_for() -> None:
    reckoner, calls = asked(linear, 6e9)
    far, near, small = cubes(256, 128, 96)
    assert not reckoner.fits(far, 2)
    assert not reckoner.fits(cubes(224)[0], 2)
    assert len(calls) == 1
    assert not reckoner.fits(near, 2)
    assert reckoner.fits(small, 2)
    assert reckoner.fits(cubes(64)[0], 4)
    assert len(calls) <= 3
    assert all(reckoner.real(t, b) == linear(t, b) for t, b in [*calls])
    assert len(calls) <= 3


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([linear, kinked]),
    st.floats(3e9, 4e10),
    st.lists(
        st.tuples(st.sampled_from([64, 80, 96, 112, 128, 160, 192, 224]), st.integers(1, 6)),
        min_size=1,
        max_size=8,
    ),
)
def test_answers_that_are_confirmed_are_right(
    cost: Cost, limit: float, questions: list[tuple[int, int]]
) -> None:
    reckoner, calls = asked(cost, limit)
    for edge, batch in questions:
        (topology,) = cubes(edge)
        if reckoner.fits(topology, batch) and reckoner.confirms(topology, batch):
            assert cost(topology, batch) <= limit
    assert len(calls) <= len(set(questions))


def test_levels_whose_line_is_wrong_are_asked_every_time() -> None:
    reckoner, calls = asked(quadratic, 30e9)
    edges = cubes(96, 112, 128)  # the same levels, and a square between them
    assert len({t.strides for t in edges[:2]}) == 1
    low, high = edges[:2]
    reckoner.real(low, 1)
    reckoner.real(low, 4)
    assert not reckoner.confirms(high, 8)
    before = len(calls)
    reckoner.fits(high, 3)
    assert len(calls) == before + 1


def test_a_batch_that_fills_is_near_the_limit_and_larger() -> None:
    reckoner, _ = asked(linear, 20e9)
    (topology,) = cubes(64)
    number = reckoner.filling(topology, 2)
    assert number > 2
    assert linear(topology, number) <= 20e9
