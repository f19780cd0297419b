"""Arrays become cases that nibabel and Pillow read back as they were."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from autoseg import api
from autoseg.errors import AutosegError
from autoseg.interop.conversion.arrays import Arrays, write_case
from tests.interop.sources import AFFINE, SHAPE, drawing, voxels


@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.uint8, np.int64, bool])
@pytest.mark.parametrize("channels", [0, 2])
def test_a_volume_comes_back_where_it_was(tmp_path, dtype: type, channels: int) -> None:
    image = (voxels(0, (channels, *SHAPE) if channels else SHAPE) % 200).astype(dtype)
    paths = write_case(tmp_path, "p", Arrays(image, drawing(0), AFFINE))
    assert [p.name for p in paths[:-1]] == [f"p_{n:04d}.nii.gz" for n in range(channels or 1)]
    for path, channel in zip(paths[:-1], image if channels else image[None], strict=True):
        found = nib.load(path)
        assert np.array_equal(np.asarray(found.dataobj), channel)
        assert np.allclose(found.affine, AFFINE, atol=1e-5)
    assert paths[-1] == tmp_path / "labelsTr/p.nii.gz"
    assert np.array_equal(np.asarray(nib.load(paths[-1]).dataobj), drawing(0))


def test_spacing_alone_places_a_volume(tmp_path) -> None:
    for sides in ((1, 2, 3), np.array([1, 2, 3], np.float32)):
        arrays = Arrays(voxels(0), spacing_mm=sides)
        (path,) = write_case(tmp_path, "p", arrays, test=True, overwrite=True)
    assert path == tmp_path / "imagesTs/p_0000.nii.gz"
    assert np.array_equal(nib.load(path).affine, np.diag([1, 2, 3, 1]))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back(tmp_path, channels: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (channels, 9, 7), np.uint8)
    labels = rng.integers(0, 3, (9, 7))
    arrays = Arrays(image if channels > 1 else image[0], labels)
    path, label = write_case(tmp_path, "p", arrays)
    with Image.open(path) as found:
        back = np.asarray(found)
    assert np.array_equal(back if channels == 1 else back.transpose(2, 0, 1), image.squeeze())
    with Image.open(label) as found:
        assert np.array_equal(np.asarray(found), labels)
    floats = write_case(tmp_path, "q", Arrays(image / 3), test=True)
    from autoseg.image.reading import read_image

    volume, _ = read_image(floats, "stored")
    assert np.allclose(volume.array[:, 0], image / 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": np.zeros((3, 4))}, "expected \\(X, Y, Z\\)"),
        ({"labels": None}, "needs labels"),
        ({"labels": np.zeros((2, 2, 2))}, "differ in size"),
        ({"labels": np.full(SHAPE, 0.5)}, "not whole numbers"),
        ({"labels": np.full(SHAPE, np.nan)}, "not whole numbers"),
        ({"labels": np.full(SHAPE, -1)}, "not whole numbers from 0 on"),
        ({"labels": np.full(SHAPE, 2**40)}, "not whole numbers"),
        ({"labels": np.full(SHAPE, "x")}, "not whole numbers"),
        ({"image": np.full(SHAPE, np.nan)}, "NaN"),
        ({"affine": None, "spacing_mm": (1, 1)}, "three lengths"),
        ({"affine": None, "spacing_mm": (1, -1, 1)}, "three lengths"),
        ({"affine": np.eye(3)}, "must be 4 x 4"),
        ({"affine": np.zeros((4, 4))}, "spacing"),
        ({"spacing_mm": (1, 1, 1)}, "not both"),
        ({"image": np.full(SHAPE, "x")}, "expected"),
        ({"case": "../p"}, "cannot be the name of a file"),
    ],
)
def test_what_cannot_be_a_case_is_told(given: dict, message: str, tmp_path) -> None:
    usual = {"case": "p", "image": voxels(0), "labels": drawing(0), "affine": AFFINE}
    with pytest.raises(AutosegError, match=message):
        all_given = {**usual, **given}
        write_case(tmp_path / "d", all_given.pop("case"), Arrays(**all_given))
    assert not (tmp_path / "d").exists()


def test_a_case_is_replaced_only_with_leave_and_as_a_whole(tmp_path) -> None:
    two = Arrays(voxels(0, (2, *SHAPE)), drawing(0), AFFINE)
    write_case(tmp_path, "p", two)
    write_case(tmp_path, "p1", two)
    with pytest.raises(AutosegError, match="overwrite=True"):
        write_case(tmp_path, "p", two)
    one = Arrays(voxels(1), affine=AFFINE)
    write_case(tmp_path, "p", one, test=True, overwrite=True)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.gz"))
    assert left == [
        "imagesTr/p1_0000.nii.gz",
        "imagesTr/p1_0001.nii.gz",
        "imagesTs/p_0000.nii.gz",
        "labelsTr/p1.nii.gz",
    ]


def test_cases_lie_in_the_dataset_of_the_root(tmp_path) -> None:
    paths = api.write_case("12_Mine", "p", voxels(0), drawing(0), AFFINE, root=tmp_path)
    assert paths[0] == tmp_path / "raw/Dataset012_Mine/imagesTr/p_0000.nii.gz"
