"""The default planner: what departs from nnU-Net, pins, steadiness, and a golden plan."""

import json
from pathlib import Path
from typing import Any

import pytest

from autoseg.documents.presets.table import PRESETS
from autoseg.errors import PlanError
from autoseg.rules import nnunet
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask, Device
from tests.rules.made import CARD, CORES, bytes_of, fingerprint, operations_of

GOLDEN = Path(__file__).parent.parent / "golden" / "plans"


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
        ({"spacing_mm": [0, 1, 1]}, "three lengths"),
        ({"spacing_mm": ["a", 1, 1]}, "three lengths"),
        ({"train.batch_dice": "perhaps"}, "train.batch_dice"),
        ({"network.nrom": "batch"}, "did you mean 'norm'"),
        ({"network.norm": "layer"}, "network.norm"),
        ({"3d_fullres.patch_vox": [64, 64]}, "needs 3 numbers"),
        ({"3d_fullres.patch_vox": [6, 6, 6]}, "no axis of it can be halved"),
        ({"patch_vox": [64, 512, 512]}, "nearest that fits is"),
        ({"batch_size": 0}, "whole number"),
    ],
)
def test_pins_that_cannot_work_are_told(pins: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match="(?s)" + told):
        make_plan(fingerprint(), Ask(device=CARD, pins=pins))


def test_keys_of_the_network_are_reckoned_with() -> None:
    """What is pinned of a network stands in it before its bytes are asked for."""
    seen = []

    def cost(network: Any, patch_vox: tuple[int, ...], batch: int) -> float:
        seen.append(network)
        return 2 * bytes_of(network, patch_vox, batch)

    pins = {"network.norm": "batch", "3d_fullres.network.dropout": 0.25, "width": 16}
    data = fingerprint(shape=(100, 100, 60), spacing_mm=(1.0, 1.0, 1.0))
    plan = make_plan(data, Ask(device=Device(8.0, "given by you", cost), pins=pins))
    assert {n.norm for n in seen} == {"batch"}
    assert {n.dropout for n in seen if n.dimensions == 3} == {0.25}
    assert {n.dropout for n in seen if n.dimensions == 2} == {0.0}
    assert {n.widths[0] for n in seen} == {16}
    full = plan.configurations["3d_fullres"]
    assert full.network in seen
    assert (full.network.norm, full.network.dropout, full.network.widths[0]) == ("batch", 0.25, 16)
    for key in ("norm", "dropout"):
        assert plan.why[f"configurations.3d_fullres.network.{key}"] == "pinned by you"
    assert "configurations.2d.network.dropout" not in plan.why


def test_a_word_of_the_network_is_pinned_for_cores_too() -> None:
    seen = []

    def operations(network: Any, patch_vox: tuple[int, ...]) -> int:
        seen.append(network)
        return operations_of(network, patch_vox)

    cores = Device(None, "no card is there", operations_of=operations)
    pins = {"3d_fullres.network.skip": "attention_gate"}
    plan = make_plan(fingerprint(), Ask(device=cores, pins=pins))
    assert plan.configurations["3d_fullres"].network.skip.join.word == "attention_gate"
    assert plan.configurations["2d"].network.skip.join.word == "concat"
    assert {n.skip.join.word for n in seen if n.dimensions == 3} == {"attention_gate"}


@pytest.mark.parametrize("device", [CARD, CORES])
def test_a_whole_sentence_is_pinned(device: Device) -> None:
    """The patch suits the strides of the sentence, whatever the rules would have chosen."""
    level = {"part": {"unit": "plain"}, "depth": 1, "kernel": [3, 3, 3]}
    sentence = {
        "encoder": [
            {**level, "width": 8, "stride": [1, 1, 1]},
            {**level, "width": 16, "stride": [1, 3, 3]},
        ],
        "bottleneck": {**level, "width": 24, "stride": [2, 3, 3]},
        "decoder": [level, level],
    }
    plan = make_plan(fingerprint(), Ask(device=device, pins={"3d_fullres.network": sentence}))
    full = plan.configurations["3d_fullres"]
    assert full.network.preset == "own"
    assert full.network.widths == (8, 16, 24)
    assert [n % d for n, d in zip(full.patch_vox, (2, 9, 9), strict=True)] == [0, 0, 0]
    assert (full.network.in_channels, full.network.classes) == (1, 2)
    assert plan.configurations["2d"].network.preset == "plain"
    for_all = make_plan(fingerprint(), Ask(device=device, pins={"network": sentence}))
    assert for_all.configurations["3d_fullres"] == full
    tight = Device(2.0, "given by you", bytes_of) if device is CARD else device
    twice = {**sentence, "recompute": True}
    for pinned, expected in ((sentence, device is CARD), (twice, True)):
        pins = {"3d_fullres.network": pinned}
        made = make_plan(fingerprint(), Ask(device=tight, pins=pins)).configurations["3d_fullres"]
        assert made.network.recompute is expected
    with pytest.raises(PlanError, match="3 dimensions"):
        make_plan(fingerprint(), Ask(device=device, pins={"2d.network": sentence}))
    with pytest.raises(PlanError, match=r"its levels divide is .*\[32, 63, 63\]$"):
        pins = {"3d_fullres.network": sentence, "3d_fullres.patch_vox": [32, 60, 60]}
        make_plan(fingerprint(), Ask(device=device, pins=pins))


@pytest.mark.parametrize(
    "device", [Device(24.0, "given by you", bytes_of), CORES], ids=["card", "cores"]
)
@pytest.mark.parametrize("network", sorted(PRESETS))
def test_every_network_is_planned(network: str, device: Device) -> None:
    plan = make_plan(fingerprint(), Ask(network=network, device=device, minutes=30.0))
    for name, made in plan.configurations.items():
        assert made.network.preset == network
        most = PRESETS[network].most_levels
        assert most is None or len(made.network.strides) <= most
        assert any(
            f"configurations.{name}.{key}" in plan.why for key in ("network.encoder", "network")
        )


def test_dotted_keys_that_rules_ask_for_decide_as_the_short_ones() -> None:
    plans = [
        make_plan(fingerprint(), Ask(device=CORES, pins=pins))
        for pins in (
            {"train.batch_size": 3, "2d.train.steps": 400},
            {"batch_size": 3, "2d.steps": 400},
        )
    ]
    assert plans[0].configurations == plans[1].configurations
    assert plans[0].configurations["2d"].train.validate_every == 20
    with pytest.raises(PlanError, match="steps is pinned to 'many'"):
        make_plan(fingerprint(), Ask(device=CORES, pins={"train.steps": "many"}))


def test_an_unknown_network_is_told_with_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"no network 'resenc_x'; did you mean 'resenc_xl'"):
        make_plan(fingerprint(), Ask(network="resenc_x", device=CARD))


def test_nnunets_planner_names_the_four_networks_that_it_knows() -> None:
    ask = Ask(planner="nnunet", network="attention_unet", device=CARD)
    with pytest.raises(PlanError, match="plain, resenc_m, resenc_l, resenc_xl"):
        make_plan(fingerprint(), ask)


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

    cores = Device(None, "no card is there", seconds_of=seconds)
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
        plan = make_plan(flat, Ask(minutes=10.0, device=CORES))
    path = GOLDEN / f"{name}.json"
    assert json.loads(path.read_text()) == plan.dump()


def test_a_network_is_trained_as_its_authors_did_on_a_card_alone() -> None:
    on_card = make_plan(fingerprint(), Ask(network="primus_s", device=CARD)).configurations["2d"]
    assert (on_card.train.optimiser, on_card.train.lr, on_card.train.beta2) == ("adamw", 3e-4, 0.98)
    on_cores = make_plan(fingerprint(), Ask(network="primus_s", device=CORES)).configurations["2d"]
    assert on_cores.train.optimiser == "muon"
    usual = make_plan(fingerprint(), Ask(network="umamba_bot", device=CARD)).configurations["2d"]
    assert (usual.train.optimiser, usual.train.lr) == ("sgd", 0.01)
    pinned = Ask(network="primus_s", device=CARD, pins={"train.lr": 0.002})
    assert make_plan(fingerprint(), pinned).configurations["2d"].train.lr == 0.002
