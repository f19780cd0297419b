"""docs/datasets.md lists every specification as `autoseg datasets` does; its example is one."""

import json
import re
from pathlib import Path

import pytest

from autoseg import api
from autoseg.documents.spec import DatasetSpec, list_specs, read_spec
from autoseg.report.datasets import HEAD, KnownDatasets, ShownDataset, row
from autoseg.report.text import as_json, as_text


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "datasets.md").read_text(encoding="utf-8")


def test_the_table_lists_every_specification(page: str) -> None:
    assert f"| {' | '.join(HEAD)} |" in page
    told = re.findall(
        r"^\| \[(Dataset\w+)\]\(\.\./datasets_spec/(\w+)\.json\) \| (.*) \|$", page, re.M
    )
    assert [(name, link) for name, link, _ in told] == [(name, name) for name in list_specs()]
    for name, _, cells in told:
        assert tuple(cells.split(" | ")) == row(read_spec(name))[1:]


def test_the_example_is_a_specification(page: str) -> None:
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.M | re.S)
    spec = DatasetSpec.parse(json.loads(example), "the example")
    assert json.loads(example) == spec.dump()
    assert spec.source_layout is not None
    scan, label = "cohort/p07/p07_flair.nii.gz", "cohort/p07/p07_lesions.nii.gz"
    assert spec.source_layout.images[0].claim(scan) == ("p07", 1)
    assert spec.source_layout.images[0].claim(label) is None
    assert spec.source_layout.labels[0].claim(label) == ("p07", 0)


def test_every_field_is_explained(page: str) -> None:
    section = page.split("## A specification of your own")[1]
    named = set(re.findall(r"`([a-z_0-9]+)`", section))
    assert set(DatasetSpec.model_fields) <= named


def test_the_list_is_one_line_a_dataset() -> None:
    found = api.datasets()
    assert isinstance(found, KnownDatasets)
    lines = as_text(found).splitlines()
    assert lines[0].split() == list(HEAD)
    assert [line.split()[0] for line in lines[1:31]] == list(list_specs())
    at = lines[0].index("access")
    assert [line[at:].split()[0] for line in lines[1:31]] == [
        read_spec(name).access for name in list_specs()
    ]
    assert "`autoseg datasets NAME`" in lines[-1]


@pytest.mark.parametrize("name", list_specs())
def test_a_dataset_is_shown_with_everything_it_says(name: str) -> None:
    found = api.datasets(name)
    assert isinstance(found, ShownDataset)
    text = " ".join(as_text(found).split())
    spec = found.dataset
    for said in (
        spec.title, spec.citation, spec.landing_page, spec.notes, spec.preparation, spec.how_to_get,
        spec.licence or "licence unknown", *spec.channels, *spec.labels, *spec.facts_from,
        *(url for archive in spec.archives for url in archive.urls),
        *(archive.md5 or archive.sha256 or "no checksum known" for archive in spec.archives),
        *(f"{score.metric} {score.value:.4g}" for score in spec.reference),
        *(score.source for score in spec.reference),
    ):  # fmt: skip
        assert " ".join(said.split()) in text


def test_regions_are_shown_with_what_they_are_painted_with() -> None:
    text = as_text(api.datasets("KiTS23"))
    assert "1 2 3 kidney and masses, painted 1" in text
    assert "2 3 masses, painted 3" in text


def test_json_holds_the_specification(repository: Path) -> None:
    stored = (repository / "datasets_spec" / "Dataset115_ACDC.json").read_text("utf-8")
    assert json.loads(as_json(api.datasets("ACDC"))) == {"dataset": json.loads(stored)}
    assert len(json.loads(as_json(api.datasets()))["datasets"]) == len(list_specs())
