"""Back to the full grid: slab by slab must equal resampling everything at once by skimage."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from autoseg.infer.restore import restore_labels, restore_probabilities


def naive(logits, shape, apart):
    """All classes at once in float64: linear, or linear in the plane and nearest along `apart`."""
    out = []
    for one in logits.astype(np.float64):
        if apart is None:
            out.append(resize(one, shape, order=1, mode="edge", anti_aliasing=False))
            continue
        stack = np.moveaxis(one, apart, 0)
        plane = [n for axis, n in enumerate(shape) if axis != apart]
        stack = np.stack(
            [resize(s, plane, order=1, mode="edge", anti_aliasing=False) for s in stack]
        )
        n, m = len(stack), shape[apart]
        at = np.meshgrid(n / m * (np.arange(m) + 0.5) - 0.5, *map(np.arange, plane), indexing="ij")
        stack = map_coordinates(stack, at, order=0, mode="nearest")
        out.append(np.moveaxis(stack, 0, apart))
    return np.stack(out)


CASES = [
    ((6, 7, 8), (9, 11, 6), (1.0, 1.0, 1.0), (0.7, 0.6, 1.3), None),
    ((5, 12, 10), (9, 20, 17), (5.0, 1.0, 1.0), (2.8, 0.6, 0.6), 0),
    ((12, 5, 10), (20, 9, 10), (1.0, 1.0, 1.0), (0.6, 4.0, 1.0), 1),
    ((4, 9, 9), (4, 9, 9), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
    ((1, 9, 8), (1, 16, 15), (1.0, 1.0, 1.0), (1.0, 0.5, 0.5), None),
]


@pytest.mark.parametrize("slab_bytes", [1, 5000, 1 << 30])
@pytest.mark.parametrize(("shape", "crop", "spacing", "target", "apart"), CASES)
def test_labels_and_probabilities_equal_the_full_path(
    shape, crop, spacing, target, apart, slab_bytes
):
    logits = 3 * np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    full = tuple(n + 3 for n in crop)
    box = [(1, 1 + crop[0]), (0, crop[1]), (3, 3 + crop[2])]
    resampled = naive(logits, crop, apart)
    want = np.zeros(full, np.int16)
    inside = tuple(slice(a, b) for a, b in box)
    want[inside] = resampled.argmax(0)
    got = restore_labels(logits, box, full, spacing, target, slab_bytes=slab_bytes)
    assert got.dtype == np.int16
    np.testing.assert_array_equal(got, want)
    share = np.exp(resampled - resampled.max(0))
    sure = np.zeros((4, *full))
    sure[0] = 1
    sure[(slice(None), *inside)] = share / share.sum(0)
    found = restore_probabilities(logits, box, full, spacing, target, slab_bytes=slab_bytes)
    np.testing.assert_allclose(found, sure, atol=2e-5)


def test_of_equal_logits_the_lower_class_wins():
    logits = np.zeros((3, 2, 2, 2), np.float32)
    box = [(0, 2)] * 3
    assert not restore_labels(logits, box, (2, 2, 2), (1, 1, 1), (1, 1, 1)).any()
