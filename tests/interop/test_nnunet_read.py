"""nnU-Net's plans in our words and back: its own planners' files are the oracle."""

import json
from pathlib import Path

import numpy as np
import pytest

from autoseg.api import import_nnunet
from autoseg.data.prepare import prepare
from autoseg.documents.dataset import Case
from autoseg.documents.plan import read_plan
from autoseg.errors import AutosegError, Stale
from autoseg.interop.nnunet.model import Wanted, model_from
from autoseg.interop.nnunet.read import NNUNetPlans, plan_of, read_object
from autoseg.interop.nnunet.write import configuration_as
from tests.interop.nnunet_files import PLAIN, changed, full

GOLDEN_PLANS = sorted((Path(__file__).parents[1] / "golden" / "nnunet").glob("*.json"))


@pytest.mark.parametrize("path", GOLDEN_PLANS, ids=lambda p: p.stem)
def test_every_plan_of_nnunet_goes_there_and_back(path: Path) -> None:
    golden = json.loads(path.read_text())
    plans = NNUNetPlans(golden["plans"], golden["dataset"], path.name)
    made = plan_of(plans, "theirs", golden["plans"]["dataset_name"], plans.channels)
    assert made.configurations.keys() == golden["plans"]["configurations"].keys()
    for name, configuration in made.configurations.items():
        said = plans.said(name)
        back = configuration_as(name, configuration)
        for key in back.keys() - {"data_identifier", "median_image_size_in_voxels"}:
            assert back[key] == said[key], (name, key)
        assert back["median_image_size_in_voxels"] == pytest.approx(
            said["median_image_size_in_voxels"], abs=0.5
        )
    order = golden["plans"]["transpose_forward"]
    letters = "".join("kji"[axis] for axis in order)
    axes = next(iter(made.configurations.values())).preparation.axes
    assert axes == ("stored" if letters == "kji" else f"stored:{letters}")


def old_format(plans: dict) -> None:
    """The flat keys that plans had until nnU-Net 2.2, instead of `architecture`."""
    for said in plans["configurations"].values():
        if "architecture" not in said:
            continue
        network = said.pop("architecture")
        given = network["arch_kwargs"]
        plain = "Plain" in network["network_class_name"]
        said |= {
            "UNet_class_name": "PlainConvUNet" if plain else "ResidualEncoderUNet",
            "UNet_base_num_features": given["features_per_stage"][0],
            "unet_max_num_features": max(given["features_per_stage"]),
            "n_conv_per_stage_encoder": given.get("n_conv_per_stage")
            or given["n_blocks_per_stage"],
            "n_conv_per_stage_decoder": given["n_conv_per_stage_decoder"],
            "num_pool_per_axis": [3, 3, 3],
            "pool_op_kernel_sizes": given["strides"],
            "conv_kernel_sizes": given["kernel_sizes"],
        }


@pytest.mark.parametrize("path", GOLDEN_PLANS[:4], ids=lambda p: p.stem)
def test_plans_before_2_3_name_the_same_networks(path: Path) -> None:
    golden = json.loads(path.read_text())
    new = NNUNetPlans(golden["plans"], golden["dataset"], "plans.json")
    older = json.loads(path.read_text())["plans"]
    old_format(older)
    old = NNUNetPlans(older, golden["dataset"], "plans.json")
    for name in golden["plans"]["configurations"]:
        assert old.configuration(name) == new.configuration(name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"image_order": 3, "separate_z_above": 3.0}),
        ({"resampling_fn_{}": "resample_torch_fornnunet",
          "resampling_fn_{}_kwargs": {"is_seg": False, "force_separate_z": False}},
         {"image_order": 1, "label_order": 1, "separate_z_above": None}),
        ({"resampling_fn_{}_kwargs": {"force_separate_z": True, "order": 1}},
         {"image_order": 1, "separate_z_above": 0.0}),
        ({"resampling_fn_{}_kwargs": {"separate_z_anisotropy_threshold": 2.5, "order": 1}},
         {"image_order": 1, "separate_z_above": 2.5}),
        ({"resampling_fn_{}": "no_resampling_hack", "resampling_fn_{}_kwargs": {}},
         {"spacing_mm": (None, None, None)}),
    ],
)  # fmt: skip
def test_resampling_that_plans_name(tmp_path: Path, changes: dict, expected: dict) -> None:
    def change(plans: dict) -> None:
        for key, value in changes.items():
            full(plans).update({key.format(w): value for w in ("data", "seg", "probabilities")})

    folder = changed(PLAIN, tmp_path, "plans.json", change)
    spec = model_from(folder, tmp_path / "w", None, Wanted())
    preparation = spec.members[0].configuration.preparation
    assert {key: getattr(preparation, key) for key in expected} == expected
    usual = model_from(PLAIN.model, tmp_path / "u", None, Wanted()).members[0].configuration
    assert (preparation.key == usual.preparation.key) == (not changes)
    assert "separate_z_above" not in usual.preparation.dump()


@pytest.mark.parametrize(
    ("reader", "axes"),
    [("SimpleITKIO", "stored:jki"), ("NibabelIO", "stored:jki"), ("Tiff3DIO", "stored:jki"),
     ("NibabelIOWithReorient", "ASR"), ("SimpleITKIOWithReorient", "ASR")],
)  # fmt: skip
def test_readers_give_the_axes(tmp_path: Path, reader: str, axes: str) -> None:
    folder = changed(PLAIN, tmp_path, "plans.json", lambda d: d.update(image_reader_writer=reader))
    spec = model_from(folder, tmp_path / "w", None, Wanted())
    assert spec.members[0].configuration.preparation.axes == axes


def test_a_plan_is_imported_for_a_dataset(tmp_path: Path, phantoms) -> None:
    folder = phantoms(tmp_path, "mr", cases=5, test_cases=0)
    golden = json.loads(GOLDEN_PLANS[0].read_text())["plans"]
    labels = len(json.loads((folder / "dataset.json").read_text())["labels"])
    path = tmp_path / "nnUNetPlans.json"
    path.write_text(json.dumps(golden))
    with pytest.raises(AutosegError, match="is a plan: name its dataset with -d"):
        import_nnunet(path, root=tmp_path)
    for odd in ({"configuration": ("2d",)}, {"fold": ("0",)}, {"raw": True}, {"overwrite": True}):
        with pytest.raises(
            AutosegError, match="is a plan, which is taken as a whole: leave out -c"
        ):
            import_nnunet(path, dataset="1", root=tmp_path, **odd)
    made = import_nnunet(path, dataset="1", root=tmp_path)
    assert (made.name, made.planner) == ("nnunet", "nnunet")
    assert made.configurations["2d"].network.classes == labels
    kept = read_plan(tmp_path / "preprocessed" / folder.name / "plans" / "nnunet" / "plan.json")
    assert kept == made
    assert import_nnunet(path, dataset="1", root=tmp_path) == made
    golden["configurations"]["2d"]["batch_size"] = 3
    path.write_text(json.dumps(golden))
    with pytest.raises(Stale, match="has another plan 'nnunet'; choose another name with -o"):
        import_nnunet(path, dataset="1", root=tmp_path)
    other = import_nnunet(path, "mine", dataset="1", root=tmp_path)
    assert other.configurations["2d"].train.batch_size == 3


JUNK = [None, True, -1, 0, 1e308, float("nan"), 10**400, "", "x" * 50, [], {}, [[]], [None] * 3,
        {"a": {}}, [1, [2, [3]]], "3", -0.5]  # fmt: skip


def places(value, path=()):
    """Every place in a decoded JSON document."""
    if not isinstance(value, (dict, list)):
        return
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(inside, (*path, key))


def test_junk_anywhere_in_the_plans_is_told_or_harmless() -> None:
    documents = {
        name: json.loads((PLAIN.model / name).read_text())
        for name in ("plans.json", "dataset.json")
    }
    draw = np.random.default_rng(0)
    outcomes = {"read": 0, "told": 0}
    for name, document in documents.items():
        for place in places(document):
            changed_one = json.loads(json.dumps(document))
            holder = changed_one
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = JUNK[draw.integers(len(JUNK))]
            both = {**documents, name: changed_one}
            try:
                plans = NNUNetPlans(both["plans.json"], both["dataset.json"], "plans.json")
                plans.configuration("3d_fullres", (0, 1))
                outcomes["read"] += 1
            except AutosegError as error:
                assert len(str(error)) < 1500, place
                outcomes["told"] += 1
    assert outcomes["read"] > 10
    assert outcomes["told"] > 60


def test_without_resampling_a_scan_keeps_its_grid(tmp_path: Path) -> None:
    def change(plans: dict) -> None:
        for what in ("data", "seg", "probabilities"):
            full(plans)[f"resampling_fn_{what}"] = "no_resampling_hack"
            full(plans)[f"resampling_fn_{what}_kwargs"] = {}

    folder = changed(PLAIN, tmp_path, "plans.json", change)
    spec = model_from(folder, tmp_path / "w", None, Wanted())
    preparation = spec.members[0].configuration.preparation
    paths = PLAIN.scan(tmp_path / "in")
    made = prepare(Case("scan", tuple(paths), None), preparation)
    usual = model_from(PLAIN.model, tmp_path / "u", None, Wanted()).members[0].configuration
    resampled = prepare(Case("scan", tuple(paths), None), usual.preparation)
    assert list(made.image.shape[1:]) == made.info["cropped_shape"]
    assert made.info["target_mm"] == made.info["spacing_mm"]
    assert resampled.image.shape[1:] != made.image.shape[1:]
    back = configuration_as("3d_fullres", spec.members[0].configuration)
    assert back["resampling_fn_data"] == "no_resampling_hack"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[]", "{", ""])
def test_files_that_are_no_json_of_nnunet_are_told_in_a_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plans.json"
    path.write_text(text)
    with pytest.raises(AutosegError, match=r"plans\.json (is|holds) no") as told:
        read_object(path)
    assert len(str(told.value)) < 300
