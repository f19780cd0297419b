"""Real kill -9 at random places, and the same command again: nothing is lost, nothing done twice.

Training and prediction run as copies of one process that has imported torch (`zygote.py`), so that
a test can kill often; preprocessing runs as `python -m autoseg`. The places are drawn from a seed,
but a process is never twice at the same place, so each run of these tests tries new ones.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.documents.run import append_line, lines
from autoseg.files import is_half

if sys.platform != "linux":
    pytest.skip("reads /proc and forks", allow_module_level=True)

PATIENCE_S = 120.0
FOLD = "results/Dataset001_Phantom/default/3d_fullres/{run}/fold_0"
GROWING = (
    '--set \'train.patch_schedule=[{"until":0.3,"patch_vox":[8,8,8],"batch_size":6},'
    '{"until":0.6,"patch_vox":[8,16,16],"batch_size":3}]\''
)
RECIPE = "--set network.dropout=0.2 --set train.ema_share=0.3"


def until(true: Callable[[], bool], what: str) -> None:
    """Waits until a condition holds; a test that waits in vain says for what."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.002)


def environment(repository: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOSEG", "nnUNet"))}
    return {**kept, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}


class Command:
    """A command of autoseg in a process of its own."""

    def __init__(self, process: int, poll: Callable[[], int | None], said: Path) -> None:
        self.process, self.poll, self.path = process, poll, said

    @property
    def said(self) -> str:
        return self.path.read_text()

    def wait(self) -> int:
        """The exit code; -9 for a process that was killed."""
        end = time.monotonic() + PATIENCE_S
        while (code := self.poll()) is None:
            assert time.monotonic() < end, self.said
            time.sleep(0.005)
        return code

    def kill(self, number: int = signal.SIGKILL) -> int:
        os.kill(self.process, number)
        return self.wait()


Start = Callable[..., Command]


@pytest.fixture(scope="module")
def zygote(repository: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))],
        env=environment(repository), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def start(zygote: subprocess.Popen[str], tmp_path: Path) -> Iterator[Start]:
    """Starts `autoseg …` beside this process, in tmp_path; what is left over is killed."""
    running: list[Command] = []

    def ask(**request) -> int | None:
        assert zygote.stdin and zygote.stdout
        zygote.stdin.write(json.dumps(request) + "\n")
        zygote.stdin.flush()
        return json.loads(zygote.stdout.readline())

    def begin(line: str, dies: tuple[str, str, str, int] | None = None) -> Command:
        said = tmp_path / f"said_{len(running)}.txt"
        said.touch()
        words = shlex.split(line)[1:]
        process = ask(words=words, folder=str(tmp_path), said=str(said), dies=dies)
        codes: list[int] = []

        def poll() -> int | None:
            if not codes and (code := ask(wait=process)) is not None:
                codes.append(code)
            return codes[0] if codes else None

        running.append(Command(process, poll, said))
        return running[-1]

    yield begin
    for command in running:
        if command.poll() is None:
            command.kill()


def entries(path: Path) -> list[dict]:
    """The whole lines of a JSON-lines file that is being written."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def history(fold: Path) -> list[dict]:
    """Loss, Dice and learning rate of every step: all but the seconds that it took."""
    found = entries(fold / "history.jsonl")
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in found]


def half_written(folder: Path) -> list[str]:
    """Files and folders that are no artefact: what a kill left behind."""
    return [str(p) for p in folder.rglob("*") if is_half(p.name)]


def children(process: int) -> set[int]:
    """The living processes that a process started, and theirs."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found, old = {process}, set[int]()
    while found != old:
        old, found = found, found | {p for p, parent in parents.items() if parent in found}
    return found - {process}


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, tiny_root: Path, zygote: subprocess.Popen[str]
) -> Path:
    """A workspace in which the run `a` of fold 0 was trained without a break."""
    from autoseg.cli import main

    root = tmp_path_factory.mktemp("unbroken") / "autoseg_data"
    shutil.copytree(tiny_root, root)
    line = f"train 1 3d_fullres 0 --run a {RECIPE} --steps 30 --workers 0 --root {root}"
    assert main(shlex.split(line)) == 0
    return root


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_training_killed_and_continued_ends_in_the_same_weights(
    workers: int, start: Start, tiny: Path, unbroken: Path
) -> None:
    """With dropout, averaged weights and a schedule; the history too."""
    chance = random.Random(workers)
    fold = tiny / FOLD.format(run="a")
    line = f"autoseg train 1 3d_fullres 0 --run a {RECIPE} --steps 30 --workers {workers}"
    kills = 0
    for at in sorted(chance.sample(range(1, 28), 3 if workers == 0 else 1)):
        command = start(line)
        until(
            lambda at=at, command=command: (
                len(entries(fold / "history.jsonl")) >= at or command.poll() is not None
            ),
            f"step {at}",
        )
        time.sleep(chance.uniform(0, 0.02))
        if command.poll() is None:
            assert command.kill() == -signal.SIGKILL
            kills += 1
            assert not (fold / "stamp.json").exists()
    assert kills >= 1
    last = start(line)
    assert last.wait() == 0, last.said

    whole = unbroken / FOLD.format(run="a")
    assert (fold / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()
    assert history(fold) == history(whole)
    assert [entry["step"] for entry in history(fold) if "loss" in entry] == list(range(1, 31))
    assert half_written(tiny) == []


@pytest.mark.parametrize(
    "dies",
    [
        ("os", "replace", "last.safetensors", 2),
        ("autoseg.learn.watch", "append_line", "'event': 'saved'", 2),
        ("os", "replace", "best.safetensors", 1),
    ],
    ids=["written, not in place", "in place, not in the journal", "best weights"],
)
def test_a_kill_while_a_thread_saves_loses_nothing(
    dies: tuple[str, str, str, int], start: Start, tiny: Path, unbroken: Path
) -> None:
    """Between the copy of a state, its file and the journal; the steps went on meanwhile."""
    fold = tiny / FOLD.format(run="a")
    line = f"autoseg train 1 3d_fullres 0 --run a {RECIPE} --steps 30 --workers 0"
    line += " --set train.save_every_s=0.0001"
    killed = start(line, dies=dies)
    assert killed.wait() == -signal.SIGKILL, killed.said
    saved = [e["step"] for e in entries(fold / "journal.jsonl") if e["event"] == "saved"]
    found = state_step(fold / "last.safetensors")
    if "saved" in dies[2]:
        assert len(saved) == 1 < found
    else:
        assert found == saved[-1]
        assert len(half_written(tiny)) == 1
    assert len([e for e in history(fold) if "loss" in e]) >= found
    again = start(line)
    assert again.wait() == 0, again.said
    assert f"going on from step {found}" in again.said
    whole = unbroken / FOLD.format(run="a")
    for name in ("weights", "best"):
        assert (fold / f"{name}.safetensors").read_bytes() == (
            whole / f"{name}.safetensors"
        ).read_bytes()
    assert history(fold) == history(whole)
    assert half_written(tiny) == []


def state_step(path: Path) -> int:
    """The step of a saved state."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["autoseg"])["step"]


@pytest.mark.slow
def test_a_growing_patch_killed_and_continued_ends_in_the_same_weights(
    start: Start,
    tiny: Path,
    tmp_path: Path,
) -> None:
    line = f"autoseg train 1 3d_fullres 0 --run g {RECIPE} {GROWING} --steps 12"
    fold, other = tiny / FOLD.format(run="g"), tmp_path / "unbroken"
    shutil.copytree(tiny, other)
    unbroken = start(f"{line} --workers 0 --root {other}")
    assert unbroken.wait() == 0, unbroken.said
    command = start(f"{line} --workers 1")
    until(lambda: len(entries(fold / "history.jsonl")) >= 5 or command.poll() is not None, "step 5")
    assert command.kill() == -signal.SIGKILL
    last = start(f"{line} --workers 1")
    assert last.wait() == 0, last.said
    whole = other / FOLD.format(run="g")
    weights = [f / "weights.safetensors" for f in (fold, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert history(fold) == history(whole)


def test_dropout_and_averaging_are_at_work(unbroken: Path) -> None:
    """Without this, the test above might compare two runs that never used a random number."""
    from safetensors.numpy import load_file

    fold = unbroken / FOLD.format(run="a")
    spec = json.loads((fold / "run.json").read_text())
    assert spec["configuration"]["network"]["dropout"] == 0.2
    state, spoken = load_file(fold / "last.safetensors"), load_file(fold / "weights.safetensors")
    name = next(iter(spoken))
    np.testing.assert_array_equal(spoken[name], state[f"average.{name}"])
    assert np.abs(state[f"average.{name}"] - state[f"net.{name}"]).max() > 0


def test_sigterm_saves_and_the_same_command_goes_on(
    start: Start, tiny: Path, unbroken: Path
) -> None:
    fold = tiny / FOLD.format(run="a")
    line = f"autoseg train 1 3d_fullres 0 --run a {RECIPE} --steps 30 --workers 0"
    command = start(line + " --set train.save_every_s=1000")
    until(lambda: len(entries(fold / "history.jsonl")) >= 3, "step 3")
    assert command.kill(signal.SIGTERM) == 130
    assert "state saved; the same command goes on" in command.said
    assert "Traceback" not in command.said
    saved = [e["step"] for e in entries(fold / "journal.jsonl") if e["event"] == "saved"]
    assert len(saved) == 1
    assert 3 <= saved[0] < 30
    assert saved[0] == len([e for e in history(fold) if "loss" in e])
    again = start(line + " --set train.save_every_s=1000")
    assert again.wait() == 0, again.said
    assert f"going on from step {saved[0]}" in again.said
    whole = unbroken / FOLD.format(run="a")
    assert (fold / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


def test_a_fold_has_one_writer_and_its_workers_end_with_it(start: Start, shell, tiny: Path) -> None:
    fold = tiny / FOLD.format(run="default")
    line = "autoseg train 1 3d_fullres 0 --steps 100000 --workers 2"
    command = start(line)
    until(lambda: len(entries(fold / "history.jsonl")) >= 2, "step 2")
    workers = children(command.process)
    assert len(workers) >= 2
    rows = shell("autoseg status").out
    assert "fold 0 of 3d_fullres (default/default)" in rows
    assert "running" in rows

    second = shell(line)
    assert second.code == 2
    assert "fold 0 of Dataset001_Phantom 3d_fullres is being written by process" in second.err
    assert str(command.process) in second.err
    assert command.poll() is None

    assert command.kill() == -signal.SIGKILL
    until(lambda: not any(alive(worker) for worker in workers), "the workers to end")
    third = start(line)
    until(lambda: "going on from step" in third.said or third.poll() is not None, "a third try")
    assert third.poll() is None


def test_prediction_killed_and_repeated(start: Start, trained: Path, tmp_path: Path) -> None:
    """What was written before a kill stays as it is; what was not is written; nothing is halved."""
    source = trained / "raw/Dataset001_Phantom/imagesTs/phantom_007_0000.nii.gz"
    (tmp_path / "in").mkdir()
    names = [f"scan_{n:02d}" for n in range(10)]
    for n, name in enumerate(names):
        scan = nib.load(source)
        data = np.roll(np.asarray(scan.dataobj), n, axis=0)
        nib.save(nib.Nifti1Image(data, scan.affine), tmp_path / "in" / f"{name}_0000.nii.gz")
    whole = start("autoseg predict -i in -o whole")
    assert whole.wait() == 0, whole.said

    chance, out, kept = random.Random(5), tmp_path / "out", {}
    for at in (1, 4, 7):
        command = start("autoseg predict -i in -o out")
        until(
            lambda at=at, command=command: (
                len(list(out.glob("[!.]*.nii.gz"))) >= at or command.poll() is not None
            ),
            f"label map {at}",
        )
        time.sleep(chance.uniform(0, 0.03))
        if command.poll() is None:
            command.kill()
        for path in out.glob("[!.]*.nii.gz"):
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
            if (out / ".autoseg" / f"{path.name.split('.')[0]}.json").exists():
                identity = (path.stat().st_ino, path.stat().st_mtime_ns)
                assert kept.setdefault(path.name, identity) == identity
    last = start("autoseg predict -i in -o out")
    assert last.wait() == 0, last.said
    assert len(kept) >= 1
    for name, identity in kept.items():
        found = (out / name).stat()
        assert (found.st_ino, found.st_mtime_ns) == identity
    assert sorted(p.name for p in out.glob("[!.]*.nii.gz")) == [f"{n}.nii.gz" for n in names]
    for name in names:
        path = f"{name}.nii.gz"
        assert (out / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    assert half_written(out) == []


def test_ctrl_c_ends_with_130_and_one_line(start: Start, trained: Path, tmp_path: Path) -> None:
    source = trained / "raw/Dataset001_Phantom/imagesTs/phantom_007_0000.nii.gz"
    (tmp_path / "in").mkdir()
    for n in range(300):
        shutil.copy(source, tmp_path / "in" / f"scan_{n:02d}_0000.nii.gz")
    command = start("autoseg predict -i in -o out")
    until(lambda: len(list((tmp_path / "out").glob("[!.]*.nii.gz"))) >= 2, "two label maps")
    assert command.kill(signal.SIGINT) == 130
    assert command.said.splitlines()[-1] == (
        "autoseg: stopped; the same command goes on where it was"
    )
    assert 2 <= len(list((tmp_path / "out").glob("[!.]*.nii.gz"))) < 300
    assert half_written(tmp_path / "out") == []


@pytest.mark.parametrize("lost", [("stamp.json",), ("stamp.json", "weights.safetensors")])
def test_a_kill_after_the_last_step(lost: tuple[str, ...], shell, trained: Path) -> None:
    """Between the last state, the final weights and the stamp nothing is trained again."""
    fold = trained / FOLD.format(run="default")
    weights, seen = (fold / "weights.safetensors").read_bytes(), history(fold)
    for name in lost:
        (fold / name).unlink()
    said = shell("autoseg train 1 3d_fullres 0")
    assert said.code == 0, said.err
    assert "going on from step 8" in said.err
    assert (fold / "weights.safetensors").read_bytes() == weights
    assert history(fold) == seen
    assert (fold / "stamp.json").exists()


def test_going_on_elsewhere_warns(shell, trained: Path) -> None:
    fold = trained / FOLD.format(run="default")
    journal = fold / "journal.jsonl"
    written = entries(journal)
    for entry in written:
        if entry["event"] == "variant":
            entry["torch"] = "1.0.0"
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in written))
    (fold / "stamp.json").unlink()
    said = shell("autoseg train 1 3d_fullres 0")
    assert said.code == 0
    assert "warning: this run goes on elsewhere (torch 1.0.0 → " in said.err


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append_line(path, {"event": "saved", "step": 1})
    with path.open("a") as file:
        file.write('{"event": "pa')
    append_line(path, {"event": "saved", "step": 2})
    assert [entry["step"] for entry in lines(path)] == [1, 2]


def units(prepared: Path) -> dict[str, tuple[int, int]]:
    """Every finished unit below a folder, and what tells it from one that was made again."""
    return {
        str(stamp.parent.relative_to(prepared)): (stamp.stat().st_ino, stamp.stat().st_mtime_ns)
        for stamp in prepared.glob("*/[!.]*/stamp.json")
    }


def test_preprocessing_killed_and_repeated(
    phantoms: Callable[..., Path], tmp_path: Path, repository: Path, tiny_plan: str
) -> None:
    root = tmp_path / "autoseg_data"
    phantoms(root, cases=16, test_cases=0, shape_vox=(28, 30, 26))
    preprocessed = root / "preprocessed" / "Dataset001_Phantom"
    measured, prepared = preprocessed / "fingerprint" / "cases", preprocessed / "prepared"
    words = [sys.executable, "-m", "autoseg", "plan_and_preprocess", "-d", "1", "--workers", "2"]
    words += shlex.split(tiny_plan)
    chance = random.Random(3)

    def done() -> int:
        return len(list(measured.glob("[!.]*.json"))) + len(units(prepared))

    kept: dict[str, tuple[int, int]] = {}
    kills = 0
    for at in sorted(chance.sample(range(1, 45), 4)):
        command = subprocess.Popen(
            words, cwd=tmp_path, env=environment(repository), stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        until(
            lambda at=at, command=command: done() >= at or command.poll() is not None,
            f"unit {at}",
        )
        time.sleep(chance.uniform(0, 0.01))
        workers = children(command.pid)
        command.kill()
        kills += command.wait() == -signal.SIGKILL
        until(lambda workers=workers: not any(map(alive, workers)), "the workers to end")
        for path in measured.glob("[!.]*.json"):
            json.loads(path.read_text())
        for folder in prepared.glob("*/[!.]*/"):
            assert (folder / "stamp.json").exists(), f"{folder} is half a unit"
        now = {**units(prepared), **{p.name: (p.stat().st_ino, 0) for p in measured.glob("[!.]*")}}
        assert {name: now[name] for name in kept} == kept
        kept = now
    assert kills >= 2
    subprocess.run(words, cwd=tmp_path, env=environment(repository), check=True)
    now = {**units(prepared), **{p.name: (p.stat().st_ino, 0) for p in measured.glob("[!.]*")}}
    assert {name: now[name] for name in kept} == kept
    assert len(list(measured.glob("[!.]*.json"))) == 16
    keys = {name.split("/")[0] for name in units(prepared)}
    assert len(units(prepared)) == 16 * len(keys) > 0
    assert half_written(root) == []


@pytest.mark.parametrize("look", ["mr", "ct"])
def test_one_of_twenty_cases_added_removed_changed(
    look: str, shell, phantoms: Callable[..., Path], tmp_path: Path, tiny_plan: str
) -> None:
    """1, 0 and 1 units are made again, although the fingerprint changes a little each time."""
    root = tmp_path / "autoseg_data"
    folder = phantoms(root, look, cases=21, test_cases=0, shape_vox=(16, 18, 14))
    aside = tmp_path / "aside"
    aside.mkdir()
    files = ("imagesTr/phantom_021_0000.nii.gz", "labelsTr/phantom_021.nii.gz")
    for name in files:
        shutil.move(folder / name, aside / Path(name).name)
    prepared = root / "preprocessed" / "Dataset001_Phantom" / "prepared"

    def redone(before: dict[str, tuple[int, int]]) -> int:
        said = shell("autoseg plan_and_preprocess -d 1 -c 3d_fullres")
        assert said.code == 0, said.err
        assert len({name.split("/")[0] for name in units(prepared)}) == 1, said.err
        return sum(before.get(name) != mark for name, mark in units(prepared).items())

    assert shell(f"autoseg plan -d 1 {tiny_plan}").code == 0
    assert redone({}) == 20
    assert redone(units(prepared)) == 0
    before = units(prepared)
    for name in files:
        shutil.move(aside / Path(name).name, folder / name)
    assert redone(before) == 1  # added

    before = units(prepared)
    for name in files:
        (folder / name.replace("021", "003")).unlink()
    assert redone(before) == 0  # removed

    before = units(prepared)
    scan = folder / "imagesTr" / "phantom_005_0000.nii.gz"
    image = nib.load(scan)
    changed = np.asarray(image.dataobj).copy()
    changed[3, 3, 3] += 1
    nib.save(nib.Nifti1Image(changed, image.affine), scan)
    assert redone(before) == 1  # changed
    made_again = [name for name in before if before[name] != units(prepared)[name]]
    assert [name.split("/")[1] for name in made_again] == ["phantom_005"]
