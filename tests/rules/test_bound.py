"""A fold costs what nnU-Net's own plan costs, whatever the card: nine datasets, three cards."""

from math import prod
from typing import Any

import pytest

from autoseg.costs import StepBytes
from autoseg.documents.fingerprint import CaseSummary, Fingerprint, Intensity, LabelSummary
from autoseg.documents.plan import Configuration, Plan
from autoseg.documents.presets.table import network_spec
from autoseg.rules import nnunet
from autoseg.rules.card import RECOMPUTED_SHARE, Work
from autoseg.rules.memory import usable_bytes
from autoseg.rules.operations import plain_operations
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask, Device
from tests.rules.made import bytes_of, operations_of

DATASETS: dict[str, tuple[tuple[int, ...], tuple[float, ...], int, int, int]] = {
    "hippocampus": ((36, 50, 35), (1, 1, 1), 1, 3, 260),
    "brain tumour": ((140, 171, 137), (1, 1, 1), 4, 4, 484),
    "liver": ((432, 512, 512), (1, 0.7676, 0.7676), 1, 3, 131),
    "prostate": ((20, 320, 319), (3.6, 0.625, 0.625), 2, 3, 32),
    "acdc": ((9, 256, 216), (10, 1.5625, 1.5625), 1, 4, 200),
    "spleen": ((90, 512, 512), (5, 0.793, 0.793), 1, 2, 41),
    "heart": ((115, 320, 232), (1.37, 1.25, 1.25), 1, 2, 20),
    "kits": ((106, 512, 512), (1, 0.7816, 0.7816), 1, 4, 489),
    "slices": ((1, 256, 320), (999, 1, 1), 3, 2, 30),
}
"""Shape and spacing as arrays have them (coarsest first), channels, outputs, cases."""
MOST_WORK, LEAST_WORK = 1.3, 0.5


def fingerprint_of(name: str) -> Fingerprint:
    """A dataset of equal cases."""
    shape, spacing, channels, outputs, number = DATASETS[name]
    file_shape, file_spacing = tuple(shape[::-1]), tuple(map(float, spacing[::-1]))
    names = tuple(f"MRI{i}" for i in range(channels))
    numbers = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_05", "percentile_95", "percentile_99_5"), 1.0)  # fmt: skip
    classes = outputs - 1
    pieces: dict[str, Any] = {
        "label_voxels": (2000,) * classes, "label_components": (1,) * classes,
        "label_component_vox": (2000.0,) * classes,
    }  # fmt: skip
    return Fingerprint(
        dataset="Dataset900_Made",
        dimensions=2 if shape[0] == 1 else 3,
        channels=names,
        cases=tuple(
            CaseSummary(
                case=f"case_{i:03d}", dimensions=2 if shape[0] == 1 else 3, orientation="LPS",
                shape=file_shape, spacing_mm=file_spacing, cropped_shape=file_shape, **pieces,
                intensity_ranges=((0.0, 1.0),) * channels, digest=f"{i:064d}",
            )
            for i in range(number)
        ),
        intensities=tuple(Intensity(channel=n, **numbers) for n in names),
        labels=tuple(
            LabelSummary(
                name=f"class {i}", value=i, cases=number, share_of_voxels=2000 / prod(shape),
                median_volume_mm3=2000.0, median_components=1.0, median_component_mm3=2000.0,
                smallest_component_mm3=2000.0,
            )
            for i in range(1, outputs)
        ),
        median_crop_share=1.0, imbalance=10.0, cases_without_label=(), outliers=(),
    )  # fmt: skip


def operations(network: Any, patch_vox: tuple[int, ...]) -> int:
    known = plain_operations(network, patch_vox)
    return operations_of(network, patch_vox) if known is None else known


def made(name: str, gb: float, **asked: Any) -> Plan:
    device = Device(gb, "given by you", bytes_of, operations)
    return make_plan(fingerprint_of(name), Ask(device=device, **asked))


def theirs(name: str, network: str = "plain") -> dict[str, nnunet.Configuration]:
    """nnU-Net's own plan, from the rules that its reference plans check number for number."""
    shape, spacing, channels, outputs, number = DATASETS[name]
    dataset = nnunet.Dataset(
        (tuple(map(float, spacing)),), (shape,), ("MRI",) * channels, outputs, number, 1.0
    )
    return nnunet.plan(dataset, network).configurations


def exaflop_of(found: nnunet.Configuration, inputs: int, outputs: int) -> float:
    topology = found.topology.value
    network = network_spec(
        "plain", inputs, outputs, found.features.value, topology.strides, topology.kernels
    )
    forward = operations(network, topology.patch_vox)
    return 2 * 3 * forward * found.batch_size.value * 250_000 / 1e18


def samples(patch_vox: tuple[int, ...], batch: int, steps: int) -> float:
    return float(prod(patch_vox)) * batch * steps


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_work_is_nnunets_whatever_the_card(name: str) -> None:
    """Operations and voxels seen a fold, against nnU-Net's own plan for the same data."""
    own = theirs(name)
    _, _, inputs, outputs, _ = DATASETS[name]
    for gb in (8.0, 24.0, 80.0):
        plan = made(name, gb)
        assert set(own) <= set(plan.configurations)
        for configuration, wanted in own.items():
            found = plan.configurations[configuration]
            assert found.cost is not None
            ratio = found.cost.exaflop / exaflop_of(wanted, inputs, outputs)
            topology, train = wanted.topology.value, found.train
            seen = samples(found.patch_vox, train.batch_size, train.steps) / samples(
                topology.patch_vox, wanted.batch_size.value, 250_000
            )
            assert LEAST_WORK <= ratio <= MOST_WORK, (gb, configuration)
            assert LEAST_WORK <= seen <= MOST_WORK, (gb, configuration)
            assert (train.steps, train.lr) == (250_000, 0.01)
            told = plan.why[f"configurations.{configuration}.cost"]
            assert float(told.partition(" times")[0]) == pytest.approx(ratio, rel=0.06)
        if gb == 80:
            assert {
                n: (plan.configurations[n].patch_vox, plan.configurations[n].train.batch_size)
                for n in own
            } == {n: (c.topology.value.patch_vox, c.batch_size.value) for n, c in own.items()}


@pytest.mark.parametrize("name", ["brain tumour", "liver", "prostate"])
def test_the_residual_presets_differ_as_their_authors_do(name: str) -> None:
    """With memory for all of them, each has its authors' patch and batch."""
    plans = {n: made(name, 200.0, network=n) for n in ("resenc_m", "resenc_l", "resenc_xl")}
    for network, plan in plans.items():
        wanted, found = theirs(name, network)["3d_fullres"], plan.configurations["3d_fullres"]
        assert found.patch_vox == wanted.topology.value.patch_vox
        assert found.train.batch_size == wanted.batch_size.value
    work = [p.configurations["3d_fullres"].cost for p in plans.values()]
    flops = [cost.exaflop for cost in work if cost is not None]
    assert flops == sorted(flops) and flops[1] > 1.5 * flops[0]


def test_a_small_structure_is_not_shown_in_absurd_batches() -> None:
    """nnU-Net's residual presets show a hippocampus in batches of 58, 178 and 183."""
    batches = [
        full(made("hippocampus", 200.0, network=n)).train.batch_size
        for n in ("plain", "resenc_m", "resenc_l", "resenc_xl")
    ]
    assert batches == [9, 9, 27, 46]


def full(plan: Plan) -> Configuration:
    return plan.configurations["3d_fullres"]


def test_memory_is_filled_only_where_that_is_asked() -> None:
    """A larger patch, then batch; the rate follows the batch and the samples seen stay."""
    plain, filled = full(made("heart", 24.0)), full(plan := made("heart", 24.0, use_memory=True))
    assert prod(filled.patch_vox) > 2 * prod(plain.patch_vox)
    assert filled.cost is not None and plain.cost is not None
    assert filled.cost.step_bytes is not None and plain.cost.step_bytes is not None
    assert filled.cost.step_bytes > 2 * plain.cost.step_bytes
    told = plan.why["configurations.3d_fullres.cost"]
    assert float(told.partition(" times")[0]) > 2
    flat = made("brain tumour", 24.0, use_memory=True).configurations["2d"]
    reference = theirs("brain tumour")["2d"].batch_size.value
    assert flat.train.batch_size > 2 * reference
    times = flat.train.batch_size / reference
    assert flat.train.steps * flat.train.batch_size == pytest.approx(250_000 * reference, rel=1e-3)
    assert flat.train.lr == pytest.approx(0.01 * times**0.5, rel=0.05)
    assert flat.train.warmup_share > 0


def test_a_pinned_batch_keeps_the_samples_and_takes_its_rate() -> None:
    plan = made("brain tumour", 80.0, pins={"3d_fullres.batch_size": 8})
    found = full(plan)
    assert found.patch_vox == (128, 128, 128)
    assert (found.train.steps, found.train.lr) == (62_500, 0.02)
    assert "Krizhevsky" in plan.why["configurations.3d_fullres.train.lr"]
    small = full(made("hippocampus", 80.0, pins={"3d_fullres.batch_size": 2}))
    assert (small.train.steps, small.train.lr) == (250_000, 0.01)
    given = full(made("brain tumour", 80.0, pins={"batch_size": 8, "train.lr": 0.5, "steps": 77}))
    assert (given.train.steps, given.train.lr) == (77, 0.5)


def test_a_smaller_pinned_patch_is_shown_more_often_at_the_same_rate() -> None:
    found = full(made("brain tumour", 80.0, pins={"3d_fullres.patch_vox": [64, 64, 64]}))
    assert found.train.batch_size == 16
    assert (found.train.steps, found.train.lr) == (250_000, 0.01)


def test_what_is_computed_twice_is_dearer() -> None:
    work = Work((128, 128, 128), 2)
    assert work.most((128, 128, 128), False) == 2
    assert work.most((128, 128, 128), True) == 1
    assert work.most((64, 64, 64), True) == int(16 * RECOMPUTED_SHARE)


@pytest.mark.parametrize("network", ["swin_unetr", "umamba_bot", "segresnet"])
@pytest.mark.parametrize("name", ["hippocampus", "brain tumour", "prostate"])
def test_other_networks_see_as_many_voxels_at_most(network: str, name: str) -> None:
    own = theirs(name)["3d_fullres"]
    found = full(made(name, 80.0, network=network))
    seen = samples(found.patch_vox, found.train.batch_size, found.train.steps)
    bound = samples(own.topology.value.patch_vox, own.batch_size.value, 250_000)
    assert 0.5 <= seen / bound <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("gb", [8.0, 24.0, 80.0])
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_by_computed_bytes_it_fits_and_costs_what_nnunets_costs(name: str, gb: float) -> None:
    device = Device(gb, "given by you", StepBytes(), operations)
    plan = make_plan(fingerprint_of(name), Ask(device=device))
    for configuration, made_of in plan.configurations.items():
        assert made_of.cost is not None and made_of.cost.step_bytes is not None
        assert made_of.cost.step_bytes <= usable_bytes(gb)
        told = plan.why[f"configurations.{configuration}.cost"]
        assert LEAST_WORK <= float(told.partition(" times")[0]) <= MOST_WORK
