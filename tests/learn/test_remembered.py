"""What was measured of a step is kept for other runs, and damage only means measuring again."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoseg.errors import AutosegError
from autoseg.learn import remembered, variants
from autoseg.learn.remembered import Memory, choose, machine, memory_folder
from autoseg.learn.variants import Timing, Variant
from autoseg.workspace import Fold

CPU = torch.device("cpu")
KIND = {"device": "cpu", "network": "abc", "patch_vox": [8, 8]}
FAST, SLOW = Variant("float32", "contiguous", 2), Variant("float32", "channels_last", 2)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch):
    """Makes `measure` tell given seconds, and notes how often it was asked."""
    asked: list[float] = []
    seconds = {FAST: 0.5, SLOW: 1.0}

    def measure(make_step, choices, limit, device):
        asked.append(limit)
        return [Timing(v, seconds[v], "" if seconds[v] else "no time was left") for v in choices]

    monkeypatch.setattr(remembered, "measure", measure)
    monkeypatch.setattr(remembered, "candidates", lambda *_, **__: [SLOW, FAST])
    return SimpleNamespace(asked=asked, seconds=seconds)


def ask(memory: Memory, train, **more):
    return choose(memory, SimpleNamespace(train=train), CPU, lambda v: lambda: None, 15.0, **more)


def test_a_second_run_measures_nothing(tmp_path: Path, recipe, timed, monkeypatch):
    first = ask(Memory(tmp_path, KIND), recipe)
    assert (first.variant, first.source, first.seconds) == (FAST, "measured", 0.5)
    # not even whether 16-bit floats work is asked then: it takes a child with torch
    monkeypatch.setattr(remembered, "candidates", lambda *_, **__: pytest.fail("asked"))
    second = ask(Memory(tmp_path, dict(KIND)), recipe)
    assert (second.variant, second.source, second.seconds) == (FAST, "remembered", 0.5)
    assert second.measured == first.measured
    assert second.timings == first.timings
    assert timed.asked == [15.0]
    assert second.facts()["timings_s"][0] == ["float32", "channels_last", 2, 1.0, ""]


def test_another_kind_of_step_is_measured_for_itself(tmp_path: Path, recipe, timed):
    ask(Memory(tmp_path, KIND), recipe)
    assert ask(Memory(tmp_path, KIND | {"patch_vox": [8, 16]}), recipe).source == "measured"
    assert len(timed.asked) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_measuring_again_replaces_what_was_kept(tmp_path: Path, recipe, timed):
    ask(Memory(tmp_path, KIND), recipe)
    timed.seconds |= {FAST: 3.0}
    assert ask(Memory(tmp_path, KIND), recipe).variant == FAST
    assert ask(Memory(tmp_path, KIND), recipe, again=True).variant == SLOW
    assert ask(Memory(tmp_path, KIND), recipe).variant == SLOW
    assert len(timed.asked) == 2


def test_half_a_measurement_serves_once(tmp_path: Path, recipe, timed):
    timed.seconds[FAST] = None
    assert ask(Memory(tmp_path, KIND), recipe).variant == SLOW
    assert ask(Memory(tmp_path, KIND), recipe).source == "measured"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: b"",
        lambda text: text[: len(text) // 2],
        lambda text: b"\xff\xfe\x00junk",
        lambda text: b"[1, 2]",
        lambda text: text.replace(b'"abc"', b'"other"'),
        lambda text: text.replace(b'"float32"', b'"float7"'),
        lambda text: text.replace(b'"contiguous"', b'"sideways"'),
        lambda text: text.replace(b'"threads": 2', b'"threads": -2'),
        lambda text: text.replace(b'"seconds": 0.5', b'"seconds": "0.5"'),
        lambda text: text.replace(b'"seconds": 0.5', b'"seconds": -0.5'),
        lambda text: text.replace(b'"why"', b'"how"'),
        lambda text: text.replace(b'"timings"', b'"tidings"'),
    ],
)
def test_damage_means_measuring_again(tmp_path: Path, recipe, timed, spoil):
    memory = Memory(tmp_path, KIND)
    ask(memory, recipe)
    whole = memory.path.read_bytes()
    spoilt = spoil(whole)
    assert spoilt != whole
    memory.path.write_bytes(spoilt)
    assert memory.choice() is None
    assert ask(memory, recipe).source == "measured"
    assert memory.choice().variant == FAST  # and it is mended


def test_a_folder_that_takes_nothing_costs_a_warning(tmp_path: Path, recipe, timed, caplog):
    (tmp_path / "file").write_text("")
    assert ask(Memory(tmp_path / "file", KIND), recipe).variant == FAST
    assert "the speed of the step is not remembered" in caplog.text


def test_other_facts_of_the_step_stay(tmp_path: Path, recipe, timed):
    memory = Memory(tmp_path, KIND)
    memory.keep({"compile": {"cost_s": 7.0}})
    ask(memory, recipe)
    assert memory.recall()["compile"] == {"cost_s": 7.0}
    assert memory.choice().variant == FAST


def test_what_the_plan_fixes_is_taken_as_it_is(tmp_path: Path, recipe):
    fixed = recipe.model_copy(update={"precision": "float32", "layout": "contiguous", "threads": 3})
    choice = ask(Memory(tmp_path, KIND), fixed)
    assert (choice.variant, choice.source) == (Variant("float32", "contiguous", 3), "fixed")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AutosegError, match="only a card"):
        ask(
            Memory(tmp_path, KIND),
            recipe.model_copy(update={"precision": "float16"}),
            explicit=True,
        )


def test_the_machine_is_known_by_what_makes_it_fast(monkeypatch: pytest.MonkeyPatch):
    here = machine(CPU)
    assert here["torch"] == torch.__version__
    monkeypatch.setattr(remembered, "usable_cores", lambda: here["cores"] + 1)
    assert machine(CPU) != here
    monkeypatch.undo()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine(CPU) != here


def test_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AUTOSEG_CACHE", raising=False)
    assert memory_folder(tmp_path / "results") == tmp_path / "results" / "measured_steps"
    monkeypatch.setenv("AUTOSEG_CACHE", str(tmp_path / "cache"))
    assert memory_folder(tmp_path / "results") == tmp_path / "cache" / "measured_steps"


def test_a_run_goes_on_with_what_its_journal_says(tmp_path: Path, recipe, timed, caplog):
    from autoseg.learn.step import choose_variant

    fold, memory = Fold(tmp_path / "fold_0"), Memory(tmp_path / "kept", KIND)
    fold.folder.mkdir()
    given = (fold, SimpleNamespace(train=recipe), CPU, memory, lambda v: lambda: None, 300.0)
    assert choose_variant(*given) == FAST
    assert timed.asked == [9.0]  # 3 % of the time given
    timed.seconds |= {FAST: 3.0}
    assert choose_variant(*given, again=True) == FAST
    assert "keeps the variant" in caplog.text
    other = Fold(tmp_path / "fold_1")
    other.folder.mkdir()
    assert choose_variant(other, *given[1:]) == FAST
    entry = json.loads(other.journal.read_text())
    assert (entry["source"], entry["remembered_in"]) == ("remembered", str(memory.path))
    assert timed.asked == [9.0]


def test_the_fastest_of_a_real_step_is_kept(tmp_path: Path, recipe, monkeypatch):
    monkeypatch.setattr(variants, "announces_bfloat16", lambda: False)
    train = recipe.model_copy(update={"threads": 1})
    memory = Memory(tmp_path, KIND)
    choice = choose(memory, SimpleNamespace(train=train), CPU, lambda v: lambda: None, 0.2)
    assert {t.variant.layout for t in choice.timings} == {"contiguous", "channels_last"}
    assert memory.choice().variant == choice.variant
