"""Target spacing, order, median size and normalisation against hand-worked cases and scipy."""

import numpy as np
import pytest
from scipy.stats import mstats

from autoseg.image.resample import separate_axis
from autoseg.rules import grid


def test_target_is_the_median_where_no_axis_is_coarse() -> None:
    spacings = [(1.0, 0.8, 0.8), (2.0, 0.9, 0.7), (3.0, 1.0, 0.9)]
    found = grid.target_spacing(spacings, [(100, 200, 200)] * 3)
    assert found.value == (2.0, 0.9, 0.8)
    assert "2 x 0.9 x 0.8 mm" in found.why


def test_target_of_a_coarse_and_short_axis_is_its_tenth_percentile() -> None:
    coarse = [5.0, 6.0, 8.0, 10.0, 10.0, 10.0, 10.0, 12.0]
    spacings = [(mm, 1.5, 1.5) for mm in coarse]
    found = grid.target_spacing(spacings, [(10, 250, 220)] * 8)
    # alphap = betap = 1 is numpy's linear interpolation, from another implementation.
    expected = float(mstats.mquantiles(coarse, 0.1, alphap=1, betap=1)[0])
    assert found.value == pytest.approx((expected, 1.5, 1.5))
    assert expected < 10.0
    assert "10 of their 220 voxels" in found.why


@pytest.mark.parametrize(
    ("coarse_mm", "slices", "expected"),
    [
        (4.5, 10, 4.5),  # not more than 3 times the others
        (10.0, 74, 10.0),  # 3 * 74 = 222 voxels, not less than 220
        (10.0, 73, 2.0),  # both hold
    ],
)
def test_coarse_rule_needs_both_conditions(coarse_mm: float, slices: int, expected: float) -> None:
    spacings = [(2.0, 1.5, 1.5)] * 2 + [(coarse_mm, 1.5, 1.5)] * 8
    found = grid.target_spacing(spacings, [(slices, 250, 220)] * 10)
    if expected == 2.0:
        assert found.value[0] == pytest.approx(float(np.percentile([2.0] * 2 + [10.0] * 8, 10)))
    else:
        assert found.value[0] == expected


def test_target_never_gets_finer_than_the_other_axes() -> None:
    spacings = [(0.5, 1.5, 1.5)] * 4 + [(10.0, 1.5, 1.5)] * 6
    found = grid.target_spacing(spacings, [(10, 250, 220)] * 10)
    assert found.value == (1.5 + 1e-5, 1.5, 1.5)


def test_coarsest_axis_comes_first_and_back() -> None:
    order = grid.coarsest_first((0.8, 0.7, 5.0)).value
    assert order == (2, 0, 1)
    assert grid.inverse_order(order) == (1, 2, 0)
    assert grid.coarsest_first((1.0, 1.0, 1.0)).value == (0, 1, 2)
    assert grid.coarsest_first((1.0, 2.0, 2.0)).value == (1, 0, 2)


def test_resampled_shape_rounds_half_to_even() -> None:
    assert grid.resampled_shape((5, 7, 10), (1.0, 1.0, 1.0), (2.0, 2.0, 3.0)) == (2, 4, 3)


def test_median_shape_is_of_resampled_cases_and_may_be_half() -> None:
    found = grid.median_shape([(10, 30, 30), (20, 31, 40)], [(2.0, 1, 1), (1.0, 1, 1)], (1, 1, 1))
    assert found.value == (20.0, 30.5, 35.0)
    assert "20 x 30 x 30 to 20 x 31 x 40" in found.why


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        ("ct ", "ct"),
        ("noNorm", "none"),
        ("ZScore", "zscore"),
        ("T1w", "zscore"),
        ("rescale_to_0_1", "rescale_to_0_1"),
        ("RGB_to_0_1", "rgb_to_0_1"),
        ("R", "zscore"),
    ],
)
def test_normalisation_follows_the_name(name: str, scheme: str) -> None:
    assert grid.normalisation(name).value == scheme


def test_blanks_count_for_nnunet() -> None:
    assert grid.normalisation("ct ", blanks_count=True).value == "zscore"


@pytest.mark.parametrize(
    ("scheme", "size", "expected"),
    [("zscore", 0.74, True), ("zscore", 0.75, False), ("ct", 0.5, False), ("none", 0.5, False)],
)
def test_mask_only_for_zscore_of_much_cropped_cases(
    scheme: str, size: float, expected: bool
) -> None:
    assert grid.uses_mask(scheme, size).value is expected


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((5.0, 1.0, 1.0), 0), ((3.0, 1.0, 1.0), None), ((5.0, 5.0, 1.0), None), ((1, 1, 3.1), 2)],
)
def test_separate_axis(spacing: tuple[float, ...], axis: int | None) -> None:
    assert separate_axis(spacing, spacing) == axis
