"""Trials on a card: no more memory than a step was counted to take, nothing left of them, no room is a result."""

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Training
from autoseg.documents.presets.table import network_spec
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.scaling import scaler_for
from autoseg.learn.trial import trial_step
from autoseg.learn.variants import NO_ROOM, Variant, candidates, fastest, measure
from autoseg.nets.build import build
from autoseg.nets.cost import training_bytes
from tests.card import AMPERE, TURING, card, simulated

CPU = torch.device("cpu")
SHAPE, CLASSES = (2, 8, 32, 32), 3


@pytest.fixture
def spec() -> NetworkSpec:
    return network_spec("plain", 2, CLASSES, [8, 16], [[1, 1, 1], [2, 2, 2]], [[3, 3, 3]] * 2)


@pytest.fixture
def train(recipe: Training, spec: NetworkSpec) -> Training:
    changed = {"precision": "float32", "supervision": spec.output_weights, "batch_size": 2}
    return recipe.model_copy(update=changed)


def ticks() -> Callable[[], float]:
    """A clock that goes on by a second each time it is read."""
    return iter(range(10**6)).__next__


def bound(spec: NetworkSpec, train: Training, average: bool = False) -> int:
    return training_bytes(
        spec, SHAPE[1:], train.batch_size, precision="float32",
        loss=deeply(dice_ce(train), train.supervision), optimiser=partial(optimiser, train),
        average=average,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "average", "more"),
    [("contiguous", False, 1.0), ("contiguous", True, 1.0), ("channels_last", False, 1.08)],
)
def test_trials_stay_inside_the_computed_bound(
    spec, train, layout, average, more, monkeypatch
) -> None:
    """Also the second. On CPU tensors the channels-last norms are our own, and keep a sample more."""
    train = train.model_copy(update={"ema_share": 0.1 * average})
    counted, trial = bound(spec, train, average), Variant("float32", layout, 1)
    with simulated(monkeypatch, card(8), limit=int(more * counted)) as cards:
        before = cards.memory.live
        timings = measure(
            lambda v: trial_step(build(spec).to(CPU), train, SHAPE, CLASSES, v),
            [trial, replace(trial, threads=None)], 10, CPU, ticks(),
        )  # fmt: skip
        assert [t.why for t in timings] == ["", ""]
        assert cards.memory.refused == 0
        assert cards.memory.peak > 0.95 * counted  # the bound is no idle one
        gc.collect()
        assert cards.memory.live == before


def test_networks_and_what_they_made_are_gone_before_the_next(spec, train, monkeypatch) -> None:
    made: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []

    def make(variant: Variant):
        alive.append(sum(net() is not None for net in made))
        net = build(spec)
        net.itself = [net]  # a cycle, as torch's graphs have them
        made.append(weakref.ref(net))
        return trial_step(net, train, SHAPE, CLASSES, variant)

    with simulated(monkeypatch, card(8)):
        measure(make, candidates(CPU, "float32"), 10, CPU, ticks())
    assert alive == [0, 0]
    assert [net() for net in made] == [None, None]


@pytest.mark.parametrize(
    "refusal",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")],
)
def test_no_room_is_a_result_and_the_next_is_tried(refusal, monkeypatch) -> None:
    def make(variant: Variant):
        def step() -> None:
            if variant.layout == "channels_last":
                raise refusal

        return step

    with simulated(monkeypatch, card(8)):
        timings = measure(make, candidates(CPU), 10, CPU, ticks())
    assert [(t.seconds is None, t.why) for t in timings] == [(True, NO_ROOM), (False, "")]
    assert fastest(timings).layout == "contiguous"


def test_where_nothing_fits_memory_is_told_to_be_short(spec, train, monkeypatch) -> None:
    with simulated(monkeypatch, card(8), limit=bound(spec, train) // 2) as cards:
        with pytest.raises(torch.OutOfMemoryError, match="no layout of the step has room: CUDA"):
            measure(
                lambda v: trial_step(build(spec), train, SHAPE, CLASSES, v),
                candidates(CPU, "float32"), 10, CPU, ticks(),
            )  # fmt: skip
        assert cards.memory.refused == 2


def test_other_faults_of_a_trial_are_no_lack_of_room(monkeypatch) -> None:
    def make(variant: Variant):
        raise RuntimeError("shapes do not match")

    with simulated(monkeypatch, card(8)), pytest.raises(RuntimeError, match="shapes"):
        measure(make, candidates(CPU), 10, CPU, ticks())


def test_the_first_step_on_a_card_is_no_verdict(monkeypatch) -> None:
    """It looks for cuDNN's algorithms, which later steps do not."""
    now = [0.0]
    spans = {"channels_last": [1.0, 1.0, 1.0, 1.0], "contiguous": [9.0, 0.5, 0.5, 0.5]}

    def make(variant: Variant):
        left = iter(spans[variant.layout])

        def step() -> None:
            now[0] += next(left, 100.0)

        return step

    with simulated(monkeypatch, card(8)):
        timings = measure(make, candidates(CPU), 5.0, CPU, lambda: now[0])
    assert [t.seconds for t in timings] == [1.0, 0.5]


def test_float16_losses_are_scaled_on_cards_alone(monkeypatch) -> None:
    assert scaler_for(Variant("float16"), CPU) is None
    with simulated(monkeypatch, card(8, TURING)):
        assert scaler_for(Variant("float16"), CPU) is not None
        assert scaler_for(Variant("bfloat16"), CPU) is None
        assert scaler_for(Variant("float32"), CPU) is None


def test_trials_in_float16_scale_their_loss_too(spec, train, monkeypatch) -> None:
    scales: list[float] = []
    scale = torch.amp.GradScaler.scale

    def noted(self: torch.amp.GradScaler, outputs):
        scales.append(self.get_scale())
        return scale(self, outputs)

    monkeypatch.setattr(torch.amp.GradScaler, "scale", noted)
    monkeypatch.setattr(Variant, "autocast", lambda *_: nullcontext())  # float32 in truth
    with simulated(monkeypatch, card(8, TURING)):
        trial_step(build(spec), train, SHAPE, CLASSES, Variant("float16"))()
    with simulated(monkeypatch, card(8, AMPERE)):
        trial_step(build(spec), train, SHAPE, CLASSES, Variant("float32"))()
    assert scales == [65536.0]


@pytest.mark.parametrize("second_fits", [True, False])
def test_a_slow_trial_without_room_is_not_the_last_word(monkeypatch, second_fits) -> None:
    """The first refusal used all the time: the next is tried even so, or all is told as no room."""

    def make(variant: Variant) -> Callable[[], object]:
        def step() -> None:
            if variant.layout == "channels_last" or not second_fits:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return step

    tried = [Variant("bfloat16", "channels_last", 1), Variant("bfloat16", "contiguous", 1)]
    with simulated(monkeypatch, card(8)):
        if second_fits:
            timings = measure(make, tried, 0.0, CPU, ticks())
            assert [t.why for t in timings] == [NO_ROOM, ""]
            assert fastest(timings) == tried[1]
        else:
            with pytest.raises(torch.OutOfMemoryError, match="no layout of the step has room"):
                measure(make, tried, 0.0, CPU, ticks())
