"""What cannot be asked is told before anything is written, with the command that would help."""

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train 1 3d_fullres 0 7", "there is no fold '7'"),
        ("train 1 3d_fullres 0 --run ..", "cannot be the name of a run"),
        ("plan 1 --name new --device gpu", "--device 'gpu' is unknown"),
        ("validate 1 3d_fulres 0", "did you mean '3d_fullres'?"),
        ("validate 1 3d_fullres 0 --plan defalt", "did you mean 'default'?"),
        (
            "validate 1 3d_fullres 2 --run slow",
            "run `autoseg train Dataset001_Phantom 3d_fullres 2 --run slow` first",
        ),
        (
            "find_best_configuration 1 -c 2d --run slow",
            "2d lacks fold 0 1 2 3 4: run `autoseg train Dataset001_Phantom 2d 0 1 2 3 4 --run slow`",
        ),
    ],
)
def test_nothing_is_written(shell, tiny: Path, line: str, told: str) -> None:
    said = shell(f"autoseg {line}")
    assert said.code == 2
    assert told in said.err
    assert not (tiny / "results").exists()


def test_a_root_without_datasets_is_told(shell) -> None:
    said = shell("autoseg status --root nowhere")
    assert said.code == 2
    assert "there is no dataset in" in said.err
    assert "choose another --root" in said.err


def test_a_report_goes_into_no_folder(shell, tmp_path: Path) -> None:
    said = shell(f"autoseg evaluate a b -o {tmp_path}")
    assert said.code == 2
    assert "is a folder; name a JSON file for the report" in said.err


def test_label_maps_go_into_no_file(shell, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    said = shell("autoseg predict in out --model any")
    assert (said.code, said.err) == (
        2, "autoseg: out is a file; name a folder for the label maps (-o)\n",
    )  # fmt: skip
    assert (tmp_path / "out").read_text() == "mine"


def test_a_time_that_was_refused_does_not_count_afterwards(shell, tiny: Path) -> None:
    said = shell("autoseg train 1 3d_fullres 0 --time 1s --workers 0")
    assert said.code == 2
    assert "--time 1 s is too short" in said.err
    said = shell("autoseg train 1 3d_fullres 0 --workers 0")
    assert said.code == 0, said.err
