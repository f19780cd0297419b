import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import kstest
from torch.nn.functional import interpolate

from autoseg.data import augment_intensity as intensity
from autoseg.data.augment_draw import UNCHANGED, SampleParameters

SHAPES = [(5, 14, 11), (20, 13)]


def batch(shape, samples=3, channels=2):
    rng = np.random.default_rng(8)
    return torch.from_numpy(rng.standard_normal((samples, channels, *shape)).astype(np.float32))


def changed(function, images, parameters, **more):
    """The images after the change; what the parameters do not name must be as before."""
    after = images.clone()
    function(after, parameters, **more)
    return after.numpy(), images.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_changes_where_nothing_was_drawn(shape):
    images = batch(shape)
    after, before = changed(intensity.change_intensities, images, [UNCHANGED] * 3)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_blur_equals_scipys_gaussian(shape):
    sigmas = (0.5, 1.0, 0.77)[: len(shape)]
    drawn = [UNCHANGED, SampleParameters(blur_sigma_vox=(None, sigmas)), UNCHANGED]
    after, before = changed(intensity.blur, batch(shape), drawn)
    expected = before[1, 1]
    for axis, sigma in enumerate(sigmas):
        expected = gaussian_filter1d(expected, sigma, axis, mode="mirror", truncate=3.0)
    np.testing.assert_allclose(after[1, 1], expected, atol=1e-6)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    np.testing.assert_array_equal(after[1, 0], before[1, 0])


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_blurring_keeps_a_constant_at_any_size(n):
    np.testing.assert_allclose(intensity.blur_matrix(n, 1.0).sum(1), 1.0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zoom", [0.5, 0.63, 0.9, 0.99])
def test_low_resolution_equals_torchs_down_and_up(shape, zoom):
    zooms = (zoom,) * len(shape)
    drawn = [SampleParameters(low_resolution=(zooms, None)), UNCHANGED, UNCHANGED]
    after, before = changed(intensity.lower_resolution, batch(shape), drawn)
    small = [round(n * zoom) for n in shape]
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    low = interpolate(torch.from_numpy(before[:1, :1]), small, mode="nearest-exact")
    expected = interpolate(low, shape, mode=mode)[0, 0].numpy()
    np.testing.assert_allclose(after[0, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(after[0, 1], before[0, 1])


def test_low_resolution_leaves_an_axis_of_zoom_one():
    drawn = [SampleParameters(low_resolution=((1.0, 0.5, 0.5),))]
    images = batch((4, 8, 8), samples=1, channels=1)
    images[0, 0, 2] = 0
    after, _ = changed(intensity.lower_resolution, images, drawn)
    assert (after[0, 0, 2] == 0).all()
    assert (after[0, 0, 1] != 0).all()


def test_brightness_multiplies_the_named_channels():
    drawn = [SampleParameters(brightness=(1.2, 0.8)), UNCHANGED, SampleParameters()]
    after, before = changed(intensity.scale_brightness, batch((4, 5, 6)), drawn)
    expected = before.copy()
    expected[0, 0] *= np.float32(1.2)
    expected[0, 1] *= np.float32(0.8)
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_contrast_stretches_about_the_mean_and_keeps_the_range(factor):
    drawn = [UNCHANGED, SampleParameters(contrast=(factor, 1.1)), UNCHANGED]
    after, before = changed(intensity.scale_contrast, batch((9, 10, 11)), drawn)
    x = before[1, 0].astype(np.float64)
    expected = np.clip((x - x.mean()) * factor + x.mean(), x.min(), x.max())
    np.testing.assert_allclose(after[1, 0], expected, atol=1e-6)
    assert after[1, 1].max() == before[1, 1].max()


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("power", [0.7, 1.5])
def test_gamma_bends_and_keeps_mean_and_spread(inverted, power):
    name = "gamma_inverted" if inverted else "gamma"
    drawn = [UNCHANGED, SampleParameters(**{name: (1.2, power)}), UNCHANGED]
    images = batch((9, 10, 11)) * 30 - 500
    after, before = changed(intensity.bend_gamma, images, drawn, inverted=inverted)
    x = before[1, 1].astype(np.float64) * (-1 if inverted else 1)
    bent = ((x - x.min()) / np.ptp(x)) ** power * np.ptp(x) + x.min()
    expected = (bent - bent.mean()) / bent.std() * x.std() + x.mean()
    expected *= -1 if inverted else 1
    np.testing.assert_allclose(after[1, 1], expected, atol=2e-3)
    np.testing.assert_array_equal(after[0], before[0])


def test_gamma_leaves_a_constant_channel():
    images = torch.full((1, 1, 4, 4, 4), 7.0)
    intensity.bend_gamma(images, [SampleParameters(gamma=(1.4,))], inverted=False)
    assert (images == 7).all()


def test_noise_has_its_sigma_and_its_own_seed():
    drawn = [SampleParameters(noise_sigma=0.1, noise_seed=3), UNCHANGED]
    images = batch((30, 30, 30), samples=2)
    after, before = changed(intensity.add_noise, images, drawn)
    noise = after[0] - before[0]
    assert abs(noise.std() - 0.1) < 0.002
    assert abs(noise.mean()) < 0.002
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(after[1], before[1])
    alone, _ = changed(intensity.add_noise, images[:1], drawn[:1])
    np.testing.assert_array_equal(alone[0], after[0])


def test_noise_is_normal_and_without_memory():
    drawn = [SampleParameters(noise_sigma=1.0, noise_seed=11)]
    images = torch.zeros((1, 1, 50, 60, 71))  # several pieces, the last of an odd size
    intensity.add_noise(images, drawn)
    noise = images.numpy().ravel().astype(np.float64)
    assert kstest(noise, "norm").pvalue > 1e-3
    assert 4.0 < np.abs(noise).max() < 6.8
    half = intensity.PIECE_VOX // 2
    for lag in (1, half, 2 * half):  # the two of a pair are `half` apart
        assert abs(np.mean(noise[lag:] * noise[:-lag])) < 4 / np.sqrt(noise.size - lag), lag
        assert abs(np.mean(noise[lag:] ** 2 * noise[:-lag] ** 2) - 1) < 0.05, lag


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("power", [0.3, 1.5, 4.0])
def test_gamma_of_a_narrow_channel_with_an_outlier_and_a_flat_background(inverted, power):
    """The spread is far below the mean; a third of the voxels lie at the lower bound."""
    name = "gamma_inverted" if inverted else "gamma"
    rng = np.random.default_rng(3)
    x = 100 + rng.random((40, 50, 60))
    x[:14], x[20, 20, 20] = 100.0, 180.0
    images = torch.from_numpy(x.astype(np.float32))[None, None]
    drawn = [SampleParameters(**{name: (power,)})]
    after, before = changed(intensity.bend_gamma, images, drawn, inverted=inverted)
    x = before[0, 0].astype(np.float64) * (-1 if inverted else 1)
    bent = ((x - x.min()) / np.ptp(x)) ** power
    expected = (bent - bent.mean()) / bent.std() * x.std() + x.mean()
    expected *= -1 if inverted else 1
    np.testing.assert_allclose(after[0, 0], expected, rtol=2e-4)
    assert abs(after.std() / before.std() - 1) < 1e-3
