"""Orientation against nibabel, arrangement as a bijection, boxes against scipy."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from autoseg.image.geometry import (
    arrange,
    arrange_tuple,
    arranged_affine,
    arrangement,
    box_of,
    corner_gap_mm,
    nonzero_box,
    nonzero_limits,
    orientation_of,
    restore,
    spacing_of,
)

ALL_AXES = [
    "".join(letters) for worlds in permutations(("RL", "AP", "SI")) for letters in product(*worlds)
] + ["stored", *(f"stored:{''.join(p)}" for p in permutations("ijk"))]


def rotated(seed: int, spacing: tuple[float, float, float] = (0.7, 1.3, 4.0)) -> np.ndarray:
    affine = np.eye(4)
    rotation = Rotation.random(random_state=np.random.default_rng(seed)).as_matrix()
    affine[:3, :3] = rotation * np.asarray(spacing)
    affine[:3, 3] = (-12.0, 30.5, 7.0)
    return affine


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_orientation_and_spacing_agree_with_nibabel(seed: int) -> None:
    affine = rotated(seed)
    cosines = np.sort(np.abs(affine[:3, :3] / (0.7, 1.3, 4.0)), axis=None)
    # Without shear, and far from ties, the largest cosine is nibabel's choice as well.
    assume(np.diff(cosines).min() > 1e-3)
    assert orientation_of(affine) == "".join(nib.aff2axcodes(affine))
    assert spacing_of(affine) == pytest.approx((0.7, 1.3, 4.0))


def test_a_tilt_of_45_degrees_goes_to_the_lower_axis_whatever_the_noise() -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 45, degrees=True).as_matrix()
    for noise in (0.0, 1e-6, -1e-6):
        shaken = affine.copy()
        shaken[0, 0] += noise
        shaken[1, 1] -= noise
        shaken[0, 1] += noise
        assert orientation_of(shaken) == "RAS"


def test_a_sheared_affine_gets_three_different_axes() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 1] = 2.0
    affine[0, 2] = -3.0
    assert orientation_of(affine) == "RAS"
    affine[:, 0] *= -1
    assert orientation_of(affine) == "LAS"


def test_a_singular_affine_has_no_orientation() -> None:
    with pytest.raises(ValueError, match="no directions"):
        orientation_of(np.diag([1.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("axes", ALL_AXES)
def test_restore_inverts_arrange(axes: str) -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    how = arrangement(rotated(3), axes)
    there = arrange(array, how)
    assert there.base is not None
    assert there.shape[1:] == arrange_tuple((3, 4, 5), how)
    np.testing.assert_array_equal(restore(there, how), array)


@pytest.mark.parametrize("axes", ALL_AXES)
def test_arranged_affine_sends_every_voxel_to_the_same_place(axes: str) -> None:
    affine, shape = rotated(11), (3, 4, 5)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    place = np.einsum("ab,bijk->aijk", affine[:3, :3], index) + affine[:3, 3, None, None, None]
    how = arrangement(affine, axes)
    arranged = arrange(place, how)
    new_affine = arranged_affine(affine, shape, how)
    for voxel in np.ndindex(arranged.shape[1:]):
        expected = new_affine @ (*voxel, 1.0)
        np.testing.assert_allclose(arranged[(slice(None), *voxel)], expected[:3], atol=1e-9)
    if not axes.startswith("stored"):
        assert orientation_of(new_affine) == axes


def test_stored_reverses_the_file_axes_and_never_flips() -> None:
    array = np.random.default_rng(0).normal(size=(1, 2, 3, 4))
    how = arrangement(np.diag([-1.0, -1.0, 1.0, 1.0]), "stored")
    np.testing.assert_array_equal(arrange(array, how)[0], array[0].T)


@pytest.mark.parametrize("axes", ["", "RAR", "RA", "ras", "XYZ", "stored:ijj", "stored:ij", "kji"])
def test_axes_that_mean_nothing_are_refused(axes: str) -> None:
    with pytest.raises(ValueError, match="axes"):
        arrangement(np.eye(4), axes)


def test_corner_gap_is_a_shift_or_the_arc_of_a_rotation() -> None:
    shifted = np.eye(4)
    shifted[:3, 3] = (3.0, 4.0, 0.0)
    assert corner_gap_mm((5, 5, 5), np.eye(4), shifted) == pytest.approx(5.0)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 180, degrees=True).as_matrix()
    # Corner (9.5, 9.5) goes to (-9.5, -9.5): the diagonal twice.
    assert corner_gap_mm((10, 10, 1), np.eye(4), turned) == pytest.approx(2 * 9.5 * np.sqrt(2))


def nonzero_oracle(image: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """What nnU-Net does: scipy's filling in three dimensions, of slices too."""
    mask = ndimage.binary_fill_holes(np.any(image != 0, axis=0))
    where = np.argwhere(mask)
    return list(zip(where.min(0), where.max(0) + 1)), mask


@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 7), st.integers(2, 9), st.integers(2, 9)),
    st.floats(0.02, 0.98),
    st.integers(1, 3),
)
@settings(max_examples=80, deadline=None)
def test_nonzero_box_is_scipys_filled_mask_and_its_box(
    seed: int, shape: tuple[int, int, int], share: float, channels: int
) -> None:
    random = np.random.default_rng(seed)
    image = (random.random((channels, *shape)) < share).astype(np.float32)
    image[0, 0, 0, 1] = 1.0
    box, mask = nonzero_box(image)
    expected_box, expected_mask = nonzero_oracle(image)
    assert [(part.start, part.stop) for part in box] == expected_box
    np.testing.assert_array_equal(mask, expected_mask[box])


def test_nonzero_box_fills_a_closed_hole_and_not_an_open_one() -> None:
    image = np.zeros((1, 7, 7, 7))
    image[0, 1:6, 1:6, 1:6] = 1
    image[0, 3, 3, 3] = 0
    box, mask = nonzero_box(image)
    assert box == (slice(1, 6),) * 3
    assert mask.all()
    image[0, 3, 3, :4] = 0
    assert not nonzero_box(image)[1][2, 2, 2]


def test_a_slice_has_no_holes_in_the_mask_as_in_nnunet() -> None:
    image = np.zeros((2, 1, 7, 7))
    image[:, 0, 1:6, 1:6] = 1
    image[:, 0, 3, 3] = 0
    box, mask = nonzero_box(image)
    assert box == (slice(0, 1), slice(1, 6), slice(1, 6))
    assert (mask.sum(), mask[0, 2, 2]) == (24, False)
    volume = np.zeros((1, 3, 7, 7))
    volume[0, 1] = image[0, 0]
    np.testing.assert_array_equal(nonzero_box(volume)[1], mask)


def test_an_image_of_zeros_is_kept_whole() -> None:
    box, mask = nonzero_box(np.zeros((2, 3, 4, 5)))
    assert box == (slice(0, 3), slice(0, 4), slice(0, 5))
    assert mask.shape == (3, 4, 5)
    assert mask.all()


def test_box_of_nothing_is_none() -> None:
    assert box_of(np.zeros((3, 3), dtype=bool)) is None


@pytest.mark.parametrize("border", [(0, 0, 0), (2, 0, 1), (0, 3, 0), (1, 1, 2)])
@pytest.mark.parametrize("flat", [False, True])
def test_nonzero_limits_are_those_of_the_box(border: tuple[int, int, int], flat: bool) -> None:
    rng = np.random.default_rng(sum(border))
    inner = rng.integers(0, 2, (2, 1 if flat else 6, 7, 8)).astype(np.float32)
    image = np.pad(inner, ((0, 0), *((n, 2 * n) for n in border)))
    box = nonzero_limits(image)
    assert box == box_of((image != 0).any(axis=0)) == nonzero_box(image)[0]
    assert nonzero_limits(np.zeros((1, 2, 3, 4))) == (slice(0, 2), slice(0, 3), slice(0, 4))
