"""Specifications of public datasets: complete, true to the data, and true to their schema."""

import json
from pathlib import Path

import pytest

from autoseg.documents.dataset import read_dataset
from autoseg.documents.spec import DatasetSpec, list_specs, read_spec, schema
from autoseg.errors import AutosegError, PlanError

KNOWN = (
    "Dataset004_Hippocampus",
    "Dataset005_LungNodule",
    "Dataset006_Nuclei",
    "Dataset007_LowerGradeGlioma",
)


def changed(**values: object) -> dict[str, object]:
    return read_spec("4").dump() | values


def test_every_specification_is_listed_and_parses() -> None:
    assert list_specs() == KNOWN
    assert tuple(read_spec(name).name for name in KNOWN) == KNOWN


def test_schema_json_is_the_schema_of_the_documents(repository: Path) -> None:
    """After a change of the document: `files.write_json(path, spec.schema())`."""
    stored = json.loads((repository / "datasets_spec" / "schema.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(schema()))


@pytest.mark.parametrize("name", KNOWN)
def test_specification_is_stored_as_it_is_dumped(name: str, repository: Path) -> None:
    stored = json.loads((repository / "datasets_spec" / f"{name}.json").read_text("utf-8"))
    assert stored == read_spec(name).dump()


@pytest.mark.parametrize("name", KNOWN)
def test_specification_agrees_with_the_real_dataset(name: str, real_data: Path) -> None:
    dataset, problems = read_dataset(real_data / name)
    spec = read_spec(name)
    assert problems == []
    assert spec.channels == dataset.channels
    assert dict(spec.labels) == dict(zip(dataset.labels.names, dataset.labels.values, strict=True))
    assert spec.cases == len(dataset.cases) == dataset.declared_cases
    assert spec.file_ending == dataset.file_ending
    for pattern in spec.layout[1:]:
        place, _, ending = pattern.partition("CASE")
        assert len(list((real_data / name / place).glob(f"*{ending}"))) >= spec.cases


@pytest.mark.parametrize(
    "wanted", ["4", "004", "Hippocampus", "hippocampus", "Dataset004_Hippocampus", " 4 "]
)
def test_a_specification_is_found_by_number_and_word(wanted: str) -> None:
    assert read_spec(wanted).name == "Dataset004_Hippocampus"


@pytest.mark.parametrize("wanted", ["", "0", "40", "../schema", "Dataset004_Hipocampus"])
def test_an_unknown_name_is_explained(wanted: str) -> None:
    with pytest.raises(AutosegError, match="no specification of a dataset"):
        read_spec(wanted)


def test_a_misspelt_name_gets_the_nearest_one() -> None:
    with pytest.raises(AutosegError, match="did you mean 'Dataset006_Nuclei'"):
        read_spec("Dataset006_Nucleus")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"labels": {"anterior": 1}}, "background = 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "share one value"),
        ({"cases": 261}, "more cases than were published"),
        ({"file_ending": ".dcm"}, "file_ending '.dcm'"),
        ({"labels": {"background": 0, "head": 1}}, "anterior, posterior, no label"),
        ({"landing_page": "medicaldecathlon.com"}, "landing_page"),
        ({"chanels": ["MRI"]}, "did you mean 'channels'"),
    ],
)
def test_a_faulty_specification_is_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(PlanError, match=fault):
        DatasetSpec.parse(changed(**values), "a specification")


def test_hippocampus_reference_is_the_mean_of_its_classes() -> None:
    (score,) = read_spec("4").reference
    mean = sum(score.per_class.values()) / len(score.per_class)
    assert score.value == pytest.approx(mean, abs=1e-9)
    assert score.value == 0.8904
