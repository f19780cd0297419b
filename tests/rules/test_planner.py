"""The default planner: what departs from nnU-Net, pins, steadiness, and a golden plan."""

import json
from pathlib import Path
from typing import Any

import pytest

from autoseg.documents.fingerprint import CaseSummary, Fingerprint, Intensity, LabelSummary
from autoseg.errors import PlanError
from autoseg.rules import nnunet
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask, Device

GOLDEN = Path(__file__).parent.parent / "golden" / "plans"
CARD = Device(8.0, "given by you")


def fingerprint(
    *,
    channels: tuple[str, ...] = ("CT",),
    cases: int = 20,
    orientation: str = "LPS",
    others: int = 0,
    shape: tuple[int, int, int] = (320, 320, 60),
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 4.0),
    lesion_vox: int = 6000,
    mean: float = 40.0,
    dimensions: int = 3,
) -> Fingerprint:
    """A dataset of equal cases, `others` of them stored as RAS."""
    voxels = shape[0] * shape[1] * shape[2]
    intensity = {
        "mean": mean, "median": 41.0, "std": 50.0, "min": -900.0, "max": 900.0,
        "percentile_00_5": -100.0, "percentile_05": -40.0, "percentile_95": 120.0,
        "percentile_99_5": 200.0,
    }  # fmt: skip
    return Fingerprint(
        dataset="Dataset900_Made",
        dimensions=dimensions,
        channels=channels,
        cases=tuple(
            CaseSummary(
                case=f"case_{i:03d}",
                dimensions=dimensions,
                orientation="RAS" if i < others else orientation,
                shape=shape,
                spacing_mm=spacing_mm,
                cropped_shape=shape,
                label_voxels=(lesion_vox,),
                label_components=(1,),
                label_component_vox=(float(lesion_vox),),
                intensity_ranges=((-1000.0, 1500.0),) * len(channels),
                digest=f"{i:064d}",
            )
            for i in range(cases)
        ),
        intensities=tuple(Intensity(channel=name, **intensity) for name in channels),
        labels=(
            LabelSummary(
                name="lesion", value=1, cases=cases, share_of_voxels=lesion_vox / voxels,
                median_volume_mm3=float(lesion_vox), median_components=1.0,
                median_component_mm3=float(lesion_vox), smallest_component_mm3=float(lesion_vox),
            ),
        ),
        median_crop_share=1.0,
        imbalance=voxels / lesion_vox,
        cases_without_label=(),
        outliers=(),
    )  # fmt: skip


def test_axes_follow_the_majority_and_the_coarsest_comes_first() -> None:
    plan = make_plan(fingerprint(others=4), Ask(device=CARD))
    found = plan.configurations["3d_fullres"].preparation
    assert found.axes == "SPL"
    assert found.spacing_mm == (4.0, 0.8, 0.8)
    assert "16 of 20" in plan.why["configurations.3d_fullres.preparation.axes"]
    # coarse along the first file axis: that axis comes first
    turned = make_plan(fingerprint(spacing_mm=(4.0, 0.8, 0.8)), Ask(device=CARD))
    assert turned.configurations["3d_fullres"].preparation.axes == "LSP"


def test_the_2d_configuration_keeps_each_cases_own_slice_distance() -> None:
    plan = make_plan(fingerprint(), Ask(device=CARD))
    flat = plan.configurations["2d"]
    assert flat.preparation.spacing_mm == (None, 0.8, 0.8)
    assert len(flat.patch_vox) == 2


@pytest.mark.parametrize("network", list(nnunet.PRESETS))
def test_nnunets_planner_has_the_values_of_its_rules(network: str) -> None:
    data = fingerprint()
    plan = make_plan(data, Ask(planner="nnunet", network=network, device=CARD))
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
        8.0,
    )
    for name in ("2d", "3d_fullres"):
        mine, theirs = plan.configurations[name], rules.configurations[name]
        assert mine.preparation.axes == "stored"
        assert mine.patch_vox == theirs.topology.value.patch_vox
        assert mine.train.batch_size == theirs.batch_size.value
        assert [level.width for level in mine.network.levels] == list(theirs.features.value)
        assert mine.sampling.foreground_share == pytest.approx(1 / 3)
        assert mine.train.steps == 250_000


def test_class_imbalance_decides_sampling() -> None:
    shape = (100, 100, 100)
    plans = [
        make_plan(
            fingerprint(shape=shape, spacing_mm=(1.0, 1.0, 1.0), lesion_vox=vox, channels=("MRI",)),
            Ask(device=CARD),
        )
        for vox in (10**5, 100)
    ]
    common, rare = (p.configurations["3d_fullres"] for p in plans)
    assert rare.sampling.foreground_share > common.sampling.foreground_share
    assert (common.train.batch_dice, rare.train.batch_dice) == (False, True)
    key = "configurations.3d_fullres.sampling.foreground_share"
    assert plans[0].why[key] != plans[1].why[key]
    assert "1:10,000" in plans[1].why[key]


def test_pins_are_kept_and_the_rest_is_decided_around_them() -> None:
    free = make_plan(fingerprint(), Ask(device=CARD)).configurations["3d_fullres"]
    asked = Ask(
        device=CARD, pins={"patch_vox": [16, 64, 64], "train.lr": 0.003, "2d.batch_size": 3}
    )
    plan = make_plan(fingerprint(), asked)
    pinned = plan.configurations["3d_fullres"]
    assert pinned.patch_vox == (16, 64, 64)
    assert pinned.train.batch_size > free.train.batch_size
    assert {c.train.lr for c in plan.configurations.values()} == {0.003}
    assert plan.configurations["2d"].train.batch_size == 3
    assert plan.why["configurations.3d_fullres.patch_vox"] == "pinned by you"
    assert plan.why["configurations.2d.train.lr"] == "pinned by you"
    spaced = make_plan(fingerprint(), Ask(device=CARD, pins={"spacing_mm": [4.0, 1.6, 1.6]}))
    assert spaced.configurations["3d_fullres"].preparation.spacing_mm == (4.0, 1.6, 1.6)
    assert spaced.configurations["3d_fullres"].median_shape_vox == (60, 160, 160)


@pytest.mark.parametrize(
    ("pins", "told"),
    [
        ({"patch_vox": [17, 64, 64]}, "nearest that its levels divide"),
        ({"train.learning_rate": 0.1}, "unknown key"),
        ({"train.ema_shar": 0.9}, "did you mean 'ema_share'"),
        ({"spacing_mm": 3}, "three lengths"),
        ({"train.batch_dice": "perhaps"}, "train.batch_dice"),
    ],
)
def test_pins_that_cannot_work_are_told(pins: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match="(?s)" + told):
        make_plan(fingerprint(), Ask(device=CARD, pins=pins))


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match="plain, resenc_m"):
        make_plan(fingerprint(), Ask(network="unett", device=CARD))


def test_hardly_changed_grids_and_scales_are_kept() -> None:
    first = make_plan(fingerprint(), Ask(device=CARD))
    moved = fingerprint(spacing_mm=(0.805, 0.805, 4.0), mean=40.5)
    steady = make_plan(moved, Ask(device=CARD), first)
    before, after = (p.configurations["3d_fullres"].preparation for p in (first, steady))
    assert after.key == before.key
    assert "is kept" in steady.why["configurations.3d_fullres.preparation.spacing_mm"]
    far = make_plan(fingerprint(spacing_mm=(0.9, 0.9, 4.0)), Ask(device=CARD), first)
    assert far.configurations["3d_fullres"].preparation.spacing_mm == (4.0, 0.9, 0.9)
    bright = make_plan(fingerprint(mean=45.0), Ask(device=CARD), first)
    assert bright.configurations["3d_fullres"].preparation.channels[0].mean == 45.0


def test_more_time_on_cores_buys_a_wider_network() -> None:
    def seconds(network: Any, patch: tuple[int, ...], batch: int) -> float:
        return 0.02 * network.levels[0].width * batch / 2

    cores = Device(None, "no card is there", seconds)
    widths, steps = [], []
    for minutes in (2.0, 20.0, 200.0):
        chosen = make_plan(fingerprint(), Ask(minutes=minutes, device=cores))
        found = chosen.configurations["3d_fullres"]
        widths.append(found.network.levels[0].width)
        steps.append(found.train.steps)
        taken = found.train.steps * seconds(found.network, (), found.train.batch_size)
        assert taken <= minutes * 60
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", ["v1_ct_card", "v1_nuclei_cores"])
def test_golden_plans(name: str) -> None:
    """A difference here is a decision to review: write the file anew only on purpose."""
    if name == "v1_ct_card":
        plan = make_plan(fingerprint(), Ask(device=CARD))
    else:
        flat = fingerprint(
            channels=("R", "G", "B"), shape=(320, 256, 1), spacing_mm=(1.0, 1.0, 1.0),
            orientation="RAS", dimensions=2,
        )  # fmt: skip
        plan = make_plan(flat, Ask(minutes=10.0))
    path = GOLDEN / f"{name}.json"
    assert json.loads(path.read_text()) == plan.dump()
