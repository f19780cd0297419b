"""What a score would hide: missing predictions, two references of one name, values that do not meet."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg import api
from autoseg.errors import AutosegError


def ball(path: Path, radius: float, *, edge_mm: float = 1.0, value: int = 1) -> None:
    """A label map of a ball in 20 x 20 x 20 voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    at = np.indices((20, 20, 20)) - 10
    array = np.uint8(value) * (np.square(at).sum(0) < radius**2).astype(np.uint8)
    nib.save(nib.Nifti1Image(array, np.diag([edge_mm] * 3 + [1.0])), path)


def dice(folder: Path, **more: object) -> float | None:
    return api.evaluate(folder, workers=1, **more).mean_dice  # type: ignore[arg-type]


def test_missing_predictions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few, references = tmp_path / "few", tmp_path / "references"
    for case, radius in (("a", 5), ("b", 6), ("c", 7)):
        ball(references / f"{case}.nii.gz", radius)
    ball(few / "a.nii.gz", 5)
    with pytest.raises(AutosegError, match=r"2 references without a prediction: b, c; .*--partial"):
        dice(few, reference=references)
    assert dice(few, reference=references, partial=True) == 1.0
    assert "2 references without a prediction: b, c" in caplog.text


def test_of_a_dataset_the_test_cases_are_expected(tmp_path: Path) -> None:
    """Held-out cases of one fold are some of the training cases, and nothing is missing."""
    raw = tmp_path / "raw" / "Dataset001_D"
    for part, cases in (("Tr", "abcx"), ("Ts", "xyz")):
        for case in cases:
            ball(raw / f"labels{part}" / f"{case}.nii.gz", 5)
            ball(raw / f"images{part}" / f"{case}_0000.nii.gz", 5)
    document = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1},
                "numTraining": 4, "file_ending": ".nii.gz"}  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(document))
    where = {"dataset": "1", "root": tmp_path}
    ball(tmp_path / "fold" / "a.nii.gz", 5)
    assert dice(tmp_path / "fold", **where) == 1.0
    ball(tmp_path / "test" / "y.nii.gz", 5)
    with pytest.raises(AutosegError, match=r"2 references without a prediction: x, z"):
        dice(tmp_path / "test", **where)
    ball(tmp_path / "twice" / "x.nii.gz", 5)
    with pytest.raises(
        AutosegError, match=r"x is a case of Dataset001_D's training and of its tes"
    ):
        dice(tmp_path / "twice", **where)
    assert dice(tmp_path / "twice", reference=raw / "labelsTr", partial=True, **where) == 1.0


def test_values_that_do_not_meet_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ball(tmp_path / "p" / "a.nii.gz", 5)
    ball(tmp_path / "r" / "a.nii.gz", 5, value=255)
    assert dice(tmp_path / "p", reference=tmp_path / "r") == 0
    assert "the predictions hold 1 and the references 255: no value stands on both" in caplog.text


@pytest.mark.parametrize(("edge_mm", "tolerance_mm"), [(0.8, 1.0), (3.0, 1.0), (0.003, 0.006)])
def test_the_tolerance_follows_the_voxels(
    tmp_path: Path, edge_mm: float, tolerance_mm: float
) -> None:
    ball(tmp_path / "p" / "a.nii.gz", 4, edge_mm=edge_mm)
    ball(tmp_path / "r" / "a.nii.gz", 8, edge_mm=edge_mm)
    report = api.evaluate(tmp_path / "p", tmp_path / "r", workers=1)
    assert report.tolerance_mm == tolerance_mm
    metrics = report.summary.labels["label 1"].metrics
    assert metrics["nsd"].mean is not None and metrics["nsd"].mean < 0.2
    asked = api.evaluate(tmp_path / "p", tmp_path / "r", tolerance_mm=1.0, workers=1)
    assert asked.tolerance_mm == 1.0
