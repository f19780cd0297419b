"""The topology's invariants on random patches, and nnU-Net's known topologies."""

from hypothesis import given
from hypothesis import strategies as st

from autoseg.rules.topology import initial_patch, topology_for

EDGES = st.integers(1, 600).map(lambda n: n / 2)
SPACINGS = st.floats(0.2, 12.0)


def test_prostate_keeps_flat_kernels_until_voxels_are_isotropic() -> None:
    found = topology_for((20, 320, 256), (3.6, 0.625, 0.625))
    assert found.patch_vox == (20, 320, 256)
    assert found.kernels == ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 5)
    assert found.strides == (
        (1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)
    )  # fmt: skip


def test_hippocampus_is_padded_up() -> None:
    found = topology_for((36, 50, 35), (1.0, 1.0, 1.0))
    assert found.patch_vox == (40, 56, 40)
    assert found.divisor == (8, 8, 8)
    assert found.level_sizes() == [(40, 56, 40), (20, 28, 20), (10, 14, 10), (5, 7, 5)]


def test_a_lone_axis_needs_twelve_voxels() -> None:
    # Below 12 voxels one axis alone is not worth a level; 8 suffice for two.
    assert topology_for((4, 11), (1.0, 1.0)).levels == 1
    assert topology_for((4, 12), (1.0, 1.0)).levels == 2
    assert topology_for((8, 8), (1.0, 1.0)).levels == 2


@given(st.lists(st.tuples(EDGES, SPACINGS), min_size=2, max_size=3))
def test_every_level_divides_and_halved_axes_stay_long(axes: list[tuple[float, float]]) -> None:
    patch = tuple(n for n, _ in axes)
    found = topology_for(patch, tuple(mm for _, mm in axes))
    assert len(found.kernels) == len(found.strides)
    assert set(found.strides[0]) == {1}
    assert set(found.kernels[-1]) == {3}
    for axis, edge in enumerate(patch):
        assert found.patch_vox[axis] % found.divisor[axis] == 0
        assert edge <= found.patch_vox[axis] < edge + found.divisor[axis]
        if found.divisor[axis] > 1:
            assert found.level_sizes()[-1][axis] >= 4
    for fine, deep in zip(found.kernels, found.kernels[1:]):
        assert all(a <= b for a, b in zip(fine, deep))


def test_initial_patch_is_cubic_in_mm_and_clipped() -> None:
    assert initial_patch((1.0, 1.0, 1.0), (1000, 1000, 1000)) == (256, 256, 256)
    assert initial_patch((1.0, 1.0), (3000, 35.5)) == (2048, 35.5)
    depth, height, width = initial_patch((4.0, 1.0, 1.0), (999, 999, 999))
    assert (height, width) == (406, 406)
    assert depth == round(406 / 4)
