"""nnU-Net's own plans are the oracle: five synthetic fingerprints, four planners, every number."""

import json
import time
from pathlib import Path

import pytest

from autoseg.rules import nnunet

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "nnunet_plans.json"
PLANNERS = {
    "plain": "ExperimentPlanner",
    "resenc_m": "nnUNetPlannerResEncM",
    "resenc_l": "nnUNetPlannerResEncL",
    "resenc_xl": "nnUNetPlannerResEncXL",
}


def uniform(
    shape: tuple[int, ...], spacing: tuple[float, ...], channels: int, outputs: int, cases: int
) -> nnunet.Dataset:
    """A dataset in which all cases are alike; one stands for all, which changes no median."""
    return nnunet.Dataset((spacing,), (shape,), ("MRI",) * channels, outputs, cases, 1.0)


LIVER = uniform((432, 512, 512), (1.0, 0.7676, 0.7676), 1, 3, 131)


def told(found: nnunet.Configuration) -> dict:
    """A configuration in the words of the reference, which rounds spacing and median."""
    topology = found.topology.value
    return {
        "batch_size": found.batch_size.value,
        "patch": list(topology.patch_vox),
        "median": [round(n) for n in found.median_vox],
        "spacing": [round(mm, 3) for mm in found.spacing_mm.value],
        "strides": [list(stride) for stride in topology.strides],
        "kernels": [list(kernel) for kernel in topology.kernels],
        "features": list(found.features.value),
        "feature_map_elems": found.elements,
        "params": found.parameters,
    }


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference plans are not beside the repo")
@pytest.mark.parametrize("network", PLANNERS)
def test_equals_the_reference_plans(network: str) -> None:
    for entry in json.loads(REFERENCE.read_text()):
        given = entry["input"]
        found = nnunet.plan(
            uniform(
                tuple(given["shape_after_crop"]),
                tuple(given["spacing_mm"]),
                len(given["channel_names"]),
                given["num_foreground_labels"] + 1,
                given["num_cases"],
            ),
            network,
        ).configurations
        wanted = {p["config"]: p for p in entry["plans"] if p["planner"] == PLANNERS[network]}
        assert found.keys() == wanted.keys()
        for name, plan in wanted.items():
            assert told(found[name]) == {k: plan[k] for k in told(found[name])}


@pytest.mark.parametrize(
    ("dataset", "network", "name", "batch", "patch", "elements"),
    [
        (LIVER, "plain", "2d", 12, (512, 512), 82_886_656),
        (LIVER, "plain", "3d_lowres", 2, (128, 128, 128), 452_796_416),
        (
            uniform((90, 512, 512), (5, 0.793, 0.793), 1, 2, 41),
            "plain", "3d_lowres", 2, (56, 192, 192), 552_964_608,
        ),
        (
            uniform((115, 320, 232), (1.37, 1.25, 1.25), 1, 2, 20),
            "plain", "3d_fullres", 2, (80, 192, 160), 528_211_200,
        ),
        (
            uniform((106, 512, 512), (1, 0.7816, 0.7816), 1, 4, 489),
            "plain", "3d_fullres", 2, (48, 224, 224), 523_498_752,
        ),
    ],
)  # fmt: skip
def test_equals_nnunet_in_further_datasets(
    dataset: nnunet.Dataset,
    network: str,
    name: str,
    batch: int,
    patch: tuple[int, ...],
    elements: int,
) -> None:
    found = nnunet.plan(dataset, network).configurations[name]
    assert found.batch_size.value == batch
    assert found.topology.value.patch_vox == patch
    assert found.elements == elements


def test_cascade_and_batch_dice_go_together() -> None:
    liver = nnunet.plan(LIVER)
    assert liver.cascade.value
    assert {k: c.batch_dice.value for k, c in liver.configurations.items()} == {
        "2d": True,
        "3d_lowres": False,
        "3d_fullres": True,
    }
    small = nnunet.plan(uniform((36, 50, 35), (1, 1, 1), 1, 3, 260))
    assert not small.cascade.value
    assert {k: c.batch_dice.value for k, c in small.configurations.items()} == {
        "2d": True,
        "3d_fullres": False,
    }
    assert "a patch of 40 x 56 x 40 shows 142%" in small.cascade.why


def test_single_slices_are_planned_in_2d_only() -> None:
    found = nnunet.plan(uniform((1, 256, 320), (999, 1, 1), 3, 2, 30))
    assert list(found.configurations) == ["2d"]
    assert found.configurations["2d"].topology.value.patch_vox == (256, 320)


def test_target_spacing_by_hand_sets_grid_and_order() -> None:
    found = nnunet.plan(LIVER, target_mm=(1.0, 1.0, 4.0))
    assert found.axis_order.value == (2, 0, 1)
    assert found.configurations["3d_fullres"].spacing_mm.value == (4.0, 1.0, 1.0)
    assert "by hand" in found.spacing_mm.why


def test_liver_is_planned_within_a_second() -> None:
    begin = time.process_time()
    nnunet.plan(LIVER)
    assert time.process_time() - begin < 1.0


def test_every_reason_is_a_sentence_with_its_numbers() -> None:
    found = nnunet.plan(LIVER)
    whys = [found.spacing_mm.why, found.axis_order.why, found.cascade.why]
    for configuration in found.configurations.values():
        whys += [configuration.topology.why, configuration.batch_size.why]
        whys += [configuration.features.why, configuration.spacing_mm.why]
    assert all(why.endswith(".") and any(c.isdigit() for c in why) for why in whys)
    assert (
        "shortened 13 times to 128 x 128 x 128" in found.configurations["3d_fullres"].topology.why
    )
