"""Bricks, packed labels and half floats against plain arrays; what a patch touches."""

import json

import numpy as np
import pytest

from autoseg.data.bricks import IMAGE_BRICK, LABEL_BRICK, bits_for, cut, laid, spans
from autoseg.data.store import open_case, read_patch
from autoseg.data.writing import narrowed, write_case


@pytest.mark.parametrize(
    "shape", [(5, 8, 7), (40, 56, 40), (4, 16, 32), (33, 50, 101), (17, 1, 33)]
)
def test_a_box_of_bricks_is_the_box_of_the_volume(shape):
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((2, *shape))
    for brick in (IMAGE_BRICK, LABEL_BRICK, shape):
        stored = laid(volume, brick)
        assert stored.shape == (2, volume[0].size)
        for _ in range(20):
            lower = [int(rng.integers(n)) for n in shape]
            size = [int(rng.integers(1, n - low + 1)) for n, low in zip(shape, lower, strict=True)]
            box = tuple(slice(low, low + n) for low, n in zip(lower, size, strict=True))
            found = np.full((2, *size), np.nan)
            cut(stored, shape, brick, lower, found)
            np.testing.assert_array_equal(found, volume[(slice(None), *box)])
            # the runs that are announced hold all that is read
            held = np.zeros(volume[0].size, bool)
            for first, last in spans(shape, brick, lower, [s.stop for s in box]):
                held[first:last] = True
            assert np.isin(found[0], stored[0][held]).all()


def test_a_patch_touches_at_most_one_and_a_half_times_its_bytes():
    """Image and labels, in whole pages of 4096 bytes; row by row it would be four times."""
    shape, rng = (432, 512, 512), np.random.default_rng(1)
    packed = (shape[0], shape[1], shape[2] // 2)
    for _ in range(50):
        low = [int(rng.integers(n - 127)) for n in shape]
        top = [n + 128 for n in low]
        image = 4 * 2 * sum(z - a for a, z in spans(shape, IMAGE_BRICK, low, top))
        halves = [[low[0], low[1], low[2] // 2], [top[0], top[1], -(-top[2] // 2)]]
        labels = sum(z - a for a, z in spans(packed, LABEL_BRICK, *halves))
        for first, last in spans(shape, IMAGE_BRICK, low, top):
            assert 2 * first % 4096 == 2 * last % 4096 == 0
        assert image + labels <= 1.5 * 128**3 * (4 * 2 + 0.5)


def test_bricks_begin_at_a_page(tmp_path):
    write_case(tmp_path, np.random.default_rng(0).standard_normal((1, 9, 20, 40)), None, {})
    with (tmp_path / "image.npy").open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        assert file.tell() == 4096


@pytest.mark.parametrize(
    ("least", "most", "bits"), [(-1, 2, 2), (-2, 1, 2), (-1, 3, 4), (0, 200, 8), (-2, 900, 16)]
)
def test_labels_come_back_from_few_bits(tmp_path, least, most, bits):
    labels = np.random.default_rng(3).integers(least, most + 1, (9, 21, 35)).astype(np.int16)
    labels[0, 0, :2] = least, most
    assert bits_for(labels) == (bits, least)
    write_case(tmp_path, np.zeros((1, *labels.shape)), labels, {})
    case = open_case(tmp_path)
    np.testing.assert_array_equal(case.labels, labels)
    assert case.labels.dtype == (np.int8 if most < 128 else np.int16)
    _, found = read_patch(case, (2, 3, 5), (4, 7, 20))
    np.testing.assert_array_equal(found, labels[2:6, 3:10, 5:25])
    assert (tmp_path / "label.npy").stat().st_size <= 4096 + 9 * 21 * -(-35 * bits // 8)


def test_half_floats_are_kept_only_where_they_lose_nothing_that_matters():
    rng = np.random.default_rng(4)
    plain = rng.standard_normal((2, 20, 30, 30)).astype(np.float32)
    half = narrowed(plain)
    assert half.dtype == np.float16
    large = np.abs(plain) >= 2.0**-14
    assert (np.abs(half - plain)[large] <= 2.0**-11 * np.abs(plain)[large]).all()
    assert (np.abs(half - plain)[~large] <= 2.0**-25).all()
    for faulty in (plain * 1e5, plain + 30_000, plain * 1e-7, np.full_like(plain, 0.1)):
        # one such channel is enough
        image = np.concatenate([plain[:1], faulty[:1]])
        assert narrowed(image).dtype == np.float32
        np.testing.assert_array_equal(narrowed(image), image)
    assert narrowed(np.zeros_like(plain)).dtype == np.float16


def test_cases_of_earlier_versions_are_read_as_they_are(tmp_path, phantom):
    """Schema 1: float32 row by row, whole labels, places of three numbers."""
    image, labels = phantom((9, 14, 12), channels=2)
    write_case(tmp_path, image, labels, {"spacing_mm": [1.0, 1.0, 1.0]})
    places = np.concatenate([open_case(tmp_path).places_of(c) for c in (1, 2)])
    document = json.loads((tmp_path / "case.json").read_text())
    document = {k: v for k, v in document.items() if k not in ("bricks", "labels")} | {"schema": 1}
    (tmp_path / "case.json").write_text(json.dumps(document))
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "label.npy", labels.astype(np.int8))
    np.save(tmp_path / "places.npy", places)
    case = open_case(tmp_path)
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.labels, labels)
    assert (case.kind, case.labels.dtype) == (np.float32, np.int8)
    np.testing.assert_array_equal(case.places_of(2), np.argwhere(labels == 2))
    assert labels[case.place_of(2, 0)] == 2
    patch, found = read_patch(case, (1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(patch, image[:, 1:5, 2:7, 3:9])
    np.testing.assert_array_equal(found, labels[1:5, 2:7, 3:9])


def test_a_case_takes_less_than_half_the_bytes_of_float32(tmp_path, phantom):
    image, labels = phantom((38, 52, 36))
    write_case(tmp_path, image, labels, {})
    before = image.nbytes + labels.size + 12 * np.count_nonzero(labels)
    now = sum(f.stat().st_size for f in tmp_path.glob("*.npy"))
    assert now <= before / 2
