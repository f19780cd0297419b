"""Left and right: pairs of names, and the axes along which a patch may be mirrored."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from autoseg.documents.plan import Plan
from autoseg.rules.planner import make_plan
from autoseg.rules.recipe import Anatomy, augmentation_for
from autoseg.rules.sides import mirror_axes, paired_labels
from autoseg.rules.world import Ask
from tests.rules.made import CARD, CORES, fingerprint

KIDNEYS = ("liver", "kidney_left", "kidney_right")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("Left Kidney", "Right Kidney"),
        ("left-kidney", "right-kidney"),
        ("kidney.left", "kidney.right"),
        ("kidneyLeft", "kidneyRight"),
        ("leftKidney", "rightKidney"),
        ("LKidney", "RKidney"),
        ("KIDNEY_L", "KIDNEY_R"),
        ("kidney (left)", "kidney (right)"),
        ("Left-Cerebellum-Cortex", "Right-Cerebellum-Cortex"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("lt kidney", "rt kidney"),
        ("ren sin", "ren dex"),
        ("ren sinister", "ren dexter"),
        ("glandula sinistra", "glandula dextra"),
        ("linker Lappen", "rechter Lappen"),
        ("Niere links", "Niere rechts"),
        ("Niere_li", "Niere_re"),
        ("rein gauche", "rein droit"),
        ("jambe gauche", "jambe droite"),
        ("riñón izquierdo", "riñón derecho"),
        ("left", "right"),
        ("L", "R"),
        ("leftkidney", "rightkidney"),
        ("rib_left_1", "rib_right_1"),
        ("left kidney", "kidney_right"),
        ("left lung left lobe", "right lung right lobe"),
    ],
)
def test_a_pair_is_found_in_either_order(left: str, right: str) -> None:
    assert paired_labels(["liver", left, right]) == ((1, 2),)
    assert paired_labels([right, "liver", left]) == ((2, 0),)


@pytest.mark.parametrize(
    "names",
    [
        ("bright lesion", "cleft"),
        ("bright", "upright"),
        ("upright", "upleft"),
        ("cleft", "cright"),
        ("left atrium", "liver"),
        ("left atrium", "right ventricle"),
        ("left lung left lobe", "right lung left lobe"),
        ("left lung left lobe", "right lung lobe"),
        ("lesion", "result"),
        ("LV", "RV"),
        ("rib_left_1", "rib_right_2"),
        ("gauche", "right"),
        ("anterior", "posterior"),
        ("left kidney", "left kidney cyst"),
        ("alt", "art"),
    ],
)
def test_other_names_are_no_pair(names: tuple[str, ...]) -> None:
    assert paired_labels(names) == ()


def test_every_pair_of_many_is_found_once() -> None:
    names = [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]
    names += ["sternum", "heart_atrium_left", "lung_middle_lobe_right"]
    assert paired_labels(names) == tuple((n, n + 12) for n in range(12))


@pytest.mark.parametrize(
    ("axes", "left_out"),
    [("SAR", 2), ("SPL", 2), ("LSP", 0), ("RIA", 0), ("ALI", 1), ("ARI", 1)],
)
def test_the_left_right_axis_of_a_volume_is_left_out(axes: str, left_out: int) -> None:
    found = mirror_axes(axes, 3, KIDNEYS, (0, 1, 2))
    assert found.value == tuple(axis for axis in range(3) if axis != left_out)
    assert "kidney_left / kidney_right" in found.why
    assert f"axis {left_out}," in found.why


def test_slices_lie_in_the_last_two_axes() -> None:
    assert mirror_axes("SAR", 2, KIDNEYS, (0, 1)).value == (0,)
    assert mirror_axes("ALI", 2, KIDNEYS, (0, 1)).value == (1,)
    sagittal = mirror_axes("RAS", 2, KIDNEYS, (0, 1))
    assert sagittal.value == (0, 1)
    assert "cannot be told apart" in sagittal.why


def test_what_was_not_allowed_stays_out() -> None:
    assert mirror_axes("SAR", 3, KIDNEYS, (1, 2)).value == (1,)
    assert mirror_axes("SAR", 3, KIDNEYS, ()).value == ()
    assert mirror_axes("SAR", 3, ("liver",), (1,)).value == (1,)


def test_without_pairs_nothing_changes_and_nothing_is_said() -> None:
    for names in (("liver",), ("left atrium", "liver"), ()):
        found = mirror_axes("SAR", 3, names, (0, 1, 2))
        assert (found.value, found.why) == ((0, 1, 2), "")


def test_where_no_side_is_known_nothing_is_mirrored() -> None:
    flat = mirror_axes("stored", 2, KIDNEYS, (0, 1), flat_images=True)
    assert flat.value == ()
    assert "2D image" in flat.why
    for axes in ("stored", "stored:jki"):
        stored = mirror_axes(axes, 3, KIDNEYS, (0, 1, 2))
        assert stored.value == ()
        assert "stored" in stored.why


@pytest.mark.parametrize("axes", ["SAR", "ALI", "LSP"])
@pytest.mark.parametrize("patch", [(64, 64, 64), (16, 64, 64), (64, 64), (32, 64)])
def test_no_flips_and_turns_of_a_patch_make_a_left_one_a_right_one(axes: str, patch: tuple) -> None:
    """By brute force: every mixture of the flips and of turns by 180 degrees that may be drawn."""
    made, _ = augmentation_for(patch, Anatomy(axes, KIDNEYS, False, "autoseg"))
    n = len(patch)
    side = next(i for i, letter in enumerate(axes) if letter in "LR") - (3 - n)
    plane = {2: (0, 1), 3: (1, 2)}[n]
    free = made["rotation_degrees"] == [180.0]
    turns = [np.ones(n, int)]
    if free:
        turns.append(np.array([-1 if axis in plane else 1 for axis in range(n)]))
    mirrored = np.ones(n, int)
    if side >= 0:
        mirrored[side] = -1
    reached = []
    for chosen in product(*[(False, True)] * len(made["mirror_axes"])):
        flip = np.ones(n, int)
        for axis, on in zip(made["mirror_axes"], chosen, strict=True):
            flip[axis] = -1 if on else 1
        reached += [tuple(flip * turn) for turn in turns]
    if side < 0:
        assert made["mirror_axes"] == [0, 1]
    else:
        assert tuple(mirrored) not in reached


def plan_of(names: tuple[str, ...], **ask) -> Plan:
    """A plan of the made dataset with other structures."""
    dimensions = ask.pop("dimensions", 3)
    shape = (320, 320, 60) if dimensions == 3 else (320, 320, 1)
    base = fingerprint(dimensions=dimensions, shape=shape)
    label = base.labels[0]
    labels = tuple(
        label.model_copy(update={"name": name, "value": i + 1}) for i, name in enumerate(names)
    )
    cases = tuple(
        c.model_copy(
            update={
                key: getattr(c, key) * len(names)
                for key in ("label_voxels", "label_components", "label_component_vox")
            }
        )
        for c in base.cases
    )
    return make_plan(
        base.model_copy(update={"labels": labels, "cases": cases}), Ask(**{"device": CARD, **ask})
    )


def test_the_planner_leaves_the_side_out_and_says_why() -> None:
    plan = plan_of(KIDNEYS)
    volume, flat = plan.configurations["3d_fullres"], plan.configurations["2d"]
    assert volume.preparation.axes == "SPL"
    thin = volume.augmentation.dummy_2d
    assert volume.augmentation.mirror_axes == ((0,) if thin else (0, 1))
    assert flat.augmentation.rotation_degrees == (180.0,)
    assert flat.augmentation.mirror_axes == ()
    key = "configurations.3d_fullres.augmentation.mirror_axes"
    assert "kidney_left / kidney_right" in plan.why[key]
    assert all(2 not in c.augmentation.mirror_axes for c in plan.configurations.values())
    cores = plan_of(KIDNEYS, device=CORES).configurations["3d_fullres"]
    assert 2 not in cores.augmentation.mirror_axes


def test_without_a_pair_the_plan_is_as_before() -> None:
    plan = plan_of(("liver", "left atrium"))
    assert plan.configurations["3d_fullres"].augmentation.mirror_axes == (0, 1, 2)
    assert not [key for key in plan.why if key.endswith("mirror_axes")]


def test_nnunets_planner_mirrors_all_the_same_and_warns() -> None:
    plan = plan_of(KIDNEYS, planner="nnunet")
    assert plan.configurations["3d_fullres"].augmentation.mirror_axes == (0, 1, 2)
    assert plan.configurations["2d"].augmentation.mirror_axes == (0, 1)
    told = plan.why["configurations.3d_fullres.augmentation.mirror_axes"]
    assert "nnU-Net mirrors along every axis all the same" in told


def test_pinned_axes_are_kept() -> None:
    pins = {"augmentation.mirror_axes": [0, 1]}
    plan = plan_of(KIDNEYS, pins=pins)
    for name in ("2d", "3d_fullres"):
        assert plan.configurations[name].augmentation.mirror_axes == (0, 1)
        assert plan.why[f"configurations.{name}.augmentation.mirror_axes"] == "pinned by you"


def test_flat_images_with_sides_are_not_mirrored() -> None:
    plan = plan_of(("lung left", "lung right"), dimensions=2)
    assert list(plan.configurations) == ["2d"]
    assert plan.configurations["2d"].augmentation.mirror_axes == ()
    assert "2D image" in plan.why["configurations.2d.augmentation.mirror_axes"]
    stored = plan_of(KIDNEYS, pins={"axes": "stored"})
    assert stored.configurations["3d_fullres"].augmentation.mirror_axes == ()


def test_anatomy_is_what_decides() -> None:
    here = Anatomy("SAR", KIDNEYS, False, "autoseg")
    assert augmentation_for((64, 64, 64), here)[0]["mirror_axes"] == [0, 1]
    # what is hardly turned loses the one axis only; what is turned by any angle, its plane
    assert augmentation_for((32, 64), here)[0]["mirror_axes"] == [0]
    assert augmentation_for((64, 64), here)[0]["mirror_axes"] == []
    assert augmentation_for((16, 64, 64), here)[0]["mirror_axes"] == [0]
    theirs = replace(here, planner="nnunet")
    assert augmentation_for((64, 64, 64), theirs)[0]["mirror_axes"] == [0, 1, 2]
