"""Resampling against nnU-Net's procedure, written naively from skimage and scipy."""

import tracemalloc
from collections.abc import Callable
from inspect import signature

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from autoseg.documents.labels import IGNORE, OUTSIDE
from autoseg.image.resample import (
    axis_operator,
    resample_image,
    resampled_shape,
    separate_axis,
)
from autoseg.image.resample_labels import resample_labels

ISO = (1.0, 1.0, 1.0)


def skimage_resize(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    wide = array.astype(np.float64)
    return resize(wide, shape, order, mode="edge", clip=True, anti_aliasing=False)


def label_resize(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The largest linear share; of equal ones that of the nearest old voxel, or else the lowest."""
    values = np.unique(labels)
    shares = np.stack([skimage_resize(labels == value, shape, 1) for value in values])
    largest = shares == shares.max(axis=0)
    nearest = skimage_resize(labels, shape, 0).astype(labels.dtype)
    tied = np.take_along_axis(largest, np.searchsorted(values, nearest)[None], axis=0)[0]
    return np.where(tied, nearest, values[largest.argmax(axis=0)])


def between_slices(array: np.ndarray, n: int, axis: int, order: int) -> np.ndarray:
    shape = list(array.shape)
    shape[axis] = n
    scale = [old / new for old, new in zip(array.shape, shape)]
    grid = np.mgrid[tuple(slice(0, size) for size in shape)]
    at = np.array([s * (g + 0.5) - 0.5 for s, g in zip(scale, grid)])
    return ndimage.map_coordinates(array, at, order=order, mode="nearest")


def by_slices(array, shape, axis, in_plane, order_z):
    flat = tuple(n for a, n in enumerate(shape) if a != axis)
    slices = [in_plane(part, flat) for part in np.moveaxis(array, axis, 0)]
    stacked = np.stack(slices, axis=axis)
    if stacked.shape[axis] == shape[axis]:
        return stacked
    return between_slices(stacked, shape[axis], axis, order_z)


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def blobs(shape: tuple[int, ...], values: list[int], seed: int) -> np.ndarray:
    smooth = ndimage.gaussian_filter(noise(shape, seed), 1.5)
    ranks = np.digitize(smooth, np.quantile(smooth, np.linspace(0, 1, len(values) + 1)[1:-1]))
    return np.asarray(values, dtype=np.int16)[ranks]


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize(("n_in", "n_out"), [(7, 7), (1, 5), (9, 1), (10, 23), (23, 10), (8, 16)])
def test_axis_operator_is_skimage_in_one_dimension(n_in: int, n_out: int, order: int) -> None:
    line = np.random.default_rng(3).normal(size=n_in)
    expected = resize(line, (n_out,), order, mode="edge", clip=False, anti_aliasing=False)
    operator = axis_operator(n_in, n_out, order)
    np.testing.assert_allclose(operator @ line, expected, atol=1e-12)
    assert not operator.flags.writeable


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(
    "shape", [(20, 33, 17), (9, 12, 14), (12, 31, 8), (10, 20, 200), (10, 20, 14)]
)
def test_image_equals_skimage(shape: tuple[int, int, int], order: int) -> None:
    image = noise((2, 10, 20, 14))
    out = resample_image(image, shape, spacing_mm=ISO, target_mm=ISO, order=order)
    assert out.dtype == np.float32
    for channel, result in zip(image, out):
        np.testing.assert_allclose(result, skimage_resize(channel, shape, order), atol=1e-5)


@pytest.mark.parametrize("shape", [(130, 9, 8), (9, 300, 8), (9, 8, 131), (60, 8, 9)])
def test_long_axes_are_cut_into_blocks_without_a_seam(shape: tuple[int, int, int]) -> None:
    image = noise((1, 170, 8, 9) if shape[0] == 60 else (1, 9, 8, 70))
    out = resample_image(image, shape, spacing_mm=ISO, target_mm=ISO)
    np.testing.assert_allclose(out[0], skimage_resize(image[0], shape, 3), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order_z", [0, 1])
@pytest.mark.parametrize("coarse", [5, 6, 11, 17])
def test_a_coarse_axis_goes_apart(axis: int, order_z: int, coarse: int) -> None:
    spacing = tuple(5.0 if a == axis else 1.0 for a in range(3))
    shape = tuple(coarse if a == axis else n for a, n in enumerate((15, 9, 13)))
    size = [10, 12, 11]
    size[axis] = 6
    image = noise((1, *size), seed=coarse)
    out = resample_image(image, shape, spacing_mm=spacing, target_mm=ISO, order_z=order_z)
    wide = image[0].astype(np.float64)
    expected = by_slices(wide, shape, axis, lambda a, s: skimage_resize(a, s, 3), order_z)
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


def test_an_image_in_a_slice_and_an_unchanged_shape() -> None:
    image = noise((3, 1, 12, 10))
    out = resample_image(image, (1, 17, 7), spacing_mm=ISO, target_mm=ISO)
    np.testing.assert_allclose(out[1, 0], skimage_resize(image[1, 0], (17, 7), 3), atol=1e-5)
    same = resample_image(image, (1, 12, 10), spacing_mm=ISO, target_mm=ISO)
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)


def test_views_and_integers_are_resampled_as_well() -> None:
    image = (100 * noise((1, 8, 9, 10))).astype(np.int16)[:, ::-1].transpose(0, 3, 1, 2)
    out = resample_image(image, (5, 11, 12), spacing_mm=ISO, target_mm=ISO)
    np.testing.assert_allclose(out[0], skimage_resize(image[0], (5, 11, 12), 3), atol=1e-3)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))


@given(
    shapes,
    shapes,
    st.integers(0, 1000),
    st.sampled_from([[0, 1], [0, 1, 2], [-1, 0, 3, 7], [-2, 0, 1], [-2, -1, 0, 1, 2]]),
)
@settings(max_examples=150, deadline=None)
def test_labels_equal_the_naive_rule(
    shape: tuple[int, int, int], wanted: tuple[int, int, int], seed: int, values: list[int]
) -> None:
    labels = np.random.default_rng(seed).choice(np.asarray(values, dtype=np.int8), shape)
    out = resample_labels(labels, wanted, spacing_mm=ISO, target_mm=ISO)
    assert out.dtype == labels.dtype
    expected = labels if shape == wanted else label_resize(labels, wanted)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("wanted", [(10, 10, 10), (40, 40, 40), (13, 31, 20), (30, 27, 23)])
def test_smooth_labels_equal_the_naive_rule_and_batchgenerators(
    wanted: tuple[int, int, int],
) -> None:
    labels = blobs((20, 20, 20), [-1, 0, 1, 2, 5], seed=sum(wanted))
    out = resample_labels(labels, wanted, spacing_mm=ISO, target_mm=ISO)
    np.testing.assert_array_equal(out, label_resize(labels, wanted))
    theirs = resize_segmentation(labels, wanted, order=1)
    if "seg_tiebreak" in signature(resize_segmentation).parameters:
        np.testing.assert_array_equal(out, theirs)
    else:  # before 0.25.4 other labels won where shares are equal or none reaches one half
        assert (out == theirs).mean() > 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("coarse", [4, 6, 7, 15])
def test_labels_with_a_coarse_axis_never_mix_slices(axis: int, coarse: int) -> None:
    spacing = tuple(5.0 if a == axis else 1.0 for a in range(3))
    shape = tuple(coarse if a == axis else n for a, n in enumerate((15, 9, 18)))
    size = [10, 12, 9]
    size[axis] = 6
    labels = blobs(tuple(size), [0, 1, 2], seed=coarse)
    out = resample_labels(labels, shape, spacing_mm=spacing, target_mm=ISO)
    np.testing.assert_array_equal(out, by_slices(labels, shape, axis, label_resize, 0))


@pytest.mark.parametrize("wanted", [(12, 15, 9), (30, 36, 41), (17, 33, 26)])
def test_outside_and_unlabelled_survive_and_mix_into_nothing(wanted: tuple[int, int, int]) -> None:
    """OUTSIDE (-1) and IGNORE (-2) lie side by side, and no average of the two or of others appears."""
    labels = np.full((20, 24, 22), IGNORE, np.int8)
    labels[:, 8:16] = blobs((20, 8, 22), [0, 1, 3], seed=3)
    labels[:6] = OUTSIDE
    out = resample_labels(labels, wanted, spacing_mm=ISO, target_mm=ISO)
    np.testing.assert_array_equal(out, label_resize(labels, wanted))
    assert np.unique(out).tolist() == np.unique(labels).tolist() == [-2, -1, 0, 1, 3]
    # seen apart, as one mask each, they lie where a nearest neighbour puts them but for their rims
    for value in (IGNORE, OUTSIDE):
        nearest = skimage_resize(labels == value, wanted, 0) > 0.5
        assert ((out == value) == nearest).mean() > 0.95


def naive_kept(labels: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The commonest (of equals, the highest) label of the old centres inside each ignored voxel."""
    held: dict[tuple[int, ...], list[int]] = {}
    for at in np.ndindex(labels.shape):
        if labels[at] != IGNORE:
            centre = [(i + 0.5) / n for i, n in zip(at, labels.shape)]
            new = tuple(int(c * n + 1e-9) for c, n in zip(centre, out.shape))
            held.setdefault(new, []).append(int(labels[at]))
    filled = out.copy()
    for new, values in held.items():
        if out[new] == IGNORE:
            filled[new] = max(sorted(set(values), reverse=True), key=values.count)
    return filled


@given(shapes, shapes, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_labelled_voxels_are_kept_among_unlabelled_ones(
    shape: tuple[int, int, int], wanted: tuple[int, int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2], np.int8), shape)
    labels[rng.random(shape) < 0.8] = IGNORE
    plain = resample_labels(labels, wanted, spacing_mm=ISO, target_mm=ISO)
    kept = resample_labels(labels, wanted, spacing_mm=ISO, target_mm=ISO, unlabelled=IGNORE)
    np.testing.assert_array_equal(kept, plain if shape == wanted else naive_kept(labels, plain))


@pytest.mark.parametrize("target", [1.25, 1.5, 2.0, 2.5, 3.0, 6.0])
@pytest.mark.parametrize("thick", [1.0, 5.0])
def test_no_labelled_slice_is_stepped_over(target: float, thick: float) -> None:
    labels = np.full((40, 8, 8), IGNORE, np.int8)
    drawn = [5, 12, 19, 27, 34]
    labels[drawn] = blobs((5, 8, 8), [0, 1], seed=2)
    grids = {"spacing_mm": (thick, 1.0, 1.0), "target_mm": (thick * target, 1.0, 1.0)}
    out = resample_labels(labels, (round(40 / target), 8, 8), **grids, unlabelled=IGNORE)
    seen = (out != IGNORE).all((1, 2))
    assert seen.sum() >= 5
    assert np.unique(out[seen]).tolist() == [0, 1]
    nothing = resample_labels(labels[:5], (3, 4, 4), **grids, unlabelled=IGNORE)
    assert np.unique(nothing).tolist() == [IGNORE]


def test_order_0_takes_the_nearest_label() -> None:
    labels = blobs((9, 10, 11), [0, 2, 9], seed=4)
    out = resample_labels(labels, (14, 5, 17), spacing_mm=ISO, target_mm=ISO, order=0)
    np.testing.assert_array_equal(out, skimage_resize(labels, (14, 5, 17), 0))


def test_no_value_is_invented_where_many_labels_meet() -> None:
    labels = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
    out = resample_labels(labels, (1, 1, 1), spacing_mm=ISO, target_mm=ISO)
    assert out.item() in (1, 2, 3, 4)


def test_what_labels_cannot_do_is_refused() -> None:
    labels = np.zeros((2, 2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="order 0 or 1"):
        resample_labels(labels, (3, 3, 3), spacing_mm=ISO, target_mm=ISO, order=3)
    with pytest.raises(ValueError, match="three spatial axes"):
        resample_labels(labels[0], (3, 3), spacing_mm=ISO, target_mm=ISO)


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((5, 1, 1), (1, 1, 1), 0),
        ((1, 1, 5), (6, 1, 1), 2),
        ((1, 1, 1), (1, 4, 1), 1),
        ((3, 1, 1), (1, 1, 1), None),
        ((3.01, 1, 1), (1, 1, 1), 0),
        ((0.24, 1.25, 1.25), (1, 1, 1), None),
        ((0.24, 1.25, 1.2500001), (1, 1, 9), None),
        ((1, 1, 1), (0.24, 1.25, 1.25), None),
        ((2, 2, 2), (2, 2, 2), None),
    ],
)
def test_separate_axis_is_nnunets_rule(spacing, target, axis: int | None) -> None:
    assert separate_axis(spacing, target) == axis


def test_resampled_shape_rounds_half_to_even_and_keeps_a_voxel() -> None:
    assert resampled_shape((5, 7, 100), (1, 1, 0.7), (2, 2, 1.1)) == (2, 4, 64)
    assert resampled_shape((1, 10, 10), (1, 1, 1), (9, 1, 0.5)) == (1, 10, 20)


def scratch_bytes(work: Callable[[], np.ndarray]) -> int:
    """The most memory that is held besides the result."""
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("wanted", "ratio", "thick", "order_z"),
    [
        ((60, 60), 0.75, 1.0, 0),  # axis 0 goes first
        ((52, 52), 1.5, 1.0, 0),  # axis 0 goes last
        ((60, 54), 1.0, 1.0, 0),
        ((60, 60), 1.5, 5.0, 0),
        ((60, 60), 1.5, 5.0, 3),
    ],
)
def test_memory_beside_the_result_does_not_grow_with_the_volume(
    wanted: tuple[int, int], ratio: float, thick: float, order_z: int
) -> None:
    def of(length: int) -> int:
        image = noise((1, length, 48, 48))
        shape = (int(length * ratio), *wanted)
        grids = {"spacing_mm": (thick, 1.0, 1.0), "target_mm": ISO, "order_z": order_z}
        resample_image(image, shape, **grids)  # the matrices are kept
        return scratch_bytes(lambda: resample_image(image, shape, **grids))

    short, long = of(650), of(1300)
    assert 0 < short < 20e6
    assert long < 1.1 * short + 1e5


@pytest.mark.parametrize(("thick", "unlabelled"), [(1.0, None), (5.0, IGNORE)])
def test_memory_beside_a_label_map_does_not_grow_with_it(
    thick: float, unlabelled: int | None
) -> None:
    def of(length: int) -> int:
        labels = np.zeros((length, 128, 128), np.int16)
        labels[:, 30:60, 20:90], labels[:, 70:100, 20:90] = 1, 2
        shape = (int(length * 1.5), 160, 160)
        grids = {"spacing_mm": (thick, 1.0, 1.0), "target_mm": ISO, "unlabelled": unlabelled}
        resample_labels(labels, shape, **grids)
        return scratch_bytes(lambda: resample_labels(labels, shape, **grids))

    in_plane = 2 * 160 * 160 if thick > 3 else 0  # each slice of the source is resized once
    short, long = of(100), of(300)
    assert short < 30e6
    assert long - 300 * in_plane < 1.2 * short


def test_slabs_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = noise((1, 30, 12, 10)), blobs((30, 12, 10), [-1, 0, 1, 4], seed=6)
    for shape in ((47, 9, 14), (13, 20, 10), (30, 17, 8)):
        for spacing in (ISO, (5.0, 1.0, 1.0), (1.0, 1.0, 5.0)):
            grids = {"spacing_mm": spacing, "target_mm": ISO}
            whole = resample_image(image, shape, **grids)
            whole_labels = resample_labels(labels, shape, **grids)
            with monkeypatch.context() as patch:
                patch.setattr("autoseg.image.matrices.SLAB_VOX", 1)
                thin = resample_image(image, shape, **grids)
                np.testing.assert_array_equal(resample_labels(labels, shape, **grids), whole_labels)
            np.testing.assert_allclose(thin, whole, atol=2e-6)
