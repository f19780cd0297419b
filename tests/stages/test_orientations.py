"""One anatomy stored in every way that files allow: the same segmentation, on each file's own grid."""

from collections.abc import Callable, Sequence
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.documents.dataset import Case
from autoseg.models.members import Model
from autoseg.stages.predict import predict

SHAPE = (30, 34, 11)
SPACING_MM = (0.8, 0.8, 4.0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
WAYS = [
    (order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)
]


@pytest.fixture(scope="module")
def scan() -> NDArray[np.int16]:
    """Smooth noise in Hounsfield units: no axis and no direction is like another."""
    rng = np.random.default_rng(5)
    noise = ndimage.gaussian_filter(rng.normal(size=SHAPE), (3, 4, 1))
    return (noise / noise.std() * 300 + 50).astype(np.int16)


def upright() -> NDArray[np.float64]:
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = (-12.0, 7.5, 100.0)
    return affine


def oblique() -> NDArray[np.float64]:
    """Turned about two axes by less than 45 degrees."""
    a, b = np.radians(17), np.radians(-11)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = upright()
    affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    return affine


def sheared() -> NDArray[np.float64]:
    """Slices that are shifted against each other, as a tilted gantry leaves them."""
    affine = upright()
    affine[1, 2] = 1.1
    return affine


def stored(
    array: NDArray[np.int16],
    affine: NDArray[np.float64],
    order: Sequence[int],
    flips: Sequence[bool],
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The array with its axes in another order and direction, and where that then lies."""
    to_first = np.zeros((4, 4))
    to_first[3, 3] = 1.0
    for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        to_first[source, axis] = -1.0 if flip else 1.0
        to_first[source, 3] = array.shape[source] - 1 if flip else 0.0
    moved = array.transpose(order)[tuple(slice(None, None, -1 if f else None) for f in flips)]
    return np.ascontiguousarray(moved), affine @ to_first


def write_nifti(path: Path, array: NDArray[np.int16], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    nib.save(image, path)


def segmented(one_network: Model, folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    cases = [Case(f.name.split("_0000")[0], (f,), None) for f in files]
    done = predict(one_network, cases, folder / "out", device=torch.device("cpu"))
    assert not done.failed
    return {path.name.split(".")[0]: path for path in done.written}


@pytest.mark.parametrize("place", [upright, oblique, sheared])
def test_all_48_ways_to_store_an_anatomy_give_one_segmentation(
    place: Callable[[], NDArray[np.float64]],
    one_network: Model,
    scan: NDArray[np.int16],
    tmp_path: Path,
) -> None:
    # all 48 for the upright one; of the tilted ones each order of axes, flipped in its own way
    ways = WAYS if place is upright else WAYS[::5]
    files = []
    for number, (order, flips) in enumerate([WAYS[0], *ways]):
        file = tmp_path / f"way{number:02d}_0000.nii.gz"
        write_nifti(file, *stored(scan, place(), order, flips))
        files.append(file)
    found = segmented(one_network, tmp_path, files)
    first = np.asarray(nib.load(found["way00"]).dataobj)
    assert first.shape == SHAPE
    assert [int(v) for v in np.unique(first)] == [0, 1, 4]
    assert np.bincount(first.ravel())[[0, 1, 4]].min() > 200
    for number, (order, flips) in enumerate(ways, 1):
        image = nib.load(found[f"way{number:02d}"])
        labels, affine = stored(first, place(), order, flips)
        np.testing.assert_array_equal(
            np.asarray(image.dataobj), labels, err_msg=str((order, flips))
        )
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)


def test_other_formats_give_the_same(
    one_network: Model, scan: NDArray[np.int16], tmp_path: Path
) -> None:
    write_nifti(tmp_path / "first_0000.nii.gz", scan, oblique())
    order, flips = (2, 0, 1), (True, False, True)
    array, affine = stored(scan, oblique(), order, flips)
    nib.save(nib.Nifti2Image(array, affine), tmp_path / "nifti2_0000.nii")
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / "nrrd_0000.nrrd"))
    sitk.WriteImage(image, str(tmp_path / "meta_0000.mha"))
    names = ["first_0000.nii.gz", "nifti2_0000.nii", "nrrd_0000.nrrd", "meta_0000.mha"]
    found = segmented(one_network, tmp_path, [tmp_path / name for name in names])
    first = np.asarray(nib.load(found["first"]).dataobj)
    wanted, _ = stored(first, oblique(), order, flips)
    assert wanted.any()
    second = nib.load(found["nifti2"])
    assert isinstance(second, nib.Nifti1Image | nib.Nifti2Image)
    differs = {"nifti2": float(np.mean(np.asarray(second.dataobj) != wanted))}
    for name in ("nrrd", "meta"):
        back = sitk.ReadImage(str(found[name]))
        differs[name] = float(np.mean(sitk.GetArrayFromImage(back).transpose(2, 1, 0) != wanted))
        np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-5)
        assert found[name].suffix == {"nrrd": ".nrrd", "meta": ".mha"}[name]
    # spacings are rounded differently in the formats, which a voxel on the edge may feel
    assert max(differs.values()) < 1e-3, differs


def test_of_two_positions_the_sform_counts_and_both_are_told(
    one_network: Model, scan: NDArray[np.int16], tmp_path: Path
) -> None:
    write_nifti(tmp_path / "first_0000.nii.gz", scan, upright())
    turned = upright()
    turned[:3, :3] = np.diag([-1.0, 1.0, 1.0]) @ turned[:3, :3]
    image = nib.Nifti1Image(scan, upright())
    image.set_sform(upright(), 1)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "torn_0000.nii.gz")
    names = ("first", "torn")
    cases = [Case(n, (tmp_path / f"{n}_0000.nii.gz",), None) for n in names]
    done = predict(one_network, cases, tmp_path / "out", device=torch.device("cpu"))
    odd = [problem for problem in done.warnings if "disagree" in problem.what]
    assert [problem.case for problem in odd] == ["torn"]
    found = {path.name.split(".")[0]: path for path in done.written}
    first, torn = (np.asarray(nib.load(found[n]).dataobj) for n in ("first", "torn"))
    assert first.any()
    np.testing.assert_array_equal(first, torn)
