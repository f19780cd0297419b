"""Connected components against scipy's labelling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.image import components
from autoseg.image.components import (
    component_sizes_by_class,
    component_sizes_vox,
    drop_small,
    holes,
    largest_component,
    touching,
)

shapes = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8))


@given(st.integers(0, 10_000), shapes, st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_components_are_scipys(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    labelled, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = [int((labelled == n).sum()) for n in range(1, count + 1)]
    assert sorted(component_sizes_vox(mask)) == sorted(sizes)
    largest = largest_component(mask)
    assert largest.sum() == max(sizes, default=0)
    assert len(component_sizes_vox(largest)) == min(count, 1)
    assert not np.any(largest & ~mask)
    kept = drop_small(mask, 6.0, (1.0, 1.0, 2.0))
    expected = np.isin(labelled, [n for n, size in enumerate(sizes, 1) if size * 2.0 >= 6.0])
    np.testing.assert_array_equal(kept, expected & mask)


@given(st.integers(0, 10_000), shapes, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_all_classes_at_once_are_each_by_itself(
    seed: int, shape: tuple[int, int, int], most: int
) -> None:
    """Also below zero (nobody labelled, outside), above the count, and in views."""
    classes = np.random.default_rng(seed).integers(-2, most + 2, shape[::-1]).astype(np.int16).T
    found = component_sizes_by_class(classes, most)
    assert len(found) == most
    for number, sizes in enumerate(found, 1):
        assert sizes.tolist() == component_sizes_vox(classes == number).tolist()


def test_corners_connect_in_a_slice() -> None:
    mask = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 0]]], dtype=bool)
    assert component_sizes_vox(mask).tolist() == [2]


def test_of_two_equal_components_the_first_is_kept() -> None:
    mask = np.array([[[1, 1, 0, 1, 1]]], dtype=bool)
    assert largest_component(mask)[0, 0].tolist() == [True, True, False, False, False]


def test_a_component_of_exactly_the_limit_stays() -> None:
    mask = np.ones((2, 2, 2), dtype=bool)
    assert drop_small(mask, 8 * 0.5**3, (0.5, 0.5, 0.5)).sum() == 8
    assert drop_small(mask, 1.0 + 1e-9, (0.5, 0.5, 0.5)).sum() == 0


@pytest.mark.parametrize("view", [lambda a: a[::-1], lambda a: a.transpose(2, 1, 0)])
def test_views_work_as_copies(view) -> None:
    mask = view(np.random.default_rng(1).random((4, 5, 6)) < 0.3)
    np.testing.assert_array_equal(largest_component(mask), largest_component(mask.copy()))


@given(st.integers(0, 10_000), shapes, st.floats(0.3, 1.0))
@settings(max_examples=60, deadline=None)
def test_holes_are_scipys(seed: int, shape: tuple[int, int, int], share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    flat = tuple(n for n in shape if n > 1)
    plain = mask.reshape(flat)
    expected = ndimage.binary_fill_holes(plain) & ~plain if flat else np.zeros((), bool)
    np.testing.assert_array_equal(holes(mask), expected.reshape(shape))


@given(st.integers(0, 10_000), shapes)
@settings(max_examples=40, deadline=None)
def test_parts_that_touch_are_those_of_a_dilation(seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    parts, mask = rng.random(shape) < 0.5, rng.random(shape) < 0.1
    parts &= ~mask
    numbered, _ = ndimage.label(parts)
    near = np.unique(numbered[ndimage.binary_dilation(mask)])
    np.testing.assert_array_equal(touching(parts, mask), np.isin(numbered, near[near > 0]))


def test_work_in_slabs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(4).random((9, 10, 11)) < 0.2
    whole = component_sizes_vox(mask), drop_small(mask, 3.0, (1.0, 1.0, 1.0))
    monkeypatch.setattr(components, "AT_ONCE", 250)
    np.testing.assert_array_equal(component_sizes_vox(mask), whole[0])
    np.testing.assert_array_equal(drop_small(mask, 3.0, (1.0, 1.0, 1.0)), whole[1])
