"""Which model speaks where nobody says: compared on the cases that both held out, or asked for."""

from pathlib import Path

import pytest

from autoseg.documents.report import CaseScores, LabelScores, build_report
from autoseg.errors import AutosegError
from autoseg.flow.choose import Key, best_validated, groups_of
from autoseg.workspace import DatasetPlaces, Fold

GOOD: Key = ("default", "3d_fullres", "default")
POOR: Key = ("other", "3d_fullres", "default")
FLAT: Key = ("default", "2d", "default")


def validated(root: Path, key: Key, folds: dict[str, dict[str, float]]) -> list[Fold]:
    """Folds with a report on their held-out cases: fold -> case id -> Dice."""
    made = []
    for name, dice in folds.items():
        fold = Fold(root.joinpath(*key, f"fold_{name}"))
        cases = [
            CaseScores(case=case, labels={"a": LabelScores(outcome="both", values={"dice": value})})
            for case, value in dice.items()
        ]
        fold.validation.mkdir(parents=True)
        build_report(cases, dataset="D", tolerance_mm=1.0).write(fold.validation / "report.json")
        made.append(fold)
    return made


def test_easy_cases_make_no_model_the_best(tmp_path: Path) -> None:
    """The poor one was validated on the easy cases alone, where the good one is better."""
    good = validated(tmp_path, GOOD, {"0": {"a": 0.9, "b": 0.92}, "1": {"c": 0.2, "d": 0.3}})
    poor = validated(tmp_path, POOR, {"0": {"a": 0.7, "b": 0.8}})
    assert best_validated({POOR: poor, GOOD: good}) == GOOD
    assert best_validated({GOOD: good, POOR: poor}) == GOOD


def test_a_better_one_on_common_cases_wins(tmp_path: Path) -> None:
    good = validated(tmp_path, GOOD, {"0": {"a": 0.2}})
    poor = validated(tmp_path, POOR, {"0": {"a": 0.1}, "1": {"c": 0.99}})
    flat = validated(tmp_path, FLAT, {"0": {"a": 0.2}})
    assert best_validated({FLAT: flat, POOR: poor, GOOD: good}) == GOOD


def test_without_a_common_case_it_is_asked_for(tmp_path: Path) -> None:
    good = validated(tmp_path, GOOD, {"0": {"a": 0.9}})
    poor = validated(tmp_path, POOR, {"1": {"b": 0.95}})
    with pytest.raises(AutosegError, match=r"no case in common.*--configuration, --plan and --run"):
        best_validated({GOOD: good, POOR: poor})


def test_one_that_was_not_validated_or_cannot_be_read_loses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = validated(tmp_path, GOOD, {"0": {"a": 0.1}})
    poor = validated(tmp_path, POOR, {"0": {"a": 0.9}})
    (poor[0].validation / "report.json").write_text("{")
    assert best_validated({POOR: poor, GOOD: good, FLAT: []}) == GOOD
    assert "counts as not validated" in caplog.text
    good[0].weights.touch()
    good[0].run.write_text('{"schema": 1, "of a later version": 1}')
    with pytest.raises(AutosegError, match="of a later version"):
        groups_of(DatasetPlaces("D", tmp_path, tmp_path, tmp_path))
