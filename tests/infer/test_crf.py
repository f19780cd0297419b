"""The dense CRF against a naive one that writes down every pair of voxels, in float64."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.special import softmax

from autoseg.documents.postprocessing import DenseCRF
from autoseg.infer.crf import mean_field, reach_vox, refined

SETTINGS = DenseCRF(
    radius_mm=2.5, smooth_mm=1.5, bilateral_mm=2.0, bilateral_intensity=0.7, iterations=3
)


def made(classes, shape, *, channels=1, sharp=3.0, seed=0):
    """Probabilities (K, *shape), float32, and an image with an edge."""
    rng = np.random.default_rng(seed)
    logits = sharp * rng.standard_normal((classes, *shape))
    image = rng.standard_normal((channels, *shape)) * 0.3
    image[..., shape[-1] // 2 :] += 2
    return softmax(logits, 0).astype(np.float32), image.astype(np.float32)


def kernels(image, spacing, settings):
    """Both kernels between all voxels (2, N, N), each row a share of one."""
    shape = image.shape[1:]
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    values = image.reshape(len(image), -1).T.astype(np.float64)
    steps = np.abs(places[:, None] - places[None])
    squared = ((steps * spacing) ** 2).sum(-1)
    near = (squared <= settings.radius_mm**2 + 1e-9) | (steps.sum(-1) == 1)
    np.fill_diagonal(near, False)
    differ = ((values[:, None] - values[None]) ** 2).sum(-1)
    found = np.stack(
        [
            np.exp(-squared / 2 / settings.smooth_mm**2),
            np.exp(
                -squared / 2 / settings.bilateral_mm**2
                - differ / 2 / settings.bilateral_intensity**2
            ),
        ]
    )
    found *= near
    return found / np.maximum(found.sum(-1, keepdims=True), 1e-30)


def naive(p, image, spacing, settings):
    """Potts and mean field, as in the paper, with each kernel's rows normalised; every voxel."""
    smooth, bilateral = kernels(image, spacing, settings)
    weights = settings.smooth_weight * smooth + settings.bilateral_weight * bilateral
    flat = p.reshape(len(p), -1).astype(np.float64)
    field = flat
    for _ in range(settings.iterations):
        votes = field @ weights.T
        against = votes.sum(0) - votes  # Potts: all other classes' votes cost
        field = softmax(np.log(flat) - against, 0)
    return field.reshape(p.shape)


def doubtful(p, settings):
    most = settings.smooth_weight + settings.bilateral_weight
    ordered = np.sort(p, 0)
    return np.log(ordered[-1] / ordered[-2]) <= most


CASES = [
    ((5, 6, 7), (1.0, 1.0, 1.0), 1),
    ((3, 6, 8), (5.0, 0.8, 0.9), 2),
    ((1, 9, 10), (1.0, 0.7, 1.1), 3),
    ((1, 1, 12), (1.0, 1.0, 1.0), 1),
]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("shape", "spacing", "channels"), CASES)
def test_equals_the_naive_field(shape, spacing, channels, classes):
    p, image = made(classes, shape, channels=channels)
    want = naive(p, image, spacing, SETTINGS)
    open_to_doubt = doubtful(p, SETTINGS)
    assert open_to_doubt.any() and not open_to_doubt.all()
    got = mean_field(torch.from_numpy(p), image, spacing, SETTINGS).numpy()
    np.testing.assert_allclose(got[:, open_to_doubt], want[:, open_to_doubt], atol=2e-6)
    np.testing.assert_array_equal(got[:, ~open_to_doubt], p[:, ~open_to_doubt])
    np.testing.assert_array_equal(got.argmax(0), want.argmax(0))
    assert (got.argmax(0) != p.argmax(0)).any()


@pytest.mark.parametrize(("shape", "spacing", "channels"), CASES)
def test_a_region_is_a_field_of_its_own_against_its_complement(shape, spacing, channels):
    image = made(2, shape, channels=channels)[1]
    regions = np.stack([made(2, shape, seed=s)[0][0] for s in (1, 2, 3)])
    got = mean_field(torch.from_numpy(regions), image, spacing, SETTINGS, regional=True).numpy()
    fields = [naive(np.stack([p, 1 - p]), image, spacing, SETTINGS)[0] for p in regions]
    np.testing.assert_array_equal(got > 0.5, np.stack(fields) > 0.5)
    some = np.any([doubtful(np.stack([p, 1 - p]), SETTINGS) for p in regions], 0)
    np.testing.assert_allclose(got[:, some], np.stack(fields)[:, some], atol=2e-6)
    np.testing.assert_array_equal(got[:, ~some], regions[:, ~some])


def blob(shape, at, half, classes=3):
    """Certain background with a doubtful cube somewhere."""
    p = np.full((classes, *shape), 1e-4, np.float32)
    p[0] = 1 - 1e-4 * (classes - 1)
    inside = tuple(slice(c - half, c + half) for c in at)
    noise = made(classes, tuple(2 * half for _ in at), sharp=1.0)[0]
    p[(slice(None), *inside)] = noise
    return p


def test_work_is_done_around_doubt_only_and_changes_nothing(monkeypatch):
    from autoseg.infer import crf

    settings = SETTINGS.model_copy(update={"iterations": 2})
    shape = (18, 20, 30)
    p, image = blob(shape, (5, 6, 24), 2), made(3, shape)[1]
    sizes, iterated = [], crf._iterated

    def watched(probabilities, *rest, **more):
        sizes.append(tuple(probabilities.shape))
        return iterated(probabilities, *rest, **more)

    monkeypatch.setattr(crf, "_iterated", watched)
    near = mean_field(torch.from_numpy(p), image, (1, 1, 1), settings)
    assert sizes == [(3, 11, 12, 12)]
    everywhere = torch.ones(shape, dtype=torch.bool)
    monkeypatch.setattr(crf, "_doubtful", lambda *_, **__: everywhere)
    full = mean_field(torch.from_numpy(p), image, (1, 1, 1), settings)
    assert sizes[1] == (3, *shape)
    some = doubtful(p, settings)
    assert some[3:7, 4:8, 22:26].sum() == some.sum() > 50
    np.testing.assert_allclose(near[:, some], full[:, some], atol=1e-6)
    np.testing.assert_array_equal(near.argmax(0), full.argmax(0))


def test_without_doubt_nothing_happens():
    p = torch.zeros(2, 3, 4, 5)
    p[0] = 1
    for regional in (False, True):
        got = mean_field(
            p, np.zeros((1, 3, 4, 5), np.float32), (1, 1, 1), SETTINGS, regional=regional
        )
        assert torch.equal(got, p) and got.data_ptr() != p.data_ptr()


def test_votes_stop_at_an_edge_of_the_image():
    image = np.zeros((1, 1, 8, 8), np.float32)
    image[..., 4:] = 5
    p = np.full((2, 1, 8, 8), 0.5, np.float32)
    p[0, ..., 3:5], p[1, ..., 3:5] = 0.55, 0.45
    p[:, :, :, :3] = np.array([0.9, 0.1])[:, None, None, None]
    p[:, :, :, 5:] = np.array([0.1, 0.9])[:, None, None, None]
    settings = SETTINGS.model_copy(update={"smooth_weight": 0.0, "bilateral_weight": 3.0})
    got = mean_field(torch.from_numpy(p), image, (1, 1, 1), settings).argmax(0)[0]
    np.testing.assert_array_equal(got, np.broadcast_to(np.arange(8) >= 4, (8, 8)))


def test_certain_voxels_stay_numbers_beside_doubtful_ones():
    p, image = made(3, (4, 5, 6))
    p[:, :2] = np.array([0.0, 1.0, 0.0])[:, None, None, None]
    for regional in (False, True):
        got = mean_field(torch.from_numpy(p), 100 * image, (1, 1, 1), SETTINGS, regional=regional)
        assert bool(got.isfinite().all()) and got[1, :2].eq(1).all()


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("sizes", [[1], [3, 5], [40]])
def test_chunks_give_the_same_as_the_whole(sizes, regional):
    shape, settings = (33, 5, 6), SETTINGS.model_copy(update={"iterations": 2})
    p, image = made(3, shape)
    whole = mean_field(torch.from_numpy(p), image, (1, 1, 1), settings, regional=regional)
    held = []

    def chunks():
        at = 0
        while at < shape[0]:
            stop = min(shape[0], at + sizes[at % len(sizes)])
            yield slice(at, stop), torch.from_numpy(p[:, at:stop])
            held.append(stop)
            at = stop

    found = list(refined(chunks(), image, (1, 1, 1), settings, regional=regional))
    assert [r.start for r, _ in found] == [0, *(r.stop for r, _ in found[:-1])]
    np.testing.assert_allclose(torch.cat([c for _, c in found], 1), whole, atol=1e-6)
    if sizes == [1]:
        assert max(r.stop - r.start for r, _ in found) < 8


def test_chunks_that_end_early_are_misuse():
    p, image = made(3, (9, 4, 5))
    chunks = refined([(slice(0, 8), torch.from_numpy(p[:, :8]))], image, (1, 1, 1), SETTINGS)
    with pytest.raises(ValueError, match="has 9 rows, chunks came for 8"):
        list(chunks)


def test_a_radius_reaches_at_least_the_next_voxel():
    assert reach_vox((9, 9, 9), (5.0, 1.0, 0.8), 2.5) == (1, 2, 3)
    assert reach_vox((1, 3, 9), (1.0, 1.0, 0.1), 0.3) == (0, 1, 3)
    assert reach_vox((2, 2, 2), (1.0, 1.0, 1.0), 9.0) == (1, 1, 1)


def test_an_image_on_another_grid_is_misuse():
    with pytest.raises(ValueError, match="an image of"):
        mean_field(torch.zeros(2, 3, 4, 5), np.zeros((1, 3, 4, 6)), (1, 1, 1), SETTINGS)


def test_every_pair_is_met_once():
    from autoseg.infer.crf import _pairs

    shape, spacing = (3, 4, 5), (2.0, 1.0, 0.7)
    counts = np.zeros((60, 60), int)
    index = np.arange(60).reshape(shape)
    for pair in _pairs(shape, reach_vox(shape, spacing, 2.5), spacing, SETTINGS):
        np.add.at(counts, (index[pair.here].ravel(), index[pair.there].ravel()), 1)
    counts += counts.T
    for (i, a), (j, b) in product(enumerate(np.ndindex(shape)), repeat=2):
        near = sum(((x - y) * mm) ** 2 for x, y, mm in zip(a, b, spacing, strict=True)) <= 2.5**2
        assert counts[i, j] == (near and i != j)
