"""A fold that was killed ends in the weights of an undisturbed one, whatever had been decided."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from autoseg.documents.run import append_line, lines
from autoseg.learn.watch import Watch
from autoseg.stages import train as stage

FOLDS = "results/Dataset001_Phantom/default/3d_fullres"


class Killed(BaseException):
    """What stands for a kill: nothing catches it."""


def weights(fold: Path) -> str:
    return hashlib.sha256((fold / "weights.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def killed_behind(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], int], None]:
    """Calls something that dies after a step, whose state is on the disk."""

    def run(call: Callable[[], object], step: int) -> None:
        whole = Watch.after_step

        def dying(self: Watch, run, loss):
            goes_on = whole(self, run, loss)
            if run.step >= step:
                self.writer.wait()
                raise Killed
            return goes_on

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Watch, "after_step", dying)
            call()

    return run


def test_a_pace_that_a_killed_process_decided_is_not_obeyed(
    shell, tiny: Path, killed_behind: Callable[[Callable[[], object], int], None]
) -> None:
    """The decision lies behind its last state, and the run is killed once more behind that."""
    line = (
        "autoseg train 1 3d_fullres 0 --workers 0 --steps 14 --set train.save_every_s=0.001 --run "
    )
    assert shell(line + "whole").code == 0
    killed_behind(lambda: shell(line + "killed"), 4)
    fold = tiny / FOLDS / "killed" / "fold_0"
    append_line(fold / "journal.jsonl", {"event": "pace", "step": 6, "total": 10, "why": "lost"})
    killed_behind(lambda: shell(line + "killed"), 8)
    assert shell(line + "killed").code == 0
    assert weights(fold) == weights(tiny / FOLDS / "whole" / "fold_0")


def test_a_run_that_stopped_early_is_not_trained_further(
    shell, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its last state and its weights."""
    line = (
        "autoseg train 1 3d_fullres 0 --workers 0 --steps 20 --set train.early_stop=1 "
        "--set train.lr=1e-9 --set train.weight_decay=0 --set train.validate_every=2 --run "
    )
    assert shell(line + "whole").code == 0

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(stage, "save_weights", killed)
        shell(line + "killed")
    assert shell(line + "killed").code == 0
    whole, again = (tiny / FOLDS / run / "fold_0" for run in ("whole", "killed"))
    steps = [[e["step"] for e in lines(f / "history.jsonl") if "loss" in e] for f in (whole, again)]
    assert steps[0] == steps[1]
    assert len(steps[0]) < 20
    assert weights(whole) == weights(again)


@pytest.mark.parametrize(
    "damaged",
    [
        f"{FOLDS}/default/fold_0/stamp.json",
        f"{FOLDS}/default/fold_0/begun.json",
        f"{FOLDS}/default/fold_0/run.json",
        "preprocessed/Dataset001_Phantom/fingerprint/checks.json",
        "preprocessed/Dataset001_Phantom/fingerprint/fingerprint.json",
        "preprocessed/Dataset001_Phantom/plans/default/stamp.json",
        "preprocessed/Dataset001_Phantom/plans/default/plan.json",
    ],
)
def test_an_empty_document_is_made_again(shell, trained: Path, damaged: str) -> None:
    """What a power cut leaves; the trained fold stays what it was."""
    before = weights(trained / FOLDS / "default" / "fold_0")
    (trained / damaged).write_bytes(b"")
    said = shell("autoseg train 1 3d_fullres 0 --workers 0")
    assert said.code == 0, said.err
    assert weights(trained / FOLDS / "default" / "fold_0") == before
    # of a fold that is done nothing asks what it was begun from, and what was asked of a plan with
    # pins is known to nobody else: it is kept as if it was edited
    if "begun" not in damaged and not damaged.endswith("plans/default/stamp.json"):
        assert (trained / damaged).stat().st_size > 0


def test_a_time_that_holds_few_steps_is_told(shell, tiny: Path, monkeypatch) -> None:
    """And one for a fold that is trained already changes nothing, which is told too."""
    from autoseg.learn.patches import PatchSchedule

    monkeypatch.setattr(PatchSchedule, "seconds_ahead", lambda self, step: 60.0)
    said = shell("autoseg train 1 3d_fullres 0 --workers 0 --time 100s --steps 2")
    assert said.code == 0, said.err
    assert "holds only 1 step, too few to learn much;" in said.err
    said = shell("autoseg train 1 3d_fullres 0 --workers 0 --time 200s")
    assert "is trained already; --redo trains it anew" in said.err
