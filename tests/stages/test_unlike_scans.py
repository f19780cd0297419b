"""Scans that no network should be shown: blank, of a wrong spacing, beyond the memory there is."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from autoseg.api.data import check
from autoseg.data import prepare as preparing
from autoseg.documents.dataset import Case, read_dataset
from autoseg.documents.labels import LabelSet
from autoseg.documents.plan import ChannelScale, Preparation
from autoseg.errors import AutosegError, BadData
from autoseg.models.scans import scan_of_case
from autoseg.pool import over_units
from autoseg.stages.fingerprint import _outliers, measure_case
from autoseg.stages.predict import _Job

LABELS = LabelSet(names=("background", "a"), values=(0, 1))


def saved(path: Path, array: np.ndarray, mm: float = 1.0) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([mm, mm, mm, 1])), path)
    return path


def test_a_blank_scan_is_told_at_prediction(tmp_path: Path) -> None:
    path = saved(tmp_path / "a_0000.nii.gz", np.zeros((4, 5, 6), np.float32))
    _, problems = scan_of_case(Case("a", (path,), None)).read("stored")
    (problem,) = problems
    assert (problem.case, problem.what) == ("a", "a channel is the same everywhere")
    assert not problem.fatal
    assert "do not use the result" in problem.fix


def test_a_scan_too_large_on_the_networks_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 micrometres taken for mm: refused before anything of that size is computed."""
    scan = np.random.default_rng(0).normal(size=(24, 24, 16)).astype(np.float32)
    case = Case("a", (saved(tmp_path / "a_0000.nii.gz", scan, 300.0),), None)
    preparation = Preparation(
        axes="SAR", spacing_mm=(0.3, 0.3, 0.3), channels=(ChannelScale(scheme="zscore"),),
        labels=LABELS,
    )  # fmt: skip

    def never(*_: object, **__: object) -> None:
        raise AssertionError("resampled")

    monkeypatch.setattr(preparing, "machine_bytes", lambda: 64 << 30)
    volume, _ = scan_of_case(case).read("SAR")
    with pytest.raises(BadData) as error:
        preparing.prepare_volume("a", volume, preparation, resample=never)
    (problem,) = error.value.problems
    assert problem.case == "a"
    assert "300 x 300 x 300 mm in the header" in problem.found
    assert "micrometres" in problem.fix


def starved(case: Case) -> str:
    if case.id == "b":
        raise MemoryError
    return case.id


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_that_ends_costs_one_case(workers: int) -> None:
    cases = [Case(name, (), None) for name in "abc"]
    found = {case.id: result for case, result in over_units(starved, cases, workers=workers)}
    assert (found["a"], found["c"]) == ("a", "c")
    assert isinstance(found["b"], AutosegError)
    assert str(found["b"]).startswith("b: ")


def test_memory_that_ends_in_a_prediction_names_the_case() -> None:
    job = _Job(Case("a", (), None), Path("a.nii.gz"), SimpleNamespace())  # type: ignore[arg-type]
    with job.noted():
        raise MemoryError
    assert job.state == "failed"
    assert [(p.case, p.what) for p in job.failed] == [("a", "too little memory")]


def test_a_wrong_spacing_among_equal_ones_is_an_outlier(
    tmp_path: Path, phantoms: Callable[..., Path]
) -> None:
    dataset, _ = read_dataset(phantoms(tmp_path, cases=1, test_cases=0))
    measure, problems = measure_case(dataset.cases[0], dataset)
    assert measure is not None, problems
    wide = replace_spacing(measure, 300.0)
    told = [p for p in _outliers([measure] * 8 + [wide], dataset) if "voxel volume" in p.what]
    assert [p.case for p in told] == ["wide"]
    assert list(_outliers([measure] * 9, dataset)) == []


def test_a_structure_in_no_case_is_told(tmp_path: Path, phantoms: Callable[..., Path]) -> None:
    folder = phantoms(tmp_path, cases=2, test_cases=0)
    document = json.loads((folder / "dataset.json").read_text())
    document["labels"]["absent"] = 9
    (folder / "dataset.json").write_text(json.dumps(document))
    found = [p for p in check(folder.name, root=tmp_path, workers=1) if "in no case" in p.what]
    assert [p.fatal for p in found] == [False]
    assert found[0].found.startswith("absent (value 9)")


def replace_spacing(measure, mm: float):
    return measure.model_copy(update={"case": "wide", "spacing_mm": (mm, mm, mm)})
