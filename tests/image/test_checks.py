"""Each check finds its fault, says the numbers, and is silent on sound data."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from autoseg.image.checks import (
    check_affine,
    check_channels,
    check_constant,
    check_finite,
    check_label_integers,
    check_label_not_empty,
    check_label_values,
    check_pair,
    check_same_grid,
)
from autoseg.image.volume import Grid, Volume

PLACE = np.diag([-0.5, 0.5, 2.0, 1.0])
GRID = Grid.of((8, 9, 5), PLACE)


def moved(x_mm: float) -> Grid:
    affine = PLACE.copy()
    affine[0, 3] += x_mm
    return Grid.of((8, 9, 5), affine)


def test_sound_data_has_no_problems() -> None:
    image = np.random.default_rng(0).normal(size=(2, 5, 9, 8)).astype(np.float32)
    labels = np.array([[[0, 1, 2]]])
    assert list(check_affine("a", PLACE)) == []
    assert list(check_channels("a", 2, 2)) == []
    assert list(check_finite("a", image)) == []
    assert list(check_constant("a", image)) == []
    assert list(check_label_values("a", labels, [0, 1, 2, 3])) == []
    assert list(check_label_not_empty("a", labels)) == []
    assert list(check_label_integers("a", labels + 1e-5)) == []
    assert list(check_pair("a", Volume(image, "SAR", GRID), Volume(labels, "SAR", GRID))) == []


def test_a_place_may_differ_by_a_tenth_of_a_voxel() -> None:
    assert list(check_same_grid("a", GRID, moved(0.049), "SAR")) == []
    (problem,) = check_same_grid("a", GRID, moved(0.06), "SAR")
    assert problem.fatal
    assert problem.what == "image and label are not in the same place"
    assert "0.06 mm apart" in problem.found
    (problem,) = check_same_grid("a", GRID, moved(12.5), "SAR", "channel file")
    assert "12.50 mm" in problem.found
    assert "channel file" in problem.what


def test_another_size_is_told_in_the_order_of_the_axes() -> None:
    other = Grid.of((8, 9, 4), PLACE)
    (problem,) = check_same_grid("a", GRID, other, "SAR")
    assert problem.found == "image 5 x 9 x 8, label 4 x 9 x 8 voxels"
    assert problem.fatal


def test_a_label_flipped_in_its_file_fits_unless_axes_are_as_stored() -> None:
    affine = PLACE @ np.array([[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    flipped = Grid.of((8, 9, 5), affine)
    assert list(check_same_grid("a", GRID, flipped, "SAR")) == []
    (problem,) = check_same_grid("a", GRID, flipped, "stored")
    assert "4.00 mm" in problem.found


def test_files_without_a_place_are_compared_by_size() -> None:
    picture = Grid.of((8, 9, 1), np.eye(4), placed=False)
    image = Grid.of((8, 9, 1), PLACE)
    assert list(check_same_grid("a", image, picture, "SAR")) == []
    wider = Grid.of((9, 9, 1), np.eye(4), placed=False)
    (problem,) = check_same_grid("a", image, wider, "SAR")
    assert "size" in problem.what


def test_undeclared_values_are_named() -> None:
    labels = np.array([0, 1, 7, -1, 9, 255, 200])
    (problem,) = check_label_values("a", labels, [0, 1])
    assert problem.found == "-1, 7, 9 and 2 more (declared: 0, 1)"
    assert problem.fatal
    (problem,) = check_label_values("a", np.array([0, 1_000_000]), [0])
    assert problem.found.startswith("1000000 ")


def test_an_empty_label_is_a_warning() -> None:
    (problem,) = check_label_not_empty("a", np.zeros((1, 2, 3), dtype=int))
    assert not problem.fatal
    assert list(check_label_not_empty("a", np.zeros((1, 2), dtype=int), background=1)) == []


@pytest.mark.parametrize(
    ("drawn", "found", "fix"),
    [
        ([0, 0, 0], "every voxel is 0", "nothing if the structure is truly absent"),
        ([0, 3, 3], "every voxel is 0 or 3 (ignored)", "nothing if the structure is truly absent"),
        ([3, 3, 3], "every voxel is 3 (ignored)", "label some of it"),
        ([0, 3, 1], None, ""),
        ([3, 3, 1], None, ""),
    ],
)
def test_a_label_with_nothing_but_ignored_voxels_is_empty(
    drawn: list[int], found: str | None, fix: str
) -> None:
    problems = list(check_label_not_empty("a", np.array(drawn, np.int32), ignore=3))
    assert [p.found for p in problems] == ([found] if found else [])
    assert all(p.fix.startswith(fix) and not p.fatal for p in problems)


def test_without_an_ignore_label_every_value_is_drawn() -> None:
    assert list(check_label_not_empty("a", np.array([0, 3, 3]))) == []


def test_each_constant_channel_is_named() -> None:
    image = np.random.default_rng(0).normal(size=(3, 2, 3, 4)).astype(np.float32)
    image[1] = -1024
    (problem,) = check_constant("a", image)
    assert problem.found == "channel 1 is -1024 in every voxel"
    assert problem.fatal


def test_a_sum_that_overflows_is_not_taken_for_a_fault() -> None:
    image = np.full((1, 1, 2, 2), 3e38, dtype=np.float32)
    assert list(check_finite("a", image)) == []
    image[0, 0, 0, 0] = np.nan
    (problem,) = check_finite("a", image)
    assert problem.found == "1 voxels are NaN or infinite (25 %)"


def test_counts_are_told() -> None:
    assert next(check_channels("a", 1, 4)).found == "1 found, 4 declared"


@pytest.mark.parametrize(
    ("column", "fatal"),
    [((0, 0, 0), True), ((np.nan, 0, 1), True), ((1, 0, 0), True), ((0.1, 0, 1), False)],
)
def test_damaged_axes(column: tuple[float, ...], fatal: bool) -> None:
    affine = np.eye(4)
    affine[:3, 2] = column
    (problem,) = check_affine("a", affine)
    assert problem.fatal is fatal


def test_any_rotation_is_sound() -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=np.random.default_rng(0)).as_matrix() * (1, 2, 9)
    assert list(check_affine("a", affine.astype(np.float32))) == []
