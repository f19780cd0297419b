"""Where the time went: nested parts, threads, a table that adds up, a trace that viewers can read."""

import json
import threading
import time
from pathlib import Path

import pytest

from autoseg import timing
from autoseg.timing import BACKGROUND, ELSEWHERE, Recording, Row, part, pulled, recording


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that only `clock.spend` moves."""

    class Clock:
        now = 100.0

        def spend(self, seconds: float) -> None:
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


def by_path(taken: Recording) -> dict[str, Row]:
    return {"/".join(row.path): row for row in taken.table()}


def test_nested_parts_add_up(clock):
    with recording() as taken:
        for _ in range(2):
            with part("step"):
                clock.spend(1)
                with part("forward"):
                    clock.spend(4)
                with part("backward"):
                    clock.spend(5)
        clock.spend(10)
        with part("forward"):
            clock.spend(10)
    assert taken.elapsed_s == 40
    assert [row.path for row in taken.table()] == [
        ("step",), ("step", "backward"), ("step", "forward"), ("forward",), (ELSEWHERE,),
    ]  # fmt: skip
    rows = by_path(taken)
    assert rows["step"] == Row(("step",), 2, 20, 2, 0.5)
    assert rows["step/forward"] == Row(("step", "forward"), 2, 8, 8, 0.2)
    assert rows[ELSEWHERE].total_s == 10
    assert sum(row.self_s for row in taken.table()) == taken.elapsed_s


def test_nothing_is_counted_before_after_or_across_the_ends(clock):
    taken = Recording()
    with part("before"):
        clock.spend(1)
        taken.start()
        clock.spend(2)
    with part("across"):
        taken.stop()
        clock.spend(5)
    with part("after"):
        clock.spend(1)
    taken.stop()
    assert taken.elapsed_s == 2
    assert list(by_path(taken)) == [ELSEWHERE]
    taken.start()
    with part("again"):
        clock.spend(3)
    taken.stop()
    assert taken.elapsed_s == 5
    assert by_path(taken)["again"].share == 0.6


def test_a_part_that_fails_is_counted_and_left(clock):
    with pytest.raises(KeyError), recording() as taken, part("outer"), part("inner"):
        clock.spend(1)
        raise KeyError
    assert not taken.running
    assert by_path(taken)["outer/inner"].total_s == 1
    with recording() as other, part("next"):
        clock.spend(1)
    assert "next" in by_path(other)


def test_what_a_generator_does_is_told_where_it_was_made(clock):
    def tiles():
        for number in range(3):
            clock.spend(2)
            with part("forward"):
                clock.spend(10)
            yield number
        clock.spend(1)

    with recording() as taken, part("segment"):
        made = pulled("tiles", tiles())
        with part("export"), part("paint"):
            found = []
            for number in made:
                clock.spend(4)
                found.append(number)
        with part("after"):
            clock.spend(1)
    assert found == [0, 1, 2]
    rows = by_path(taken)
    assert rows["segment/tiles"] == Row(("segment", "tiles"), 4, 37, 7, 37 / 50)
    assert rows["segment/tiles/forward"].total_s == 30
    assert rows["segment/export"].total_s == rows["segment/export/paint"].self_s == 12
    assert rows["segment/after"].total_s == 1
    assert rows["segment"] == Row(("segment",), 1, 50, 0, 1)
    spans = [e for e in taken.trace()["traceEvents"] if e["ph"] == "X"]
    # the trace shows when: the consumer lasts as long as what it waits for
    assert {e["name"]: e["dur"] for e in spans}["paint"] == 49e6


def test_generators_that_pull_each_other_are_told_apart(clock):
    def numbers():
        for number in range(2):
            clock.spend(10)
            yield number

    def squares(source):
        for number in source:
            clock.spend(3)
            yield number**2

    with recording() as taken:
        inner = pulled("numbers", numbers())
        outer = pulled("squares", squares(inner))
        with part("use"):
            found = [number for number in outer if not clock.spend(1)]
    assert found == [0, 1]
    rows = by_path(taken)
    assert {name: row.total_s for name, row in rows.items()} == {
        "numbers": 20, "squares": 6, "use": 2, ELSEWHERE: 0,
    }  # fmt: skip


def test_a_generator_may_outlive_where_it_was_made_and_may_fail(clock):
    def failing():
        clock.spend(2)
        yield 1
        clock.spend(3)
        raise KeyError

    with recording() as taken:
        with part("making"):
            things = pulled("things", failing())
            clock.spend(1)
        with part("use"):
            assert next(things) == 1
            with pytest.raises(KeyError):
                next(things)
            clock.spend(5)
    rows = by_path(taken)
    assert {name: row.total_s for name, row in rows.items()} == {
        "making": 1, "things": 5, "use": 5, ELSEWHERE: 0,
    }  # fmt: skip


def test_a_generator_is_the_same_while_nobody_records():
    numbers = [1, 2]
    assert list(pulled("x", numbers)) == numbers
    made = iter(numbers)
    assert pulled("x", made) is made


def test_a_part_that_goes_on_is_told_by_what_ended_inside_it(clock):
    with recording() as taken, part("outer"):
        for _ in range(3):
            with part("inner"):
                clock.spend(1)
        rows = by_path(taken)
        assert rows["outer"] == Row(("outer",), 0, 3, 0, pytest.approx(3 / 1e-9))
        assert rows["outer/inner"].calls == 3


def test_other_threads_stand_apart_and_keep_their_own_nesting():
    def work() -> None:
        for _ in range(50):
            with part("read"), part("decode"):
                pass

    with recording() as taken:
        threads = [threading.Thread(target=work, name=f"reader {i}") for i in range(4)]
        with part("here"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    rows = by_path(taken)
    assert rows[f"{BACKGROUND}/read/decode"].calls == 200
    assert rows[f"{BACKGROUND}/read"].calls == 200
    assert rows["here"].calls == 1
    assert rows["here"].total_s + rows[ELSEWHERE].total_s == pytest.approx(taken.elapsed_s)
    names = {e["args"]["name"] for e in taken.trace()["traceEvents"] if e["ph"] == "M"}
    assert {"reader 0", "reader 3"} <= names


def test_a_card_is_waited_for_only_while_it_is_recorded_and_only_on_that_thread():
    waits: list[str] = []
    taken = Recording(lambda: waits.append(threading.current_thread().name))

    def work() -> None:
        with part("aside"):
            pass

    with part("unrecorded"):
        pass
    assert waits == []
    taken.start()
    aside = threading.Thread(target=work)
    aside.start()
    aside.join()
    with part("here"):
        pass
    taken.stop()
    here = threading.current_thread().name
    assert waits == [here] * 4  # start, both ends of the part, stop


def test_one_recording_at_a_time():
    with recording() as taken:
        with pytest.raises(ValueError, match="one recording"):
            Recording().start()
        assert taken.running
    assert not taken.running


def test_the_files(tmp_path: Path, clock, monkeypatch):
    monkeypatch.setattr(timing, "EVENTS", 2)
    with recording() as taken:
        with part("step"):
            clock.spend(0.5)
            with part("forward"):
                clock.spend(1.5)
        with part("save"):
            clock.spend(2)
    taken.write(tmp_path / "profile", {"device": "cpu"})
    document = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert document["device"] == "cpu"
    assert document["recorded_s"] == 4
    assert document["parts"][0] == {
        "part": "step", "calls": 1, "total_s": 2, "self_s": 0.5, "share": 0.5,
    }  # fmt: skip
    assert document["not_in_trace"] == 1
    text = (tmp_path / "profile" / "profile.txt").read_text()
    assert text.startswith("device: cpu\n4.000 s recorded\npart ")
    assert "  forward        1      1.500      1.500   37.5 %" in text
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in spans] == [
        ("forward", 500_000, 1_500_000), ("step", 0, 2_000_000),
    ]  # fmt: skip


def test_parts_are_nearly_free_when_nothing_records():
    def per_call(body) -> float:
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            body()
            best = min(best, time.process_time() - began)
        return best / 20_000

    def parts() -> None:
        for _ in range(20_000):
            with part("x"):
                pass

    assert per_call(parts) < 5e-6
