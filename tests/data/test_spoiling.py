import itertools
from collections import defaultdict

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import ball, disk

from autoseg.data.sampling import AUGMENTATION, PREVIOUS, SAMPLING, VALIDATION, generator
from autoseg.data.spoiling import closed, dilated, eroded, opened, spoilt
from autoseg.documents.plan import Previous

ALL = {"morphology_p": 1.0, "morphology_class_p": 1.0, "drop_p": 1.0, "drop_class_p": 1.0}
STILL = Previous(configuration="3d_lowres", morphology_p=0, drop_p=0)
SPOILING = Previous(configuration="3d_lowres", **ALL, morphology_radius_vox=(1, 3), drop_share=0.6)


def blobs(shape, classes=3, seed=0, sigma=2.0):
    """A label map of smooth blobs that touch, border included."""
    rng = np.random.default_rng(seed)
    fields = [
        ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for _ in range(classes + 1)
    ]
    return np.argmax(fields, axis=0).astype(np.int8)


def footprint(radius, planar, ndim):
    if ndim == 2:
        return disk(radius)
    return disk(radius)[None] if planar else ball(radius)


def naive(way, mask, shape):
    """Erosion and dilation by a footprint, where what lies beyond the border never counts."""
    erode = lambda m: ndimage.binary_erosion(m, shape, border_value=1)  # noqa: E731
    dilate = lambda m: ndimage.binary_dilation(m, shape)  # noqa: E731
    return {
        eroded: erode,
        dilated: dilate,
        opened: lambda m: dilate(erode(m)),
        closed: lambda m: erode(dilate(m)),
    }[way](mask)


@pytest.mark.parametrize("way", [eroded, dilated, opened, closed])
@pytest.mark.parametrize("radius", [1, 2, 5, 9])
def test_morphology_equals_that_with_a_ball(way, radius):
    mask = blobs((13, 11, 14), 1, sigma=1.5) == 1
    for planar in (False, True):
        expected = naive(way, mask, footprint(radius, planar, 3))
        np.testing.assert_array_equal(way(mask, radius, range(planar, 3)), expected)
        np.testing.assert_array_equal(
            way(mask[3], radius, range(2)), naive(way, mask[3], disk(radius))
        )


def test_a_wide_reach_equals_the_distance_transform():
    mask = np.zeros((30, 33, 40), bool)
    mask[3, 4, 5] = mask[20, 30, 39] = True
    expected = ndimage.distance_transform_edt(~mask) <= 21
    np.testing.assert_array_equal(dilated(mask, 21, range(3)), expected)


def naive_bends(labels, order, drawn, planar):
    """The whole array, class by class: what a class gains it takes, what it loses is background."""
    found = labels.copy()
    for c in order:
        way, radius = drawn[c]
        mask = found == c
        if mask.any():
            after = naive(way, mask, footprint(radius, planar, labels.ndim))
            found[mask & ~after] = 0
            found[after] = c
    return found


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("margin", [0, 5])
def test_spoilt_shapes_are_those_of_some_order_ways_and_radii(planar, margin):
    labels = np.pad(blobs((14, 13, 12), 2), margin)
    ways, orders, radii = (eroded, dilated, opened, closed), ((1, 2), (2, 1)), (1, 2)
    possible = defaultdict(list)
    for order, *drawn in itertools.product(orders, ways, ways, radii, radii):
        (w1, w2, r1, r2) = drawn
        expected = naive_bends(labels, order, {1: (w1, r1), 2: (w2, r2)}, planar)
        possible[expected.tobytes()].append((order, *drawn))
    settings = Previous(configuration="a", **{**ALL, "drop_p": 0}, morphology_radius_vox=(1, 2))
    found = [
        possible[spoilt(labels, 2, settings, 3, step, 0, planar=planar).tobytes()]
        for step in range(80)
    ]
    assert all(found)
    certain = [made[0] for made in found if len(made) == 1]
    for place, values in enumerate([orders, ways, ways, radii, radii]):
        assert {made[place] for made in certain} == set(values)


def test_what_is_spoilt_depends_on_seed_step_and_sample_alone():
    labels = blobs((12, 12, 12))
    before = labels.copy()
    first = spoilt(labels, 3, SPOILING, 1, 2, 0)
    np.testing.assert_array_equal(labels, before)
    spoilt(labels, 3, SPOILING, 1, 3, 0)
    np.testing.assert_array_equal(spoilt(labels, 3, SPOILING, 1, 2, 0), first)
    assert first.dtype == labels.dtype
    others = [spoilt(labels, 3, SPOILING, *key) for key in ((2, 2, 0), (1, 3, 0), (1, 2, 1))]
    assert all((other != first).any() for other in others)
    assert {v for o in others for v in np.unique(o).tolist()} <= {0, 1, 2, 3}
    np.testing.assert_array_equal(spoilt(labels, 3, STILL, 1, 2, 0), labels)


def test_spoiling_shares_no_random_numbers_with_anything_else():
    streams = {SAMPLING, AUGMENTATION, VALIDATION, PREVIOUS}
    assert len({generator(1, stream, 2, 3).random() for stream in streams}) == 4


def test_one_small_piece_of_a_class_is_dropped_and_no_other():
    labels = np.zeros((20, 20, 20), np.int16)
    labels[2:12, 2:12, 2:12] = 1  # 1000 of 1100 voxels
    labels[15:17, 2:7, 2:7] = 1  # 50
    labels[2:7, 15:20, 15] = labels[7, 15, 14] = 1  # 26, in one piece over a corner
    labels[19, 19, 0:19:2] = 2  # ten single voxels
    labels[18, 18, 18] = 300
    settings = Previous(configuration="a", morphology_p=0, drop_p=1, drop_class_p=1)
    pieces = ndimage.label(labels == 1, np.ones((3, 3, 3)))[0]
    lost = set()
    for step in range(40):
        found = spoilt(labels, 300, settings, 0, step, 0)
        gone = (labels == 1) & (found == 0)
        piece = int(pieces[gone].max())
        assert (gone == (pieces == piece)).all()
        lost.add(int(gone.sum()))
        assert ((labels == 2) & (found == 0)).sum() == 1
        assert found[18, 18, 18] == 300  # all of its class: never dropped
    assert lost == {50, 26}


def test_probabilities_are_those_of_the_settings():
    labels = blobs((10, 10, 10))
    settings = Previous(configuration="a", drop_share=1.0)
    never = settings.model_copy(update={"morphology_p": 0.0})
    drops = [spoilt(labels, 3, never, 5, s, 0) for s in range(400)]
    changed = np.mean([(d != labels).any() for d in drops])
    # dropped in 0.2 of the steps, of at least one of three classes 1 - 0.5^3
    assert abs(changed - 0.2 * 0.875) < 0.06
    never = settings.model_copy(update={"drop_p": 0.0, "morphology_radius_vox": (3, 3)})
    changed = np.mean([(spoilt(labels, 3, never, 5, s, 0) != labels).any() for s in range(400)])
    assert abs(changed - 0.4 * 0.875) < 0.08
