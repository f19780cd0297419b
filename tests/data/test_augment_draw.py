import dataclasses

import numpy as np
import pytest

from autoseg.data.augment_draw import UNCHANGED, draw, rotation
from autoseg.documents.plan import Augmentation

OFF = dict.fromkeys(
    ["rotation_p", "scale_p", "noise_p", "blur_p", "brightness_p", "contrast_p",
     "low_resolution_p", "gamma_inverted_p", "gamma_p"], 0.0,
)  # fmt: skip
ON = dict.fromkeys(OFF, 1.0)
PATCH = (12, 14, 16)


def augmentation(**changes):
    return Augmentation(**{"rotation_degrees": (30, 30, 30), "mirror_axes": (0, 1, 2), **changes})


def test_no_probability_no_change():
    quiet = augmentation(**OFF, mirror_axes=())
    for sample in range(20):
        found = draw(quiet, PATCH, 2, 1, 0, sample)
        assert dataclasses.replace(found, noise_seed=0) == UNCHANGED


def test_a_sample_depends_on_seed_step_and_place_alone():
    a = augmentation(**ON)
    first = draw(a, PATCH, 3, seed=5, step=9, sample=2)
    assert draw(a, PATCH, 3, seed=5, step=9, sample=2) == first
    others = [draw(a, PATCH, 3, *key) for key in [(6, 9, 2), (5, 8, 2), (5, 9, 1), (5, 2, 9)]]
    assert all(other != first for other in others)


def test_one_probability_does_not_touch_the_other_changes():
    some = draw(augmentation(), PATCH, 2, 0, 4, 0)
    more = draw(augmentation(noise_p=1.0, gamma_p=1.0, rotation_p=0.0), PATCH, 2, 0, 4, 0)
    for name in ("blur_sigma_vox", "brightness", "contrast", "low_resolution", "mirror"):
        assert getattr(some, name) == getattr(more, name)
    assert more.noise_sigma is not None
    assert len(more.gamma) == 2


def test_every_number_lies_in_its_range():
    a = augmentation(**ON)
    samples = [draw(a, PATCH, 2, 3, step, 0) for step in range(150)]
    for p in samples:
        scale = np.linalg.det(p.matrix) ** (1 / 3)
        assert 0.7 <= scale <= 1.4
        turn = np.array(p.matrix) / scale
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert 0 <= p.noise_sigma <= 0.1
        for factors, (low, high) in [
            (p.brightness, a.brightness), (p.contrast, a.contrast),
            (p.gamma, a.gamma), (p.gamma_inverted, a.gamma),
        ]:  # fmt: skip
            assert len(factors) == 2
            assert all(low <= f <= high for f in factors)
        for sigmas in filter(None, p.blur_sigma_vox):
            assert len(sigmas) == 3
            assert all(0.5 <= s <= 1.0 for s in sigmas)
        for zooms in filter(None, p.low_resolution):
            assert len(set(zooms)) == 1
            assert 0.5 <= zooms[0] <= 1.0
    assert {len(p.mirror) for p in samples} == {0, 1, 2, 3}
    below = np.mean([f < 1 for p in samples for f in p.gamma])
    assert abs(below - 0.5) < 0.1


def test_probabilities_are_kept():
    samples = [draw(augmentation(), PATCH, 1, 3, step, 0) for step in range(1500)]
    expected = {"matrix": 0.36, "noise_sigma": 0.1, "brightness": 0.15, "contrast": 0.15,
                "gamma": 0.3, "gamma_inverted": 0.1, "blur_sigma_vox": 0.1,
                "low_resolution": 0.125}  # fmt: skip
    for name, p in expected.items():
        share = np.mean([getattr(s, name) not in (None, ()) for s in samples])
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 1500), name


@pytest.mark.parametrize(
    ("patch", "changes"),
    [((20, 24), {"mirror_axes": (0, 1)}), ((4, 20, 24), {"dummy_2d": True})],
)
def test_in_the_plane_there_is_one_angle(patch, changes):
    a = augmentation(rotation_degrees=(180,), rotation_p=1.0, scale_p=0.0, **changes)
    matrices = np.array([draw(a, patch, 1, 0, step, 0).matrix for step in range(200)])
    assert matrices.shape == (200, 2, 2)
    angles = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])
    assert angles.min() < -2.8
    assert angles.max() > 2.8


def test_dummy_2d_keeps_the_resolution_across_slices():
    a = augmentation(dummy_2d=True, low_resolution_p=1.0, low_resolution_channel_p=1.0)
    ((z, y, x),) = draw(a, (4, 20, 24), 1, 0, 0, 0).low_resolution
    assert (z, y) == (1.0, x)
    assert 0.5 <= x < 1.0


def test_rotation_turns_about_the_named_axis():
    np.testing.assert_allclose(rotation((np.pi / 2, 0, 0)) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation((0, np.pi / 2, 0)) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation((0, 0, np.pi / 2)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_a_wrong_number_of_angles_is_refused():
    with pytest.raises(ValueError, match="rotation_degrees"):
        draw(augmentation(rotation_degrees=(30, 30), rotation_p=1.0), PATCH, 1, 0, 0, 0)
