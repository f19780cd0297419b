"""Tiles of air: what counts as air, and that skipping it changes no label."""

import numpy as np
import pytest

from autoseg.documents.plan import Prediction
from autoseg.infer.air import AIR_HU, Air, Skipped, air_limit
from tests.infer.whole import predict_logits


def info_of(shape, box=None):
    return {"box": box or [(0, n) for n in shape]}


@pytest.mark.parametrize(
    ("scheme", "values", "limit"),
    [
        ("ct", [-1024.0, 0.0, 3000.0], AIR_HU),
        ("zscore", np.linspace(0, 1000, 1001), 0.01 * 999.0),
        ("rescale_to_0_1", np.linspace(-100, 900, 1001), -100 + 0.01 * 999.0),
        ("rgb_to_0_1", [0.0, 7.0], 0.0),
        ("none", [-3.0, 7.0], -3.0),
    ],
)
def test_what_counts_as_air(scheme, values, limit):
    channel = np.asarray(values, np.float32).reshape(1, 1, -1)
    assert air_limit(channel, scheme) == pytest.approx(limit, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_only_is_never_true_where_a_voxel_is_not_air(seed):
    rng = np.random.default_rng(seed)
    array = np.full((1, 21, 30, 26), -1000, np.float32)
    places = rng.integers(0, array.shape[1:], (4, 3))
    for z, y, x in places:
        array[0, z, y, x] = -899
    air = Air(array, ["ct"])
    answers = []
    for _ in range(400):
        low = rng.uniform(-4, 26, 3)
        high = low + rng.uniform(1, 14, 3)
        inside = np.all((places >= low - 1) & (places < high), axis=1)
        answers.append(air.only(low, high))
        assert not (answers[-1] and inside.any())
    assert 20 < sum(answers) < 400


def test_air_of_one_channel_is_not_air():
    array = np.zeros((2, 8, 8, 8), np.float32)
    array[1, 4, 4, 4] = 5
    assert not Air(array, ["zscore", "zscore"]).only((0, 0, 0), (8, 8, 8))
    assert Air(array[:1], ["zscore"]).only((0, 0, 0), (8, 8, 8))


def test_a_tile_is_found_on_the_scans_own_grid():
    """The prepared image is the crop 8 to 40 of axis 0, at twice the voxels."""
    array = np.full((1, 48, 16, 16), -1000, np.float32)
    array[0, 30:] = 50
    image = np.zeros((1, 64, 16, 16), np.float32)
    skipped = Skipped(Air(array, ["ct"]), image, info_of((48, 16, 16), [(8, 40), (0, 16), (0, 16)]), 1, (0.0, -9.0))  # fmt: skip
    rest = [slice(0, 16), slice(0, 16)]
    # row 30 of the scan is row 44 of the image; two voxels of the scan and a block stand before it
    assert skipped.skip([slice(0, 32), *rest]) and not skipped.skip([slice(0, 44), *rest])
    assert not skipped.skip([slice(50, 64), *rest])
    assert (skipped.tiles, skipped.skipped) == (3, 1)


def test_where_an_earlier_stage_found_something_there_is_no_air():
    array = np.full((1, 16, 16, 16), -1000, np.float32)
    image = np.zeros((3, 16, 16, 16), np.float32)
    image[2, 3, 3, 3] = 1
    skipped = Skipped(Air(array, ["ct"]), image, info_of((16, 16, 16)), 1, (0.0, -9.0))
    rest = [slice(0, 16), slice(0, 16)]
    assert not skipped.skip([slice(0, 8), *rest]) and skipped.skip([slice(8, 16), *rest])


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8)])
@pytest.mark.parametrize("apart", [False, True])
def test_a_phantom_in_air_has_the_same_labels_from_fewer_tiles(patch, apart):
    rng = np.random.default_rng(0)
    array = np.full((1, 24, 30, 40), -1000, np.float32) + rng.normal(0, 10, (24, 30, 40)).astype(
        np.float32
    )
    array[0, 8:14, 10:16, 8:16] = rng.normal(40, 20, (6, 6, 8))
    image = array / 500

    def net(x):
        calls.append(len(x))
        import torch

        inside = x[:, 0] + 0.5
        return [torch.stack([-inside, inside], 1)]

    labels, seen = [], []
    for skipped in (
        None,
        Skipped(Air(array, ["ct"]), image, info_of(array.shape[1:]), 1, (0.0, -1e4)),
    ):
        calls: list[int] = []
        logits = predict_logits(
            [net, net], image, patch, 2, Prediction(mirror=False), skipped=skipped, apart=apart
        )
        labels.append(logits.argmax(-4))
        seen.append(sum(calls) // 2)
    np.testing.assert_array_equal(labels[0], labels[1])
    assert labels[0].any()
    assert skipped.tiles == seen[0] and skipped.skipped == seen[0] - seen[1]
    assert seen[1] < 0.6 * seen[0]
