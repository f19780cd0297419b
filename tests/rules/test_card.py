"""Patch and batch on a card are as large as they can be: made-up costs of every kind, real ones of
real networks."""

import time
from collections.abc import Callable
from functools import lru_cache
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.costs import StepBytes
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.presets.table import PRESETS
from autoseg.errors import PlanError
from autoseg.rules.card import (
    LARGEST_SHARE,
    SMALLEST_BATCH,
    SMALLEST_VOX,
    USEFUL_VOX,
    Card,
    Case,
    Fit,
    fit_card,
)
from autoseg.rules.draft import Draft
from autoseg.rules.memory import usable_bytes
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask, Device
from tests.rules.made import bytes_of, fingerprint

TARGETS_GB = (4, 6, 8, 11, 16, 24, 40, 48, 80)
CASES = {
    "ct": ((1.0, 0.77, 0.77), (432.0, 512.0, 512.0), 131),
    "prostate": ((3.6, 0.625, 0.625), (20.0, 320.0, 319.0), 32),
    "hippocampus": ((1.0, 1.0, 1.0), (36.0, 50.0, 35.0), 260),
    "slices": ((0.8, 0.8), (320.0, 330.5), 40),
    "wide": ((0.5, 0.5), (1800.0, 2400.0), 300),
}
Cost = Callable[[NetworkSpec, tuple[int, ...], int], float]


def kinked(network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
    """The update of the weights has a peak of its own."""
    return max(2.5e9, bytes_of(network, patch_vox, batch))


def windowed(network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
    """Windows of 14 voxels pad every axis."""
    return bytes_of(network, tuple(-(-n // 14) * 14 for n in patch_vox), batch)


def attentive(network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
    """A number for each pair of tokens."""
    tokens = prod(patch_vox) / prod(network.divisor)
    return bytes_of(network, patch_vox, batch) + 96 * batch * tokens**2


def made(preset: str, kind: str, inputs: int = 1, outputs: int = 3) -> tuple[Draft, Case]:
    spacing, median, cases = CASES[kind]
    deep = 300 if len(spacing) == 2 else 1
    return Draft(preset, inputs, outputs, spacing), Case(median, prod(median) * cases * deep)


def check_fit(found: Fit, draft: Draft, case: Case, target_gb: float, cost: Cost) -> None:
    """That the fit divides, fits, and cannot grow along any axis or by a sample."""
    topology, batch = found.topology.value, found.batch_size.value
    usable, recompute = usable_bytes(target_gb), found.recompute.value

    def need(patch: tuple[int, ...], number: int) -> float:
        on = draft.on(patch)
        assert on.patch_vox == patch
        return cost(draft.network(on, recompute=recompute), patch, number)

    divisor = draft.network(topology).divisor
    assert all(edge % by == 0 for edge, by in zip(topology.patch_vox, divisor, strict=True))
    assert need(topology.patch_vox, batch) <= usable
    cap = round(case.dataset_vox * LARGEST_SHARE / prod(topology.patch_vox))
    assert SMALLEST_BATCH <= batch <= max(cap, SMALLEST_BATCH)
    assert batch >= cap or need(topology.patch_vox, batch + 1) > usable
    for axis, (edge, typical) in enumerate(zip(topology.patch_vox, case.median_vox, strict=True)):
        assert edge < typical + divisor[axis]
        step = [n + (a == axis) * divisor[axis] for a, n in enumerate(topology.patch_vox)]
        wider = draft.on(tuple(step)).patch_vox
        assert edge >= typical or need(wider, SMALLEST_BATCH) > usable, f"axis {axis} can grow"


def fits_or_tells(draft: Draft, case: Case, target_gb: float, cost: Cost) -> Fit | None:
    """The fit, checked; or None where an error told the memory that would do, which is right."""
    try:
        found = fit_card(draft, case, Card(target_gb, cost))
    except PlanError as error:
        needed = float(str(error).partition("--gpu-memory ")[2].split(" ")[0])
        assert needed > target_gb
        found = fit_card(draft, case, Card(needed, cost))
        check_fit(found, draft, case, needed, cost)
        return None
    check_fit(found, draft, case, target_gb, cost)
    return found


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from(sorted(PRESETS)),
    st.sampled_from(sorted(CASES)),
    st.sampled_from(TARGETS_GB),
    st.sampled_from([bytes_of, kinked, windowed, attentive]),
)
def test_nothing_larger_fits(preset: str, kind: str, target_gb: float, cost: Cost) -> None:
    draft, case = made(preset, kind)
    fits_or_tells(draft, case, target_gb, cost)


@pytest.mark.parametrize("preset", ["plain", "resenc_l"])
def test_more_memory_never_makes_less(preset: str) -> None:
    draft, case = made(preset, "ct")
    draft = Draft(preset, 1, 3, draft.spacing_mm, changes={"recompute": False})
    sizes = []
    for target in TARGETS_GB:
        found = fit_card(draft, case, Card(target, bytes_of))
        sizes.append(prod(found.topology.value.patch_vox) * found.batch_size.value)
    assert sizes == sorted(sizes)


def test_few_askings_suffice() -> None:
    calls = []

    def cost(network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
        calls.append(patch_vox)
        return bytes_of(network, patch_vox, batch)

    fit_card(*made("plain", "ct"), Card(8, cost))
    assert len(calls) <= 5


def test_too_small_a_card_is_told_with_the_smallest_that_works() -> None:
    draft, case = made("resenc_l", "ct")
    with pytest.raises(
        PlanError, match=r"resenc_l does not fit a card of 1.7 GB.* from --gpu-memory"
    ):
        fit_card(draft, case, Card(1.7, bytes_of))
    assert fits_or_tells(draft, case, 1.7, bytes_of) is None


def test_activations_are_computed_twice_only_where_patches_would_be_small() -> None:
    draft, case = made("plain", "ct")
    roomy = fit_card(draft, case, Card(8, bytes_of))
    tight = fit_card(draft, case, Card(3.6, bytes_of))
    assert (roomy.recompute.value, tight.recompute.value) == (False, True)
    assert "no more than" in tight.recompute.why
    refused = Draft("plain", 1, 3, draft.spacing_mm, changes={"recompute": False})
    without = fit_card(refused, case, Card(3.6, bytes_of))
    assert without.recompute.value is False
    small, large = prod(without.topology.value.patch_vox), prod(tight.topology.value.patch_vox)
    assert small < USEFUL_VOX[3] < prod(roomy.topology.value.patch_vox)
    assert SMALLEST_VOX[3] <= small < large
    asked = Draft("plain", 1, 3, draft.spacing_mm, changes={"recompute": True})
    wide = fit_card(asked, case, Card(8, bytes_of))
    assert wide.recompute.value
    assert prod(wide.topology.value.patch_vox) > prod(roomy.topology.value.patch_vox)


def test_a_pinned_patch_that_cannot_fit_names_the_nearest_that_does() -> None:
    draft, case = made("plain", "ct")
    card = Card(8, bytes_of)
    pinned = draft.on((256, 256, 256))
    with pytest.raises(
        PlanError, match=r"256, 256\] does not fit.*nearest that fits is \[(.*)\]"
    ) as e:
        fit_card(draft, case, card, patch=pinned)
    told = str(e.value).partition("that fits is [")[2].partition("]")[0]
    nearest = draft.on(tuple(int(n) for n in told.split(",")))
    found = fit_card(draft, case, card, patch=nearest)
    assert found.topology.value == nearest
    assert found.recompute.value
    kept = fit_card(draft, case, card, patch=pinned, batch=3)
    assert (kept.topology.value, kept.batch_size.value) == (pinned, 3)
    assert "too much" in kept.batch_size.why


def test_a_pinned_batch_decides_the_patch() -> None:
    draft, case = made("plain", "ct")
    two, six = (fit_card(draft, case, Card(16, bytes_of), batch=n) for n in (2, 6))
    assert (two.batch_size.value, six.batch_size.value) == (2, 6)
    assert prod(six.topology.value.patch_vox) < prod(two.topology.value.patch_vox)


@lru_cache(maxsize=4096)
def computed(network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
    """The bytes that the planner itself reckons with, each once."""
    return StepBytes()(network, patch_vox, batch)


QUICK = [
    ("plain", "prostate", 8),
    ("resenc_m", "hippocampus", 4),
    ("mednext_s", "hippocampus", 6),
    ("unetr", "hippocampus", 8),
    ("segresnet", "slices", 8),
]


@pytest.mark.parametrize(("preset", "kind", "target_gb"), QUICK)
def test_nothing_larger_fits_by_computed_bytes(preset: str, kind: str, target_gb: float) -> None:
    draft, case = made(preset, kind)
    fits_or_tells(draft, case, target_gb, computed)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "targets_gb"), [("ct", TARGETS_GB), ("slices", (8, 24))])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_nothing_larger_fits_by_computed_bytes_for_any_network(
    preset: str, kind: str, targets_gb: tuple[float, ...]
) -> None:
    draft, case = made(preset, kind)
    for target_gb in targets_gb:
        fits_or_tells(draft, case, target_gb, computed)


@pytest.mark.slow
def test_a_large_ct_set_is_planned_in_fifteen_seconds() -> None:
    data = fingerprint(shape=(512, 512, 432), spacing_mm=(0.7676, 0.7676, 1.0), cases=131)
    draft, case = made("plain", "hippocampus")
    StepBytes()(draft.network(draft.on(case.median_vox)), (40, 56, 40), 2)  # imports
    began = time.perf_counter()
    plan = make_plan(data, Ask(device=Device(8.0, "given by you", StepBytes())))
    assert time.perf_counter() - began < 15
    assert set(plan.configurations) == {"2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"}
