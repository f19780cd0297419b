"""Comparing: sides in turn, pairwise ratios, rows that are kept and not measured twice."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bench import equality, inputs, pairs, places, sides
from bench.pairs import OURS, RIVAL, Row, alternate, duration, measure, pair_ratios, run_part


def result(seconds, **rest):
    return {"wall_s": seconds, "cpu_s": 2 * seconds, "peak_bytes": 1000, **rest}


class Fake:
    """A side that takes the given seconds, one after another, and remembers when it ran."""

    def __init__(self, name, diary, *seconds, failed=None):
        self.name, self.diary, self.seconds, self.failed = name, diary, list(seconds), failed

    def __call__(self):
        self.diary.append(self.name)
        return {"failed": self.failed} if self.failed else result(self.seconds.pop(0))


def row(ours, theirs, **rest):
    return Row("one", "a thing", {OURS: ours, RIVAL: theirs}, **rest)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    monkeypatch.setattr(pairs, "versions", lambda: {"autoseg": "abc"})
    return tmp_path


def test_sides_run_in_turn_and_ratios_are_of_neighbours():
    diary = []
    # the machine was ten times slower during the second pair: the ratio does not see it
    one = row(Fake("a", diary, 1.0, 10.0, 1.2), Fake("b", diary, 4.0, 40.0, 4.0))
    found = measure(one, 3)
    assert diary == ["a", "b"] * 3
    assert found["ratios"][OURS] == {"wall_s": 0.25, "cpu_s": 0.25, "peak_bytes": 1.0}
    assert found["sides"][OURS]["wall_s"] == 1.2 and found["sides"][RIVAL]["wall_s"] == 4.0
    assert [run["wall_s"] for run in found["sides"][OURS]["each"]] == [1.0, 10.0, 1.2]
    assert found["spread"][OURS]["wall_s"] == [0.25, 0.3]
    assert found["spent_s"] >= 0


def test_a_side_that_failed_is_not_run_again_and_gives_no_ratio():
    diary = []
    one = row(Fake("a", diary, 1.0, 1.0), Fake("b", diary, failed="out of memory"))
    asked = []
    found = measure(Row("one", "x", one.sides, check=lambda last: asked.append(last) or {}), 2)
    assert diary == ["a", "b", "a"]
    assert found["sides"][RIVAL] == {"failed": "out of memory"}
    assert found["ratios"] == {OURS: {}} and not asked


def test_ratios_leave_out_what_one_side_lacks():
    assert pair_ratios([result(1.0)], [{"wall_s": 2.0}]) == {"wall_s": [0.5]}


def test_each_row_has_its_own_number_of_pairs_unless_one_is_asked_for():
    for asked, wanted in ((None, {"once": 1, "often": 5}), (2, {"once": 2, "often": 2})):
        diary = []
        rows = [
            Row(name, name, {OURS: Fake(name, diary, *[1.0] * 5)}, pairs=count)
            for name, count in (("once", 1), ("often", 5))
        ]
        run_part("p", rows, asked, redo=True, say=lambda _: None)
        assert {name: diary.count(name) for name in wanted} == wanted


def test_what_a_part_will_take_is_told_first_and_better_when_it_is_known(here, monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(pairs.time, "monotonic", lambda: now[0])

    def slow():
        now[0] += 200
        return result(1.0)

    rows = [
        Row("a", "a", {OURS: slow}, pairs=2, pair_s=30),
        Row("b", "b", {OURS: lambda: result(1.0)}, pairs=1, pair_s=40),
    ]
    run_part("p", rows, None, redo=False, say=said.append)
    assert said[0] == "p: 2 to be measured, about 2 min"
    assert json.loads((here / "p.json").read_text())["rows"][0]["spent_s"] == 400
    said.clear()
    run_part("p", rows[:1], 3, redo=False, say=said.append)
    assert said[0] == "p: 1 to be measured, about 10 min"
    assert duration(89) == "89 s"


def test_words_that_a_script_told_are_kept_but_not_all_it_said():
    told = result(1.0, variant="float32, 2 threads", said="much", shape=[1, 2])
    kept = measure(Row("one", "x", {OURS: lambda: told}), 2)["sides"][OURS]
    assert kept["variant"] == "float32, 2 threads" and not {"said", "shape"} & set(kept)


def test_what_is_equal_is_told_of_the_last_results():
    one = Row(
        "one",
        "x",
        {OURS: lambda: result(1.0, sum=3)},
        check=lambda last: {"sum": last[OURS]["sum"]},
    )
    assert measure(one, 2)["equal"] == {"sum": 3}


def test_measured_rows_are_kept_at_once_and_skipped(here):
    diary, said = [], []

    def broken():
        raise SystemExit("killed")

    first = Row("first", "one", {OURS: Fake("first", diary, 1.0, 2.0)})
    second = Row("second", "two", {OURS: broken})
    with pytest.raises(SystemExit):
        run_part("p", [first, second], 1, redo=False, say=said.append)
    kept = json.loads((here / "p.json").read_text())
    assert [r["row"] for r in kept["rows"]] == ["first"]
    mended = Row("second", "two", {OURS: Fake("second", diary, 3.0)})
    run_part("p", [first, mended], 1, redo=False, say=said.append)
    assert diary == ["first", "second"]
    run_part("p", [first], 1, redo=True, say=said.append)
    assert diary == ["first", "second", "first"]
    assert json.loads((here / "p.json").read_text())["rows"][0]["sides"][OURS]["wall_s"] == 2.0


def test_a_row_with_too_few_alternations_is_measured_again():
    diary = []
    for times, seconds in ((1, [1.0]), (3, [1.0] * 3), (2, [])):
        run_part(
            "p", [Row("r", "r", {OURS: Fake("r", diary, *seconds)})], times, redo=False,
            say=lambda _: None,
        )  # fmt: skip
    assert len(diary) == 4


def test_rows_can_be_chosen_and_the_others_stay(here):
    diary = []

    def rows():
        return [Row(n, n, {OURS: Fake(n, diary, 1.0)}) for n in ("a", "b", "c")]

    run_part("p", rows(), 1, redo=False, say=lambda _: None, only=("c", "a"))
    assert diary == ["a", "c"]
    run_part("p", rows(), 1, redo=True, say=lambda _: None, only=("b",))
    kept = json.loads((here / "p.json").read_text())["rows"]
    assert diary == ["a", "c", "b"] and [r["row"] for r in kept] == ["a", "b", "c"]


def test_a_row_stands_for_its_commit_its_machine_and_its_sizes(here, monkeypatch):
    diary = []

    def again(what="r", **rest):
        before = len(diary)
        rows = [Row("r", what, {OURS: Fake("r", diary, 1.0)}, pairs=1, size={"voxels": 7})]
        run_part("p", rows, None, redo=False, say=lambda _: None, **rest)
        return len(diary) > before

    assert again() and not again()
    monkeypatch.setattr(pairs, "versions", lambda: {"autoseg": "def"})
    assert not again(lacking=True) and again() and not again()
    assert again("another size")
    document = json.loads((here / "p.json").read_text())
    document["rows"][0]["machine"]["processor"] = "another"
    (here / "p.json").write_text(json.dumps(document))
    assert again("another size", lacking=True)


def test_what_is_said_of_a_kept_row_is_brought_up_to_date(here):
    diary = []
    old = Row("r", "r", {OURS: Fake("r", diary, 1.0)}, pairs=1, targets={OURS: {"wall_s": 0.5}})
    run_part("p", [old], None, redo=False, say=lambda _: None)
    new = Row("r", "r", {}, pairs=1, targets={OURS: {"wall_s": 0.2}}, size={"labels": 5})
    run_part("p", [new], None, redo=False, say=lambda _: None)
    kept = json.loads((here / "p.json").read_text())["rows"][0]
    assert kept["targets"] == {OURS: {"wall_s": 0.2}} and kept["size"] == {"labels": 5}
    assert kept["sides"][OURS]["wall_s"] == 1.0 and diary == ["r"]


def test_rows_of_an_older_form_are_measured_again(here):
    (here / "p.json").write_text(json.dumps({"rows": [{"what": "--help", "autoseg": {}}]}))
    diary = []
    rows = [Row("r", "r", {OURS: Fake("r", diary, 1.0)})]
    run_part("p", rows, 1, redo=False, say=lambda _: None)
    assert diary == ["r"] and len(json.loads((here / "p.json").read_text())["rows"]) == 1


def test_alternate_runs_ours_alone_where_there_is_no_rival():
    diary = []
    found = alternate(Row("r", "r", {OURS: Fake("a", diary, 1.0, 2.0)}), 2)
    assert [r["wall_s"] for r in found[OURS]] == [1.0, 2.0]


def test_a_command_is_timed_with_its_children_and_its_memory():
    work = (
        "import subprocess, sys\n"
        "code = 'import time\\nx = bytearray(60_000_000)\\nend = time.process_time() + 0.3\\n"
        "while time.process_time() < end: pass'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
        "print('done')"
    )
    found = sides.command([sys.executable, "-c", work])
    assert found["said"] == "done\n"
    assert 0.3 <= found["cpu_s"] < 5 and found["wall_s"] >= 0.3
    assert found["peak_bytes"] > 60e6


def test_a_command_that_fails_says_why():
    with pytest.raises(SystemExit, match="no such luck"):
        sides.command([sys.executable, "-c", "raise SystemExit('no such luck')"])
    allowed = sides.command([sys.executable, "-c", "raise SystemExit(3)"], may_fail=True)
    assert allowed == {"failed": "not possible on this machine"}


def test_a_command_beyond_its_memory_is_told_so():
    wants = [sys.executable, "-c", "x = bytearray(4 << 30)"]
    assert sides.command(wants, limit_bytes=1 << 30) == {"failed": "out of memory"}


MEASURED = """
import json
import numpy as np
from bench import clock
value, cost = clock.measured(lambda: len(np.ones(5_000_000)))
print(json.dumps({"value": value, **cost}))
"""


def test_measured_counts_the_work_alone():
    # in a process of its own: the peak is that of a process' whole life
    said = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True
    ).stdout
    cost = json.loads(said)
    assert cost.pop("value") == 5_000_000
    assert set(cost) == {"wall_s", "cpu_s", "peak_bytes", "resting_bytes"}
    assert cost["peak_bytes"] - cost["resting_bytes"] > 30e6 or cost["peak_bytes"] == 0


def test_arrays_and_label_maps_are_compared(tmp_path):
    np.save(tmp_path / "ours.npy", np.array([0.0, 1.0, 2.0]))
    np.save(tmp_path / "theirs.npy", np.array([0.0, 1.0, 2.5]))
    both = tmp_path / "ours.npy", tmp_path / "theirs.npy"
    std = np.std([0.0, 1.0, 2.5])
    found = equality.arrays_equal(*both)["largest difference / std"]
    assert found == pytest.approx(0.5 / std, rel=0.02)
    np.save(both[0], np.array([0, 1, 2, 2]))
    np.save(both[1], np.array([0, 1, 0, 1]))
    assert equality.labels_equal(*both) == {
        "voxels that differ": 2, "of": 4, "of them background in nnU-Net": 1
    }  # fmt: skip
    assert equality.checked(equality.labels_equal, tmp_path)({})["of"] == 4
    assert not both[0].exists()


def test_dice_is_the_mean_over_structures():
    found, wanted = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    assert equality.dice(found, wanted) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert equality.dice(np.zeros(3, int), np.zeros(3, int)) == 1.0


def test_inputs_are_deterministic_and_of_the_shape_asked_for():
    a, b = inputs.logits((6, 9, 7), 4), inputs.logits((6, 9, 7), 4)
    assert a.shape == (4, 6, 9, 7) and a.dtype == np.float32 and np.array_equal(a, b)
    nodes = inputs.smooth((4, 4, 4), 3, coarse=4)
    wanted = np.random.default_rng(3).standard_normal((4, 4, 4))
    assert np.allclose(nodes, wanted, atol=1e-6)
    labels = inputs.label_map((20, 20, 20), 5)
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    assert inputs.image((1, 8, 8)).shape == (1, 8, 8)
