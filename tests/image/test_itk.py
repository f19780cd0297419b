"""SimpleITK's geometry in RAS, against its own voxel-to-world function."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from autoseg.errors import BadData
from autoseg.image.itk import read_itk, read_itk_header, write_itk
from autoseg.image.volume import Grid


def oblique() -> sitk.Image:
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    rotation = Rotation.from_euler("xyz", (15, -40, 70), degrees=True).as_matrix()
    image.SetDirection(rotation.ravel().tolist())
    image.SetSpacing((0.4, 0.9, 6.0))
    image.SetOrigin((5.0, -80.0, 33.0))
    return image


@pytest.mark.parametrize(("suffix", "kind"), [(".nrrd", "nrrd"), (".mha", "meta")])
def test_every_voxel_lies_where_simpleitk_puts_it(tmp_path: Path, suffix: str, kind: str) -> None:
    image, path = oblique(), tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path))
    array, header = read_itk(path, "a", kind)
    assert read_itk_header(path, "a", kind) == header
    affine = np.asarray(header.grid.affine)
    for voxel in [(0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2), (4, 3, 2)]:
        x, y, z = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose((affine @ (*voxel, 1.0))[:3], (-x, -y, z), atol=1e-6)
        assert array[(0, *voxel)] == image[voxel]


def test_what_is_written_is_the_same_image_to_simpleitk(tmp_path: Path) -> None:
    sitk.WriteImage(oblique(), str(tmp_path / "a.nrrd"))
    array, header = read_itk(tmp_path / "a.nrrd", "a", "nrrd")
    write_itk(tmp_path / "b.mha", array, header.grid)
    back = sitk.ReadImage(str(tmp_path / "b.mha"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(oblique()))
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(back, name)(), getattr(oblique(), name)(), atol=1e-9)


def test_channels_are_written_as_components(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    write_itk(tmp_path / "a.nrrd", array, Grid.of((5, 4, 3), np.eye(4)))
    found, header = read_itk(tmp_path / "a.nrrd", "a", "nrrd")
    assert header.channels == 2
    np.testing.assert_array_equal(found, array)


def test_a_flat_image_is_one_slice(tmp_path: Path) -> None:
    flat = sitk.GetImageFromArray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    flat.SetSpacing((0.5, 2.0))
    sitk.WriteImage(flat, str(tmp_path / "a.mha"))
    array, header = read_itk(tmp_path / "a.mha", "a", "meta")
    assert array.shape == (1, 4, 3, 1)
    assert header.grid.dimensions == 2
    assert header.grid.spacing_mm == (0.5, 2.0, 1.0)


def test_four_dimensions_are_refused(tmp_path: Path) -> None:
    volume = sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), dtype=np.uint8), isVector=False)
    sitk.WriteImage(volume, str(tmp_path / "a.nrrd"))
    for read in (read_itk, read_itk_header):
        with pytest.raises(BadData, match="5 x 4 x 3 x 2"):
            read(tmp_path / "a.nrrd", "a", "nrrd")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.nrrd", b"space directions: (1,0,0) (0,1,0) (0,0,1)\n", b""),
        ("a.nrrd", b"space directions: (1,0,0) (0,1,0) (0,0,1)\n", b"spacings: NaN NaN NaN\n"),
        ("a.mha", b"ElementSpacing = 1 1 1\n", b""),
    ],
)
def test_a_header_without_spacing_is_told(
    tmp_path: Path, name: str, old: bytes, new: bytes
) -> None:
    path, array = tmp_path / name, np.ones((3, 4, 5), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    assert read_itk(path, "a", name[2:].replace("mha", "meta"))[1].problems == ()
    raw = path.read_bytes()
    assert old in raw
    raw = raw.replace(old, new).replace(b"space: left-posterior-superior\n", b"")
    path.write_bytes(raw.replace(b"space origin: (0,0,0)\n", b""))
    (problem,) = read_itk(path, "a", name[2:].replace("mha", "meta"))[1].problems
    assert not problem.fatal
    assert "1 mm is taken" in problem.what
