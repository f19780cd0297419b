"""States are written beside the steps: nothing waits, nothing mixes, nothing is lost or hidden."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from autoseg.documents.plan import Training
from autoseg.documents.run import lines
from autoseg.errors import AutosegError
from autoseg.learn import saving, watch
from autoseg.learn.loop import advance
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.pace import Pace, paced_rate
from autoseg.learn.saving import Copies, Writer
from autoseg.learn.state import Average, Run, load_state, save_state, state_bytes, state_of
from autoseg.learn.variants import Variant
from autoseg.learn.watch import Clock, Watch
from autoseg.learn.weights import write_tensors
from autoseg.nets.build import build
from autoseg.nets.cost import parameters
from autoseg.workspace import Fold
from tests.card import card, simulated

PATIENCE_S = 30.0
F32 = Variant("float32", "channels_last", 1)


class Bar:
    """A progress bar that nobody sees."""

    n = total = 0

    def update(self, steps: int) -> None:
        self.n += steps

    def set_postfix(self, **_: object) -> None:
        pass


class Disk:
    """Stands for a slow disk: writes begin, and go on when `open` is set."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun: list[str] = []
        self.before: Callable[[], None] = lambda: None

    def __call__(self, path: Path, *rest: object) -> None:
        self.begun.append(path.name)
        assert self.open.wait(PATIENCE_S)
        self.before()
        write_tensors(path, *rest)  # type: ignore[arg-type]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    found = Disk()
    monkeypatch.setattr(saving, "write_tensors", found)
    yield found
    found.open.set()


def run_of(recipe: Training) -> Run:
    net = nn.Linear(2, 2)
    return Run(net, optimiser(recipe, net))


def watching(folder: Path, recipe: Training, **more: object) -> Watch:
    """Beside a run of twelve steps in which a state is due after each."""
    often = recipe.model_copy(update={"save_every_s": 1e-9, **more})
    clock = Clock(time.monotonic())
    return Watch(Fold(folder), often, clock, Pace(12), lambda: 0.5, Bar(), threading.Event())


def step(beside: Watch, run: Run) -> bool:
    """One more step, after which all weights are its number."""
    run.step += 1
    with torch.no_grad():
        for p in run.net.parameters():
            p.fill_(run.step)
    return beside.after_step(run, torch.tensor(0.25))


def saved(folder: Path) -> list[int]:
    return [e["step"] for e in lines(Fold(folder).journal) if e["event"] == "saved"]


def weight_in(path: Path, name: str) -> float:
    (value,) = load_file(path)[name].unique().tolist()
    return float(value)


def test_a_slow_disk_stops_no_step_and_gets_the_state_that_was_taken(
    tmp_path: Path, recipe: Training, disk: Disk
) -> None:
    beside, run = watching(tmp_path, recipe), run_of(recipe)
    assert all(step(beside, run) for _ in range(5))
    assert disk.begun == ["last.safetensors"]  # what was due meanwhile makes no queue
    assert saved(tmp_path) == []
    assert not Fold(tmp_path).last.exists()
    disk.open.set()
    beside.writer.wait()
    assert saved(tmp_path) == [1]
    assert weight_in(Fold(tmp_path).last, "net.weight") == 1
    step(beside, run)
    beside.writer.wait()
    assert saved(tmp_path) == [1, 6]
    assert weight_in(Fold(tmp_path).last, "net.weight") == 6


@pytest.mark.parametrize("why", ["all steps done", "signal", "early stop"])
def test_the_end_waits_for_the_disk(why: str, tmp_path: Path, recipe: Training, disk: Disk) -> None:
    beside, run = watching(tmp_path, recipe, early_stop=1, validate_every=1000), run_of(recipe)
    step(beside, run)
    if why == "all steps done":
        beside.pace.decide(1, 2)
    elif why == "signal":
        beside.stopped.set()
    else:
        beside.scores += [0.9, 0.1]
    ended: list[bool] = []
    last = threading.Thread(target=lambda: ended.append(step(beside, run)))
    last.start()
    last.join(0.1)
    assert last.is_alive()
    assert saved(tmp_path) == []
    disk.open.set()
    last.join(PATIENCE_S)
    assert ended == [False]
    assert saved(tmp_path) == [1, 2]
    assert weight_in(Fold(tmp_path).last, "net.weight") == 2


def test_a_full_disk_is_told_at_the_next_step_and_at_the_end(
    tmp_path: Path, recipe: Training, disk: Disk
) -> None:
    def full() -> None:
        raise AutosegError("the disk is full")

    disk.before = full
    beside, run = watching(tmp_path, recipe), run_of(recipe)
    assert step(beside, run)
    disk.open.set()
    while beside.writer.writes(Fold(tmp_path).last):
        time.sleep(0.001)
    with pytest.raises(AutosegError, match="the disk is full"):
        step(beside, run)
    beside.stopped.set()
    with pytest.raises(AutosegError, match="the disk is full"):
        step(beside, run)
    assert saved(tmp_path) == []
    assert not Fold(tmp_path).last.exists()


def test_an_error_of_the_disk_hides_no_other(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    writer = Writer()
    writer.write(tmp_path / "file" / "state", {"a": torch.ones(2)}, {})
    disk.open.set()
    writer.close()
    assert "cannot write" in caplog.text
    writer.close()
    assert len(caplog.records) == 1


def test_losses_are_in_the_history_before_their_state_is_on_disk(
    tmp_path: Path, recipe: Training, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card they are read now and then; a run that goes on cuts its history to its state."""
    seen: list[int] = []
    disk.before = lambda: seen.append(len(list(lines(Fold(tmp_path).history))))
    disk.open.set()
    with simulated(monkeypatch, card(8)):
        beside, run = watching(tmp_path, recipe, save_every_s=1000.0), run_of(recipe)
        step(beside, run)
        step(beside, run)
        assert not Fold(tmp_path).history.exists()
        beside.stopped.set()
        step(beside, run)
    assert seen == [3]


def test_seconds_of_steps_count_and_those_of_validation_do_not(
    tmp_path: Path, recipe: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])

    def score() -> float:
        now[0] += 1000
        return 0.5

    beside, run = watching(tmp_path, recipe, save_every_s=4.0, validate_every=1), run_of(recipe)
    monkeypatch.setattr(watch, "time", Time)
    beside.score, beside.resumed_at, beside.clock.began = score, 0.0, 0.0
    for _ in range(11):
        now[0] += 1
        step(beside, run)
        beside.writer.wait()
    assert saved(tmp_path) == [4, 8]


def test_the_best_weights_go_the_same_way_and_take_no_memory_of_their_own(
    tmp_path: Path, recipe: Training, disk: Disk
) -> None:
    disk.open.set()
    beside, run = watching(tmp_path, recipe, validate_every=2), run_of(recipe)
    for _ in range(4):
        step(beside, run)
        beside.writer.wait()
    assert disk.begun.count("best.safetensors") == 2
    assert weight_in(Fold(tmp_path).best, "weight") == 4
    held = [b for buffers in beside.writer._copies._buffers.values() for b in buffers]
    assert sum(b.nbytes for b in held) == sum(t.nbytes for t in state_of(run)[0].values())


def test_copies_are_equal_and_their_memory_is_used_again() -> None:
    torch.manual_seed(1)
    tensors = {
        "channels last": torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        "plain": torch.randn(4, 3, 5, 5), "twin": torch.randn(4, 3, 5, 5),
        "half": torch.randn(7).bfloat16(), "steps": torch.tensor(3), "none": torch.empty(0),
        "weight": nn.Parameter(torch.randn(3)),
    }  # fmt: skip
    copies = Copies()
    first, wait = copies.take(tensors)
    wait()
    assert first.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(first[name], tensor)
        assert (first[name].stride(), first[name].dtype) == (tensor.stride(), tensor.dtype)
        assert not first[name].requires_grad
        assert not tensor.nbytes or first[name].data_ptr() != tensor.data_ptr()
    places = {t.data_ptr() for t in first.values()}
    again, wait = copies.take({"any": tensors["twin"], "name": tensors["half"]})
    wait()
    assert {t.data_ptr() for t in again.values()} < places
    assert torch.equal(again["any"], tensors["twin"])


@pytest.mark.gpu
def test_copies_of_a_card_hold_what_was_there_when_they_were_taken() -> None:
    weights = torch.zeros(64, 64, 3, 3, 3, device="cuda").contiguous(
        memory_format=torch.channels_last_3d
    )
    copies = Copies()
    for value in range(5):
        weights.fill_(value)
        found, wait = copies.take({"a": weights})
        weights.fill_(-1)  # the next step
        wait()
        assert found["a"].is_pinned()
        assert found["a"].unique().tolist() == [value]


def test_a_state_written_beside_the_steps_goes_on_bit_for_bit(
    tmp_path: Path, recipe: Training, toy_spec, discs, disk: Disk
) -> None:
    """The disk gets it when five more steps are done."""
    train = recipe.model_copy(update={"optimiser": "muon", "momentum": 0.9})

    def fresh(seed: int) -> Run:
        torch.manual_seed(seed)
        net = build(toy_spec)
        return Run(net, optimiser(train, net), average=Average(net, 0.9))

    def go(run: Run, on_step: Callable[[Run, torch.Tensor], bool]) -> dict[str, torch.Tensor]:
        advance(
            run, discs(run.step), loss=deeply(dice_ce(train), train.supervision),
            lr_at=paced_rate(train, Pace(12)), stop=8, seed=7, variant=F32, on_step=on_step,
        )  # fmt: skip
        return {k: t.clone() for k, t in state_of(run)[0].items()}

    writer, whole = Writer(), fresh(0)

    def at_three(run: Run, _: torch.Tensor) -> bool:
        if run.step == 3:
            save_state(tmp_path / "at once", run)
            writer.write(tmp_path / "beside", *state_of(run))
        return True

    want = go(whole, at_three)
    disk.open.set()
    writer.wait()
    assert (tmp_path / "beside").read_bytes() == (tmp_path / "at once").read_bytes()
    again = fresh(5)
    load_state(tmp_path / "beside", again)
    assert again.step == 3
    got = go(again, lambda *_: True)
    assert want.keys() == got.keys()
    assert [k for k in want if not torch.equal(want[k], got[k])] == []


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_the_bytes_of_a_state_are_known_before(name: str, recipe, toy_spec, discs) -> None:
    train = recipe.model_copy(update={"optimiser": name, "ema_share": 0.1})
    net = build(toy_spec)
    run = Run(net, optimiser(train, net), average=Average(net, 0.9))
    advance(run, discs(0), loss=deeply(dice_ce(train), train.supervision), stop=1, seed=7,
            lr_at=paced_rate(train, Pace(12)), variant=F32)  # fmt: skip
    real = sum(t.nbytes for t in state_of(run)[0].values())
    assert state_bytes(train, parameters(net)) == pytest.approx(real, rel=0.1)
