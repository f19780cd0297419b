"""`make card` tried without a card: every part at small size, the clock, the page, what is carried."""

import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from autoseg.rules.memory import GB, Overhead
from bench.card import kept, memory, runner, steps, wheels, worker
from bench.card.parts import PARTS, SECONDS, WRITING_S, Asked, budget, paths

KEYS = {
    "gpu": {"key", "outcome", "seconds"},
    "memory": {"key", "allocated", "reserved", "context", "predicted"},
    "steps": {"key", "what", "whose"},
    "loading": {"key", "workers", "samples_a_second", "seconds_a_batch"},
    "volume": {"key", "shape", "seconds", "labels"},
    "fold": {"key", "steps", "epochs", "trained_s", "dice", "journal"},
}
"""Part -> what each of its rows has."""


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def quiet(_: str) -> None:
    pass


def here(part: str, path: Path, seconds: float) -> None:
    """A part in this process, at small size, however slow the machine is."""
    worker.work(part, path, Asked("cpu", dry=True))


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, kept.Document]]:
    out = tmp_path_factory.mktemp("card")
    return out, runner.run(out, here, say=quiet)


@pytest.mark.parametrize("part", KEYS)
def test_each_part_leaves_its_figures(
    dry: tuple[Path, dict[str, kept.Document]], part: str
) -> None:
    out, _ = dry
    document = kept.read(paths(out)[part], part)
    assert document["error"] is None
    assert document["state"] == "done"
    assert document["rows"]
    for row in document["rows"]:
        assert KEYS[part] <= set(row), row
    assert len({row["key"] for row in document["rows"]}) == len(document["rows"])


def test_the_page_tells_all_parts(dry: tuple[Path, dict[str, kept.Document]]) -> None:
    page = (dry[0] / "card.md").read_text(encoding="utf-8")
    for part in PARTS:
        assert f"## {part.what.capitalize()}" in page
    assert page.count("State: done.") == len(PARTS)
    assert "plain 16x16x16 float32" in page


def test_a_second_call_does_nothing_again(dry: tuple[Path, dict[str, kept.Document]]) -> None:
    def never(part: str, path: Path, seconds: float) -> None:
        raise AssertionError(f"{part} is done")

    assert runner.run(dry[0], never, say=quiet) == dry[1]


def test_few_files_come_back(dry: tuple[Path, dict[str, kept.Document]]) -> None:
    """One folder, one file a part and the page: they can be carried home by whatever way."""
    files = sorted(p.name for p in dry[0].iterdir())
    assert files == sorted([*(f"{part.name}.json" for part in PARTS), "card.md"])


def test_the_deadline_is_kept_whatever_the_parts_take(tmp_path: Path) -> None:
    clock, given = Clock(), {}

    def greedy(part: str, path: Path, seconds: float) -> None:
        given[part] = seconds
        clock.now += seconds

    found = runner.run(tmp_path, greedy, clock=clock, say=quiet)
    assert clock.now <= SECONDS - WRITING_S
    assert list(given) == [part.name for part in PARTS]
    assert given["fold"] >= PARTS[-1].least
    assert {d["state"] for d in found.values()} == {"stopped"}


def test_the_last_part_has_what_the_others_left(tmp_path: Path) -> None:
    clock, given = Clock(), {}

    def quick(part: str, path: Path, seconds: float) -> None:
        given[part] = seconds
        clock.now += 20
        kept.mark(path, part, "done")

    runner.run(tmp_path, quick, clock=clock, say=quiet)
    assert given["fold"] == pytest.approx(SECONDS - 5 * 20 - WRITING_S)


def test_what_has_no_time_says_so_and_is_done_next_time(tmp_path: Path) -> None:
    clock, done = Clock(), []

    def slow(part: str, path: Path, seconds: float) -> None:
        clock.now += 200
        done.append(part)
        kept.mark(path, part, "done")

    found = runner.run(tmp_path, slow, clock=clock, say=quiet)
    assert found["fold"]["state"] == "no time"
    assert found["fold"]["error"]
    first = list(done)
    runner.run(tmp_path, slow, clock=clock, say=quiet)
    assert len(done) == len(set(done)) > len(first)


def test_shares_of_the_time_leave_a_start_to_each_later_part() -> None:
    for index in range(len(PARTS)):
        assert budget(index, 1000.0) >= PARTS[index].least
    assert budget(0, 30.0) == 0.0
    assert sum(part.least for part in PARTS) + WRITING_S < SECONDS


def test_a_part_that_fails_tells_why_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(asked: Asked):
        if "first" not in asked.done:
            yield {"key": "first", "seconds_a_batch": 1.0, "workers": 0}
        raise ValueError("no such thing")

    monkeypatch.setattr("bench.card.loading.rows", broken)
    path = tmp_path / "loading.json"
    for _ in range(2):
        worker.work("loading", path, Asked("cpu", dry=True))
        document = kept.read(path, "loading")
        assert document["state"] == "failed"
        assert "ValueError: no such thing" in document["error"]
        assert [row["key"] for row in document["rows"]] == ["first"]


def test_rows_that_failed_are_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[frozenset[str]] = []

    def rows(asked: Asked):
        asked_for.append(asked.done)
        yield from ({"key": k, "failed": "x"} for k in ("a",) if k not in asked.done)
        yield from ({"key": k} for k in ("b",) if k not in asked.done)

    monkeypatch.setattr("bench.card.steps.rows", rows)
    for _ in range(2):
        worker.work("steps", tmp_path / "steps.json", Asked("cpu", dry=True))
    assert asked_for == [frozenset(), frozenset({"b"})]


def test_a_process_that_overruns_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is a program that starts another and sleeps; neither outlives its seconds."""
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    real = subprocess.Popen

    def popen(command, **rest):
        return real([sys.executable, "-c", code], **rest)

    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    start = time.monotonic()
    runner.process({}, "cpu", True)("loading", tmp_path / "loading.json", runner.TO_END_S + 2)
    assert time.monotonic() - start < 20
    status = Path(f"/proc/{note.read_text()}/stat")
    for _ in range(100):
        gone = not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
        if gone:
            break
        time.sleep(0.05)
    assert gone


def row(predicted: float, reserved: float, context: float = 0.5) -> dict[str, float]:
    return {"predicted": predicted * GB, "reserved": reserved * GB, "context": context * GB,
            "allocated": predicted * GB}  # fmt: skip


def test_overheads_are_those_that_the_figures_were_made_of() -> None:
    """Cards of (p + 1) / (1 - 0.1): with any figures on that line the rule is found again."""
    rows = [row(p, (p + 1.0) / 0.9 - 0.5) for p in (0.5, 2.0, 6.0, 20.0)]
    share, fixed = memory.overheads(rows)
    assert share == pytest.approx(0.1)
    assert fixed == pytest.approx(1.0, abs=0.02)


def test_every_measured_step_fits_by_the_fitted_rule() -> None:
    rows = [row(1.0, 1.2), row(4.0, 5.5), row(10.0, 10.4), row(30.0, 33.0)]
    share, fixed = memory.overheads(rows)
    for one in rows:
        card = (one["predicted"] / GB + fixed) / (1 - share)
        assert card >= (one["reserved"] + one["context"]) / GB
    found = memory.summary(rows)["overheads"]["card"]
    assert Overhead(**found).fixed_gb == fixed


def test_a_step_that_had_no_room_is_no_figure() -> None:
    rows = [row(1.0, 1.2), {"key": "x", "refused": "CUDA out of memory"}]
    assert memory.summary(rows)["steps"] == 1
    assert memory.summary(rows[1:]) == {}


def test_steps_are_compared_where_both_are_there() -> None:
    rows = [
        {"what": "a", "whose": "ours", "wall_s": 1.0}, {"what": "a", "whose": "theirs", "wall_s": 1.5},
        {"what": "b", "whose": "ours", "wall_s": 1.0}, {"what": "b", "whose": "theirs", "skipped": "x"},
    ]  # fmt: skip
    assert steps.summary(rows) == {"a": 1.5}


def test_fourteen_networks_at_two_sizes() -> None:
    assert len(set(memory.NETWORKS)) == 14
    assert len(memory.SIZES) == 2


def wheel(folder: Path, name: str, module: str) -> None:
    with zipfile.ZipFile(folder / name, "w") as written:
        written.writestr(f"{module}/__init__.py", "here = True\n")


def test_what_is_missing_is_unpacked_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "OURS", {"no_such_module": "no-such-module", "json": "json"})
    monkeypatch.setattr(wheels, "TESTS", {"nor_this": "nor-this"})
    monkeypatch.setattr(wheels, "THEIRS", {})
    monkeypatch.setattr(wheels, "STAND_INS", ("never_there",))
    kept_in, site = tmp_path / "wheels", tmp_path / "site"
    kept_in.mkdir()
    wheel(kept_in, "no_such_module-1.0-py3-none-any.whl", "no_such_module")
    wheel(kept_in, "json-1.0-py3-none-any.whl", "json")
    assert wheels.unpacked(site, kept_in) == ["nor-this"]
    assert {p.name for p in site.iterdir()} == {"no_such_module", "never_there.py"}
    monkeypatch.syspath_prepend(site)
    import never_there

    assert never_there.Image is not None
    assert not hasattr(never_there, "__file_of_no_one__")
