"""The two ways of placing a patch, a processor's and a card's, say the same."""

import numpy as np
import pytest
import torch

from autoseg.data.augment import Sample, SampleParameters, _moved, apply, needed_box
from autoseg.data.augment_draw import rotation

TURNED, PLANAR = rotation((0.4, -0.3, 0.5)) * 1.2, rotation((0.8,)) * 0.9
PATCHES = {
    "turned": (TURNED, (9, 10, 12)),
    "scaled": (np.eye(3) * 0.8137, (9, 10, 12)),
    "dummy 2D": (PLANAR, (4, 12, 11)),
    "dummy 2D, scaled": (np.eye(2) * 1.2871, (4, 12, 11)),
    "2D": (PLANAR, (13, 11)),
}


def tuples(matrix):
    return tuple(tuple(row) for row in matrix.tolist())


def noisy_sample(parameters, patch, channels=3, seed=0):
    """The box that is needed, all of it different, with five labels."""
    shift, size = needed_box(parameters, patch)
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((channels, *size)).astype(np.float32)
    labels = rng.choice([-2, -1, 0, 1, 2, 5], size=size).astype(np.int16)
    return Sample(torch.from_numpy(image), torch.from_numpy(labels), shift)


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_processor_places_as_a_card_does(name, channels):
    matrix, patch = PATCHES[name]
    p = SampleParameters(matrix=tuples(matrix), mirror=(0, len(patch) - 1))
    sample = noisy_sample(p, patch, channels)
    images, labels = apply([sample], [p], patch)
    card, card_labels = _moved([sample], [p], patch)
    np.testing.assert_allclose(images[0].numpy(), card[0].numpy(), atol=3e-5)
    differ = labels[0] != card_labels[0, 0].masked_fill(card_labels[0, 0] == -1, 0)
    assert differ.float().mean() < 0.002  # a tie but for rounding


@pytest.mark.parametrize("name", PATCHES)
def test_mirroring_is_the_same_as_mirroring_afterwards(name):
    matrix, patch = PATCHES[name]
    plain = SampleParameters(matrix=tuples(matrix))
    mirrored = SampleParameters(matrix=tuples(matrix), mirror=(0, len(patch) - 1))
    sample = noisy_sample(plain, patch)
    images, labels = apply([sample], [plain], patch)
    back, back_labels = apply([sample], [mirrored], patch)
    axes = (-len(patch), -1)
    np.testing.assert_allclose(back.numpy(), images.flip(axes).numpy(), atol=3e-5)
    assert (back_labels != labels.flip(axes)).float().mean() < 0.01


def test_what_a_patch_shows_does_not_depend_on_the_patch_before():
    """The memory that is kept from patch to patch holds nothing of the last one."""
    matrix, patch = PATCHES["turned"]
    p = SampleParameters(matrix=tuples(matrix))
    small, large = noisy_sample(p, patch, 2), noisy_sample(p, (14, 15, 16), 6, seed=1)
    alone, _ = apply([small], [p], patch)
    apply([large], [p], (14, 15, 16))
    again, _ = apply([small], [p], patch)
    assert torch.equal(alone, again)
    assert alone.std() > 0.1


def test_nothing_makes_the_processor_wait_for_a_card():
    """A meta tensor has no values: whoever reads one back, or needs one for a shape, fails."""
    patch = (9, 10, 12)
    drawn = [
        SampleParameters(
            matrix=tuples(matrix), blur_sigma_vox=((0.7,) * 3, None), brightness=(1.1, 0.9),
            contrast=(0.8, 1.2), low_resolution=(None, (0.6,) * 3), gamma=(1.2, 0.8),
            gamma_inverted=(None, 1.1), mirror=(1,),
        )
        for matrix in (TURNED, np.eye(3) * 0.8)
    ]  # fmt: skip
    drawn.append(SampleParameters(mirror=(0, 2), gamma=(0.9, None)))
    samples = [noisy_sample(p, patch, 2) for p in drawn]
    there = [
        Sample(s.image.to("meta"), s.labels.to("meta"), s.shift, s.labels.to("meta"))
        for s in samples
    ]
    images, labels = apply(there, drawn, patch, masked_channels=(1,), previous_classes=2)
    assert (images.shape, labels.shape) == ((3, 4, *patch), (3, *patch))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    with pytest.raises(RuntimeError):
        images[0, 0, 0, 0, 0].item()
