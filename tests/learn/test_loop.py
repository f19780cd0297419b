"""Training: it learns, it goes on bit for bit after a stop, it says when it diverges."""

import copy
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from autoseg.errors import AutosegError, TrainingDiverged
from autoseg.learn.loop import advance, step_seed
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.pace import Pace, paced_rate
from autoseg.learn.state import (
    Average,
    Run,
    load_state,
    save_state,
)
from autoseg.learn.variants import Variant
from autoseg.learn.weights import save_weights
from autoseg.nets.build import build

F32 = Variant("float32", "channels_last", 1)


def fresh(spec, train, *, seed: int = 0, averaged: bool = True) -> Run:
    torch.manual_seed(seed)
    net = build(spec)
    return Run(net, optimiser(train, net), average=Average(net, 0.9) if averaged else None)


def go(run: Run, train, discs, stop: int, variant: Variant = F32, **more) -> Run:
    loss = deeply(dice_ce(train), train.supervision)
    return advance(
        run, discs(run.step), loss=loss, lr_at=paced_rate(train, Pace(train.steps)), stop=stop, seed=7, variant=variant,
        clip_norm=train.clip_norm, **more,
    )  # fmt: skip


def tensors(run: Run) -> dict[str, torch.Tensor]:
    found = {f"net.{k}": v for k, v in run.net.state_dict().items()}
    found |= {f"average.{k}": v for k, v in run.average.net.state_dict().items()}
    for index, state in run.optimiser.state_dict()["state"].items():
        found |= {f"{index}.{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return found


@pytest.mark.parametrize(
    ("name", "precision", "layout"),
    [
        *product(["sgd", "adamw", "muon"], ["float32"], ["channels_last", "contiguous"]),
        ("adamw", "bfloat16", "contiguous"),
    ],
)
def test_a_run_stopped_and_continued_ends_with_the_same_bits(
    tmp_path: Path, recipe, toy_spec, discs, name, precision, layout
):
    if precision == "bfloat16" and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        pytest.skip("run in a child by the next test")
    variant = Variant(precision, layout, 1)
    train = recipe.model_copy(update={"optimiser": name, "momentum": 0.9})
    whole = go(fresh(toy_spec, train), train, discs, 8, variant)
    half = go(fresh(toy_spec, train), train, discs, 8, variant, on_step=lambda run, _: run.step < 3)
    assert half.step == 3
    save_state(tmp_path / "state.safetensors", half)
    torch.manual_seed(99)  # what the process did in between does not matter
    again = fresh(toy_spec, train, seed=5)
    load_state(tmp_path / "state.safetensors", again)
    assert again.step == 3
    go(again, train, discs, 8, variant)
    want, got = tensors(whole), tensors(again)
    assert want.keys() == got.keys()
    assert [k for k in want if not torch.equal(want[k], got[k])] == []
    assert again.average.updates == 8


def test_the_scale_of_float16_losses_goes_on_too(tmp_path: Path, recipe, toy_spec, discs):
    def scaled() -> Run:
        run = fresh(toy_spec, recipe)
        run.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        return run

    whole = go(scaled(), recipe, discs, 6)
    save_state(tmp_path / "state", go(scaled(), recipe, discs, 3))
    again = scaled()
    load_state(tmp_path / "state", again)
    go(again, recipe, discs, 6)
    assert again.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() == 64 * 2**3
    want, got = tensors(whole), tensors(again)
    assert [k for k in want if not torch.equal(want[k], got[k])] == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_it_learns_on_a_card(recipe, toy_spec, discs, precision):
    train = recipe.model_copy(
        update={"optimiser": "adamw", "lr": 5e-3, "momentum": 0.9, "steps": 120}
    )
    net = build(toy_spec.model_copy(update={"dropout": 0.0})).cuda()
    run = Run(net, optimiser(train, net), average=Average(net, 0.9))
    if precision == "float16":
        run.scaler = torch.amp.GradScaler("cuda")
    losses: list[float] = []
    go(run, train, discs, 120, Variant(precision, "channels_last"),
       on_step=lambda run, value: losses.append(float(value)) is None)  # fmt: skip
    assert len(losses) == 120
    assert losses[-1] < -0.6 < losses[0]


def test_bfloat16_ends_with_the_same_bits_too():
    """In a child that keeps to instructions which every processor really has."""
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", __file__, "-k", "same_bits and bfloat16-cont"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert "PASSED" in child.stdout, child.stdout + child.stderr


def test_dropout_depends_on_seed_and_step_alone(recipe, toy_spec, discs):
    runs = []
    for noise in (1, 2):
        run = fresh(toy_spec, recipe)
        torch.manual_seed(noise)
        runs.append(tensors(go(run, recipe, discs, 2)))
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    seeds = {step_seed(seed, step) for seed in range(30) for step in range(30)}
    assert len(seeds) == 900


def test_it_learns_discs_and_squares(recipe, toy_spec, discs):
    train = recipe.model_copy(
        update={
            "optimiser": "adamw",
            "lr": 5e-3,
            "momentum": 0.9,
            "steps": 200,
            "warmup_share": 0.025,
        }
    )
    spec = toy_spec.model_copy(update={"dropout": 0.0})
    run = go(fresh(spec, train), train, discs, 200)
    unseen = [next(discs(step, seed=8)) for step in range(4)]
    image, labels = (torch.cat(part) for part in zip(*unseen, strict=True))
    run.net.eval()
    found = F32.speaking(run.net)(image)[0].argmax(1)
    for k in (1, 2):
        a, b = found == k, labels == k
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95
    assert run.speaker is run.average.net


def test_the_average_follows_its_formula():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average, want = Average(net, 0.5), 0.0
    for n in range(8):
        nn.init.constant_(net.weight, float(n + 1))
        average.update(net)
        decay = min(0.5, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * (n + 1)
    assert average.net.weight.item() == pytest.approx(want, rel=1e-6)
    assert not average.net.weight.requires_grad


def test_divergence_names_step_loss_and_rate_and_spares_the_weights(recipe, toy_spec):
    run = fresh(toy_spec, recipe)
    before = copy.deepcopy(run.net.state_dict())

    def bad():
        yield torch.full((2, 1, 32, 32), torch.nan), torch.zeros(2, 32, 32, dtype=torch.int64)

    with pytest.raises(TrainingDiverged, match=r"the loss is nan at step 0 \(learning rate 0.01\)"):
        go(run, recipe, lambda start: bad(), 5)
    assert run.step == 0
    assert all(torch.equal(before[k], v) for k, v in run.net.state_dict().items())


def test_gradients_that_are_no_numbers_stop_the_run(recipe):
    net = nn.Conv2d(1, 2, 1)
    net.weight.register_hook(lambda grad: grad * torch.inf)
    run = Run(net, optimiser(recipe, net))
    batch = (torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(TrainingDiverged):
        advance(
            run,
            [batch],
            loss=dice_ce(recipe),
            lr_at=paced_rate(recipe, Pace(recipe.steps)),
            stop=1,
            seed=0,
            variant=F32,
        )
    assert torch.isfinite(net.weight).all()


def test_a_state_of_another_network_or_optimiser_is_refused(tmp_path, recipe, toy_spec, discs):
    path = tmp_path / "state.safetensors"
    save_state(path, go(fresh(toy_spec, recipe), recipe, discs, 1))
    other = toy_spec.model_copy(update={"classes": 2})
    with pytest.raises(
        AutosegError, match=r"does not fit this plan: other weights, first net\.head"
    ):
        load_state(path, fresh(other, recipe))
    with pytest.raises(AutosegError, match="another optimiser"):
        load_state(path, fresh(toy_spec, recipe.model_copy(update={"optimiser": "adamw"})))
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, build(toy_spec), {})
    with pytest.raises(AutosegError, match="schema None"):
        load_state(weights, fresh(toy_spec, recipe))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AutosegError, match="damaged"):
        load_state(path, fresh(toy_spec, recipe))
    with pytest.raises(AutosegError, match="does not exist"):
        load_state(tmp_path / "none", fresh(toy_spec, recipe))
