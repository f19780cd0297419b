"""Label maps that a person drew or corrected are never replaced without being asked to."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.documents.dataset import Case
from autoseg.documents.postprocessing import KeepLargest
from autoseg.errors import AutosegError
from autoseg.flow import use
from autoseg.models.outputs import is_a_persons, kept_line, noting
from autoseg.stages.ensemble import ensemble
from autoseg.stages.postprocess import apply
from autoseg.stages.predict import Keep, predict

CPU = torch.device("cpu")


def correct(path: Path, value: int = 1) -> bytes:
    """What a person does to a label map."""
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array[:3] = value
    nib.save(nib.Nifti1Image(array, image.affine), path)
    return path.read_bytes()


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    rng = np.random.default_rng(0)
    found = []
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        path = tmp_path / "in" / f"{name}_0000.nii.gz"
        array = rng.normal(40, 10, (20, 20, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([0.8, 0.8, 4.0, 1.0])), path)
        found.append(Case(name, (path,), None))
    return found


def brightened(case: Case) -> None:
    """Another scan of the same name, so that what is there is no longer current."""
    image = nib.load(case.images[0])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 9, image.affine), case.images[0])


def test_predict_steps_round_what_a_person_corrected(one_network, cases, tmp_path) -> None:
    out = tmp_path / "out"
    first = predict(one_network, cases, out, device=CPU)
    assert len(first.written) == 2 and not first.kept
    drawn = correct(out / "a.nii.gz")
    for case in cases:
        brightened(case)
    done = predict(one_network, cases, out, device=CPU)
    assert (done.written, done.kept) == ([out / "b.nii.gz"], [out / "a.nii.gz"])
    assert (out / "a.nii.gz").read_bytes() == drawn
    assert kept_line(done.kept) in list(done.lines())
    assert predict(one_network, cases, out, device=CPU, overwrite=True).written == [
        out / "a.nii.gz"
    ]
    assert (out / "a.nii.gz").read_bytes() != drawn


def test_a_folder_of_drawn_label_maps_is_no_output(one_network, cases, tmp_path) -> None:
    """`-o labelsTs`: nothing is computed, nothing replaced, and it does not end well."""
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    before = {}
    for case in cases:
        array = np.zeros((20, 20, 8), np.uint8)
        nib.save(nib.Nifti1Image(array, np.eye(4)), drawn / f"{case.id}.nii.gz")
        before[case.id] = correct(drawn / f"{case.id}.nii.gz")
    with pytest.raises(AutosegError, match=r"nothing was written.*a\.nii\.gz.*--overwrite"):
        use.predictions(one_network, cases, drawn, device="cpu")
    assert {c.id: (drawn / f"{c.id}.nii.gz").read_bytes() for c in cases} == before


def test_ensemble_and_postprocess_step_round_it_too(one_network, cases, tmp_path) -> None:
    out, averaged, cleaned = (tmp_path / name for name in ("out", "averaged", "cleaned"))
    predict(one_network, cases, out, device=CPU, keep=Keep(probabilities=True))
    sources = {c.id: [out / "probabilities" / f"{c.id}.npy"] for c in cases}
    steps = (KeepLargest(of="*"),)
    labels = one_network.spec.labels
    ensemble(sources, averaged)
    apply(averaged, cleaned, (), labels)
    drawn = [correct(folder / "b.nii.gz") for folder in (averaged, cleaned)]
    again = ensemble(sources, averaged, steps=steps), apply(out, cleaned, steps, labels)
    assert [list(done.kept) for done in again] == [
        [averaged / "b.nii.gz"], [cleaned / "b.nii.gz"]
    ]  # fmt: skip
    assert [(f / "b.nii.gz").read_bytes() for f in (averaged, cleaned)] == drawn
    assert len(ensemble(sources, averaged, steps=steps, overwrite=True).written) == 1
    assert len(apply(out, cleaned, steps, labels, overwrite=True).written) == 1


def test_whose_a_label_map_is(tmp_path: Path) -> None:
    """Killed before the map or after it, it is this program's; so is one of an earlier version."""
    path, stamp = tmp_path / "c.nii.gz", tmp_path / ".autoseg" / "c.json"
    finished = tmp_path / "finished"
    stamp.parent.mkdir()
    assert not is_a_persons(path, tmp_path, "c")
    path.write_text("1")
    assert is_a_persons(path, tmp_path, "c")
    stamp.write_text("{}")  # of a version that remembered no hash
    assert not is_a_persons(path, tmp_path, "c")
    os.utime(path, ns=(0, stamp.stat().st_mtime_ns + 1))
    assert is_a_persons(path, tmp_path, "c")
    for text in "123":
        finished.write_text(text)
        noting(tmp_path, "c")(finished)
        assert not (text == "2" and is_a_persons(path, tmp_path, "c"))  # killed before the rename
        path.write_text(text)
        assert not is_a_persons(path, tmp_path, "c")
    path.write_text("1")
    assert is_a_persons(path, tmp_path, "c")
