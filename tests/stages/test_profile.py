"""`train --profile`: where the time of real steps went, and not one bit of the weights changed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoseg.documents.plan import read_plan
from autoseg.documents.run import lines
from autoseg.learn import step, trace
from autoseg.learn.remembered import kind_of_step, machine
from autoseg.learn.trace import Kernels, kernels, waiting_for
from autoseg.timing import Recording

Shell = Callable[[str], object]
FOLD = "autoseg_data/results/Dataset001_Phantom/default/2d"
STEPS = 5
NAMES = {
    "step", "step / loading", "step / transfer", "step / forward", "step / loss",
    "step / backward", "step / gradient norm", "step / optimiser", "validation", "saving",
}  # fmt: skip


def events(folder: Path, kind: str) -> list[dict[str, object]]:
    return [e for e in lines(folder / "journal.jsonl") if e["event"] == kind]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile of fewer steps."""
    for name, steps in (("WARM_UP", 2), ("STEPS", STEPS), ("KERNEL_STEPS", 1)):
        monkeypatch.setattr(trace, name, steps)


def test_a_profiled_run_learns_the_same(
    tiny: Path, tmp_path: Path, shell: Shell, short: None
) -> None:
    train = f"autoseg train 1 2d 0 --steps {STEPS + 4} --workers 0 --device cpu"
    assert shell(f"{train} --run plain").code == 0
    said = shell(f"{train} --run seen --profile")
    assert said.code == 0
    assert "s recorded" in said.err
    plain, seen = tmp_path / FOLD / "plain" / "fold_0", tmp_path / FOLD / "seen" / "fold_0"
    assert (plain / "weights.safetensors").read_bytes() == (
        seen / "weights.safetensors"
    ).read_bytes()
    assert not (plain / "profile").exists()
    losses = [[e.get("loss") for e in lines(f / "history.jsonl")] for f in (plain, seen)]
    assert losses[0] == losses[1]
    profile = json.loads((seen / "profile" / "profile.json").read_text())
    parts = {row["part"]: row for row in profile["parts"]}
    assert set(parts) >= NAMES
    assert parts["step / forward"]["calls"] == parts["step"]["calls"] == STEPS
    inside = sum(row["self_s"] for name, row in parts.items() if name.startswith("step"))
    assert inside == pytest.approx(parts["step"]["total_s"], abs=1e-4)
    assert parts["validation"]["calls"] >= 1
    assert parts["saving"]["calls"] >= 1
    assert profile["device"] == "cpu"
    assert profile["step"] == "float32 contiguous"
    assert profile["patch"] == "16 x 16"
    trace = json.loads((seen / "profile" / "trace.json").read_text())
    names = [e["name"] for e in trace["traceEvents"]]
    assert names.count("backward") == STEPS
    assert "convolution" in (seen / "profile" / "kernels.txt").read_text()
    assert json.loads((seen / "profile" / "kernels.json").read_text())["traceEvents"]
    again = shell(f"{train} --run seen --profile")
    assert (again.code, "trained already, there are no steps to profile" in again.err) == (0, True)


def test_a_run_too_short_to_profile_says_so(
    tiny: Path, tmp_path: Path, shell: Shell, short: None
) -> None:
    train = "autoseg train 1 2d 0 --workers 0 --device cpu --profile"
    said = shell(f"{train} --run one --steps 1")
    assert said.code == 0
    assert "nothing to profile: fewer than 3 steps were left" in said.err
    assert not (tmp_path / FOLD / "one" / "fold_0" / "profile").exists()
    assert shell(f"{train} --run four --steps 4").code == 0
    profile = tmp_path / FOLD / "four" / "fold_0" / "profile" / "profile.json"
    parts = json.loads(profile.read_text())["parts"]
    assert {row["part"]: row["calls"] for row in parts}["step"] == 2


def test_a_choice_is_remembered_by_the_next_run(
    tiny: Path, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "VARIANT_S", 1.5)
    free = "--set train.layout=auto --steps 1 --workers 0 --device cpu"
    for more in ("--run a", "--run b", "--run c --measure"):
        assert shell(f"autoseg train 1 2d 0 {free} {more}").code == 0
    told = [events(tmp_path / FOLD / name / "fold_0", "variant")[0] for name in "abc"]
    assert [entry["source"] for entry in told] == ["measured", "remembered", "measured"]
    assert told[0]["timings_s"] == told[1]["timings_s"]
    kept = Path(str(told[1]["remembered_in"]))
    assert kept.parent == tmp_path / "autoseg_data/results/measured_steps"
    kind = json.loads(kept.read_text())["kind"]
    assert (kind["patch_vox"], kind["layout"], kind["device"]) == ([16, 16], "auto", "cpu")


def test_the_wish_to_compile_is_checked_and_journalled(
    tiny: Path, tmp_path: Path, shell: Shell
) -> None:
    assert "use auto, on or off" in shell("autoseg train 1 2d 0 --compile yes").err
    train = "autoseg train 1 2d 0 --steps 1 --workers 0 --device cpu"
    assert shell(f"{train} --run off --compile off").code == 0
    (entry,) = events(tmp_path / FOLD / "off" / "fold_0", "compile")
    assert (entry["compiled"], entry["why"]) == (False, "--compile off")


def test_the_kind_of_a_step_is_that_of_its_network_patch_and_machine(tiny: Path) -> None:
    plan = read_plan(next(tiny.glob("preprocessed/*/plans/default/plan.json")))
    a, b = plan.configuration("2d"), plan.configuration("3d_fullres")
    cpu = torch.device("cpu")
    assert kind_of_step(a, cpu) == kind_of_step(a.model_copy(), cpu)
    assert kind_of_step(a, cpu)["network"] != kind_of_step(b, cpu)["network"]
    more = a.train.model_copy(update={"batch_size": a.train.batch_size + 1})
    assert kind_of_step(a.model_copy(update={"train": more}), cpu) != kind_of_step(a, cpu)
    assert machine(cpu).items() <= kind_of_step(a, cpu).items()
    assert json.loads(json.dumps(kind_of_step(a, cpu))) == kind_of_step(a, cpu)


def test_operators_are_told(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert waiting_for(cpu) is None
    with kernels(tmp_path / "here", cpu):
        torch.ones(8, 8) @ torch.ones(8, 8)
    assert "aten::mm" in (tmp_path / "here" / "kernels.txt").read_text()
    idle = Kernels(cpu)
    idle.stop()
    assert not idle.running


@pytest.mark.gpu
def test_a_card_is_waited_for(tmp_path: Path) -> None:
    card = torch.device("cuda")
    taken = Recording(waiting_for(card))
    with kernels(tmp_path, card):
        taken.start()
        torch.ones(512, 512, device=card) @ torch.ones(512, 512, device=card)
        taken.stop()
    assert taken.elapsed_s > 0
    assert "operators by their own time on the card" in (tmp_path / "kernels.txt").read_text()
