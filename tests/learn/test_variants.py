"""Choosing an arrangement: measured, capped in time, with a fixed rule for ties."""

import pytest
import torch

from autoseg.errors import AutosegError
from autoseg.learn import cores, variants
from autoseg.learn.cores import bfloat16_works
from autoseg.learn.precision import refuse_impossible
from autoseg.learn.variants import Timing, Variant, candidates, fastest, measure
from autoseg.nets.build import build

CPU = torch.device("cpu")


class Clock:
    """A clock that only `spend` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float):
        def step() -> None:
            self.now += seconds

        return step


A, B, C = Variant(threads=1), Variant(layout="channels_last", threads=1), Variant(threads=2)


def test_the_best_of_each_is_reported_and_the_fastest_chosen():
    clock, costs = Clock(), {A: 1.0, B: 0.5, C: 5.0}
    timings = measure(lambda v: clock.spend(costs[v]), [A, B, C], 20, CPU, clock)
    assert [t.seconds for t in timings] == [1.0, 0.5, 5.0]
    assert fastest(timings) == B
    assert clock.now < 20 + 5


def test_a_hopeless_variant_is_tried_once():
    clock, costs, tried = Clock(), {A: 1.0, B: 9.0}, []

    def make(variant):
        step = clock.spend(costs[variant])
        return lambda: (tried.append(variant), step())

    measure(make, [A, B], 30, CPU, clock)
    assert tried.count(B) == 1
    assert tried.count(A) > 3


def test_the_time_cap_leaves_the_rest_unmeasured_but_never_the_first():
    clock = Clock()
    timings = measure(lambda v: clock.spend(10.0), [A, B, C], 1, CPU, clock)
    assert [t.seconds for t in timings] == [10.0, None, None]
    assert timings[1].why == "no time was left to measure it"
    assert fastest(timings) == A


def test_ties_go_to_the_earlier():
    assert fastest([Timing(A, 1.02), Timing(B, 1.0)]) == A
    assert fastest([Timing(A, 1.05), Timing(B, 1.0)]) == B
    with pytest.raises(ValueError, match="no variant"):
        fastest([Timing(A, None)])


def test_what_a_plan_fixes_is_not_varied(monkeypatch):
    monkeypatch.setattr(variants, "thread_counts", lambda: [4, 2, 1])
    monkeypatch.setattr(variants, "announces_bfloat16", lambda: False)
    free = candidates(CPU)
    assert free[0] == Variant("float32", "channels_last", 4)
    assert len(free) == 6
    assert candidates(CPU, "float32", "contiguous", 3) == [Variant("float32", "contiguous", 3)]


def test_announced_but_deadly_instructions_are_not_used(monkeypatch):
    monkeypatch.setattr(variants, "announces_bfloat16", lambda: True)
    monkeypatch.setattr(cores, "PROBE", "import os; os.kill(os.getpid(), 4)")
    bfloat16_works.cache_clear()
    assert {v.precision for v in candidates(CPU, threads=1)} == {"float32"}
    with pytest.raises(AutosegError, match="bfloat16, which this processor cannot"):
        candidates(CPU, "bfloat16", explicit=True)
    bfloat16_works.cache_clear()
    monkeypatch.setattr(cores, "PROBE", "pass")
    assert {v.precision for v in candidates(CPU, threads=1)} == {"float32", "bfloat16"}
    (asked,) = candidates(CPU, "bfloat16", "contiguous", 1, explicit=True)
    assert asked.precision == "bfloat16"
    bfloat16_works.cache_clear()
    with pytest.raises(AutosegError, match="float16, which only a card"):
        candidates(CPU, "float16", explicit=True)
    with pytest.raises(AutosegError, match="float16, which only a card"):
        refuse_impossible(CPU, "float16")


def test_threads_are_pinned_and_given_back():
    before = torch.get_num_threads()
    with Variant(threads=before + 1).pinned():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_one_channel_is_laid_out_channels_last_through_the_whole_network(toy_spec):
    net = build(toy_spec).eval()
    variant, x = Variant(layout="channels_last", threads=1), torch.randn(1, 1, 8, 8)
    want = Variant(threads=1).speaking(net)(x)[0]
    seen = []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels > 1:
            module.register_forward_hook(
                lambda m, i, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    got = variant.speaking(net)(x)[0]
    assert seen and all(seen)
    assert (want - got).abs().max() < 1e-5
