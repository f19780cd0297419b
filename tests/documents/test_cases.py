"""Tables of cases as people export them, and the folds as they are written."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.documents.cases import CaseTable, find_table, groups_of, read_table
from autoseg.documents.splits import (
    Split,
    kfold,
    read_splits,
    splits_by,
    splits_file,
    write_splits,
)
from autoseg.errors import AutosegError, BadData

CASES = ["a_1", "a_2", "b_1"]
ROWS = [
    ["case", "patient", "site"],
    ["a_1", "a", "Köln"],
    ["a_2", "a", "Köln"],
    ["b_1", "b", "Bonn"],
]
WANTED = {
    "a_1": {"patient": "a", "site": "Köln"},
    "a_2": {"patient": "a", "site": "Köln"},
    "b_1": {"patient": "b", "site": "Bonn"},
}


def written(folder: Path, content: str | bytes, name: str = "cases.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def text(mark: str, end: str = "\n") -> str:
    return "".join(mark.join(row) + end for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        text(","),
        text(";"),
        text("\t"),
        text(",", "\r\n"),
        text(";").encode("utf-8-sig"),
        text("\t").encode("utf-16"),
        text(";").encode("cp1252"),
        "sep=;\r\n" + text(";", "\r\n"),
        "\n\n" + text(",") + "\n\n",
        text(",").replace("\n", ",,\n"),
        text(",").replace("\n", " , \n").replace(",", " , "),
        '"case","patient","site"\n"a_1","a","Köln"\n"a_2","a","Köln"\n"b_1","b","Bonn"\n',
        text(",").replace("case", "Case"),
        text("\t").replace("case", "participant_id"),
    ],
)
def test_one_table_in_many_dialects(tmp_path: Path, content: str | bytes) -> None:
    found = read_table(written(tmp_path, content), CASES)
    assert found.columns == ("patient", "site")
    assert found.rows == WANTED
    assert found.patient_column == "patient"
    assert groups_of(found, "patient", CASES) == {"a_1": "a", "a_2": "a", "b_1": "b"}
    assert groups_of(found, "SITE", ["b_1"]) == {"b_1": "Bonn"}


def test_marks_inside_other_columns_do_not_divide(tmp_path: Path) -> None:
    content = "case;name, first, last;site\na_1;x, y;1\na_2;x, z;1\nb_1;,,;2\n"
    found = read_table(written(tmp_path, content), CASES)
    assert found.columns == ("name, first, last", "site")
    assert found.rows["a_2"] == {"name, first, last": "x, z", "site": "1"}


CELL = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(st.lists(CELL, min_size=1, max_size=6, unique=True), st.sampled_from(",;\t"), st.data())
def test_whatever_csv_writes_comes_back(tmp_path_factory, ids, mark, data) -> None:
    cells = [data.draw(CELL) for _ in ids]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=mark).writerows(
        [["case", "site"], *map(list, zip(ids, cells, strict=True))]
    )
    path = written(tmp_path_factory.mktemp("t"), out.getvalue())
    found = read_table(path, ids)
    assert {case: row["site"] for case, row in found.rows.items()} == dict(zip(ids, cells))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("case,patient\n", "no row below its header"),
        ("name,patient\na_1,a\n", "no column \"case\"; found 'name', 'patient'"),
        ("case|patient\na_1|a\n", "commas or semicolons or tabs"),
        ("case,site,site\na_1,a,b\n", "two columns 'site'"),
        (b"PK\x03\x04rest", "Excel workbook"),
        (b"\xd0\xcf\x11\xe0rest", "Excel workbook"),
        (b"\x00\x01\x02\x81", "is no text"),
        ('case,patient\n"a_1,a\n', "mend the quotes"),
    ],
)
def test_what_is_no_table_is_explained(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(AutosegError) as error:
        read_table(written(tmp_path, content), CASES)
    assert said in str(error.value)
    assert "cases.csv" in str(error.value)


def problems(folder: Path, content: str, others: list[str] | None = None) -> dict[str, str]:
    """Case -> what is said of it."""
    with pytest.raises(BadData) as error:
        read_table(written(folder, content), CASES, others or [])
    return {p.case: f"{p.what}: {p.found}" for p in error.value.problems}


def test_all_bad_rows_are_told_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path, "case,patient\na_1,a\na_1,b\nb_l,b\n,c\na_2.nii.gz,a\nx,a,7\n", ["t_1"]
    )
    assert "two rows: row 3" in found["a_1"]
    assert "did you mean 'b_1'" in found["b_l"]
    assert "row 5" in found["?"]
    assert "write 'a_2'" in found["a_2.nii.gz"]
    assert "has 3 cells, the header 2" in found["x"]
    assert "no row" in found["a_2"]
    assert "no row" in found["b_1"]
    assert len(found) == 7


def test_rows_of_test_cases_may_be_there(tmp_path: Path) -> None:
    content = text(",") + "t_1,a,Bonn\n"
    found = read_table(written(tmp_path, content), CASES, ["t_1", "t_2"])
    assert found.rows["t_1"] == {"patient": "a", "site": "Bonn"}
    assert set(problems(tmp_path, content)) == {"t_1"}


def test_a_column_is_asked_for_by_its_name(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, text(",")), CASES)
    with pytest.raises(AutosegError, match="no column 'pateint'; did you mean 'patient'"):
        groups_of(found, "pateint", CASES)
    with pytest.raises(AutosegError, match="known: patient, site"):
        groups_of(found, "xyz", CASES)


def test_an_empty_cell_is_no_group() -> None:
    rows = {"a": {"patient": "p"}, "b": {"patient": ""}, "c": {"patient": "n/a"}}
    table = CaseTable(Path("cases.csv"), ("patient",), rows)
    with pytest.raises(BadData) as error:
        groups_of(table, "patient", ["a", "b", "c"])
    assert [p.case for p in error.value.problems] == ["b", "c"]
    assert groups_of(table, "patient", ["a"]) == {"a": "p"}


@pytest.mark.parametrize(
    ("columns", "patient"),
    [
        (("site", "Subject"), "Subject"),
        (("participant_id", "site"), "participant_id"),
        (("patient_id", "subject"), "patient_id"),
        (("site", "patients"), None),
    ],
)
def test_the_patient_is_known_by_usual_names(columns: tuple[str, ...], patient: str | None) -> None:
    assert CaseTable(Path("cases.csv"), columns, {}).patient_column == patient


def test_one_table_is_found_and_two_are_refused(tmp_path: Path) -> None:
    assert find_table(tmp_path) is None
    one = written(tmp_path, text("\t"), "cases.tsv")
    assert find_table(tmp_path) == one
    written(tmp_path, text(","))
    with pytest.raises(AutosegError, match=r"cases\.csv and cases\.tsv; keep one"):
        find_table(tmp_path)


def test_splits_come_back_as_they_were_written(tmp_path: Path) -> None:
    cases = [f"case_{i}" for i in range(12)]
    path = tmp_path / "deep" / "splits.json"
    write_splits(path, kfold(cases))
    assert read_splits(path, cases) == kfold(cases)
    value = json.loads(path.read_text())
    assert [set(fold) for fold in value] == [{"train", "val"}] * 5
    assert value[0]["val"] == list(kfold(cases)[0].validation)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    for bad in ((), (Split((), ("a",)),), (Split(("a",), ("a",)),)):
        with pytest.raises(ValueError, match=r"no fold|fold 0"):
            write_splits(path, bad)
    assert not path.exists()


def test_our_splits_file_goes_before_nnunets(tmp_path: Path) -> None:
    assert splits_file(tmp_path) is None
    (tmp_path / "splits_final.json").write_text("[]")
    assert splits_file(tmp_path) == tmp_path / "splits_final.json"
    (tmp_path / "splits.json").write_text("[]")
    assert splits_file(tmp_path) == tmp_path / "splits.json"


@pytest.mark.parametrize(("count", "folds"), [(2, 5), (3, 5), (7, 5), (12, 5), (12, 3), (260, 5)])
def test_kfold_is_scikit_learns(count: int, folds: int) -> None:
    """KFold(folds, shuffle=True, random_state=12345): the first n % k folds hold one case more."""
    cases = [f"{i:03d}" for i in range(count)]
    order = np.arange(count)
    np.random.RandomState(12345).shuffle(order)
    parts, start = min(folds, count), 0
    for fold, split in enumerate(kfold(cases[::-1], folds)):
        stop = start + count // parts + (fold < count % parts)
        assert list(split.validation) == sorted(cases[i] for i in order[start:stop])
        assert list(split.train) == [c for c in cases if c not in split.validation]
        start = stop
    assert start == count


def test_one_case_validates_itself_and_the_seed_matters() -> None:
    assert kfold("a") == (Split(("a",), ("a",)),)
    assert kfold("abcdefg", seed=1) != kfold("abcdefg", seed=2)


def test_folds_are_what_they_hold_out() -> None:
    assert splits_by([["b", "a"], ["c"]]) == (Split(("c",), ("a", "b")), Split(("a", "b"), ("c",)))
