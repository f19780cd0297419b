"""Reading and writing by format: round trips, disagreements, hostile files."""

from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image

from autoseg.errors import AutosegError, BadData, Problem
from autoseg.image.reading import (
    SUFFIXES,
    case_of,
    read_header,
    read_image,
    read_labels,
    suffix_of,
    write_image,
    write_labels,
)
from autoseg.image.volume import Grid

# k, j, i as SimpleITK sees it.
STORED = np.random.default_rng(0).integers(0, 90, (4, 5, 6)).astype(np.int16)
AFFINE = np.array([[0, -0.5, 0, 9], [0, 0, 2.0, -7], [1.25, 0, 0, 3], [0, 0, 0, 1]])
GRID = Grid.of((6, 5, 4), AFFINE)
AXES = ["stored", "stored:ijk", "RAS", "SAR", "ILP"]


def itk_image(array: np.ndarray = STORED, vector: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(array, isVector=vector)
    if image.GetDimension() == 3:
        lps = np.diag([-1, -1, 1, 1]) @ AFFINE
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
    return image


def fatal(path: Path) -> Problem:
    problems = []
    for read in (read_header, lambda p: read_image([p], "stored"), lambda p: read_labels(p, "RAS")):
        with pytest.raises(BadData) as caught:
            read(path)
        problems += caught.value.problems
    assert len(set(problems)) == 1
    assert path.name in problems[0].found
    assert problems[0].fix
    return problems[0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr"])
@pytest.mark.parametrize("axes", AXES)
def test_a_volume_is_the_same_in_every_format(tmp_path: Path, suffix: str, axes: str) -> None:
    path = tmp_path / f"case_0000{suffix}"
    sitk.WriteImage(itk_image(), str(path))
    header = read_header(path)
    volume, problems = read_image([path], axes)
    assert problems == []
    assert header.grid == volume.grid
    assert (header.channels, header.dtype) == (1, "int16")
    np.testing.assert_allclose(volume.grid.affine, AFFINE, atol=1e-5)
    assert volume.grid.shape == (6, 5, 4)
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    expected = {"stored": STORED, "stored:ijk": STORED.T}
    # AFFINE sends i to S, j to L and k to A.
    expected |= {"RAS": STORED[:, ::-1, :].transpose(1, 0, 2)}
    expected |= {"SAR": expected["RAS"].transpose(2, 1, 0)}
    expected |= {"ILP": expected["SAR"][::-1, ::-1, ::-1].transpose(0, 2, 1)}
    np.testing.assert_array_equal(volume.array[0], expected[axes])


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".tif"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("top", [90, 300, 70000])
def test_labels_come_back_as_written(tmp_path: Path, suffix: str, axes: str, top: int) -> None:
    path = tmp_path / f"a{suffix}"
    how = GRID.arrangement(axes)
    shape = tuple(GRID.shape[a] for a in how.order)
    labels = np.random.default_rng(1).integers(0, top, shape)
    labels.flat[0] = top
    write_labels(path, labels, axes, GRID)
    beside = [path.with_suffix(".json").name] if suffix == ".tif" else []
    back, problems = read_labels(path, axes, GRID)
    assert problems == []
    assert back.array.dtype == np.int32
    np.testing.assert_array_equal(back.array[0], labels)
    np.testing.assert_allclose(back.grid.affine, GRID.affine, atol=1e-6)
    stored = {90: "uint8", 300: "uint16", 70000: "int32"}[top]
    assert read_header(path).dtype == stored
    assert sorted(p.name for p in tmp_path.iterdir()) == [*beside, path.name]


def test_written_labels_lie_where_simpleitk_sees_the_image(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(), str(tmp_path / "image.nii.gz"))
    volume, _ = read_image([tmp_path / "image.nii.gz"], "SAR")
    write_labels(
        tmp_path / "label.nrrd", volume.array[0].astype(np.int32), volume.axes, volume.grid
    )
    label = sitk.ReadImage(str(tmp_path / "label.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), STORED)
    np.testing.assert_allclose(label.GetDirection(), itk_image().GetDirection(), atol=1e-6)
    np.testing.assert_allclose(label.GetOrigin(), itk_image().GetOrigin(), atol=1e-5)


@pytest.mark.parametrize("order", ["".join(p) for p in permutations("ijk")])
def test_float_images_round_trip(tmp_path: Path, order: str) -> None:
    axes = f"stored:{order}"
    shape = tuple(GRID.shape["ijk".index(letter)] for letter in order)
    image = np.random.default_rng(2).normal(size=(1, *shape)).astype(np.float32)
    write_image(tmp_path / "a.nii.gz", image, axes, GRID)
    volume, problems = read_image([tmp_path / "a.nii.gz"], axes)
    assert problems == []
    np.testing.assert_array_equal(volume.array, image)


def test_channels_are_joined_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.mha"]
    for number, path in enumerate(paths):
        sitk.WriteImage(itk_image(STORED + 100 * number), str(path))
    volume, problems = read_image(paths, "stored")
    assert problems == []
    np.testing.assert_array_equal(volume.array, np.stack([STORED, STORED + 100]))


def test_pixels_with_components_become_channels(tmp_path: Path) -> None:
    vectors = np.stack([STORED, STORED + 1], axis=-1)
    sitk.WriteImage(itk_image(vectors, vector=True), str(tmp_path / "a.nrrd"))
    assert read_header(tmp_path / "a.nrrd").channels == 2
    volume, _ = read_image([tmp_path / "a.nrrd"], "stored")
    np.testing.assert_array_equal(volume.array, np.stack([STORED, STORED + 1]))


def test_files_of_one_case_must_share_a_grid(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(), str(tmp_path / "a_0000.nrrd"))
    sitk.WriteImage(itk_image(STORED[:3]), str(tmp_path / "a_0001.nrrd"))
    moved = itk_image()
    moved.SetOrigin((0.0, 0.0, 0.0))
    sitk.WriteImage(moved, str(tmp_path / "a_0002.nrrd"))
    with pytest.raises(BadData, match="a_0001: image 4 x 5 x 6, channel file 3 x 5 x 6"):
        read_image([tmp_path / "a_0000.nrrd", tmp_path / "a_0001.nrrd"], "stored")
    volume, (problem,) = read_image([tmp_path / "a_0000.nrrd", tmp_path / "a_0002.nrrd"], "stored")
    assert problem.case == "a_0002"
    assert "same place" in problem.what
    assert problem.fatal
    assert volume.array.shape == (2, 4, 5, 6)


def test_a_channel_flipped_in_its_file_lands_on_the_others(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(), str(tmp_path / "a_0000.nrrd"))
    flipped = sitk.Flip(itk_image(), (True, False, True))
    sitk.WriteImage(flipped, str(tmp_path / "a_0001.nrrd"))
    paths = [tmp_path / "a_0000.nrrd", tmp_path / "a_0001.nrrd"]
    volume, problems = read_image(paths, "SAR")
    assert problems == []
    np.testing.assert_array_equal(volume.array[0], volume.array[1])
    assert [p.what for p in read_image(paths, "stored")[1]] == [
        "image and channel file are not in the same place"
    ]


def test_values_that_are_not_numbers_are_counted(tmp_path: Path) -> None:
    image = np.zeros((1, 4, 5, 6), dtype=np.float32)
    image[0, 0, 0, :3] = (np.nan, np.inf, -np.inf)
    write_image(tmp_path / "a.nii.gz", image, "stored", GRID)
    volume, (problem,) = read_image([tmp_path / "a.nii.gz"], "stored")
    assert problem.found.startswith("3 voxels")
    assert problem.fatal
    assert np.isnan(volume.array[0, 0, 0, 0])


def test_labels_that_are_not_whole_are_named(tmp_path: Path) -> None:
    values = np.zeros((1, 4, 5, 6), dtype=np.float32)
    values[0, 0, 0] = (0.5, 1.25, 2.75, 3.6, 1.00001, np.nan)
    write_image(tmp_path / "a.nii.gz", values, "stored", GRID)
    volume, (problem,) = read_labels(tmp_path / "a.nii.gz", "stored")
    assert problem.found == "0.5, 1.25, 2.75 in 5 voxels in all"
    assert problem.fatal
    assert volume.array[0, 0, 0].tolist() == [0, 1, 3, 4, 1, 0]


def test_a_coloured_label_map_is_read_only_if_it_is_grey(tmp_path: Path) -> None:
    grey = STORED[0].astype(np.uint8)
    pixels = np.stack([grey, grey, grey], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume, problems = read_labels(tmp_path / "a.png", "stored")
    assert problems == []
    np.testing.assert_array_equal(volume.array[0, 0], grey)
    pixels[0, 0, 0] += 1
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(BadData, match="in colour"):
        read_labels(tmp_path / "a.png", "stored")


def test_label_values_beyond_int32_are_refused(tmp_path: Path) -> None:
    labels = np.full((1, 4, 5, 6), 2**31, dtype=np.uint32)
    write_image(tmp_path / "a.nrrd", labels, "stored", GRID)
    with pytest.raises(BadData, match="out of range"):
        read_labels(tmp_path / "a.nrrd", "stored")


@pytest.mark.parametrize("suffix", [".nii.gz", ".tif", ".png"])
def test_channels_that_a_format_cannot_hold_are_refused(tmp_path: Path, suffix: str) -> None:
    grid = Grid.of((6, 5, 1), np.eye(4))
    with pytest.raises(AutosegError, match="channel"):
        write_image(tmp_path / f"a{suffix}", np.zeros((2, 1, 5, 6), np.uint8), "stored", grid)


def test_whole_labels_stored_as_floats_are_taken(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nrrd", STORED[None].astype(np.float32), "stored", GRID)
    volume, problems = read_labels(tmp_path / "a.nrrd", "stored")
    assert problems == []
    np.testing.assert_array_equal(volume.array[0], STORED)


def test_a_picture_label_is_turned_with_its_placed_image(tmp_path: Path) -> None:
    grid = Grid.of((6, 5, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))
    labels = STORED[:1].astype(np.uint8)
    write_image(tmp_path / "image.nii.gz", labels[None], "stored", grid)
    Image.fromarray(labels[0]).save(tmp_path / "label.png")
    image, _ = read_image([tmp_path / "image.nii.gz"], "SAR")
    label, _ = read_labels(tmp_path / "label.png", "SAR", image.grid)
    np.testing.assert_array_equal(label.array, image.array)
    np.testing.assert_array_equal(image.array[0, 0], labels[0, ::-1, ::-1])
    assert label.grid == image.grid


def test_a_wrong_suffix_is_read_by_content_with_a_warning(tmp_path: Path) -> None:
    Image.fromarray(STORED[0].astype(np.uint8)).save(tmp_path / "a.png")
    path = (tmp_path / "a.png").rename(tmp_path / "a.nii.gz")
    volume, (problem,) = read_image([path], "stored")
    np.testing.assert_array_equal(volume.array[0], STORED[:1])
    assert problem.found == "a.nii.gz holds png; read as that"
    assert not problem.fatal
    assert read_header(path).problems == (problem,)
    sitk.WriteImage(itk_image(), str(tmp_path / "b.mha"))
    path = (tmp_path / "b.mha").rename(tmp_path / "b.nrrd")
    np.testing.assert_array_equal(read_image([path], "stored")[0].array[0], STORED)
    nib.save(nib.Nifti1Image(STORED.T, np.eye(4)), tmp_path / "c.nii")
    path = (tmp_path / "c.nii").rename(tmp_path / "c.nii.gz")
    volume, problems = read_image([path], "stored")
    assert problems == []
    np.testing.assert_array_equal(volume.array[0], STORED)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hostile_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    assert fatal(path).what == "a file is missing"
    path.write_bytes(b"")
    assert "0 bytes" in fatal(path).found
    path.write_bytes(b"patient;age;sex\n1;70;f\n" * 40)
    assert "patient;age" in fatal(path).found
    path.write_bytes(b"\x1f\x8b" + b"\x00" * 600)
    assert fatal(path).what == "the file is not an image of a known kind"
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 400)
    assert "DICOM" in fatal(path).found


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".png", ".bmp", ".tif", ".jpg", ".nii.gz"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (1, 90, 80)).astype(np.uint8)
    grid = Grid.of((80, 90, 1), np.eye(4))
    if suffix == ".jpg":
        Image.fromarray(noise[0]).save(path)
    else:
        write_image(path, noise[None], "stored", grid)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadData) as caught:
        read_image([path], "stored")
    (problem,) = caught.value.problems
    assert problem.case == "a"
    assert path.name in problem.found


@pytest.mark.parametrize(
    ("name", "suffix", "case"),
    [
        ("a_0000.nii.gz", ".nii.gz", "a_0000"),
        ("A.B.NII.GZ", ".nii.gz", "A.B"),
        ("a.tiff", ".tiff", "a"),
        ("a.xyz", None, "a"),
    ],
)
def test_suffixes_and_cases(name: str, suffix: str | None, case: str) -> None:
    assert suffix_of(Path(name)) == suffix
    assert case_of(Path(name)) == case


@pytest.mark.parametrize("suffix", [".jpg", ".gipl", ".mhd", ".nhdr", ".xyz", ".png"])
def test_a_format_that_cannot_hold_the_labels_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(AutosegError, match=rf"a\{suffix}"):
        write_labels(tmp_path / f"a{suffix}", STORED, "stored", GRID)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="for a grid of"):
        write_labels(path, STORED[:2], "stored", GRID)
    with pytest.raises(TypeError):
        write_image(path, STORED[None].astype(np.float16), "stored", GRID)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_real_pictures_are_read_as_pillow_reads_them(real_data: Path) -> None:
    path = min(real_data.glob("Dataset006*/imagesTr/*.png"))
    volume, problems = read_image([path], "stored")
    pixels = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    single = volume.array.shape[0] == 1
    np.testing.assert_array_equal(volume.array[:, 0], pixels[:1] if single else pixels)
    assert [p for p in problems if p.fatal] == []


def test_gipl_is_read(tmp_path: Path) -> None:
    sitk.WriteImage(itk_image(), str(tmp_path / "a.gipl"))
    volume, problems = read_image([tmp_path / "a.gipl"], "stored")
    assert problems == []
    np.testing.assert_array_equal(volume.array[0], STORED)


def test_tiff_stacks_are_volumes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STORED.astype(np.uint16), photometric="minisblack")
    volume, problems = read_image([tmp_path / "a.tif"], "stored")
    assert [problem.fatal for problem in problems] == [False]  # no spacing beside it
    assert volume.grid.dimensions == 3
    np.testing.assert_array_equal(volume.array[0], STORED)
