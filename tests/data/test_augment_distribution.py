"""Our augmentation against batchgeneratorsv2 with the transforms of nnU-Net's default trainer.

Runs where batchgeneratorsv2 0.3.6 can be imported (`pip install --no-deps`, and pandas).
"""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from autoseg.data.augment import Sample, apply, draw, needed_box
from autoseg.documents.plan import Augmentation

SAMPLES = 500
LEVEL = 0.01
"""Chance that any of the comparisons fails although the distributions are equal."""

SETTINGS = {
    # patch, degrees, dummy 2D
    "isotropic": ((20, 24, 22), 30.0, False),
    "anisotropic": ((6, 28, 30), 180.0, True),
    "2d": ((40, 36), 180.0, False),
}
STATISTICS = ("mean", "std", "gradient energy", "foreground share")


def world(spatial: int):
    """(image (1, ...), labels): smooth grey values, noise, and the brighter parts as foreground."""
    rng = np.random.default_rng(5)
    shape = (96,) * 3 if spatial == 3 else (160, 160)
    smooth = gaussian_filter(rng.standard_normal(shape), 5.0, mode="wrap")
    smooth /= smooth.std()
    image = smooth + 0.3 * rng.standard_normal(shape) + 0.5
    labels = (smooth > 0.5).astype(np.int16) + (smooth > 1.2)
    return image[None].astype(np.float32), labels


def theirs(patch, degrees, dummy):
    """A function (image, labels) -> (image, labels): nnU-Net's default list (reference 1.17)."""
    pytest.importorskip("batchgeneratorsv2", reason="batchgeneratorsv2 is not installed")
    from batchgeneratorsv2.transforms.intensity.brightness import (
        MultiplicativeBrightnessTransform as Brightness,
    )
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import (
        SimulateLowResolutionTransform as LowResolution,
    )
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.pseudo2d import (
        Convert2DTo3DTransform,
        Convert3DTo2DTransform,
    )
    from batchgeneratorsv2.transforms.utils.random import RandomTransform
    from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

    limit = float(np.radians(degrees))
    spatial = SpatialTransform(
        patch[1:] if dummy else patch, 0, False,
        p_rotation=0.2, rotation=(-limit, limit), p_scaling=0.2, scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1, bg_style_seg_sampling=False,
        border_mode_seg="constant", padding_value_seg=-1,
    )  # fmt: skip
    placed = [Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()] if dummy else [spatial]
    factor, power = BGContrast((0.75, 1.25)), BGContrast((0.7, 1.5))
    per_channel = {"synchronize_channels": False, "p_per_channel": 1}
    changes = [
        (0.1, GaussianNoiseTransform((0, 0.1), 1, True)),
        (0.2, GaussianBlurTransform((0.5, 1.0), False, False, p_per_channel=0.5)),
        (0.15, Brightness(factor, **per_channel)),
        (0.15, ContrastTransform(factor, preserve_range=True, **per_channel)),
        (0.25, LowResolution((0.5, 1), False, True, (0,) if dummy else None, p_per_channel=0.5)),
        (0.1, GammaTransform(power, 1, p_retain_stats=1, **per_channel)),
        (0.3, GammaTransform(power, 0, p_retain_stats=1, **per_channel)),
    ]
    chain = ComposeTransforms(
        [
            *placed,
            *(RandomTransform(change, apply_probability=p) for p, change in changes),
            MirrorTransform(allowed_axes=tuple(range(len(patch)))),
            RemoveLabelTansform(-1, 0),
        ]
    )

    def run(image, labels):
        found = chain(
            image=torch.from_numpy(image.copy()), segmentation=torch.from_numpy(labels[None].copy())
        )
        return found["image"].numpy(), found["segmentation"][0].numpy()

    return run


def cut(image, labels, lower, size):
    box = tuple(slice(low, low + n) for low, n in zip(lower, size, strict=True))
    return image[(slice(None), *box)], labels[box]


def measured(image, labels):
    energy = sum(float((np.diff(image[0], axis=axis) ** 2).mean()) for axis in range(labels.ndim))
    return float(image.mean()), float(image.std()), energy, float((labels > 0).mean())


def both(patch, degrees, dummy):
    """(ours, theirs), each (SAMPLES, statistics), from patches of the same volume."""
    image, labels = world(len(patch))
    run = theirs(patch, degrees, dummy)
    a = Augmentation(
        rotation_degrees=(degrees,), dummy_2d=dummy, mirror_axes=tuple(range(len(patch)))
    )
    # theirs gets all that a rotation can reach: the trainer's own enlarged patch is too small for
    # the scales that it draws, and shows nothing in the corners
    big = [n if dummy and k == 0 else 2 * int(1.4 * 1.8 * max(patch) / 2) for k, n in
           enumerate(patch)]  # fmt: skip
    rng = np.random.default_rng(17)
    rows = ([], [])
    for step in range(SAMPLES):
        lower = [int(rng.integers((b - n) // 2, s - (b + n) // 2 + 1))
                 for s, b, n in zip(labels.shape, big, patch, strict=True)]  # fmt: skip
        p = draw(a, patch, 1, 3, step, 0)
        shift, size = needed_box(p, patch)
        grey, classes = cut(image, labels, [x + s for x, s in zip(lower, shift, strict=True)], size)
        sample = Sample(torch.from_numpy(grey.copy()), torch.from_numpy(classes.copy()), shift)
        found, found_labels = apply([sample], [p], patch)
        rows[0].append(measured(found[0].numpy(), found_labels[0].numpy()))
        lower = [int(rng.integers((b - n) // 2, s - (b + n) // 2 + 1))
                 for s, b, n in zip(labels.shape, big, patch, strict=True)]  # fmt: skip
        around = [x - (b - n) // 2 for x, b, n in zip(lower, big, patch, strict=True)]
        rows[1].append(measured(*run(*cut(image, labels, around, big))))
    return np.array(rows[0]), np.array(rows[1])


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_statistics_are_distributed_as_batchgeneratorsv2s(setting):
    np.random.seed(1)
    torch.manual_seed(1)
    ours, others = both(*SETTINGS[setting])
    found = {
        name: float(ks_2samp(ours[:, k], others[:, k]).pvalue) for k, name in enumerate(STATISTICS)
    }
    assert min(found.values()) > LEVEL / (len(SETTINGS) * len(STATISTICS)), found


def test_the_comparison_would_see_a_missing_transform():
    """Without blur and low resolution the gradients are others: the comparison has power."""
    patch, degrees, dummy = SETTINGS["2d"]
    image, labels = world(2)
    rng = np.random.default_rng(2)
    rows = ([], [])
    for k, zoom in enumerate((1.0, 0.0)):
        a = Augmentation(rotation_degrees=(degrees,), dummy_2d=dummy, mirror_axes=(0, 1),
                         low_resolution_p=0.25 * zoom, blur_p=0.2 * zoom)  # fmt: skip
        for step in range(SAMPLES):
            p = draw(a, patch, 1, 3 + k, step, 0)
            shift, size = needed_box(p, patch)
            lower = [int(rng.integers(50, 70)) + s for s in shift]
            grey, classes = cut(image, labels, lower, size)
            sample = Sample(torch.from_numpy(grey.copy()), torch.from_numpy(classes.copy()), shift)
            found, found_labels = apply([sample], [p], patch)
            rows[k].append(measured(found[0].numpy(), found_labels[0].numpy()))
    one, other = np.array(rows[0]), np.array(rows[1])
    assert ks_2samp(one[:, 2], other[:, 2]).pvalue < LEVEL / 12
