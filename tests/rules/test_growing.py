"""The stages in which a patch grows: sizes, batches, memory, and what a person may pin."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.documents.plan import Configuration, Plan
from autoseg.errors import PlanError
from autoseg.rules.growing import (
    EFFICIENCY,
    MOST_STAGES,
    PERFORMANCE,
    growing_patches,
    growing_sizes,
)
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask
from tests.rules.made import CARD, CORES, bytes_of, fingerprint, operations_of

STEPS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4, 8, 16])), min_size=2, max_size=3
)


@given(STEPS)
def test_every_size_is_one_step_longer_along_one_axis(steps: list[tuple[int, int]]) -> None:
    divisor = tuple(by for _, by in steps)
    patch = tuple(n * by for n, by in steps)
    found = list(growing_sizes(patch, divisor))
    assert found[0] == tuple(min(n, 2) * by for n, by in steps)
    assert found[-1] == patch
    for before, after in pairwise(found):
        grown = [b - a for a, b in zip(before, after, strict=True)]
        (axis,) = [a for a, n in enumerate(grown) if n]
        assert grown[axis] == divisor[axis]
        # the shortest edge first, of those that may grow
        others = [a for a in range(len(patch)) if before[a] < patch[a]]
        assert before[axis] + divisor[axis] == min(before[a] + divisor[a] for a in others)


def plan(ask: Ask) -> Plan:
    return make_plan(fingerprint(), ask)


def of(**more) -> Configuration:
    return plan(Ask(device=CARD, **more)).configurations["3d_fullres"]


def test_the_stages_are_equally_long_and_end_below_the_patch() -> None:
    whole = of()
    stages = growing_patches(whole.network, whole.patch_vox, 2, EFFICIENCY)
    assert len(stages) == MOST_STAGES - 1
    assert [s["until"] for s in stages] == pytest.approx([i / 6 for i in range(1, 6)], abs=1e-4)
    assert {s["batch_size"] for s in stages} == {2}
    voxels = [prod(s["patch_vox"]) for s in stages]
    assert voxels == sorted(set(voxels))
    assert voxels[-1] < prod(whole.patch_vox)


def test_a_patch_that_cannot_be_smaller_has_no_stages() -> None:
    net = of().network
    smallest = tuple(2 * by for by in net.divisor)
    assert growing_patches(net, smallest, 2, EFFICIENCY) == []


@pytest.mark.parametrize("batch", [2, 5])
def test_performance_fills_batches_within_voxels_and_bytes(batch: int) -> None:
    whole = of()
    voxels = batch * prod(whole.patch_vox)
    for stage in growing_patches(whole.network, whole.patch_vox, batch, PERFORMANCE):
        size = prod(stage["patch_vox"])
        assert voxels - size < size * stage["batch_size"] <= voxels

    def dear(net, patch, n):  # a small patch costs more than in proportion
        return bytes_of(net, patch, n) + n * 2e8

    most = dear(whole.network, whole.patch_vox, batch)
    stages = growing_patches(whole.network, whole.patch_vox, batch, PERFORMANCE, dear)
    for stage in stages:
        assert dear(whole.network, tuple(stage["patch_vox"]), stage["batch_size"]) <= most
    assert any(stage["batch_size"] > batch for stage in stages)


@pytest.mark.parametrize("device", [CARD, CORES])
@pytest.mark.parametrize("mode", [EFFICIENCY, PERFORMANCE])
def test_a_plan_grows_where_it_is_pinned(device, mode: str) -> None:
    made = plan(Ask(device=device, pins={"train.patch_schedule": mode}))
    for name, configuration in made.configurations.items():
        stages = configuration.train.patch_schedule
        assert stages, name
        assert "grows from" in made.why[f"configurations.{name}.train.patch_schedule"]
        grows = {s.batch_size > configuration.train.batch_size for s in stages}
        assert grows == {False} if mode == EFFICIENCY else True in grows
    assert Plan.parse(made.dump(), "it") == made


def test_a_fold_costs_what_its_stages_show() -> None:
    device = replace(CARD, operations_of=operations_of)
    plain = plan(Ask(device=device)).configurations["3d_fullres"]
    grown = plan(Ask(device=device, pins={"train.patch_schedule": EFFICIENCY})).configurations[
        "3d_fullres"
    ]
    assert plain.cost and grown.cost
    voxels = [prod(stage.patch_vox) for stage in grown.train.patch_schedule] + [
        prod(grown.patch_vox)
    ]
    share = sum(voxels) / len(voxels) / voxels[-1]
    assert 0.2 < share < 0.7
    assert grown.cost.exaflop == pytest.approx(share * plain.cost.exaflop, rel=1e-3)
    assert grown.cost.hours_per_fold < plain.cost.hours_per_fold


@pytest.mark.parametrize("planner", ["autoseg", "nnunet"])
def test_a_plain_plan_says_nothing_of_it(planner) -> None:
    made = plan(Ask(device=CARD, planner=planner))
    for configuration in made.dump()["configurations"].values():
        # stamps of folds that were trained before the field existed are made of this
        assert "patch_schedule" not in configuration["train"]
    assert not any("patch_schedule" in key for key in made.why)


def test_stages_of_three_numbers_do_not_touch_2d() -> None:
    whole = of()
    size = [2 * by for by in whole.network.divisor]
    stage = {"until": 0.5, "patch_vox": size, "batch_size": 2}
    made = plan(Ask(device=CARD, pins={"train.patch_schedule": [stage]}))
    assert made.configurations["2d"].train.patch_schedule == ()
    (found,) = made.configurations["3d_fullres"].train.patch_schedule
    assert (found.until, list(found.patch_vox), found.batch_size) == (0.5, size, 2)


@pytest.mark.parametrize("stage", [{"until": 0.5}, 7, {"until": 0.5, "patch": [8, 8, 8]}])
def test_a_stage_that_is_none_is_told(stage) -> None:
    with pytest.raises(PlanError, match=r"a stage of train\.patch_schedule cannot work"):
        plan(Ask(device=CARD, pins={"train.patch_schedule": [stage]}))


@pytest.mark.parametrize("pin", ["quick", 3, True])
def test_other_pins_are_refused(pin) -> None:
    with pytest.raises(PlanError, match="constant, efficiency, performance or a list"):
        plan(Ask(device=CARD, pins={"train.patch_schedule": pin}))


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([(0.5, [0, 0], 2)], "has 2 numbers"),
        ([(0.5, [1, 1, 1], 2)], "is no multiple of"),
        ([(0.5, "divisor", 2)], "a single voxel"),
        ([(0.5, [4096, 4096, 4096], 2)], "is larger than patch_vox"),
        ([(0.5, "patch", 500)], "for which memory was counted"),
        ([(0.5, "small", 2), (0.5, "small", 2)], "must rise"),
        ([(1.0, "small", 2)], "less than 1"),
    ],
)
def test_faulty_stages_are_told(stages, told: str) -> None:
    whole = of()
    named = {
        "divisor": list(whole.network.divisor),
        "small": [2 * by for by in whole.network.divisor],
        "patch": list(whole.patch_vox),
    }
    document = whole.dump()
    document["train"]["patch_schedule"] = [
        {"until": u, "patch_vox": named.get(p, p) if isinstance(p, str) else [n or 8 for n in p],
         "batch_size": n} for u, p, n in stages
    ]  # fmt: skip
    with pytest.raises(PlanError, match=told):
        Configuration.parse(document, "the configuration")
