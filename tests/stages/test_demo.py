"""Phantoms: readable as any dataset, the same for the same arguments, and as their look says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.ndimage import label as components

from autoseg.documents.dataset import read_dataset
from autoseg.errors import AutosegError
from autoseg.files import read_json, sha256_file, write_json
from autoseg.image.reading import read_header, read_image, read_labels
from autoseg.stages.demo import LOOKS, make_phantom, phantom

TINY = dataclasses.replace(LOOKS["mr"], shape_vox=(20, 24, 18), spacing_mm=(3.0, 3.0, 3.0))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): sha256_file(p) for p in files}


@pytest.mark.parametrize("look", list(LOOKS))
def test_every_look_is_a_sound_dataset(look: str, tmp_path: Path) -> None:
    folder = make_phantom(tmp_path, LOOKS[look], cases=2, test_cases=1)
    dataset, problems = read_dataset(folder)
    assert problems == []
    assert dataset.channels == LOOKS[look].channels
    assert (len(dataset.cases), len(dataset.test_cases)) == (2, 1)
    for case in (*dataset.cases, *dataset.test_cases):
        assert case.label is not None
        image, found = read_image(case.images, "RAS")
        labels, more = read_labels(case.label, "RAS", image.grid)
        assert found + more == []
        assert image.array.shape == (len(dataset.channels), *LOOKS[look].shape_vox)
        assert image.grid.spacing_mm == pytest.approx(LOOKS[look].spacing_mm)
        assert image.grid.shape == labels.grid.shape
        sparse = look == "scribbles" and case in dataset.cases
        assert np.unique(labels.array).tolist() == [0, 1, 2, 3][: 4 if sparse else 3]


def test_files_hold_what_was_drawn_the_right_way_round(tmp_path: Path) -> None:
    folder = make_phantom(tmp_path, TINY, cases=1, test_cases=0, seed=7)
    image, labels = phantom(TINY, 7, 0)
    (case,) = read_dataset(folder)[0].cases
    assert case.label is not None
    assert read_header(case.images[0]).grid.orientation == "RAS"
    np.testing.assert_array_equal(read_image(case.images, "RAS")[0].array, image)
    np.testing.assert_array_equal(read_labels(case.label, "RAS")[0].array[0], labels)


def test_the_arguments_decide_every_voxel(tmp_path: Path) -> None:
    one = digests(make_phantom(tmp_path / "a", TINY, cases=2, test_cases=1))
    two = digests(make_phantom(tmp_path / "b", TINY, cases=2, test_cases=1))
    other = digests(make_phantom(tmp_path / "c", TINY, cases=2, test_cases=1, seed=2))
    assert one == two
    assert len(set(one.values()) & set(other.values())) == 0


def test_the_same_phantom_is_left_alone_and_another_replaces_it(tmp_path: Path) -> None:
    folder = make_phantom(tmp_path, TINY, cases=2, test_cases=1)
    mark = folder / "imagesTr" / "mark.json"
    mark.write_text("{}")
    make_phantom(tmp_path, TINY, cases=2, test_cases=1)
    assert mark.exists()
    make_phantom(tmp_path, TINY, cases=1, test_cases=0)
    assert not mark.exists()
    assert [p.name for p in (folder / "imagesTr").iterdir()] == ["phantom_001_0000.nii.gz"]
    assert [p.name for p in tmp_path.iterdir()] == ["Dataset001_Phantom"]


@pytest.mark.parametrize("holds", ["nothing", "a dataset"])
def test_a_folder_of_the_users_is_never_replaced(holds: str, tmp_path: Path) -> None:
    theirs = tmp_path / "Dataset001_Phantom"
    theirs.mkdir()
    if holds == "a dataset":
        write_json(theirs / "dataset.json", {"labels": {"background": 0}})
    before = digests(theirs)
    with pytest.raises(AutosegError, match="is no phantom"):
        make_phantom(tmp_path, TINY, cases=1)
    assert digests(theirs) == before


def test_lesions_lie_inside_the_organ_as_one_piece_each() -> None:
    for index in range(6):
        labels = phantom(LOOKS["mr"], 1, index)[1]
        organ = components(labels > 0)[1]
        lesion, count = components(labels == 2)
        assert (organ, count) == (1, 1)
        shell = binary_dilation(lesion) & (lesion == 0)
        assert (labels[shell] == 1).mean() > 0.95


def test_lesion_share_and_factor_do_what_they_say() -> None:
    few = dataclasses.replace(TINY, lesion_share=0.5)
    present = [bool((phantom(few, 1, i)[1] == 2).any()) for i in range(8)]
    assert sum(present) == 4
    large = dataclasses.replace(LOOKS["mr"], lesion_factor=3.0)

    def mean_lesion_vox(look: object) -> float:
        return float(np.mean([(phantom(look, 1, i)[1] == 2).sum() for i in range(6)]))

    assert 2.3 < mean_lesion_vox(large) / mean_lesion_vox(LOOKS["mr"]) < 3.5


def test_tissues_have_the_values_that_the_look_names() -> None:
    image, labels = phantom(LOOKS["ct"], 1, 0)
    assert image[0][labels == 1].mean() == pytest.approx(90, abs=6)
    assert image[0][labels == 2].mean() == pytest.approx(45, abs=12)
    assert image[0][0, 0].mean() == pytest.approx(-1000, abs=6)
    assert image[0].min() >= -1024


def test_brightness_alone_does_not_find_the_lesion() -> None:
    image, labels = phantom(LOOKS["sequences"], 1, 0)
    bright = image[1] > 500
    assert (bright & (labels == 0)).sum() > 0.2 * (bright & (labels == 2)).sum() > 0


def test_regions_and_scribbles_are_declared_as_nnunet_reads_them(tmp_path: Path) -> None:
    nested = dataclasses.replace(TINY, regions=True)
    labels = read_dataset(make_phantom(tmp_path, nested, cases=1, name="Dataset002_R"))[0].labels
    assert labels.structures == {"organ with lesion": (1, 2), "lesion": (2,)}
    assert [r.paint for r in labels.regions] == [1, 2]
    sparse = dataclasses.replace(TINY, labelled_slices=4)
    labels = read_dataset(make_phantom(tmp_path, sparse, cases=1, name="Dataset003_S"))[0].labels
    assert (labels.ignore, labels.structures) == (3, {"organ": (1,), "lesion": (2,)})


def test_only_some_slices_of_training_cases_are_labelled(tmp_path: Path) -> None:
    sparse = dataclasses.replace(TINY, labelled_slices=4)
    dataset, _ = read_dataset(make_phantom(tmp_path, sparse, cases=2, test_cases=1))
    for index, case in enumerate((*dataset.cases, *dataset.test_cases)):
        assert case.label is not None
        found = read_labels(case.label, "RAS")[0].array[0]
        _, whole = phantom(TINY, 1, index)
        seen = ~(found == 3).all((0, 1))
        assert seen.sum() == (4 if case in dataset.cases else whole.shape[2])
        np.testing.assert_array_equal(found[..., seen], whole[..., seen])
        assert (found == 3).any((0, 1)).sum() == whole.shape[2] - seen.sum()
        assert (found == 2).any()


def test_looks_that_came_later_change_nothing_of_the_others(tmp_path: Path) -> None:
    """Neither the voxels nor what a phantom is known by: one that lies there is not made again."""
    folder = make_phantom(tmp_path, TINY, cases=1, test_cases=0)
    recipe = read_json(folder / "dataset.json")["phantom"]
    assert list(recipe["look"]) == [
        "channels", "tissues", "noise", "bias", "shape_vox", "spacing_mm", "file_ending",
        "lesion_share", "lesion_factor",
    ]  # fmt: skip
    assert read_json(folder / "dataset.json")["labels"] == {
        "background": 0, "organ": 1, "lesion": 2
    }  # fmt: skip


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every channel"):
        make_phantom(tmp_path, dataclasses.replace(TINY, channels=("T1", "T2")))
    with pytest.raises(ValueError, match="needs a case"):
        make_phantom(tmp_path, TINY, cases=0)
