"""The search along the axes of a patch, against trying everything."""

from functools import partial
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.rules.search import descending, grown, largest_number, longer, shorter
from autoseg.rules.topology import Topology, topology_for

GRIDS = st.lists(st.tuples(st.floats(0.3, 8.0), st.integers(8, 400)), min_size=2, max_size=3).map(
    lambda axes: (tuple(mm for mm, _ in axes), tuple(float(n) for _, n in axes))
)


@settings(deadline=None, max_examples=60)
@given(GRIDS, st.sampled_from([None, 3, 4, 5]))
def test_patches_descend_to_the_smallest(grid, most_levels) -> None:
    spacing, median = grid
    on = partial(topology_for, spacing_mm=spacing, most_levels=most_levels)
    found = list(descending(on(median), median, on))
    volumes = [prod(t.patch_vox) for t in found]
    assert volumes == sorted(set(volumes), reverse=True)
    for topology in found:
        assert on(topology.patch_vox) == topology
        assert most_levels is None or topology.levels <= most_levels


@settings(deadline=None, max_examples=60)
@given(GRIDS, st.data())
def test_no_step_up_or_down_is_skipped(grid, data) -> None:
    spacing, median = grid
    on = partial(topology_for, spacing_mm=spacing)
    size = tuple(float(data.draw(st.integers(4, int(n)))) for n in median)
    topology = on(size)
    for axis, edge in enumerate(topology.patch_vox):
        up = longer(topology, axis, median, on)
        if up is None:
            assert edge >= median[axis]
        else:
            # the first edge above that any patch has
            assert up.patch_vox[axis] > edge
            assert all(a >= b for a, b in zip(up.patch_vox, topology.patch_vox, strict=True))
            # what another level makes an axis a multiple of may be less than what it was before
            steps = map(max, up.divisor, topology.divisor)
            assert all(e < n + d for e, n, d in zip(up.patch_vox, median, steps, strict=True))
        down = shorter(topology, axis, on)
        every = (
            on((*topology.patch_vox[:axis], shortened, *topology.patch_vox[axis + 1 :]))
            for shortened in range(edge - 1, 0, -1)
        )
        smaller = (t for t in every if prod(t.patch_vox) < prod(topology.patch_vox))
        assert down == next((t for t in smaller if t.patch_vox[axis] < edge), None)


@settings(deadline=None, max_examples=60)
@given(GRIDS, st.floats(1e4, 1e7))
def test_a_grown_patch_cannot_grow(grid, limit) -> None:
    spacing, median = grid
    on = partial(topology_for, spacing_mm=spacing)

    def fits(topology: Topology) -> bool:
        return prod(topology.patch_vox) <= limit

    start = on((8.0,) * len(spacing))
    found = grown(start, median, on, fits)
    assert fits(found) or found == start
    for axis, edge in enumerate(found.patch_vox):
        wider = on(tuple(n + (a == axis) * found.divisor[a] for a, n in enumerate(found.patch_vox)))
        assert edge >= median[axis] or not fits(wider)


@given(st.integers(2, 500), st.integers(2, 500))
def test_the_largest_number_is_found(most, true) -> None:
    assert largest_number(most, 2, lambda n: n <= true) == min(most, true)
