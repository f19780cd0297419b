"""Cleaning label maps: scipy as the oracle for one structure, nested regions by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.documents.labels import LabelSet, Region, parse_labels
from autoseg.documents.postprocessing import DenseCRF, FillHoles, KeepLargest, MinimumSize
from autoseg.image.cleaning import cleaned, structures

TWO = LabelSet(names=("background", "organ", "lesion"), values=(0, 1, 2))
ONE = LabelSet(names=("background", "organ"), values=(0, 7))
BRATS = parse_labels(
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, [1, 2, 3]
)
MM = (2.0, 1.0, 0.5)
CUBE = np.ones((3, 3, 3))
FACES = ndimage.generate_binary_structure(3, 1)

shapes = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8))
seeds = st.integers(0, 10_000)


def noise(seed: int, shape: tuple[int, ...], classes: int, share: float = 0.5) -> np.ndarray:
    """Random classes in lumps, so that there are pieces and holes of all sizes."""
    rng = np.random.default_rng(seed)
    classes_of = rng.integers(1, classes, shape)
    field = ndimage.uniform_filter(rng.random(shape), 2, mode="nearest")
    return np.where(field < np.quantile(field, share), classes_of, 0).astype(np.int16)


def steps_of(name: str) -> list:
    return [KeepLargest(of=name), MinimumSize(of=name, mm3=4.0), FillHoles(of=name)]


@given(seeds, shapes, st.floats(0.1, 0.9))
@settings(max_examples=60)
def test_one_structure_is_cleaned_as_scipy_would(
    seed: int, shape: tuple[int, int, int], share: float
) -> None:
    classes = noise(seed, shape, 2, share)
    before = classes.copy()
    numbered, count = ndimage.label(classes, CUBE)
    sizes = np.bincount(numbered.ravel())[1:]
    for name in ("organ", "*"):
        largest = cleaned(classes, MM, [KeepLargest(of=name)], ONE)
        assert largest.sum() == max(sizes, default=0)
        assert ndimage.label(largest, CUBE)[1] == min(count, 1)
        small = cleaned(classes, MM, [MinimumSize(of=name, mm3=4.0)], ONE)
        kept = [n for n, size in enumerate(sizes, 1) if size >= 4]
        np.testing.assert_array_equal(small > 0, np.isin(numbered, kept))
        filled = cleaned(classes, MM, [FillHoles(of=name)], ONE)
        np.testing.assert_array_equal(filled > 0, filled_by_scipy(classes > 0))
    np.testing.assert_array_equal(classes, before)


def filled_by_scipy(mask: np.ndarray) -> np.ndarray:
    """In two dimensions where the array is a slice."""
    flat = mask.squeeze()
    return (ndimage.binary_fill_holes(flat) if flat.ndim else flat).reshape(mask.shape)


@given(seeds, shapes, st.sampled_from([0.3, 0.5, 0.7, 0.85]))
@settings(max_examples=60)
def test_of_several_classes_only_the_one_named_changes(
    seed: int, shape: tuple[int, int, int], share: float
) -> None:
    classes = noise(seed, shape, 3, share)
    organ = classes == 1
    for step in steps_of("organ"):
        found = cleaned(classes, MM, [step], TWO)
        np.testing.assert_array_equal(found == 2, classes == 2)
        if isinstance(step, FillHoles):
            allowed = filled_by_scipy(organ) & (classes == 0)
            holes, _ = ndimage.label(allowed, FACES)
            lining = np.unique(holes[ndimage.binary_dilation(organ, FACES)])
            expected = np.isin(holes, lining[lining > 0])
            np.testing.assert_array_equal((found == 1) & ~organ, expected)
        assert np.all((found == 1)[organ]) or not isinstance(step, FillHoles)
        assert np.all(organ[found == 1]) or isinstance(step, FillHoles)


@given(seeds, shapes, st.sampled_from(["*", "whole", "core", "enhancing"]))
@settings(max_examples=80)
def test_regions_lose_and_gain_as_masks_of_their_own(
    seed: int, shape: tuple[int, int, int], name: str
) -> None:
    classes = noise(seed, shape, 4, 0.6)
    members = {"*": (1, 2, 3)} | {r.name: r.classes for r in BRATS.regions}
    mask = np.isin(classes, members[name])
    for step in steps_of(name):
        found = cleaned(classes, MM, [step], BRATS)
        after = np.isin(found, members[name])
        plain = cleaned(
            mask.astype(np.int16), MM, [type(step)(**step.dump() | {"of": "organ"})], ONE
        )
        np.testing.assert_array_equal(after, plain > 0)
        for other, own in members.items():
            old, new = np.isin(classes, own), np.isin(found, own)
            if isinstance(step, FillHoles):
                assert np.all(new[old]), f"{other} lost voxels"
            else:
                assert np.all(old[new]), f"{other} gained voxels"
            if set(own) > set(members[name]) and not isinstance(step, FillHoles):
                np.testing.assert_array_equal(new, old)


@given(seeds, shapes, st.sampled_from(["*", "organ", "lesion"]))
@settings(max_examples=60)
def test_a_step_done_twice_is_done_once(seed: int, shape: tuple[int, int, int], name: str) -> None:
    classes = noise(seed, shape, 3, 0.6)
    for step in steps_of(name):
        once = cleaned(classes, MM, [step], TWO)
        np.testing.assert_array_equal(cleaned(once, MM, [step], TWO), once)


def test_what_leaves_a_region_is_painted_by_those_around_it() -> None:
    row = np.array([[[1, 3, 1, 2, 3, 3, 1, 0, 3, 3]]], np.int16)

    def after(name: str) -> list[int]:
        return cleaned(row, MM, [MinimumSize(of=name, mm3=3.0)], BRATS)[0, 0].tolist()

    assert after("enhancing") == [1, 2, 1, 2, 2, 2, 1, 0, 2, 2]
    assert after("core") == [1, 1, 1, 2, 3, 3, 1, 0, 1, 1]
    assert after("whole") == [1, 3, 1, 2, 3, 3, 1, 0, 0, 0]
    assert after("*") == after("whole")


def test_regions_that_cross_leave_what_the_other_holds() -> None:
    crossing = parse_labels({"background": 0, "a": [1, 2], "b": [2, 3]}, [1, 3])
    known = structures(crossing)
    assert known["a"].instead.tolist() == [0, 0, 3, 0]
    assert known["b"].instead.tolist() == [0, 0, 1, 0]
    # class 3 would leave `b` if a hole of `a` swallowed it
    assert known["a"].fillable.tolist() == [True, False, False, False]
    # the paint of `c` is in `b`: no voxel taken from `b` can become it
    inner = LabelSet(
        names=("background", "x", "y"),
        values=(0, 1, 2),
        regions=(
            Region(name="c", classes=(1, 2), paint=2),
            Region(name="b", classes=(2,), paint=2),
        ),
    )
    assert structures(inner)["b"].instead.tolist() == [0, 0, 0]


def test_holes_of_a_region_swallow_the_regions_around_it_and_nothing_else() -> None:
    plane = np.zeros((7, 7), np.int16)
    plane[1:6, 1:6] = 2
    plane[2:5, 2:5] = [[1, 1, 0], [0, 3, 0], [1, 0, 1]]
    classes = plane[None]
    filled = cleaned(classes, MM, [FillHoles(of="core")], BRATS)[0]
    assert filled[2:5, 2:5].tolist() == [[2, 2, 2], [2, 3, 2], [2, 2, 2]]
    filled = cleaned(classes, MM, [FillHoles(of="whole")], BRATS)[0]
    assert filled[2:5, 2:5].tolist() == [[1, 1, 1], [1, 3, 1], [1, 1, 1]]


def test_a_cavity_of_the_tumour_is_the_tumours_and_not_the_organs() -> None:
    plane = np.zeros((9, 9), np.int16)
    plane[1:8, 1:8] = 1
    plane[3:6, 3:6] = 2
    plane[4, 4] = 0
    plane[2, 2] = 0
    classes = plane[None]
    organ = cleaned(classes, MM, [FillHoles(of="organ")], TWO)[0]
    assert (organ[4, 4], organ[2, 2]) == (0, 1)
    lesion = cleaned(classes, MM, [FillHoles(of="lesion")], TWO)[0]
    assert (lesion[4, 4], lesion[2, 2]) == (2, 0)


@given(seeds, st.sampled_from([(5, 7, 8), (1, 9, 9)]))
@settings(max_examples=30)
def test_a_hole_of_all_foreground_becomes_what_is_nearest(
    seed: int, shape: tuple[int, ...]
) -> None:
    classes = noise(seed, shape, 4, 0.85)
    labels = LabelSet(names=("background", "a", "b", "c"), values=(0, 1, 2, 3))
    found = cleaned(classes, MM, [FillHoles(of="*")], labels)
    holes = filled_by_scipy(classes > 0) & (classes == 0)
    np.testing.assert_array_equal(found[~holes], classes[~holes])
    lined = np.argwhere(classes > 0)
    for voxel in np.argwhere(holes):
        distances = (((lined - voxel) * MM) ** 2).sum(1)
        near = lined[distances <= distances.min() + 1e-9]
        assert found[tuple(voxel)] in classes[tuple(near.T)]


def test_a_ring_in_one_slice_of_a_volume_has_no_hole_but_a_slice_has() -> None:
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.int16)
    volume = np.zeros((3, 3, 3), np.int16)
    volume[1] = ring
    for name in ("organ", "*"):
        assert cleaned(volume, MM, [FillHoles(of=name)], ONE).sum() == 8
        assert cleaned(ring[None], MM, [FillHoles(of=name)], ONE).sum() == 9
    # a volume of which the border is a wall of the hole: one can leave through it
    assert cleaned(volume[1:], MM, [FillHoles(of="organ")], ONE).sum() == 8


def test_steps_are_done_in_their_order() -> None:
    row = np.array([[[1, 1, 0, 1, 1, 1, 2, 0, 2]]], np.int16)
    steps = [KeepLargest(of="*"), KeepLargest(of="lesion"), MinimumSize(of="organ", mm3=4.0)]
    assert cleaned(row, MM, steps[:1], TWO)[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 0, 0]
    assert cleaned(row, MM, steps, TWO)[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0]
    assert cleaned(row, MM, steps[:0:-1], TWO)[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_voxels_outside_stay_and_views_and_types_work(dtype: type) -> None:
    classes = noise(3, (6, 7, 8), 3).astype(dtype)
    if dtype is not np.uint8:
        classes[classes == 2] = -1
        classes[0, 0, 0] = -2
    steps = [KeepLargest(of="organ"), FillHoles(of="*"), FillHoles(of="organ")]
    found = cleaned(classes.transpose(2, 1, 0)[::-1], MM[::-1], steps, TWO)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found == dtype(-1 if dtype is not np.uint8 else 2),
                                  classes.transpose(2, 1, 0)[::-1] == dtype(-1 if dtype is not np.uint8 else 2))  # fmt: skip
    np.testing.assert_array_equal(found, cleaned(classes.transpose(2, 1, 0)[::-1].copy(), MM[::-1], steps, TWO))  # fmt: skip


def test_nothing_stays_nothing() -> None:
    empty = np.zeros((2, 3, 4), np.int16)
    every = [step for name in ("*", "organ", "lesion") for step in steps_of(name)]
    np.testing.assert_array_equal(cleaned(empty, MM, every, TWO), empty)


def test_what_cannot_be_done_is_refused() -> None:
    classes = np.ones((1, 2, 2), np.int16)
    field = DenseCRF(radius_mm=3, smooth_mm=1, bilateral_mm=3)
    with pytest.raises(ValueError, match="not enough for the step 'crf'"):
        cleaned(classes, MM, [field], ONE)
    with pytest.raises(ValueError, match="no structure 'spleen'"):
        cleaned(classes, MM, [KeepLargest(of="spleen")], ONE)
    with pytest.raises(ValueError, match="class index 2"):
        cleaned(2 * classes, MM, [], ONE)
