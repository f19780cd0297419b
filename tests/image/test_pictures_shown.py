"""Photographs are read as viewers show them; a picture is one, whichever axis its file has flat."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image, ImageOps

from autoseg.image.reading import read_header, read_image, read_labels, write_labels
from autoseg.image.volume import Grid

COLOUR = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)


def agrees(path: Path, shown: np.ndarray) -> None:
    """Both readers against what a viewer shows, (H, W) or (H, W, C)."""
    image, _ = read_image([path], "stored")
    wanted = shown.reshape(*shown.shape[:2], -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(image.array[:, 0], wanted)
    assert image.grid.shape == (shown.shape[1], shown.shape[0], 1)
    assert read_header(path).grid == image.grid


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "grey.png", "lzw.tif"])
def test_orientation_is_obeyed(tmp_path: Path, name: str, orientation: int) -> None:
    picture = Image.fromarray(COLOUR[..., 0] if name == "grey.png" else COLOUR)
    exif = picture.getexif()
    exif[274] = orientation
    packing = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    picture.save(tmp_path / name, exif=exif, **packing)
    with Image.open(tmp_path / name) as stored:
        agrees(tmp_path / name, np.asarray(ImageOps.exif_transpose(stored)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_plain_tif(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COLOUR, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    with Image.open(path) as stored:
        agrees(path, np.asarray(ImageOps.exif_transpose(stored)))


def test_a_label_map_lies_on_the_shown_picture(tmp_path: Path) -> None:
    picture = Image.fromarray(COLOUR)
    exif = picture.getexif()
    exif[274] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    grid = read_image([tmp_path / "a.png"], "stored")[0].grid
    drawn = np.arange(35, dtype=np.int32).reshape(1, 7, 5)
    write_labels(tmp_path / "b.png", drawn, "stored", grid)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), drawn[0])


AFFINE = np.array([[0, 0, -3.0, 10], [2, 0, 0, 20], [0, 1.5, 0, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_along_any_axis(tmp_path: Path, axis: int, suffix: str) -> None:
    pixels = np.arange(20, dtype=np.int16).reshape(4, 5)
    order = [0, 1]
    order.insert(axis, 2)
    affine = AFFINE[:, [*order, 3]]
    stored = np.expand_dims(pixels, axis)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(stored, affine), path)
    if suffix != ".nii.gz":
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path := tmp_path / f"a{suffix}"))
    image, problems = read_image([path], "stored")
    assert problems == []
    assert image.grid.dimensions == 2
    assert image.spacing_mm == pytest.approx((3, 1.5, 2))
    np.testing.assert_array_equal(image.array[0, 0], pixels.T)
    np.testing.assert_allclose(np.asarray(image.grid.affine), AFFINE, atol=1e-5)
    assert read_header(path).grid == image.grid
    assert Grid.from_dict(image.grid.to_dict()) == image.grid
    # written back as the file was
    out = tmp_path / f"out{suffix}"
    write_labels(out, image.array[0].astype(np.int32), "stored", image.grid)
    back = sitk.ReadImage(str(out))
    source = sitk.ReadImage(str(path))
    assert back.GetSize() == source.GetSize()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(source))
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(back, what)(), getattr(source, what)(), atol=1e-5)
    np.testing.assert_array_equal(
        read_labels(out, "stored", image.grid)[0].array, image.array.astype(np.int32)
    )
