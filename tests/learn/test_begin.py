"""A fold that is trained anew never goes on from its old state, wherever the clearing was killed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoseg.documents.run import append_line, forget_after, lines
from autoseg.errors import Stale
from autoseg.learn import begin as module
from autoseg.learn.begin import begin, clear
from autoseg.stage import Stamp
from autoseg.workspace import Fold

OLD, NEW = (Stamp("train", 1, {}, {"lr": lr}) for lr in (0.02, 0.001))


class Killed(BaseException):
    """What stands for a kill: nothing catches it."""


def spec(fold: Fold) -> Any:
    return SimpleNamespace(
        fold="0", dataset="D", configuration_name="3d", plan="p", run="r",
        write=lambda path: path.write_text("{}"),
    )  # fmt: skip


def trained(folder: Path) -> Fold:
    """A fold's folder as training and validation leave it."""
    fold = Fold(folder)
    (fold.validation / "probabilities").mkdir(parents=True)
    for path in (fold.run, fold.last, fold.best, fold.weights, fold.history, fold.lock,
                 fold.validation / "report.json", fold.probabilities("c")):  # fmt: skip
        path.write_text("old")
    OLD.write(fold.begun)
    OLD.write(fold.stamp)
    return fold


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ends the clearing right before its removal of that number."""
    left = [number]

    def dying(function: Any) -> Any:
        def one(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*args, **kwargs)

        return one

    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    monkeypatch.setattr(module.shutil, "rmtree", dying(module.shutil.rmtree))


def test_killed_while_it_is_cleared_a_fold_does_not_go_on_from_its_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        fold = trained(tmp_path / f"fold_{number}")
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            try:
                clear(fold)
                break
            except Killed:
                pass
        for redo in (False, True):
            try:
                assert begin(fold, spec(fold), NEW, redo=redo)
                assert not fold.last.exists()
            except Stale:
                assert not redo and fold.begun.exists()
    assert number > 6  # it was killed at every removal, and once not at all
    assert [path.name for path in fold.folder.iterdir()] == [fold.lock.name]


def test_a_state_of_unknown_beginning_is_not_gone_on_from(tmp_path: Path) -> None:
    fold = trained(tmp_path / "fold_0")
    fold.stamp.unlink()
    fold.begun.write_text("")
    with pytest.raises(Stale, match=r"cannot be told any more from what.*--redo"):
        begin(fold, spec(fold), OLD, redo=False)
    assert begin(fold, spec(fold), OLD, redo=True)
    assert not fold.last.exists()


def test_decisions_of_lost_steps_are_forgotten(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    entries: list[dict[str, Any]] = [
        {"event": "variant", "precision": "float32"},
        {"event": "pace", "step": 0, "total": 50},
        {"event": "saved", "step": 20, "spent_s": 1.0},
        {"event": "pace", "step": 20, "total": 40},
        {"event": "pace", "step": 30, "total": 45},
    ]
    for entry in entries:
        append_line(journal, entry)
    forget_after(journal, 20)
    assert list(lines(journal)) == entries[:4]
    before = journal.stat()
    forget_after(journal, 25)
    assert journal.stat() == before  # nothing to forget, nothing written
    forget_after(journal, 0)
    assert list(lines(journal)) == entries[:1]
    forget_after(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()
