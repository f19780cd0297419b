import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from autoseg.data import store, writing
from autoseg.data.store import StoredCases, open_case, read_patch
from autoseg.data.writing import write_case
from autoseg.errors import AutosegError


@pytest.fixture
def one(tmp_path, phantom):
    folder = tmp_path / "liver_07"
    folder.mkdir()
    image, labels = phantom((5, 8, 7), channels=2)
    write_case(folder, image, labels, {"case": "liver_07", "spacing_mm": [2.5, 1.0, 0.7]})
    return folder, image, labels


def test_a_case_comes_back_as_it_was_written(one):
    folder, image, labels = one
    case = open_case(folder)
    assert isinstance(case.stored, np.memmap)
    np.testing.assert_array_equal(case.image, image.astype(np.float16))
    np.testing.assert_array_equal(case.labels, labels)
    assert case.labels.dtype == np.int8
    assert (case.name, case.shape, case.channels) == ("liver_07", (5, 8, 7), 2)
    assert case.info["spacing_mm"] == [2.5, 1.0, 0.7]
    assert case.classes_present == (1, 2)


def test_places_are_all_voxels_of_a_small_class_and_sorted_by_class(one):
    folder, _, labels = one
    case = open_case(folder)
    for index in (1, 2):
        found = {tuple(p) for p in case.places_of(index).tolist()}
        assert found == {tuple(p) for p in np.argwhere(labels == index).tolist()}
        assert len(case.places_of(index)) == (labels == index).sum()
    assert case.places_of(3).shape == (0, 3)


def test_a_large_class_keeps_a_sample_without_repetition(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "PLACES_LEAST", 50)
    labels = np.zeros((20, 20, 30), np.int16)
    labels[:, :10] = 1  # 6000 voxels: max(50, 60)
    labels[:, 10:12, :2] = 2  # 80 voxels: 50
    labels[0, 15, 0] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_case(tmp_path / name, np.zeros((1, *labels.shape)), labels, {})
    a, b = open_case(tmp_path / "a"), open_case(tmp_path / "b")
    assert [len(a.places_of(c)) for c in (1, 2, 200)] == [60, 50, 1]
    for c in (1, 2, 200):
        places = a.places_of(c)
        assert (labels[tuple(places.T)] == c).all()
        assert len({tuple(p) for p in places.tolist()}) == len(places)
    np.testing.assert_array_equal(a.places, b.places)
    assert a.labels.dtype == np.int16


def test_a_case_without_foreground_or_without_labels(tmp_path):
    image = np.ones((1, 3, 4, 5), np.float32)
    for name, labels in {"empty": np.zeros((3, 4, 5), int), "unlabelled": None}.items():
        (tmp_path / name).mkdir()
        write_case(tmp_path / name, image, labels, {})
        assert open_case(tmp_path / name).classes_present == ()
    _, labels = read_patch(open_case(tmp_path / "unlabelled"), (0, 0, 0), (2, 2, 2))
    assert (labels == -1).all()
    assert open_case(tmp_path / "unlabelled").labels is None


@pytest.mark.parametrize(
    ("lower", "size"),
    [
        ((0, 0, 0), (5, 8, 7)),
        ((-2, 3, -1), (4, 9, 3)),
        ((4, 7, 6), (3, 3, 3)),
        ((1, 0, 2), (1, 4, 4)),
        ((-9, 0, 0), (4, 4, 4)),
        ((2, 20, 0), (4, 4, 4)),
    ],
)
def test_a_patch_equals_a_cut_from_the_padded_case(one, lower, size):
    folder, image, labels = one
    wide = 30
    padded = np.pad(image.astype(np.float16), [(0, 0)] + [(wide, wide)] * 3)
    padded_labels = np.pad(labels, wide, constant_values=-1)
    box = tuple(slice(low + wide, low + wide + n) for low, n in zip(lower, size, strict=True))
    patch, patch_labels = read_patch(open_case(folder), lower, size)
    np.testing.assert_array_equal(patch, padded[(slice(None), *box)])
    np.testing.assert_array_equal(patch_labels, padded_labels[box])
    assert patch.dtype == np.float16


def test_a_patch_is_read_to_where_it_is_wanted(one):
    case = open_case(one[0])
    into = np.full((2, 3, 4, 4), 7, np.float32)
    patch, _ = read_patch(case, (1, 2, 4), (3, 4, 4), into)
    assert patch is into
    np.testing.assert_array_equal(into, read_patch(case, (1, 2, 4), (3, 4, 4))[0])
    assert (into[..., 3] == 0).all()


@pytest.mark.parametrize("file", ["image.npy", "label.npy", "places.npy", "case.json"])
@pytest.mark.parametrize("harm", ["truncated", "missing", "garbage"])
def test_a_damaged_file_is_named_with_what_to_do(one, file, harm):
    path = one[0] / file
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"not what it was" * 20)
    with pytest.raises(AutosegError, match=r"liver_07.*run preprocess again") as caught:
        open_case(one[0])
    assert file in str(caught.value)


def test_an_array_that_does_not_fit_the_others_is_damage(one):
    np.save(one[0] / "label.npy", np.zeros((5, 8, 6), np.uint8))
    with pytest.raises(AutosegError, match=r"label.npy holds uint8 \(5, 8, 6\)"):
        open_case(one[0])


def test_arrays_or_keys_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="an image"):
        write_case(tmp_path, np.zeros((1, 2, 3, 4)), np.zeros((2, 3, 5), int), {})
    with pytest.raises(ValueError, match="'shape'"):
        write_case(tmp_path, np.zeros((1, 2, 3, 4)), None, {"shape": [1]})
    assert list(tmp_path.iterdir()) == []


def test_cases_are_held_in_memory_only_where_all_fit(three_cases: StoredCases):
    folder, ids, size = three_cases.folder, three_cases.ids, three_cases.bytes_on_disk()
    assert size == sum(f.stat().st_size for f in Path(folder).rglob("*.npy"))
    assert isinstance(StoredCases(folder, ids, size - 1)[1].stored, np.memmap)
    held = StoredCases(folder, ids, size)
    assert not isinstance(held[1].stored, np.memmap)
    assert held[1] is held[1]
    np.testing.assert_array_equal(held[1].image, three_cases[1].image)


def test_few_files_are_open_at_a_time(three_cases, monkeypatch):
    monkeypatch.setattr(store, "OPEN_CASES", 2)
    first = three_cases[0]
    assert [three_cases[i].name for i in (1, 2)] == ["case_1", "case_2"]
    assert three_cases[0] is not first
    assert len(three_cases._opened) == 2


def test_cases_travel_to_another_process_as_their_names(three_cases):
    three_cases[0]
    message = pickle.dumps(three_cases)
    assert len(message) < 1000
    assert pickle.loads(message)[2].shape == three_cases[2].shape


def test_missing_cases_are_told_at_once(three_cases):
    with pytest.raises(AutosegError, match=r"2 prepared cases are missing.*first x"):
        StoredCases(three_cases.folder, ["case_0", "x", "y"])
