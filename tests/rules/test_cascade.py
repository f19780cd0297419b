"""When a low resolution and a cascade are planned, and that they are nnU-Net's where asked."""

from math import prod

import pytest

from autoseg.documents.plan import Plan
from autoseg.errors import PlanError
from autoseg.rules import nnunet
from autoseg.rules.cascade import BELOW_SHARE, low_resolution
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask, Device
from tests.rules.made import CARD, CORES, bytes_of, fingerprint

VOLUMES = ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]


def large(**changes) -> object:
    return fingerprint(
        **{"shape": (512, 512, 432), "spacing_mm": (0.7676, 0.7676, 1.0), "cases": 131, **changes}
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(large(), Ask(device=CARD))


def test_a_patch_that_sees_little_gets_a_low_resolution_that_sees_a_quarter(plan: Plan) -> None:
    assert list(plan.configurations) == VOLUMES
    low, full = plan.configurations["3d_lowres"], plan.configurations["3d_fullres"]
    assert prod(full.patch_vox) < BELOW_SHARE * prod(full.median_shape_vox)
    share = prod(low.patch_vox) / prod(low.median_shape_vox)
    assert BELOW_SHARE * 0.97 < share < 0.4
    assert low.preparation.spacing_mm[0] > full.preparation.spacing_mm[0]
    assert not low.train.batch_dice
    assert full.train.batch_dice
    assert "goes before" in plan.why["configurations"]
    assert "shows a quarter" in plan.why["configurations.3d_lowres.preparation.spacing_mm"]


def test_the_cascade_is_full_resolution_that_is_told_the_low_ones_answer(plan: Plan) -> None:
    full, cascade = (plan.configurations[n] for n in ("3d_fullres", "3d_cascade_fullres"))
    assert cascade.previous is not None
    assert cascade.previous.configuration == "3d_lowres"
    assert cascade.network.in_channels == full.network.in_channels + 1
    same = ("preparation", "patch_vox", "sampling", "augmentation", "train")
    assert all(getattr(cascade, key) == getattr(full, key) for key in same)
    assert "3d_lowres" in plan.why["configurations.3d_cascade_fullres.previous"]


def test_a_cascade_that_would_not_fit_is_planned_for_itself() -> None:
    def dear(network, patch_vox, batch) -> float:
        return bytes_of(network, patch_vox, batch) * network.in_channels

    made = make_plan(large(), Ask(device=Device(16.0, "given by you", dear), use_memory=True))
    full, cascade = (made.configurations[n] for n in ("3d_fullres", "3d_cascade_fullres"))
    assert prod(cascade.patch_vox) < prod(full.patch_vox)


@pytest.mark.parametrize("network", list(nnunet.PRESETS))
@pytest.mark.parametrize("spacing_mm", [(0.7676, 0.7676, 1.0), (0.793, 0.793, 5.0)])
def test_nnunets_planner_has_nnunets_cascade(network: str, spacing_mm) -> None:
    shape = (512, 512, 432) if spacing_mm[2] == 1 else (512, 512, 90)
    data = large(spacing_mm=spacing_mm, shape=shape)
    rules = nnunet.plan(
        nnunet.Dataset(
            spacings_mm=tuple(c.spacing_mm[::-1] for c in data.cases),
            shapes_vox=tuple(c.cropped_shape[::-1] for c in data.cases),
            channel_names=data.channels,
            outputs=2,
            cases=len(data.cases),
            relative_size=1.0,
        ),
        network,
    )
    made = make_plan(data, Ask(planner="nnunet", network=network, device=CORES))
    names = list(made.configurations)
    assert names == [*rules.configurations, *(["3d_cascade_fullres"] * rules.cascade.value)]
    for name, theirs in rules.configurations.items():
        mine = made.configurations[name]
        assert mine.patch_vox == theirs.topology.value.patch_vox
        assert mine.train.batch_size == theirs.batch_size.value
        assert mine.train.batch_dice == theirs.batch_dice.value
        assert mine.network.strides == theirs.topology.value.strides
        assert mine.preparation.spacing_mm[-2:] == pytest.approx(theirs.spacing_mm.value[-2:])
        assert mine.median_shape_vox[-2:] == tuple(round(n) for n in theirs.median_vox[-2:])


def test_on_cores_there_is_none_and_the_plan_says_why() -> None:
    made = make_plan(large(), Ask(device=CORES))
    assert list(made.configurations) == ["2d", "3d_fullres"]
    assert "without a card" in made.why["configurations"]


def test_small_cases_need_none() -> None:
    made = make_plan(fingerprint(shape=(36, 50, 35), spacing_mm=(1.0, 1.0, 1.0)), Ask(device=CARD))
    assert list(made.configurations) == ["2d", "3d_fullres"]
    assert "no low resolution is needed" in made.why["configurations"]


def test_single_slices_are_planned_in_2d_only() -> None:
    made = make_plan(fingerprint(shape=(256, 320, 1), spacing_mm=(1.0, 1.0, 9.0)), Ask(device=CARD))
    assert list(made.configurations) == ["2d"]


def test_pins_of_the_low_resolution_are_its_own(plan: Plan) -> None:
    pins = {
        "3d_lowres.patch_vox": [96, 96, 96],
        "3d_lowres.batch_size": 3,
        "3d_fullres.train.lr": 0.003,
    }
    made = make_plan(large(), Ask(device=CARD, pins=pins))
    low, full = made.configurations["3d_lowres"], made.configurations["3d_fullres"]
    assert (low.patch_vox, low.train.batch_size, low.train.lr) == ((96, 96, 96), 3, 0.01)
    assert full.patch_vox == plan.configurations["3d_fullres"].patch_vox
    assert made.configurations["3d_cascade_fullres"].train.lr == full.train.lr == 0.003
    spaced = make_plan(large(), Ask(device=CARD, pins={"3d_lowres.spacing_mm": [3.0, 2.0, 2.0]}))
    found = spaced.configurations["3d_lowres"]
    assert found.preparation.spacing_mm == (3.0, 2.0, 2.0)
    assert found.median_shape_vox == (144, 196, 196) or found.median_shape_vox == (144, 197, 197)
    shared = make_plan(large(), Ask(device=CARD, pins={"patch_vox": [96, 128, 128]}))
    assert shared.configurations["3d_fullres"].patch_vox == (96, 128, 128)
    assert shared.configurations["3d_lowres"].patch_vox != (96, 128, 128)


def test_a_pin_of_a_low_resolution_that_is_not_planned_is_told() -> None:
    small = fingerprint(shape=(36, 50, 35), spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(PlanError, match="3d_lowres is pinned, but the plan has none: a patch of"):
        make_plan(small, Ask(device=CARD, pins={"3d_lowres.batch_size": 3}))


def test_the_grid_coarsens_until_a_patch_shows_a_quarter() -> None:
    asked = []

    def patch_at(spacing_mm, median_vox):
        asked.append((spacing_mm, median_vox))
        return (64, 64, 64)

    low, why = low_resolution((4.0, 1.0, 1.0), (100.0, 400.0, 400.0), (64, 64, 64), patch_at)
    assert low is not None
    # the slices stay until the others are within a factor of two
    flat = [spacing for spacing, _ in asked if spacing[0] == 4.0]
    assert flat[-1][1] >= 2.0 > flat[-2][1]
    volumes = [prod(median) for _, median in asked]
    assert 64**3 / volumes[-1] >= BELOW_SHARE * 0.99 > 64**3 / volumes[-2]
    assert "shows 2% of a median case" in why
