"""NIfTI against nibabel's own reading, and the files that break readers."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from autoseg.errors import BadData, Problem
from autoseg.image.nifti import read_nifti, read_nifti_header, write_nifti
from autoseg.image.volume import Grid

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix() * (0.7, 1, 3)
OBLIQUE[:3, 3] = (-40.0, 12.0, 99.0)


def voxels(dtype: str = "int16", shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def saved(
    path: Path,
    array: np.ndarray,
    sform: np.ndarray | None = OBLIQUE,
    qform: np.ndarray | None = None,
    kind: type = nib.Nifti1Image,
    **fields: object,
) -> Path:
    image = kind(array, np.eye(4))
    image.set_sform(sform, code=0 if sform is None else 1)
    image.set_qform(qform, code=0 if qform is None else 1)
    for name, value in fields.items():
        image.header[name] = value
    content = bytearray(image.to_bytes())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else bytes(content))
    return path


def patched(path: Path, offset: int, dtype: str, values: object) -> Path:
    """The NIfTI-1 file with header bytes replaced, as a broken exporter would leave them."""
    content = bytearray(path.read_bytes())
    patch = np.asarray(values, dtype=dtype).tobytes()
    content[offset : offset + len(patch)] = patch
    path.write_bytes(bytes(content))
    return path


def fatal(path: Path) -> Problem:
    with pytest.raises(BadData) as caught:
        read_nifti(path, "case")
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["uint8", ">i2", "int16", "uint16", "float32", "float64"])
def test_reads_what_nibabel_reads(tmp_path: Path, suffix: str, kind: type, dtype: str) -> None:
    path = saved(tmp_path / f"a{suffix}", voxels(dtype), kind=kind)
    array, header = read_nifti(path, "a")
    reference = nib.load(path)
    np.testing.assert_array_equal(array[0], np.asarray(reference.dataobj))
    np.testing.assert_array_equal(header.grid.affine, reference.affine)
    assert header.problems == ()
    assert (header.channels, header.dtype) == (1, np.dtype(dtype).name)
    assert read_nifti_header(path, "a") == header


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    array = voxels()
    image = nib.Nifti1Image(array, OBLIQUE, nib.Nifti1Header(endianness=">"))
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    found, header = read_nifti(tmp_path / "a.nii", "a")
    np.testing.assert_array_equal(found[0], array)
    np.testing.assert_allclose(header.grid.affine, OBLIQUE, atol=1e-5)


def test_scaling_is_applied(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", voxels())
    patched(path, 112, "<f4", [0.25, -1024.0])
    found = read_nifti(path, "a")[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], voxels() * 0.25 - 1024)
    np.testing.assert_allclose(found[0], np.asarray(nib.load(path).dataobj))
    patched(path, 112, "<f4", [0.0, 5.0])
    np.testing.assert_array_equal(read_nifti(path, "a")[0][0], voxels())


def test_the_sform_wins_where_its_code_is_set_else_the_qform(tmp_path: Path) -> None:
    qform = np.diag([-2.0, -2.0, 2.0, 1.0])
    array = voxels()
    grid = read_nifti_header(saved(tmp_path / "a.nii", array, OBLIQUE, None), "a").grid
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    grid = read_nifti_header(saved(tmp_path / "b.nii", array, None, qform), "b").grid
    np.testing.assert_allclose(grid.affine, qform, atol=1e-6)
    assert grid.orientation == "LPS"
    path = patched(saved(tmp_path / "c.nii", array, None, None), 80, "<f4", [0.5, 0.6, 0.7])
    grid = read_nifti_header(path, "c").grid
    np.testing.assert_allclose(grid.affine, np.diag([0.5, 0.6, 0.7, 1.0]), atol=1e-6)


def test_two_positions_that_disagree_are_a_warning(tmp_path: Path) -> None:
    shifted = np.diag([2.0, 2.0, 2.0, 1.0])
    shifted[0, 3] = 3.0
    path = saved(tmp_path / "a.nii.gz", voxels(), np.diag([2.0, 2.0, 2.0, 1.0]), shifted)
    (problem,) = read_nifti(path, "a")[1].problems
    assert "sform and qform" in problem.what
    assert "3.00 mm" in problem.found
    assert not problem.fatal
    shifted[0, 3] = 0.19
    path = saved(tmp_path / "b.nii.gz", voxels(), np.diag([2.0, 2.0, 2.0, 1.0]), shifted)
    assert read_nifti(path, "b")[1].problems == ()


def test_a_sheared_file_is_read_with_a_warning(tmp_path: Path) -> None:
    sheared = np.diag([1.0, 1.0, 3.0, 1.0])
    sheared[1, 2] = 0.8
    array, header = read_nifti(saved(tmp_path / "a.nii", voxels(), sheared), "a")
    np.testing.assert_array_equal(array[0], voxels())
    (problem,) = header.problems
    assert "right angles" in problem.what
    assert "14.9 degrees" in problem.found
    assert not problem.fatal


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1), (4, 5, 6, 1), (4, 5, 6, 1, 1)])
def test_missing_and_trailing_axes_of_one_are_no_matter(tmp_path: Path, shape: tuple) -> None:
    path = saved(tmp_path / "a.nii.gz", voxels(shape=shape))
    array, header = read_nifti(path, "a")
    assert array.shape == (1, *(*shape, 1, 1)[:3])
    assert header.grid.dimensions == (3 if len(shape) > 2 and shape[2] > 1 else 2)
    assert array.ravel().tolist() == voxels(shape=shape).ravel().tolist()


def test_four_dimensions_are_refused(tmp_path: Path) -> None:
    problem = fatal(saved(tmp_path / "a.nii.gz", voxels(shape=(3, 4, 5, 2))))
    assert "4D" in problem.what
    assert "3 x 4 x 5 x 2" in problem.found
    with pytest.raises(BadData):
        read_nifti_header(tmp_path / "a.nii.gz", "a")


def test_colours_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "RGB" in fatal(saved(tmp_path / "a.nii", colours)).found
    assert "complex64" in fatal(saved(tmp_path / "b.nii", voxels("complex64"))).found


@pytest.mark.parametrize("value", [0.0, np.nan, -1.0])
def test_spacing_that_cannot_be_is_refused(tmp_path: Path, value: float) -> None:
    path = patched(saved(tmp_path / "a.nii", voxels(), None, None), 84, "<f4", [value])
    problem = fatal(path)
    assert "spacing" in problem.what
    assert "mm" in problem.found


def test_a_singular_sform_is_refused(tmp_path: Path) -> None:
    flat = np.diag([1.0, 1.0, 1.0, 1.0])
    flat[:3, 2] = (1.0, 1.0, 0.0)
    assert "one plane" in fatal(saved(tmp_path / "a.nii", voxels(), flat)).what
    zero = np.diag([1.0, 1.0, 0.0, 1.0])
    assert "zero" in fatal(saved(tmp_path / "b.nii", voxels(), zero)).what


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000.0), (2, 1.0), (3, 0.001), (0, 1.0)])
def test_units_become_millimetres(tmp_path: Path, unit: int, factor: float) -> None:
    path = saved(tmp_path / "a.nii", voxels(), np.diag([1.0, 2.0, 3.0, 1.0]), xyzt_units=unit)
    header = read_nifti_header(path, "a")
    assert header.grid.spacing_mm == pytest.approx((factor, 2 * factor, 3 * factor))
    assert [p.what for p in header.problems] == ["lengths are not stored in mm"] * (factor != 1)


@pytest.mark.parametrize("kept", [10, 60, 300, -20])
def test_a_file_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    for suffix in (".nii", ".nii.gz"):
        path = saved(tmp_path / f"cut{suffix}", voxels())
        path.write_bytes(path.read_bytes()[:kept])
        problem = fatal(path)
        assert problem.what == "the file cannot be read"
        assert f"cut{suffix}" in problem.found


def test_damaged_compression_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii.gz", voxels())
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(bytes(content))
    assert "a.nii.gz" in fatal(path).found


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "int16"])
def test_what_is_written_is_read_back_by_nibabel(tmp_path: Path, suffix: str, dtype: str) -> None:
    path, array = tmp_path / f"a{suffix}", voxels(dtype)
    write_nifti(path, array, Grid.of(array.shape, OBLIQUE))
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), array)
    assert image.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_allclose(image.get_sform(), OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), OBLIQUE, atol=1e-5)
    codes = [int(image.header[name]) for name in ("sform_code", "qform_code")]
    assert codes == [1, 1]
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_sheared_grid_is_written_without_a_qform(tmp_path: Path) -> None:
    sheared = OBLIQUE.copy()
    sheared[0, 2] += 0.5
    write_nifti(tmp_path / "a.nii", voxels(), Grid.of((5, 6, 7), sheared))
    image = nib.load(tmp_path / "a.nii")
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_allclose(image.affine, sheared, atol=1e-5)


def test_equal_volumes_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, voxels(), Grid.of((5, 6, 7), OBLIQUE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_side_beyond_nifti_1_is_written_as_nifti_2(tmp_path: Path) -> None:
    array = np.ones((33000, 1, 1), dtype=np.uint8)
    write_nifti(tmp_path / "a.nii", array, Grid.of(array.shape, np.eye(4)))
    assert read_nifti(tmp_path / "a.nii", "a")[0].shape == (1, 33000, 1, 1)


def test_real_files_read_as_nibabel_reads_them(real_data: Path) -> None:
    for path in (
        sorted(real_data.glob("volumes/*_sm.nii.gz"))
        + sorted(real_data.glob("Dataset004*/imagesTr/*_0000.nii.gz"))[:3]
    ):
        array, header = read_nifti(path, "a")
        reference = nib.load(path)
        np.testing.assert_allclose(array[0], np.asarray(reference.dataobj), rtol=1e-6)
        np.testing.assert_array_equal(header.grid.affine, reference.affine)


def test_gzip_of_several_members_padded_and_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", voxels())
    content, packed = path.read_bytes(), tmp_path / "a.nii.gz"
    half = len(content) // 2
    members = gzip.compress(content[:half]) + gzip.compress(content[half:])
    blocks = gzip.compress(content) + gzip.compress(b"")  # ends with an empty one, as bgzip's
    for raw in (gzip.compress(content), members, blocks, members + b"\0" * 16):
        packed.write_bytes(raw)
        np.testing.assert_array_equal(read_nifti(packed, "a")[0][0], voxels())
    whole = gzip.compress(content)
    for raw in (whole[:-20], whole[:-8] + b"1234" + whole[-4:], whole[:-1] + b"\xff"):
        packed.write_bytes(raw)
        assert "the compressed data ends early" in fatal(packed).found
