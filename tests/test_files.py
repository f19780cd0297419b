"""Names that may be joined to paths, and files that take their place in one step or not at all."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg import files
from autoseg.documents.dataset import Case
from autoseg.errors import AutosegError
from autoseg.files import (
    WRITER,
    exchange,
    fresh_token,
    is_half,
    named,
    printable,
    replacing,
    replacing_folder,
    sweep,
)
from autoseg.workspace import DatasetPlaces


@pytest.mark.parametrize(
    "text",
    ["hippocampus_001", "Fall 3 (links)", "张三", "a.b-c+d@e", "0", "x" * 180, "é", "no..dots"],
)
def test_what_may_be_a_name(text: str) -> None:
    assert named(text, "the case id") == text


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "../x", "/home/me/Documents", "a/b", "a\\b", ".hidden", " a", "a ", "a\nb",
        "a\x1b[2Jb", "a\x00b", "x" * 181, "é" * 91, "\udcff", "\u202egnp", "a\u2028b",
    ],
)  # fmt: skip
def test_what_may_not_be_one_ends_in_one_line(text: str) -> None:
    with pytest.raises(AutosegError, match=r"the case id .*rename it") as told:
        named(text, "the case id")
    assert str(told.value).isprintable()
    with pytest.raises(AutosegError):
        Case(text, (), None)


@given(st.text(st.characters(), max_size=200))
def test_a_name_stays_in_its_folder(text: str) -> None:
    folder = Path("/nowhere/at/all")
    try:
        name = named(text, "the case id")
    except AutosegError:
        return
    joined = Path(os.path.normpath(folder / name))
    assert joined.parent == folder and joined.name == name


def test_places_join_no_path() -> None:
    places = DatasetPlaces("Dataset001_X", Path("raw"), Path("pre"), Path("results"))
    for ask in (
        lambda: places.plan("../../x"),
        lambda: places.plan_stamp("/etc"),
        lambda: places.fold("default", "3d_fullres", "..", "0"),
        lambda: places.fold("default", "3d_fullres", "default", "0/../../.."),
        lambda: places.final("..", "default"),
        lambda: places.prepared("../raw"),
    ):
        with pytest.raises(AutosegError):
            ask()
    assert places.fold("p", "2d", "r", "0").folder == Path("results/p/2d/r/fold_0")


def test_names_are_shown_on_one_line() -> None:
    assert printable("a\nb\x1b[31m\udcff") == "'a\\nb\\x1b[31m\\xff'"


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.nii.gz"
    with replacing(path) as half:
        assert half.name == path.name and not path.exists()
        half.write_text("new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["a.nii.gz"]
    with pytest.raises(RuntimeError), replacing(path) as half:
        half.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new" and len(list(path.parent.iterdir())) == 1


def test_a_group_may_read_what_its_umask_lets_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "weights") as half:
            half.touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_takes_the_place_of_another(
    tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(files.sys, "platform", "other")
    target = tmp_path / "model"
    for text in ("first", "second"):
        with replacing_folder(target) as half:
            (half / "weights").write_text(text)
    assert (target / "weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    other = tmp_path / "other"
    other.mkdir()
    exchange(other, target)
    assert (other / "weights").read_text() == "second" and not list(target.iterdir())


def test_only_what_this_program_wrote_is_swept(tmp_path: Path) -> None:
    """Folders of a person that look alike, and links, stay; what a dead process left goes."""
    theirs = [".half-1-x", ".old-results", ".autoseg-half-notes", ".autoseg-half-" + "0" * 20]
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("precious")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / fresh_token()).symlink_to(outside)
    (tmp_path / fresh_token()).write_text("a file, not a folder")
    kept = sorted(p.name for p in tmp_path.iterdir())
    dead = tmp_path / fresh_token()
    dead.mkdir()
    (dead / WRITER).touch()
    (dead / "label.nii.gz").write_text("half")
    (tmp_path / fresh_token()).mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == kept
    assert (tmp_path / ".old-results" / "thesis.txt").read_text() == "precious"


def test_what_a_live_writer_holds_is_not_swept(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as half:
        half.write_text("here")
        thread = threading.Thread(target=sweep, args=(tmp_path,))
        thread.start()
        thread.join()
        sweep(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "here"


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
@pytest.mark.parametrize("swaps", [True, False])
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path: Path, swaps: bool) -> None:
    """Before every renaming: the model is there, the old or the new, once somebody sweeps."""
    program = """
import os, signal, sys
from pathlib import Path
from autoseg import files
if sys.argv[3] == "False":
    files.sys.platform = "other"
left = int(sys.argv[2])
real = os.replace
def replace(*names):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*names)
os.replace = replace
with files.replacing_folder(Path(sys.argv[1])) as half:
    (half / "weights").write_text("new")
"""
    for number in range(1, 6):
        folder = tmp_path / str(number)
        target = folder / "model"
        target.mkdir(parents=True)
        (target / "weights").write_text("old")
        told = subprocess.run([sys.executable, "-c", program, str(target), str(number), str(swaps)])
        assert told.returncode in (0, -signal.SIGKILL)
        sweep(folder)
        assert (target / "weights").read_text() in ("old", "new")
        assert [p.name for p in folder.iterdir()] == ["model"]
        assert not any(is_half(p.name) for p in folder.rglob("*"))
    assert told.returncode == 0
