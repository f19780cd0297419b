import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from autoseg.data.augment import (
    UNCHANGED,
    Sample,
    SampleParameters,
    _moved,
    apply,
    needed_box,
)
from autoseg.data.augment_draw import rotation
from autoseg.data.augment_space import sample_labels, source_places


def matrix_of(angles, scale=1.0):
    return tuple(tuple(row) for row in (scale * rotation(angles)).tolist())


def read(volume, labels, lower, parameters, patch):
    """The box that the parameters need, cut from a volume padded with what lies outside."""
    shift, size = needed_box(parameters, patch)
    wide = 60
    spatial = labels.ndim
    padded = np.pad(volume, [(0, 0)] + [(wide, wide)] * spatial)
    padded_labels = np.pad(labels, wide, constant_values=-1)
    box = tuple(
        slice(low + s + wide, low + s + wide + n)
        for low, s, n in zip(lower, shift, size, strict=True)
    )
    return Sample(
        torch.from_numpy(padded[(slice(None), *box)].copy()),
        torch.from_numpy(padded_labels[box].copy()),
        shift,
    )


def oracle(array, lower, matrix, patch, cval):
    """scipy's affine transform: patch voxel o takes its value at lower + centre + A (o - centre)."""
    matrix = np.array(matrix)
    centre = (np.array(patch) - 1) / 2
    offset = np.array(lower) + centre - matrix @ centre
    # a wide border first, since scipy does not interpolate across the edge with mode constant
    padded = np.pad(array, 60, constant_values=cval).astype(np.float64)
    return affine_transform(padded, matrix, offset + 60, output_shape=patch, order=1)


CASES_3D = [
    (matrix_of((0.4, 0.0, 0.0)), (12, 10, 9)),
    (matrix_of((0.0, -0.5, 0.0)), (12, 10, 9)),
    (matrix_of((0.2, 0.3, -0.4), 1.4), (8, 11, 7)),
    (matrix_of((0.0, 0.0, 0.0), 0.7), (12, 10, 9)),
    (matrix_of((0.0, 0.0, 0.0), 1.25), (5, 16, 9)),
    (matrix_of((0.5, 0.5, 0.5), 0.8), (1, 9, 12)),
]


@pytest.mark.parametrize(("matrix", "patch"), CASES_3D)
@pytest.mark.parametrize("lower", [(4, 6, 5), (-3, 10, 12)])
def test_rotation_and_scaling_equal_scipys_affine_transform(matrix, patch, lower, phantom):
    image, labels = phantom((18, 22, 20), channels=2)
    parameters = SampleParameters(matrix=matrix)
    sample = read(image, labels, lower, parameters, patch)
    found, found_labels = apply([sample], [parameters], patch)
    for channel in range(2):
        expected = oracle(image[channel], lower, matrix, patch, 0.0)
        np.testing.assert_allclose(found[0, channel].numpy(), expected, atol=2e-5)
    weights = np.stack(
        [
            oracle((labels == c).astype(float), lower, matrix, patch, float(c == -1))
            for c in (-1, 0, 1, 2)
        ]
    )
    expected_labels = np.maximum(weights.argmax(0) - 1, 0)
    ordered = np.sort(weights, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4  # rounding decides ties
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found_labels[0].numpy()[clear], expected_labels[clear])


def test_rotation_in_2d_equals_scipys(phantom):
    image, labels = phantom((1, 40, 30))
    parameters = SampleParameters(matrix=matrix_of((1.1,), 0.9))
    sample = read(image[:, 0], labels[0], (5, 3), parameters, (20, 24))
    found, _ = apply([sample], [parameters], (20, 24))
    expected = oracle(image[0, 0], (5, 3), parameters.matrix, (20, 24), 0.0)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=2e-5)


def test_dummy_2d_turns_each_slice_alone(phantom):
    image, labels = phantom((6, 30, 28), channels=2)
    parameters = SampleParameters(matrix=matrix_of((0.7,), 1.2))
    patch, lower = (5, 16, 14), (0, 6, 7)
    shift, size = needed_box(parameters, patch)
    assert (shift[0], size[0]) == (0, 5)
    sample = read(image, labels, lower, parameters, patch)
    found, found_labels = apply([sample], [parameters], patch)
    for z in range(5):
        flat = read(image[:, z], labels[z], lower[1:], parameters, patch[1:])
        alone, alone_labels = apply([flat], [parameters], patch[1:])
        np.testing.assert_array_equal(found[0, :, z].numpy(), alone[0].numpy())
        np.testing.assert_array_equal(found_labels[0, z].numpy(), alone_labels[0].numpy())


def test_a_quarter_turn_is_exact():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1, 9, 9)).astype(np.float32)
    labels = rng.integers(0, 4, (9, 9)).astype(np.int8)
    p = SampleParameters(matrix=matrix_of((np.pi / 2,)))
    assert needed_box(p, (9, 9)) == ((0, 0), (9, 9))
    sample = Sample(torch.from_numpy(image), torch.from_numpy(labels), (0, 0))
    found, found_labels = apply([sample], [p], (9, 9))
    np.testing.assert_allclose(found[0, 0].numpy(), np.rot90(image[0], -1), atol=1e-5)
    np.testing.assert_array_equal(found_labels[0].numpy(), np.rot90(labels, -1))


def test_untouched_samples_are_the_patch_itself(phantom):
    image, labels = phantom((6, 7, 8))
    labels[0] = -1
    sample = Sample(torch.from_numpy(image), torch.from_numpy(labels), (0, 0, 0))
    assert needed_box(UNCHANGED, (6, 7, 8)) == ((0, 0, 0), (6, 7, 8))
    found, found_labels = apply([sample], [UNCHANGED], (6, 7, 8))
    np.testing.assert_array_equal(found[0].numpy(), image)
    np.testing.assert_array_equal(found_labels[0].numpy(), np.maximum(labels, 0))
    assert (found.dtype, found_labels.dtype) == (torch.float32, torch.int64)


def test_the_box_is_no_larger_than_needed():
    zoomed = SampleParameters(matrix=matrix_of((0.0, 0.0, 0.0), 0.5))
    assert needed_box(zoomed, (9, 17, 10)) == ((2, 4, 2), (5, 9, 6))
    wide = SampleParameters(matrix=matrix_of((0.0, 0.0, 0.0), 1.5))
    assert needed_box(wide, (9, 17, 11)) == ((-2, -4, -3), (13, 25, 17))


def test_a_marker_moves_with_its_label():
    image = np.zeros((1, 40, 44, 36), np.float32)
    image[0, 22:25, 24:27, 15:18] = 1
    labels = (image[0] > 0).astype(np.int8)
    p = SampleParameters(matrix=matrix_of((0.3, -0.4, 0.5), 0.8), mirror=(0, 2))
    patch = (24, 26, 22)
    found, found_labels = apply([read(image, labels, (9, 8, 6), p, patch)], [p], patch)
    bright, marked = found[0, 0].numpy() > 0.5, found_labels[0].numpy() == 1
    assert marked.sum() > 20
    np.testing.assert_array_equal(bright, marked)


def test_mirrored_labels_follow_the_image(phantom):
    image, labels = phantom((5, 6, 7), channels=2)
    sample = Sample(torch.from_numpy(image), torch.from_numpy(labels), (0, 0, 0))
    p = SampleParameters(mirror=(0, 2))
    found, found_labels = apply([sample, sample], [p, UNCHANGED], (5, 6, 7))
    np.testing.assert_array_equal(found[0].numpy(), image[:, ::-1, :, ::-1])
    np.testing.assert_array_equal(found_labels[0].numpy(), labels[::-1, :, ::-1])
    np.testing.assert_array_equal(found[1].numpy(), image)


def test_labels_equal_the_largest_interpolated_indicator_for_many_labels():
    rng = np.random.default_rng(3)
    labels = rng.choice([-1, 0, 3, 7, 200], size=(2, 3, 9, 8)).astype(np.int16)
    matrices = np.array([rotation((0.7,)) * 1.3, rotation((-2.0,))])
    places = source_places(matrices, np.zeros((2, 2)), (9, 8), torch.device("cpu"))
    found = sample_labels(torch.from_numpy(labels), places).numpy()
    assert set(np.unique(found)) <= {-1, 0, 3, 7, 200}
    for s in range(2):
        centre = np.array([4.0, 3.5])
        # the padded place of a voxel is 20 further on
        offset = centre - matrices[s] @ centre + 20
        for layer in range(3):
            padded = np.pad(labels[s, layer], 20, constant_values=-1)
            weights = np.stack(
                [
                    affine_transform(
                        (padded == value).astype(float), matrices[s],
                        offset, output_shape=(9, 8), order=1,
                    )
                    for value in (-1, 0, 3, 7, 200)
                ]
            )  # fmt: skip
            ordered = np.sort(weights, axis=0)
            clear = ordered[-1] - ordered[-2] > 1e-4
            expected = np.array([-1, 0, 3, 7, 200])[weights.argmax(0)]
            np.testing.assert_array_equal(found[s, layer][clear], expected[clear])


def test_at_a_tie_the_lowest_label_wins():
    labels = torch.tensor([[[5, 2, 2, 7]]], dtype=torch.int16)[None]
    half = [torch.zeros(1, 1, 3), torch.tensor([[[0.5, 1.5, 2.5]]])]
    assert sample_labels(labels, half).flatten().tolist() == [2, 2, 2]


def test_a_group_of_boxes_of_many_sizes_equals_each_alone(phantom):
    image, labels = phantom((20, 24, 22), channels=2)
    drawn = [SampleParameters(matrix=m) for m, _ in CASES_3D[:5]]
    patch = (8, 9, 10)
    samples = [read(image, labels, (5, 6, 7), p, patch) for p in drawn]
    together, together_labels = _moved(samples, drawn, patch)
    for i, (sample, p) in enumerate(zip(samples, drawn, strict=True)):
        alone, alone_labels = _moved([sample], [p], patch)
        np.testing.assert_allclose(together[i].numpy(), alone[0].numpy(), atol=1e-5)
        assert (together_labels[i] != alone_labels[0]).float().mean() < 0.002


def test_masked_channels_stay_zero_outside_the_mask(phantom):
    image, labels = phantom((6, 8, 8), channels=2)
    labels[:2] = -1
    sample = Sample(torch.from_numpy(image), torch.from_numpy(labels), (0, 0, 0))
    p = SampleParameters(noise_sigma=0.1, noise_seed=5, mirror=(0,))
    found, found_labels = apply([sample], [p], (6, 8, 8), masked_channels=(1,))
    assert (found[0, 1, -2:] == 0).all()
    assert (found[0, 1, :-2] != 0).all()
    assert (found[0, 0] != 0).all()
    assert found_labels.min() == 0
