"""Regions and scribbles from raw data to scores, on phantoms made for them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.documents.dataset import Dataset, read_dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.report import Report
from autoseg.errors import AutosegError, BadData
from autoseg.files import read_json
from autoseg.image.reading import read_image, read_labels, write_labels
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask
from autoseg.stages.evaluate import UNLABELLED, evaluate
from autoseg.stages.fingerprint import fingerprint
from autoseg.stages.status import measured_state
from autoseg.workspace import DatasetPlaces, open_workspace
from tests.rules.made import CORES

Phantoms = Callable[..., Path]
SURFACES = ("hd_mm", "hd95_mm", "assd_mm", "nsd", "hd_penalised_mm", "hd95_penalised_mm")


def measured(root: Path, phantoms: Phantoms, **look: Any) -> tuple[DatasetPlaces, Fingerprint]:
    phantoms(root, cases=3, test_cases=1, **look)
    places = open_workspace(root).places("Dataset001_Phantom")
    return places, fingerprint(places)


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory, phantoms: Phantoms) -> Any:
    return measured(tmp_path_factory.mktemp("nested"), phantoms, look="regions")


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory, phantoms: Phantoms) -> Any:
    return measured(tmp_path_factory.mktemp("sparse"), phantoms, look="scribbles")


def drawn(dataset: Dataset, index: int = 0) -> np.ndarray:
    case = dataset.cases[index]
    assert case.label is not None
    return read_labels(case.label, "RAS")[0].array[0]


def scored(
    dataset: Dataset, folder: Path, change: Callable[[np.ndarray], np.ndarray]
) -> tuple[Report, np.ndarray, np.ndarray]:
    """The report on a changed copy of the first case's label, prediction and reference."""
    case = dataset.cases[0]
    assert case.label is not None
    volume, _ = read_labels(case.label, "RAS")
    truth = volume.array[0]
    said = change(truth.copy())
    write_labels(folder / "said.nii.gz", said, "RAS", volume.grid)
    pairs = {case.id: (folder / "said.nii.gz", case.label)}
    return evaluate(pairs, dataset.labels, dataset=dataset.name), said, truth


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# ---- regions


def test_regions_are_measured_by_class_and_planned_by_region(nested: Any) -> None:
    _, found = nested
    assert [(x.name, x.value, x.cases) for x in found.labels] == [
        ("label 1", 1, 3), ("lesion", 2, 3)
    ]  # fmt: skip
    plan = make_plan(found, Ask(device=CORES))
    assert plan.labels.structures == {"organ with lesion": (1, 2), "lesion": (2,)}
    assert plan.configurations["3d_fullres"].network.classes == 2
    assert plan.why["labels"].startswith("one output a region (organ with lesion, lesion)")


def test_a_perfect_prediction_of_regions(nested: Any, tmp_path: Path) -> None:
    dataset, _ = read_dataset(nested[0].raw)
    report, _, _ = scored(dataset, tmp_path, lambda truth: truth)
    (case,) = report.cases
    assert list(case.labels) == ["organ with lesion", "lesion"]
    assert [s.values["dice"] for s in case.labels.values()] == [1, 1]
    assert all(s.values["hd_mm"] == 0 for s in case.labels.values())
    assert report.mean_dice == 1


def test_a_wrong_lesion_costs_the_whole_organ_nothing(nested: Any, tmp_path: Path) -> None:
    """The lesion called organ is a missed lesion, and still part of the organ with its lesion."""
    dataset, _ = read_dataset(nested[0].raw)
    report, _, _ = scored(dataset, tmp_path, lambda truth: np.minimum(truth, 1))
    scores = report.cases[0].labels
    assert scores["organ with lesion"].values["dice"] == 1
    assert (scores["lesion"].outcome, scores["lesion"].values["dice"]) == ("missed", 0)
    assert report.mean_dice == 0.5


def test_region_scores_are_those_of_the_unions(nested: Any, tmp_path: Path) -> None:
    dataset, _ = read_dataset(nested[0].raw)
    report, said, truth = scored(dataset, tmp_path, lambda t: np.roll(t, (1, 2), (0, 1)))
    scores = report.cases[0].labels
    assert scores["organ with lesion"].values["dice"] == pytest.approx(dice(said > 0, truth > 0))
    assert scores["lesion"].values["dice"] == pytest.approx(dice(said == 2, truth == 2))
    assert scores["organ with lesion"].values["tp"] == ((said > 0) & (truth > 0)).sum()


def test_another_order_of_painting_is_another_fingerprint(
    tmp_path: Path, phantoms: Phantoms
) -> None:
    """No case is measured again for it, and the plan knows."""
    places, before = measured(tmp_path, phantoms, look="regions")
    files = {p: p.stat().st_mtime_ns for p in places.measured.iterdir()}
    document = json.loads((places.raw / "dataset.json").read_text())
    document["labels"] = {"background": 0, "organ": 1, "lesion": 2}
    (places.raw / "dataset.json").write_text(json.dumps(document))
    after = fingerprint(places)
    assert (len(before.regions), after.regions) == (2, ())
    assert after.cases == before.cases
    assert {p: p.stat().st_mtime_ns for p in places.measured.iterdir()} == files


# ---- voxels that nobody labelled


def test_scribbles_are_measured_in_what_is_labelled(sparse: Any) -> None:
    places, found = sparse
    dataset, _ = read_dataset(places.raw)
    assert [x.name for x in found.labels] == ["organ", "lesion"]
    assert found.ignore == 3
    assert found.outliers == found.cases_without_label == ()
    truths = [drawn(dataset, i) for i in range(3)]
    for value, label in zip((1, 2), found.labels, strict=True):
        share = sum((t == value).sum() for t in truths) / sum((t != 3).sum() for t in truths)
        # images are 0 nowhere, so that the crop takes nothing away
        assert label.share_of_voxels == pytest.approx(share)
    seen, organ = (
        sum((t != 3).sum() for t in truths),
        sum(((t == 1) | (t == 2)).sum() for t in truths),
    )
    assert found.imbalance == pytest.approx((seen - organ) / organ)
    plan = make_plan(found, Ask(device=CORES))
    assert plan.labels.ignore == 3
    assert plan.configurations["3d_fullres"].network.classes == 3
    assert "voxels of the value 3" in plan.why["labels"]


def test_intensities_are_those_of_labelled_voxels(sparse: Any) -> None:
    places, _ = sparse
    dataset, _ = read_dataset(places.raw)
    kept = read_json(places.measured / f"{dataset.cases[0].id}.json")["measure"]
    truth = drawn(dataset)
    assert kept["ignored_vox"] == (truth == 3).sum() > 0.5 * truth.size
    assert [x["voxels"] for x in kept["labels"]] == [(truth == 1).sum(), (truth == 2).sum()]
    inside = (truth == 1) | (truth == 2)
    image = read_image(dataset.cases[0].images, "RAS")[0].array[0]
    assert kept["channels"][0]["mean"] == pytest.approx(float(image[inside].mean()), rel=1e-5)


def test_a_case_that_nobody_labelled_is_told(tmp_path: Path, phantoms: Phantoms) -> None:
    places, _ = measured(tmp_path, phantoms, look="scribbles")
    dataset, _ = read_dataset(places.raw)
    case = dataset.cases[1]
    assert case.label is not None
    volume, _ = read_labels(case.label, "RAS")
    write_labels(case.label, np.full_like(volume.array[0], 3), "RAS", volume.grid)
    found = fingerprint(places)
    assert found.cases_without_label == (case.id,)
    (problem,) = read_json(places.checks)["problems"]
    assert (problem["case"], problem["fatal"]) == (case.id, False)
    assert problem["found"] == "every voxel is 3 (ignored)"


def test_an_ignored_value_that_becomes_a_class_is_measured_again(
    tmp_path: Path, phantoms: Phantoms
) -> None:
    places, _ = measured(tmp_path, phantoms, look="scribbles")
    document = json.loads((places.raw / "dataset.json").read_text())
    document["labels"] = {"background": 0, "organ": 1, "lesion": 2, "rest": 3}
    (places.raw / "dataset.json").write_text(json.dumps(document))
    dataset, _ = read_dataset(places.raw)
    assert measured_state(places, dataset, dataset.cases[0].id) == "changed"
    found = fingerprint(places)
    assert [x.name for x in found.labels] == ["organ", "lesion", "rest"]
    assert measured_state(places, dataset, dataset.cases[0].id) == "current"


def test_what_a_prediction_says_of_unlabelled_voxels_counts_nowhere(
    sparse: Any, tmp_path: Path
) -> None:
    dataset, _ = read_dataset(sparse[0].raw)
    noise = np.random.default_rng(1).integers(0, 3, drawn(dataset).shape)

    report, _, truth = scored(dataset, tmp_path, lambda t: np.where(t == 3, noise, t))
    for scores in report.cases[0].labels.values():
        exact = {m: scores.values[m] for m in ("dice", "iou", "precision", "recall", "accuracy")}
        assert exact == dict.fromkeys(exact, 1.0)
        assert scores.values["volume_difference_mm3"] == 0
        counts = sum(scores.values[m] or 0 for m in ("tp", "fp", "fn", "tn"))
        assert counts == (truth != 3).sum() < truth.size / 2


def test_errors_in_labelled_voxels_are_counted_among_them_alone(
    sparse: Any, tmp_path: Path
) -> None:
    dataset, _ = read_dataset(sparse[0].raw)

    def moved(truth: np.ndarray) -> np.ndarray:
        return np.where(truth == 3, 1, np.roll(truth, 2, 0))

    report, said, truth = scored(dataset, tmp_path, moved)
    known = truth != 3
    for value, name in ((1, "organ"), (2, "lesion")):
        a, b = (said == value)[known], (truth == value)[known]
        scores = report.cases[0].labels[name].values
        assert 0 < dice(a, b) < 1
        assert scores["dice"] == pytest.approx(dice(a, b))
        assert scores["precision"] == pytest.approx((a & b).sum() / a.sum())
        assert scores["recall"] == pytest.approx((a & b).sum() / b.sum())
        assert scores["specificity"] == pytest.approx((~a & ~b).sum() / (~b).sum())
        assert scores["accuracy"] == pytest.approx((a == b).mean())


def test_hidden_borders_have_no_distance_and_the_reason_is_said(
    sparse: Any, tmp_path: Path
) -> None:
    dataset, _ = read_dataset(sparse[0].raw)
    report, _, _ = scored(dataset, tmp_path, lambda t: np.where(t == 3, 0, t))
    for name, scores in report.cases[0].labels.items():
        assert {scores.values[m] for m in SURFACES} == {None}
        assert {scores.undefined[m] for m in SURFACES} == {UNLABELLED}
        assert report.summary.labels[name].metrics["hd95_mm"].undefined == {UNLABELLED: 1}
    # the same labels with nothing ignored have distances
    case = dataset.test_cases[0]
    assert case.label is not None
    whole = evaluate({case.id: (case.label, case.label)}, dataset.labels, dataset="d")
    assert all(s.values["hd95_mm"] == 0 for s in whole.cases[0].labels.values())


def test_a_predictions_own_ignore_value_is_no_structure(sparse: Any, tmp_path: Path) -> None:
    dataset, _ = read_dataset(sparse[0].raw)
    report, _, truth = scored(dataset, tmp_path, lambda t: np.where(t == 2, 3, t))
    scores = report.cases[0].labels
    assert (scores["lesion"].outcome, scores["organ"].values["dice"]) == ("missed", 1)
    assert scores["lesion"].values["fn"] == (truth == 2).sum()


def test_values_that_are_neither_declared_nor_ignored_are_refused(
    sparse: Any, nested: Any, tmp_path: Path
) -> None:
    for places, stranger in ((sparse[0], 4), (nested[0], 3)):
        dataset, _ = read_dataset(places.raw)
        with pytest.raises(BadData, match="not declared"):
            scored(dataset, tmp_path, lambda t, s=stranger: np.where(t == 1, s, t))


def test_nothing_labelled_at_all_has_no_score(sparse: Any, tmp_path: Path) -> None:
    dataset, _ = read_dataset(sparse[0].raw)
    case = dataset.cases[0]
    assert case.label is not None
    volume, _ = read_labels(case.label, "RAS")
    write_labels(tmp_path / "none.nii.gz", np.full_like(volume.array[0], 3), "RAS", volume.grid)
    report = evaluate(
        {case.id: (case.label, tmp_path / "none.nii.gz")}, dataset.labels, dataset="d"
    )
    assert report.mean_dice is None
    assert {s.outcome for s in report.cases[0].labels.values()} == {"absent"}
    assert not any(math.isfinite(s.values["accuracy"] or math.nan)
                   for s in report.cases[0].labels.values())  # fmt: skip


def test_regions_without_an_order_are_refused_in_one_line(
    tmp_path: Path, phantoms: Phantoms
) -> None:
    folder = phantoms(tmp_path, "regions", cases=1, test_cases=0)
    document = json.loads((folder / "dataset.json").read_text())
    del document["regions_class_order"]
    (folder / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(AutosegError, match='regions need "regions_class_order"'):
        read_dataset(folder)
