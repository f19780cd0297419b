"""What regions and an ignore label change in a plan, and that nothing else changes."""

from typing import Any

import pytest

from autoseg.costs import StepBytes, operations, timed_step
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Plan
from autoseg.errors import PlanError
from autoseg.rules import nnunet
from autoseg.rules.budget import fit_patch
from autoseg.rules.configuration import Setting, element_budget
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask, Device, Pins, see_world
from tests.rules.made import CARD, CORES, fingerprint

REGIONS = [
    {"name": "whole", "classes": [1, 2, 3], "paint": 1},
    {"name": "core", "classes": [2, 3], "paint": 2},
]


def measured(*, regions: bool = False, ignore: int | None = None, **made: Any) -> Fingerprint:
    """A dataset of three classes, and of two regions made of them."""
    document = fingerprint(**made).dump()
    label = document["labels"][0]
    document["labels"] = [label | {"name": f"label {v}", "value": v} for v in (1, 2, 3)]
    for case in document["cases"]:
        for key in ("label_voxels", "label_components", "label_component_vox"):
            case[key] *= 3
    document |= {"regions": REGIONS} if regions else {}
    document |= {"ignore": ignore} if ignore is not None else {}
    return Fingerprint.parse(document, "made")


def planned(found: Fingerprint, **ask: Any) -> Plan:
    return make_plan(found, Ask(device=CARD, **ask))


def test_a_fingerprint_without_them_keeps_its_document() -> None:
    assert not {"regions", "ignore"} & set(measured().dump())
    both = measured(regions=True, ignore=4)
    assert both.dump()["ignore"] == 4
    assert Fingerprint.parse(both.dump(), "again") == both


def test_the_network_has_an_output_a_region_and_patches_a_weight_a_class() -> None:
    plan = planned(measured(regions=True))
    for configuration in plan.configurations.values():
        labels = configuration.preparation.labels
        assert (labels.outputs, labels.count) == (2, 4)
        assert configuration.network.classes == 2
        assert len(configuration.sampling.class_weights) == 3
        assert sum(configuration.sampling.class_weights) == pytest.approx(1)
    assert plan.labels.members.astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]


def test_a_cascade_is_shown_a_channel_a_class_and_not_a_region() -> None:
    plan = planned(measured(regions=True, shape=(512, 512, 400), spacing_mm=(0.7, 0.7, 1.0)))
    cascade = plan.configurations["3d_cascade_fullres"]
    assert (cascade.network.in_channels, cascade.inputs) == (4, 4)
    assert cascade.network.classes == 2


def test_the_plan_says_why_there_are_regions_and_ignored_voxels() -> None:
    assert "labels" not in planned(measured()).why
    said = planned(measured(regions=True)).why["labels"]
    assert "one output a region (whole, core) with a sigmoid" in said
    assert "painted core over whole" in said
    assert "ignore" not in said
    assert "nobody" not in said
    said = planned(measured(ignore=4)).why["labels"]
    assert "voxels of the value 4 are labelled by nobody" in said
    assert "region" not in said


def test_an_ignore_label_changes_no_number_of_the_plan() -> None:
    plain, ignoring = planned(measured()).dump(), planned(measured(ignore=4)).dump()
    for document in (plain, ignoring):
        del document["why"]
        for configuration in document["configurations"].values():
            assert configuration["preparation"]["labels"].pop("ignore", 4) == 4
        document["labels"].pop("ignore", None)
    assert plain == ignoring


@pytest.mark.parametrize("planner", ["autoseg", "nnunet"])
def test_both_planners_and_cores_count_outputs(planner: Any) -> None:
    found = measured(regions=True)
    assert planned(found, planner=planner).configurations["2d"].network.classes == 2
    on_cores = make_plan(found, Ask(device=CORES, minutes=20))
    assert on_cores.configurations["3d_fullres"].network.classes == 2


def test_a_whole_pinned_network_has_an_output_a_region() -> None:
    found = measured(regions=True)
    network = planned(found).configurations["3d_fullres"].network.dump()
    del network["classes"]
    pinned = planned(found, pins={"3d_fullres.network": network})
    assert pinned.configurations["3d_fullres"].network.classes == 2
    with pytest.raises(PlanError, match=r"network\.classes must be 2"):
        planned(found, pins={"3d_fullres.network": network | {"classes": 4}})


@pytest.mark.parametrize(
    ("regions", "ignore", "named"), [(False, None, 4), (False, 4, 5), (True, None, 3), (True, 4, 4)]
)
def test_nnunets_budget_counts_the_labels_that_dataset_json_names(
    regions: bool, ignore: int | None, named: int
) -> None:
    """Its planner takes their number for the outputs, also of regions and with an ignore label."""
    found = measured(regions=regions, ignore=ignore)
    ask = Ask(device=CARD, planner="nnunet")
    pins = Pins({})
    world, _ = see_world(found, ask, pins)
    setting = Setting("3d_fullres", found, ask, pins, world, None, 1)
    mine = element_budget(setting, nnunet.PRESETS["plain"])
    fitted = fit_patch(world.spacing_mm, world.median_vox, mine).value
    theirs = nnunet.element_budget(nnunet.PRESETS["plain"], 3, 1, named, 8.0)
    assert mine.cost_of(fitted, 2) == theirs.cost_of(fitted, 2)
    other = nnunet.element_budget(nnunet.PRESETS["plain"], 3, 1, named + 1, 8.0)
    assert mine.cost_of(fitted, 2) != other.cost_of(fitted, 2)


def outputs(number: int, *, regions: bool) -> Fingerprint:
    """A small dataset whose network has so many outputs: regions, or background and classes."""
    document = fingerprint(shape=(48, 48, 40), spacing_mm=(1.0, 1.0, 1.0), lesion_vox=300).dump()
    values = range(1, max(2, number if not regions else number + 1))
    document["labels"] = [
        document["labels"][0] | {"name": f"label {v}", "value": v} for v in values
    ]
    for case in document["cases"]:
        for key in ("label_voxels", "label_components", "label_component_vox"):
            case[key] = case[key][:1] * len(values)
    if regions:
        document["regions"] = [
            {"name": f"region {k}", "classes": [k], "paint": k} for k in range(1, number + 1)
        ]
    return Fingerprint.parse(document, "made")


@pytest.mark.parametrize("regions", [True, False])
@pytest.mark.parametrize("number", [1, 2, 117])
def test_every_planner_can_plan_any_number_of_outputs(number: int, regions: bool) -> None:
    """A dataset with a single region ended in a ZeroDivisionError where a step was computed."""
    found = outputs(number, regions=regions)
    count = number if regions else max(2, number)
    card = Device(8.0, "given", StepBytes(labels=found.label_set), operations)
    for ask in (
        Ask(device=card, pins={"width": 4, "patch_vox": [16, 16, 16], "batch_size": 2}),
        Ask(device=card, planner="nnunet"),
        Ask(device=CORES, minutes=2.0),
    ):
        made = make_plan(found, ask)
        assert {c.network.classes for c in made.configurations.values()} == {count}


def test_a_step_of_one_region_is_timed_and_its_bytes_are_counted() -> None:
    found = outputs(1, regions=True)
    pins = {"width": 4, "patch_vox": [16, 16, 16], "batch_size": 2}
    network = make_plan(found, Ask(device=CORES, pins=pins)).configurations["3d_fullres"].network
    assert timed_step(network, (16, 16, 16), 2, found.label_set) > 0
    assert StepBytes()(network, (16, 16, 16), 2) > 0
    # regions and classes are told apart: two regions keep other numbers than two classes
    regions, classes = outputs(2, regions=True), outputs(2, regions=False)
    two = make_plan(regions, Ask(device=CORES, pins=pins)).configurations["3d_fullres"].network
    counted = [StepBytes(labels=x.label_set)(two, (32, 32, 32), 2) for x in (regions, classes)]
    assert counted[0] != counted[1]
