"""Compiling: only where it pays, never a reason to stop, and the same weights by the same names."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autoseg.documents.presets.table import network_spec
from autoseg.documents.run import lines
from autoseg.errors import AutosegError, TrainingDiverged
from autoseg.learn.compiling import (
    COST_S,
    GAIN,
    WORTH,
    Compiled,
    compiled,
    compiler_of_torch,
    mostly_untraced,
    untraced,
    worthwhile,
)
from autoseg.learn.loop import advance
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.manner import compile_wish
from autoseg.learn.optimisers import optimiser
from autoseg.learn.remembered import Memory
from autoseg.learn.state import Run, load_state, save_state
from autoseg.learn.step import choose_forward
from autoseg.learn.variants import Variant
from autoseg.nets.build import build
from autoseg.workspace import Fold

F32 = Variant("float32", "channels_last", 1)
LONG = WORTH * COST_S * 2


def eager(net):
    """A compiler that compiles nothing."""
    return lambda image: net(image)


def lacking(net):
    raise RuntimeError("InvalidCxxCompiler: no C++ compiler was found\nmore words")


def failing_forwards(net):
    def call(image):
        raise NotImplementedError("no kernel")

    return call


def failing_backwards(net):
    def call(image):
        logits = net(image)
        logits[0].register_hook(lambda grad: 1 // 0)
        return logits

    return call


class Clock:
    """A clock for `_pass`: each takes what is next in the list."""

    def __init__(self, *spans: float) -> None:
        self.readings = [t for span in spans for t in (0.0, span)]

    def __call__(self) -> float:
        return self.readings.pop(0)


def test_it_must_be_worth_thirty_times_its_cost():
    assert worthwhile("auto", "cuda", WORTH * COST_S * 1.01).compiled
    assert not worthwhile("auto", "cuda", WORTH * COST_S * 0.99).compiled
    known = {"cost_s": 10.0, "gain": 0.2}
    assert worthwhile("auto", "cuda", WORTH * 10.0 * 1.01, known).compiled
    assert not worthwhile("auto", "cuda", WORTH * 10.0 * 0.99, known).compiled
    assert not worthwhile("auto", "cuda", 400.0, known | {"gain": 0.02}).compiled
    assert worthwhile("auto", "cuda", 600.0, known | {"gain": 0.02}).compiled
    assert not worthwhile("auto", "cuda", 1e9, known | {"gain": 0.0}).compiled
    assert worthwhile("auto", "cuda", LONG, {"cost_s": None, "gain": "?"}).compiled
    assert 0 < GAIN < 1


def test_on_cores_and_otherwise_as_wished():
    assert not worthwhile("auto", "cpu", 1e9).compiled
    assert worthwhile("on", "cpu", 0.0).compiled
    assert not worthwhile("off", "cuda", 1e9).compiled
    assert compile_wish("on") == "on"
    with pytest.raises(AutosegError, match="use auto, on or off"):
        compile_wish("yes")


def test_cost_and_gain_are_measured(toy_spec):
    net, image = build(toy_spec), torch.randn(2, 1, 16, 16)
    clock = Clock(3.0, 1.0, 1.2, 1.1, 1.0, 60.0, 0.8, 0.9, 0.8, 0.8, 0.8)
    forward, cost_s, gain = compiled(net, image, F32, print, compiler=eager, clock=clock)
    assert isinstance(forward, Compiled)
    assert cost_s == pytest.approx(59.2)
    assert gain == pytest.approx(0.2)


@pytest.mark.parametrize("compiler", [lacking, failing_forwards, failing_backwards])
def test_a_failure_leaves_the_network_as_it_was(toy_spec, compiler):
    net, image, told = build(toy_spec), torch.randn(2, 1, 16, 16), []
    before = copy.deepcopy(net.state_dict())
    forward, _, gain = compiled(net, image, F32, told.append, compiler=compiler)
    assert forward is net
    assert gain is None
    assert len(told) == 1
    assert "more words" not in told[0]
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_running_means_are_as_before(toy_spec):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1), torch.nn.BatchNorm2d(3))
    before = copy.deepcopy(net.state_dict())
    compiled(net, torch.randn(2, 1, 8, 8), F32, print, compiler=lambda n: lambda x: [n(x)[:, :1]])
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_later_failure_goes_on_without(toy_spec):
    net, told, calls = build(toy_spec), [], []

    def compiler(net):
        def call(image):
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("recompiling failed")
            return net(image)

        return call

    forward, image = Compiled(net.eval(), compiler, told.append), torch.randn(1, 1, 16, 16)
    outs = [forward(image)[0] for _ in range(4)]
    assert all(torch.equal(outs[0], out) for out in outs)
    assert (len(calls), told) == (2, ["RuntimeError: recompiling failed"])


def test_what_is_wrong_without_a_compiler_too_is_told():
    def net(image):
        raise torch.OutOfMemoryError("out of memory")

    forward = Compiled(net, lambda n: n, lambda why: None)
    with pytest.raises(torch.OutOfMemoryError):
        forward(torch.zeros(1))


def trained(spec, recipe, discs, stop: int, compiler=None, run: Run | None = None) -> Run:
    torch.manual_seed(0)
    net = build(spec)
    run = run or Run(net, optimiser(recipe, net))
    forward = None
    if compiler:
        image = torch.randn(2, 1, 32, 32)
        forward, _, _ = compiled(run.net, image, F32, lambda why: None, compiler=compiler)
    loss = deeply(dice_ce(recipe), recipe.supervision)
    return advance(run, discs(run.step), loss=loss, lr_at=lambda _: 0.01, stop=stop, seed=7,
                   variant=F32, clip_norm=recipe.clip_norm, forward=forward)  # fmt: skip


@pytest.mark.parametrize("compiler", [eager, lacking, failing_backwards])
def test_what_is_learned_has_the_same_names_and_bits(
    tmp_path: Path, toy_spec, recipe, discs, compiler
):
    want = trained(toy_spec, recipe, discs, 4)
    got = trained(toy_spec, recipe, discs, 2, compiler)
    save_state(tmp_path / "state", got)
    again = Run(build(toy_spec), None)
    again.optimiser = optimiser(recipe, again.net)
    load_state(tmp_path / "state", again)
    got = trained(toy_spec, recipe, discs, 4, compiler, again)
    assert want.net.state_dict().keys() == got.net.state_dict().keys()
    pairs = zip(want.net.state_dict().values(), got.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_divergence_is_still_told(toy_spec, recipe):
    def bad(start):
        yield torch.full((2, 1, 32, 32), torch.nan), torch.zeros(2, 32, 32, dtype=torch.int64)

    with pytest.raises(TrainingDiverged):
        trained(toy_spec, recipe, bad, 2, eager)


class Case:
    """A run, and what is needed to ask for its forward pass."""

    def __init__(self, folder: Path, spec, recipe) -> None:
        self.fold = Fold(folder / "fold_0")
        self.fold.folder.mkdir()
        net = build(spec)
        self.run = Run(net, optimiser(recipe, net))
        self.memory = Memory(folder / "kept", {"a": 1})
        self.configuration = SimpleNamespace(network=spec, patch_vox=(16, 16), train=recipe)

    def ask(self, wish: str, compiler=eager):
        return choose_forward(
            self.fold, self.configuration, self.run, F32, self.memory, wish,
            lambda: pytest.fail("on cores nothing is measured for it"), compiler,
        )  # fmt: skip

    @property
    def journal(self) -> list[tuple[int, bool, str]]:
        return [(e["step"], e["compiled"], e["why"]) for e in lines(self.fold.journal)]


def test_the_journal_tells_and_a_run_goes_on_as_it_began(tmp_path: Path, toy_spec, recipe):
    case = Case(tmp_path, toy_spec, recipe)
    assert case.ask("auto") is case.run.net
    assert case.ask("auto") is case.run.net
    assert case.journal == [(0, False, "on cores only with --compile on")]
    case.run.step = 5
    assert isinstance(case.ask("on"), Compiled)
    assert case.journal[1:] == [(5, True, "--compile on")]
    assert case.memory.recall()["compile"]["cost_s"] >= 0
    case.run.step = 7
    assert isinstance(case.ask("auto"), Compiled)
    assert case.journal[2:] == [(7, True, "as the run began")]
    assert case.ask("off") is case.run.net
    assert case.journal[3:] == [(7, False, "--compile off")]


def test_a_lacking_compiler_costs_a_warning(tmp_path: Path, toy_spec, recipe, caplog):
    case = Case(tmp_path, toy_spec, recipe)
    assert case.ask("on", lacking) is case.run.net
    assert "the run goes on without: RuntimeError: InvalidCxxCompiler" in caplog.text
    assert case.journal == [
        (0, False, "RuntimeError: InvalidCxxCompiler: no C++ compiler was found")
    ]
    assert case.memory.recall()["compile"]["gain"] == 0
    assert not worthwhile("auto", "cuda", 1e9, case.memory.recall()["compile"]).compiled


def endless(net):
    def call(image):
        while True:
            time.sleep(0.01)

    return call


def test_compiling_without_end_is_broken_off(toy_spec):
    net, told = build(toy_spec), []
    before = signal.getsignal(signal.SIGALRM)
    forward, _, gain = compiled(
        net, torch.randn(2, 1, 16, 16), F32, told.append, compiler=endless, limit_s=0.2
    )
    assert (forward is net, gain) == (True, None)
    assert told == ["TooLong: compiling took longer than 0.2 s"]
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def full(net):
    def call(image):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return call


def test_no_room_to_compile_is_told_apart_and_the_run_goes_on(toy_spec):
    net, told = build(toy_spec), []
    forward, _, gain = compiled(net, torch.randn(2, 1, 16, 16), F32, told.append, compiler=full)
    assert (forward is net, gain) == (True, None)
    assert told == ["no room to compile: CUDA out of memory. Tried to allocate 2.00 GiB"]


def test_no_room_for_the_step_itself_is_out_of_memory():
    class Full(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, image):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        compiled(Full(), torch.zeros(1, 1, 2, 2), F32, lambda why: None, compiler=eager)


class Scan(torch.nn.Module):
    untraced = True

    def forward(self, x):
        return x * 2 if not torch.compiler.is_compiling() else x * 3


def test_scans_are_left_out_of_what_is_compiled(monkeypatch):
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.Conv2d(1, 1, 3), Scan())
    assert untraced(net) == [net[2]]
    assert not mostly_untraced(net)
    assert mostly_untraced(torch.nn.Sequential(net[0], Scan()))
    disabled = []
    monkeypatch.setattr(torch, "compile", lambda net, dynamic: net)
    monkeypatch.setattr(torch.compiler, "disable", lambda f: disabled.append(f) or (lambda x: x))
    forward = Compiled(net, compiler_of_torch, lambda why: None)
    assert [f.__self__ for f in disabled] == [net[2]]
    forward.fail(RuntimeError("later"))
    assert net[2].forward.__self__ is net[2]  # as it was


def test_the_projects_scans_are_marked():
    spec = network_spec("umamba_bot", 1, 2, [8, 16], [[1, 1], [2, 2]], [[3, 3]] * 2)
    assert untraced(build(spec))


@pytest.mark.slow
@pytest.mark.parametrize("cxx", ["", "no-such-compiler"])
def test_torchs_compiler_itself(tmp_path: Path, cxx: str):
    """In a child: a compiler leaves threads, caches and warnings behind."""
    code = """
import json, torch
from autoseg.learn.compiling import Compiled, compiled
from autoseg.learn.variants import Variant
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 3, 3)
    def forward(self, image):
        return [torch.nn.functional.leaky_relu(self.conv(image))]
net = Net()
told, image = [], torch.randn(2, 1, 16, 16)
forward, cost, gain = compiled(net, image, Variant("float32", "contiguous", 1), told.append)
far = max(float((a - b).abs().max()) for a, b in zip(forward(image), net(image)))
print(json.dumps([isinstance(forward, Compiled), far, told, cost, gain]))
"""
    env = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    if cxx:
        env["CXX"] = cxx
    child = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    works, far, told, cost_s, gain = json.loads(child.stdout)
    assert far < 1e-4
    if cxx:
        assert not works and gain is None and len(told) == 1
    elif works:  # where there is a compiler
        assert cost_s > 0.1 and told == []
