"""Where tiles lie and how they weigh, against nnU-Net's rules and scipy."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from autoseg.infer.tiles import axis_total, positions, tile_weights


@pytest.mark.parametrize(
    ("size", "patch", "want"),
    [
        (30, 30, [0]),
        (31, 30, [0, 1]),
        (128, 64, [0, 32, 64]),
        (123, 54, [0, 23, 46, 69]),
        (162, 121, [0, 41]),
        (200, 64, [0, 27, 54, 82, 109, 136]),
    ],
)
def test_half_a_patch_apart_and_evenly_spread(size, patch, want):
    assert positions(size, patch, 0.5) == want


@given(st.integers(1, 60), st.integers(0, 200), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_tiles_cover_the_axis_and_stay_inside(patch, more, step):
    size = patch + more
    starts = positions(size, patch, step)
    assert starts[0] == 0 and starts[-1] == size - patch
    assert all(0 < b - a <= max(1, np.ceil(patch * step)) for a, b in pairwise(starts))
    assert (axis_total(size, patch, step, 0.125) > 0).all()


def test_an_axis_shorter_than_the_patch_is_misuse():
    with pytest.raises(ValueError, match="pad it first"):
        positions(9, 10, 0.5)
    with pytest.raises(ValueError, match="share of the patch"):
        positions(20, 10, 0.0)


@pytest.mark.parametrize("patch", [(40, 56, 40), (7, 9), (1, 32, 17)])
def test_weights_are_scipys_gaussian_of_a_point(patch):
    point = np.zeros(patch)
    point[tuple(n // 2 for n in patch)] = 1
    want = gaussian_filter(point, [n * 0.125 for n in patch], mode="constant", cval=0)
    got = tile_weights(patch, 0.125)
    assert got.max() == 1 and got.min() > 0
    inside = want > 0
    np.testing.assert_allclose(got[inside], (want / want.max())[inside], rtol=1e-5)


def test_the_total_of_all_tiles_is_the_product_of_the_axes():
    shape, patch = (23, 17), (8, 6)
    want = np.zeros(shape)
    for y in positions(23, 8, 0.5):
        for x in positions(17, 6, 0.5):
            want[y : y + 8, x : x + 6] += tile_weights(patch, 0.125)
    got = np.multiply.outer(axis_total(23, 8, 0.5, 0.125), axis_total(17, 6, 0.5, 0.125))
    np.testing.assert_allclose(got, want, rtol=1e-5)
