"""Voxels that nobody labelled: kept from the file to the loss, and patches that show some label."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from autoseg.data import writing
from autoseg.data.augment import Sample, SampleParameters, apply
from autoseg.data.augment_draw import rotation
from autoseg.data.augment_space import sample_labels, source_places
from autoseg.data.batches import Batches, BatchSpec
from autoseg.data.prepare import _marked_outside
from autoseg.data.sampling import box_of, draw_batch
from autoseg.data.store import StoredCases, open_case
from autoseg.data.writing import write_case
from autoseg.documents.labels import IGNORE, OUTSIDE
from autoseg.documents.plan import Augmentation, Sampling
from autoseg.image.resample_labels import resample_labels

TURNED = Augmentation(rotation_degrees=(30, 30, 30), mirror_axes=(0, 1, 2), rotation_p=0.8)
SPEC = BatchSpec(
    patch_vox=(6, 8, 8),
    batch_size=4,
    sampling=Sampling(foreground_share=0.25, class_weights=(0.5, 0.5)),
    augmentation=TURNED,
    seed=3,
)


def scribbled(shape):
    """Two strokes, of class 1 and of background, in a scan that is otherwise unlabelled."""
    labels = np.full(shape, IGNORE, np.int16)
    labels[:2] = OUTSIDE
    labels[shape[0] // 2, 3, 2:9] = 1
    labels[shape[0] // 2, shape[1] - 3, 4:12] = 0
    return labels


@pytest.fixture
def scribbles(tmp_path):
    """A scan with two strokes, one without any label, one that is labelled throughout."""
    shape = (20, 30, 28)
    maps = [scribbled(shape), np.full(shape, IGNORE), np.zeros(shape, int)]
    maps[2][9:12, 12:18, 12:18] = 2
    for k, labels in enumerate(maps):
        folder = tmp_path / f"case_{k}"
        folder.mkdir()
        image = np.random.default_rng(k).standard_normal((1, *shape))
        write_case(folder, image, labels, {})
    return StoredCases(tmp_path, ["case_0", "case_1", "case_2"])


def test_places_of_whatever_is_labelled_are_stored_where_some_is_not(scribbles):
    labels, case = scribbled((20, 30, 28)), scribbles[0]
    np.testing.assert_array_equal(case.labels, labels)
    assert case.labels.dtype == np.int8
    assert case.classes_present == (1,)
    np.testing.assert_array_equal(case.places_of(0), np.argwhere(labels >= 0))
    np.testing.assert_array_equal(case.places_of(1), np.argwhere(labels == 1))
    for other, present in ((1, ()), (2, (2,))):
        assert scribbles[other].places_of(0).shape == (0, 3)
        assert scribbles[other].classes_present == present
    assert scribbles[2].info["classes"] == {"2": [0, 108]}


def test_many_labelled_places_are_sampled_without_repetition(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PLACES_LEAST", 50)
    labels = np.zeros((10, 20, 20), np.int16)
    labels[0] = IGNORE
    labels[1, :2] = OUTSIDE
    labels[5, 5, 5:8] = 4
    write_case(tmp_path, np.zeros((1, *labels.shape)), labels, {})
    places = open_case(tmp_path).places_of(0)
    assert len({tuple(p) for p in places.tolist()}) == len(places) == 50
    assert (labels[tuple(places.T)] >= 0).all()
    assert len(open_case(tmp_path).places_of(4)) == 3


@pytest.mark.parametrize("patch", [(6, 8, 8), (8, 10), (40, 8, 9)])
def test_every_patch_shows_a_labelled_voxel_where_there_is_one(scribbles, patch):
    free, background = 0, 0
    for step in range(60):
        for d in draw_batch(scribbles, patch, 4, SPEC.sampling, 5, step):
            case = scribbles[d.case]
            box = tuple(
                slice(max(low, 0), max(low + n, 0))
                for low, n in zip(d.lower, box_of(patch), strict=True)
            )
            shown = np.asarray(case.labels)[box]
            if d.case == 0:
                assert (shown >= 0).any()
                free += d.forced is None
                background += d.forced is None and not (shown > 0).any()
    assert free > 30
    assert background > 5  # strokes of background teach, too


def test_cases_that_are_labelled_throughout_are_sampled_as_before(scribbles):
    only = StoredCases(scribbles.folder, ["case_2"])
    lowers = {
        d.lower
        for step in range(300)
        for d in draw_batch(only, (18, 28, 26), 2, SPEC.sampling, 0, step)
        if d.forced is None
    }
    assert lowers == {(z, y, x) for z in range(3) for y in range(3) for x in range(3)}


def test_what_nobody_labelled_stays_so_in_a_batch(scribbles):
    known = StoredCases(scribbles.folder, ["case_0"])
    seen = set()
    for _, labels in Batches(known, SPEC, 0, 10):
        assert labels.dtype == torch.int64
        seen |= set(labels.unique().tolist())
    assert seen == {IGNORE, 0, 1}


def test_a_flat_batch_keeps_it_too(scribbles):
    flat = dataclasses.replace(
        SPEC,
        patch_vox=(8, 10),
        augmentation=TURNED.model_copy(update={"mirror_axes": (0,), "rotation_degrees": (180.0,)}),
    )
    labels = torch.cat([labels for _, labels in Batches(scribbles, flat, 0, 10)])
    assert set(labels.unique().tolist()) == {IGNORE, 0, 1, 2}


def test_outside_becomes_background_and_what_nobody_labelled_does_not():
    labels = torch.tensor([[OUTSIDE, IGNORE, 0], [1, 2, OUTSIDE]], dtype=torch.int8)
    image = torch.ones(1, 2, 3)
    images, found = apply(
        [Sample(image, labels, (0, 0))], [SampleParameters(mirror=(1,))], (2, 3), (0,)
    )
    assert found[0].tolist() == [[0, IGNORE, 0], [0, 2, 1]]
    assert images[0, 0].tolist() == [[1, 1, 0], [0, 1, 1]]


def test_rotated_labels_equal_the_largest_indicator_with_unlabelled_voxels():
    """Beyond the border lies the outside, which is background at the end, as nnU-Net has it."""
    values = [IGNORE, OUTSIDE, 0, 1, 9]
    labels = np.random.default_rng(4).choice(values, size=(7, 9, 8), p=[0.4, 0.1, 0.2, 0.2, 0.1])
    labels[2:5, 3:6, 2:6] = IGNORE
    matrix = rotation((0.4, -0.3, 0.6)) * 1.3
    centre = np.array([3.0, 4.0, 3.5])
    offset = centre - matrix @ centre + 20
    weights = np.stack(
        [
            affine_transform(
                np.pad((labels == v).astype(float), 20, constant_values=float(v == OUTSIDE)),
                matrix, offset, output_shape=(7, 9, 8), order=1,
            )
            for v in values
        ]
    )  # fmt: skip
    ordered = np.sort(weights, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    places = source_places(matrix[None], np.zeros((1, 3)), (7, 9, 8), torch.device("cpu"))
    found = sample_labels(torch.from_numpy(labels.astype(np.int16))[None, None], places)[0, 0]
    expected = np.array(values)[weights.argmax(0)]
    np.testing.assert_array_equal(found.numpy()[clear], expected[clear])
    assert clear.mean() > 0.9
    assert {IGNORE, OUTSIDE, 0} <= set(expected[clear].tolist())
    sample = Sample(torch.zeros(1, 7, 9, 8), torch.from_numpy(labels.astype(np.int8)), (0, 0, 0))
    turned = SampleParameters(matrix=tuple(tuple(row) for row in matrix.tolist()))
    _, done = apply([sample], [turned], (7, 9, 8))
    expected[expected == OUTSIDE] = 0
    np.testing.assert_array_equal(done[0].numpy()[clear], expected[clear])


def test_a_field_without_labels_is_turned_whole():
    labels = torch.full((1, 1, 9, 9), IGNORE, dtype=torch.int16)
    places = source_places(
        rotation((0.5,))[None] * 0.5, np.zeros((1, 2)), (9, 9), torch.device("cpu")
    )
    assert (sample_labels(labels, places) == IGNORE).all()


def test_only_labelled_background_outside_the_mask_is_marked():
    classes = np.array([[IGNORE, 0, 1], [IGNORE, 0, 1]], np.int16)
    mask = np.array([[True] * 3, [False] * 3])
    expected = [[IGNORE, 0, 1], [IGNORE, OUTSIDE, 1]]
    np.testing.assert_array_equal(_marked_outside(classes, mask), expected)


def test_resampling_gives_what_nobody_labelled_no_other_value():
    labels = np.full((6, 12, 12), IGNORE, np.int16)
    labels[3] = 0
    labels[3, 4:8, 4:8] = 5
    labels[:, :, 0] = OUTSIDE
    found = resample_labels(
        labels, (6, 20, 17), spacing_mm=(5.0, 1.0, 1.0), target_mm=(5.0, 0.6, 0.7)
    )
    assert set(np.unique(found).tolist()) == {IGNORE, OUTSIDE, 0, 5}
    assert (found[[0, 1, 2, 4, 5], :, 2:] == IGNORE).all()
    assert (found[3, :, 2:] >= 0).all()
