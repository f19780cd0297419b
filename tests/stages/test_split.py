"""Splitting a dataset with several scans a patient: where groups come from, and what is refused."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.documents.cases import TABLES
from autoseg.documents.dataset import Case, Dataset, read_dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.labels import LabelSet, Region
from autoseg.documents.run import RunSpec
from autoseg.documents.splits import Split, kfold, read_splits, write_splits
from autoseg.errors import AutosegError, BadData, Stale
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask
from autoseg.stages.fingerprint import fingerprint as measure
from autoseg.stages.split import RECORD, current_splits, default_splits, labelled, split
from autoseg.workspace import DatasetPlaces, open_workspace
from tests.rules.made import CARD

NAME = "Dataset001_Phantom"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, phantoms) -> Path:
    """A workspace with six phantoms, measured. To be copied, not changed."""
    root = tmp_path_factory.mktemp("measured")
    phantoms(root)
    measure(open_workspace(root).places(NAME), workers=1)
    return root


@pytest.fixture
def places(measured: Path, tmp_path: Path) -> DatasetPlaces:
    """Six measured phantoms of one's own."""
    return open_workspace(Path(shutil.copytree(measured, tmp_path / "root"))).places(NAME)


def seen(places: DatasetPlaces) -> tuple[DatasetPlaces, Dataset, Fingerprint]:
    dataset, _ = read_dataset(places.raw)
    return places, dataset, Fingerprint.read(places.fingerprint)


def many(places: DatasetPlaces, ids: list[str], lesion: str) -> tuple:
    """The same dataset with other cases, those with `lesion` in the id showing one."""
    _, dataset, measured = seen(places)
    image = dataset.cases[0]
    cases = tuple(Case(i, image.images, image.label) for i in ids)
    summary = measured.cases[0]
    summaries = tuple(
        summary.model_copy(update={"case": i, "label_voxels": (9, 9 if lesion in i else 0)})
        for i in ids
    )
    return (
        places,
        replace(dataset, cases=cases),
        measured.model_copy(update={"cases": summaries}),
    )


def table(places: DatasetPlaces, rows: dict[str, str], column: str = "patient") -> Path:
    """A cases.csv in the raw folder."""
    path = places.raw / TABLES[0]
    text = f"case,{column}\n" + "".join(f"{c},{g}\n" for c, g in rows.items())
    path.write_text(text)
    return path


def pairs(places: DatasetPlaces) -> dict[str, str]:
    """Two scans a patient."""
    return {f"phantom_{i:03d}": f"P{(i + 1) // 2}" for i in range(1, 7)}


def begun(places: DatasetPlaces, fold: str, split: Split) -> Path:
    """A fold that was begun with a split."""
    plan = make_plan(Fingerprint.read(places.fingerprint), Ask(device=CARD))
    one = places.fold("default", "3d_fullres", "default", fold)
    RunSpec(
        dataset=NAME, plan="default", configuration_name="3d_fullres", run="default", fold=fold,
        dimensions=3, channels=plan.channels, labels=plan.labels,
        configuration=plan.configurations["3d_fullres"], overrides={},
        train_cases=split.train, validation_cases=split.validation,
        intensity_ranges=(None,), spacing_ranges_mm=((1, 1),) * 3, version="0",
    ).write(one.run)  # fmt: skip
    return one.run


def test_the_column_patient_of_a_table_keeps_scans_together(places: DatasetPlaces) -> None:
    table(places, pairs(places))
    found = split(*seen(places))
    assert found.written
    assert found.grouped_by == "column patient of cases.csv"
    splits = read_splits(found.path, labelled(seen(places)[1]))
    assert sorted(s.validation for s in splits) == [
        ("phantom_001", "phantom_002"),
        ("phantom_003", "phantom_004"),
        ("phantom_005", "phantom_006"),
    ]
    assert "Only 3 of 5 folds" in found.why
    assert found.folds.folds[0].groups == (1, 2)
    record = json.loads((places.preprocessed / RECORD).read_text())
    assert record["grouped_by"] == found.grouped_by
    assert record["folds"][0]["cases"] == [2, 4]
    assert record["structures"] == ["organ", "lesion"]
    assert found.lines()[-1] == f"written: {found.path}"


def test_without_a_file_the_folds_are_those_that_split_would_write(places: DatasetPlaces) -> None:
    before = default_splits(*seen(places))
    table(places, pairs(places))
    after = default_splits(*seen(places))
    assert before != after
    assert current_splits(*seen(places)) == after
    split(*seen(places))
    assert current_splits(*seen(places)) == after
    assert default_splits(*seen(places)) == after


def test_equal_cases_without_groups_are_nnunets_folds(places: DatasetPlaces) -> None:
    ids = [f"scan{i:03d}" for i in range(23)]
    assert default_splits(*many(places, ids, "scan")) == kfold(ids)
    table(places, {i: f"patient of {i}" for i in ids})
    assert default_splits(*many(places, ids, "scan")) == kfold(ids)


def test_a_pattern_finds_the_patients_and_structures_are_spread(places: DatasetPlaces) -> None:
    ids = [
        f"{'pos' if p % 3 == 0 else 'neg'}{p:02d}_scan{n}"
        for p in range(30)
        for n in range(1 + p % 2)
    ]
    asked = many(places, ids, "pos")
    found = split(*asked, pattern=r"^(?:pos|neg)(\d+)_", folds=3)
    splits = read_splits(found.path, ids)
    homes: dict[str, set[int]] = {}
    for number, one in enumerate(splits):
        for case in one.validation:
            homes.setdefault(case[3:5], set()).add(number)
    assert len(homes) == 30
    assert all(len(home) == 1 for home in homes.values())
    assert [len(s.validation) for s in splits] == [15, 15, 15]
    assert [sum(c.startswith("pos") for c in s.validation) for s in splits] == [5, 5, 5]
    assert [row.shows[1] for row in found.folds.folds] == [(5, 10)] * 3
    # the whole match serves where the pattern has no group
    whole = split(*asked, pattern=r"^\w{3}\d+", folds=3, redo=True)
    assert read_splits(whole.path, ids) == splits
    assert not whole.written


def test_a_pattern_that_does_not_fit_names_the_cases(places: DatasetPlaces) -> None:
    ids = ["a_1", "a_2", "b1", "c_1"]
    with pytest.raises(BadData) as error:
        split(*many(places, ids, "a"), pattern=r"^(\w+)_")
    assert [p.case for p in error.value.problems] == ["b1"]
    with pytest.raises(BadData):  # a group that took no part
        split(*many(places, ids, "a"), pattern=r"^(x)?\w")
    with pytest.raises(AutosegError, match="no regular expression"):
        split(*seen(places), pattern="(")
    assert not (places.preprocessed / "splits.json").exists()


def test_what_cannot_group_is_explained(places: DatasetPlaces, tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"no cases\.csv to read 'site' from"):
        split(*seen(places), by="site")
    with pytest.raises(AutosegError, match="not both"):
        split(*seen(places), by="site", pattern="x")
    other = table(places, pairs(places), "ward").rename(tmp_path / "other.csv")
    with pytest.raises(AutosegError, match=r"which of ward it is \(--by\)"):
        split(*seen(places), table=other)
    with pytest.raises(AutosegError, match="no column 'wart'; did you mean 'ward'"):
        split(*seen(places), table=other, by="wart")
    with pytest.raises(AutosegError, match="does not exist"):
        split(*seen(places), table=tmp_path / "none.csv", by="ward")
    found = split(*seen(places), table=other, by="ward")
    assert found.grouped_by == "column ward of other.csv"
    table(places, dict.fromkeys(pairs(places), "one"))
    with pytest.raises(AutosegError, match="one group, 'one'"):
        split(*seen(places))
    with pytest.raises(AutosegError, match="6 cases cannot be split into 1 folds"):
        split(*seen(places), folds=1)


def test_a_table_that_lacks_a_case_is_told_before_anything_is_trained(places) -> None:
    rows = pairs(places)
    rows.pop("phantom_002")
    table(places, rows)
    with pytest.raises(BadData) as error:
        default_splits(*seen(places))
    assert [p.case for p in error.value.problems] == ["phantom_002"]
    # a table of other things has nothing to say
    table(places, pairs(places), "age")
    assert default_splits(*seen(places)) is not None


def test_the_same_again_writes_nothing(places: DatasetPlaces) -> None:
    first = split(*seen(places), folds=3)
    stamp = first.path.stat().st_mtime_ns
    again = split(*seen(places), folds=3)
    assert (first.written, again.written) == (True, False)
    assert again.path.stat().st_mtime_ns == stamp
    assert again.folds == first.folds


def test_a_splits_file_of_the_raw_folder_goes_before_ours(places: DatasetPlaces) -> None:
    theirs = places.raw / "splits_final.json"
    splits = kfold(labelled(seen(places)[1]), 2)
    write_splits(theirs, splits)
    assert current_splits(*seen(places)) == splits
    with pytest.raises(AutosegError, match=r"splits_final\.json says which cases"):
        split(*seen(places), redo=True)
    assert not (places.preprocessed / "splits.json").exists()


@pytest.mark.parametrize("name", ["splits.json", "splits_final.json"])
def test_what_a_person_wrote_is_kept_unless_redo(places: DatasetPlaces, name: str) -> None:
    ids = labelled(seen(places)[1])
    mine = kfold(ids, 2)
    write_splits(places.preprocessed / name, mine)
    with pytest.raises(Stale, match="--redo"):
        split(*seen(places), folds=3)
    assert current_splits(*seen(places)) == mine
    found = split(*seen(places), folds=3, redo=True)
    assert len(current_splits(*seen(places))) == 3
    # what the command wrote itself it may replace, until somebody edits it
    assert split(*seen(places), folds=2).written
    edited = json.loads(found.path.read_text())
    found.path.write_text(json.dumps(edited[::-1]))
    with pytest.raises(Stale, match="as it is now"):
        split(*seen(places), folds=3)


def test_folds_that_were_trained_are_not_made_stale_unless_redo(places: DatasetPlaces) -> None:
    before = current_splits(*seen(places))
    run = begun(places, "1", before[1])
    begun(places, "all", Split(("a",), ("a",)))
    with pytest.raises(Stale, match=r"default/3d_fullres/default/fold_1 of Dataset001_Phantom"):
        split(*seen(places), folds=3)
    assert not (places.preprocessed / "splits.json").exists()
    # the same folds may be written down
    assert split(*seen(places)).written
    assert current_splits(*seen(places)) == before
    found = split(*seen(places), folds=3, redo=True)
    assert found.stale == ("default/3d_fullres/default/fold_1",)
    assert any("fold_1" in line for line in found.lines())
    assert len(current_splits(*seen(places))) == 3
    assert run.exists()
    # that fold was stale already and stands in nobody's way now
    assert split(*seen(places), folds=2).written


def test_a_damaged_file_of_our_own_is_replaced_only_with_redo(places: DatasetPlaces) -> None:
    path = split(*seen(places)).path
    path.write_text('[{"train": ["gone"], "val": ["phantom_001"]}]')
    with pytest.raises(Stale):
        split(*seen(places))
    assert split(*seen(places), redo=True).written
    assert current_splits(*seen(places)) == default_splits(*seen(places))


def test_ids_that_look_like_several_scans_of_a_patient_are_told_once(
    places: DatasetPlaces, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [f"patient{p:03d}_frame{f:02d}" for p in range(12) for f in (1, 9)]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            default_splits(*many(places, ids, "p"))
        default_splits(*many(places, [f"hippocampus_{n:03d}" for n in range(60)], "h"))
    (line,) = [r.getMessage() for r in caplog.records if "pattern" in r.getMessage()]
    assert "24 cases have 12 beginnings" in line
    pattern = line.partition("--pattern '")[2].partition("'")[0]
    caplog.clear()
    found = split(*many(places, ids, "p"), pattern=pattern)
    assert found.folds.folds[0].groups is not None
    assert sum(row.groups[0] for row in found.folds.folds) == 12
    assert not caplog.records


def test_regions_are_spread_and_not_their_classes(places: DatasetPlaces) -> None:
    regions = (
        Region(name="whole", classes=(1, 2), paint=1),
        Region(name="core", classes=(2,), paint=2),
    )
    ids = [f"s{i:02d}{'core' if i % 5 < 2 else ''}" for i in range(40)]
    _, dataset, measured = many(places, ids, "core")
    labels = LabelSet(names=("background", "label 1", "core"), values=(0, 1, 2), regions=regions)
    found = split(places, replace(dataset, labels=labels), measured, folds=4)
    assert found.folds.structures == ("whole", "core")
    assert [row.shows for row in found.folds.folds] == [((10, 30), (4, 12))] * 4


def test_two_cases_are_enough_and_one_is_not(places: DatasetPlaces) -> None:
    assert len(default_splits(*many(places, ["a"], "a"))) == 1
    with pytest.raises(AutosegError, match="1 cases cannot be split"):
        split(*many(places, ["a"], "a"))
    found = split(*many(places, ["a", "b"], "a"))
    assert len(read_splits(found.path, ["a", "b"])) == 2


def test_several_scans_a_patient_from_the_files_on(tmp_path: Path, phantoms) -> None:
    """From the images: each structure is in the validation of each fold, each patient in one."""
    folder = phantoms(tmp_path, cases=8, test_cases=1, shape_vox=(12, 12, 12))
    places = open_workspace(tmp_path).places(NAME)
    rows = {f"phantom_{i + 1:03d}": f"P{i // 2}" for i in range(8)} | {"phantom_009": "P9"}
    table(places, rows)
    measured = measure(places, workers=1)
    dataset, _ = read_dataset(folder)
    found = split(places, dataset, measured, folds=2)
    splits = read_splits(found.path, labelled(dataset))
    sides = [{rows[c] for c in s.validation} for s in splits]
    assert sides[0] & sides[1] == set()
    assert [len(s.validation) for s in splits] == [4, 4]
    counts = [label.cases for label in measured.labels]
    for index in range(2):
        shown = [row.shows[index][0] for row in found.folds.folds]
        assert sum(shown) == counts[index]
        assert max(shown) - min(shown) <= 2
