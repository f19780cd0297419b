"""The normalisation schemes against their formulas in float64."""

import numpy as np
import pytest

from autoseg.errors import AutosegError
from autoseg.image.intensity import SCHEMES, normalise
from autoseg.rules.grid import normalisation

CT = {"mean": 40.0, "std": 25.0, "percentile_00_5": -60.0, "percentile_99_5": 150.0}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(50, 100, (1, 4, 9, 8)).astype(np.float32)


def run(image: np.ndarray, scheme: str, mask: np.ndarray | None = None) -> np.ndarray:
    return normalise(image.copy(), [scheme], [CT if scheme == "ct" else {}], mask)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("CT ", "ct"),
        ("noNorm", "none"),
        ("rescale_to_0_1", "rescale_to_0_1"),
        ("RGB_to_0_1", "rgb_to_0_1"),
        ("zscore", "zscore"),
        ("T1", "zscore"),
        ("R", "zscore"),
        ("CT2", "zscore"),
        ("none", "zscore"),
    ],
)
def test_scheme_for_follows_the_name(name: str, scheme: str) -> None:
    assert normalisation(name).value == scheme
    assert scheme in SCHEMES


def test_ct_clips_then_standardises(image: np.ndarray) -> None:
    expected = (np.clip(image.astype(np.float64), -60, 150) - 40) / 25
    np.testing.assert_allclose(run(image, "ct"), expected, atol=1e-5)


def test_zscore_has_mean_zero_and_deviation_one(image: np.ndarray) -> None:
    wide = image.astype(np.float64)
    np.testing.assert_allclose(run(image, "zscore"), (wide - wide.mean()) / wide.std(), atol=1e-5)


def test_zscore_in_a_mask_leaves_the_outside(image: np.ndarray) -> None:
    mask = np.random.default_rng(1).random(image.shape[1:]) < 0.4
    inside = image[0][mask].astype(np.float64)
    out = run(image, "zscore", mask)
    np.testing.assert_allclose(out[0][mask], (inside - inside.mean()) / inside.std(), atol=1e-5)
    np.testing.assert_array_equal(out[0][~mask], image[0][~mask])
    np.testing.assert_array_equal(run(image, "zscore", np.zeros_like(mask)), image)


def test_a_mask_does_not_touch_other_schemes(image: np.ndarray) -> None:
    mask = np.zeros(image.shape[1:], dtype=bool)
    np.testing.assert_array_equal(run(image, "ct", mask), run(image, "ct"))


def test_rescale_covers_0_to_1(image: np.ndarray) -> None:
    out = run(image, "rescale_to_0_1")
    assert (out.min(), out.max()) == (0.0, 1.0)
    span = image.max() - image.min()
    np.testing.assert_allclose(out, (image - image.min()) / span, atol=1e-6)


def test_rgb_divides_by_255_and_refuses_more() -> None:
    image = np.array([0, 51, 255], dtype=np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(run(image, "rgb_to_0_1").ravel(), [0, 0.2, 1])
    with pytest.raises(AutosegError, match="0 to 256"):
        run(image + np.float32([0, 0, 1]), "rgb_to_0_1")


def test_none_changes_nothing(image: np.ndarray) -> None:
    np.testing.assert_array_equal(run(image, "none"), image)


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1"])
def test_a_constant_image_becomes_zero(scheme: str) -> None:
    assert not run(np.full((1, 2, 3, 4), 7, dtype=np.float32), scheme).any()


def test_normalise_works_in_place_channel_by_channel() -> None:
    image = np.random.default_rng(2).normal(50, 100, (2, 2, 5, 5)).astype(np.float32)
    alone = run(image[:1], "ct")
    out = normalise(image, ["ct", "none"], [CT, {}])
    assert out is image
    np.testing.assert_array_equal(out[:1], alone)


def test_misuse_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="1 channels, 2 schemes"):
        normalise(image, ["ct", "ct"], [CT])
    with pytest.raises(ValueError, match="none of ct"):
        normalise(image, ["CTNormalization"], [{}])
    with pytest.raises(ValueError, match="percentile_99_5"):
        normalise(image, ["ct"], [{"mean": 0.0, "std": 1.0, "percentile_00_5": 0.0}])
