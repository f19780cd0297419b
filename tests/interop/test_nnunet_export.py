"""`autoseg export --nnunet` and `autoseg import_nnunet` at a shell: there and back is the same model."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from autoseg.documents.model import Member, ModelSpec
from autoseg.documents.plan import Configuration
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.image.reading import read_labels
from autoseg.interop.nnunet.network import aliases, architecture_of, foreign_names, network_of
from autoseg.interop.nnunet.write import (
    Written,
    configuration_as,
    labels_as,
    reader_and_order,
    reader_of,
    write_model,
)
from autoseg.stages.package import read_model
from tests.interop.nnunet_files import CASCADE, PLAIN, imported

BOTH = ["3d_lowres", "3d_cascade_fullres"]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]


def test_a_trained_model_goes_to_nnunet_and_back(shell, trained: Path, tmp_path: Path) -> None:
    said = shell("autoseg export -d 1 -c 3d_fullres --nnunet theirs")
    assert said.code == 0, said.err
    folder = Path(said.out.strip())
    assert folder.name == "nnUNetTrainer__default__3d_fullres"
    assert sorted(p.name for p in folder.iterdir()) == ["dataset.json", "fold_0", "plans.json"]
    again = shell("autoseg export -d 1 -c 3d_fullres --nnunet theirs")
    assert (again.code, "exists; name another folder" in again.err) == (2, True)
    both = shell("autoseg export -d 1 -c 3d_fullres --nnunet t -o x.autoseg")
    assert (both.code, "give --nnunet alone" in both.err) == (2, True)
    said = shell("autoseg import_nnunet theirs -o back")
    assert said.code == 0, said.err
    assert "imported from nnU-Net v2" in said.out
    scans = "autoseg_data/raw/Dataset001_Phantom/imagesTs"
    assert shell(f"autoseg predict -d 1 -c 3d_fullres -i {scans} -o a").code == 0
    assert shell(f"autoseg predict --model back -i {scans} -o b").code == 0
    names = sorted(p.name for p in (tmp_path / "a").glob("*.nii.gz"))
    assert len(names) == 2
    for name in names:
        ours, theirs = (read_labels(tmp_path / f / name, "stored")[0].array for f in "ab")
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("preset", ["plain", "resenc_l"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_tensor_has_names_of_its_own_there(preset: str, dimensions: int) -> None:
    cut = slice(3 - dimensions, None)
    spec = network_spec(
        preset, 2, 3, [6, 8, 8], [s[cut] for s in STRIDES], [k[cut] for k in KERNELS]
    )
    found = architecture_of(spec, "x")
    assert network_of(found, 2, 3, preset, "x") == spec
    names = foreign_names(spec)
    every = [name for theirs in names.values() for name in (theirs, *aliases(spec, theirs))]
    assert len(set(every)) == len(every)
    assert len(names) == len(set(names.values()))
    copies = sum(name.startswith("decoder.encoder.") for name in every)
    assert copies == sum(name.startswith("encoder.") for name in every) > 0


@pytest.mark.parametrize("preset", ["segnet", "attention_unet", "swin_unetr", "unetpp"])
def test_networks_that_nnunet_does_not_have_are_refused_by_name(preset: str) -> None:
    widths, steps = [16, 32, 64, 64, 64], [[1, 1, 1], *[[2, 2, 2]] * 4]
    spec = network_spec(preset, 1, 2, widths, steps, [[3, 3, 3]] * 5)
    with pytest.raises(PlanError, match=f"has the network '{preset}', which nnU-Net does not have"):
        architecture_of(spec, "3d_fullres")


def test_what_nnunet_cannot_be_told_is_refused(tmp_path: Path) -> None:
    spec, _ = imported(CASCADE, tmp_path)
    document = spec.members[0].configuration.dump()
    document["preparation"]["crop"] = "none"
    with pytest.raises(PlanError, match="does not crop scans to what is not zero"):
        configuration_as("3d", Configuration.parse(document, "x"))
    gapped = spec.labels.model_copy(update={"values": (0, 1, 5)})
    with pytest.raises(PlanError, match=r"the values \[0, 1, 5\]; nnU-Net needs 0, 1, 2"):
        labels_as(gapped)


def test_a_cascade_takes_its_stage_along(tmp_path: Path, shell) -> None:
    spec, weights = imported(CASCADE, tmp_path / "w")
    folders = write_model(spec, weights, tmp_path / "out", ending=".nii.gz", orientation=None)
    names = {f.name.rpartition("__")[2] for f in folders}
    assert names == {"3d_lowres", "3d_cascade_fullres"}
    said = shell("autoseg import_nnunet out -c 3d_cascade_fullres -o again")
    assert said.code == 0, said.err
    back: ModelSpec = read_model(tmp_path / "autoseg_data" / "models" / "again")
    assert back.digest == spec.digest


def test_a_model_of_nnunet_is_told_how_to_come_in(shell, tmp_path: Path) -> None:
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    folder.mkdir()
    (folder / "plans.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "theirs.zip", "w") as archive:
        archive.write(folder / "plans.json", "Dataset004_X/a__b__2d/plans.json")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "in").mkdir()
    for name in (folder.name, "theirs.zip"):
        said = shell(f"autoseg predict --model {name} -i in -o out")
        assert (said.code, f"`autoseg import_nnunet {name} -o NAME`" in said.err) == (2, True)
    said = shell("autoseg import_nnunet empty.zip")
    assert (said.code, "empty.zip holds no model of nnU-Net v2" in said.err) == (2, True)
    said = shell("autoseg predict --model theirs.zip -i in -o in")
    assert (said.code, "in holds the scans; name another folder" in said.err) == (2, True)


def test_an_ensemble_is_exported_with_the_commands_that_average_it(tmp_path: Path, shell) -> None:
    said = shell(f"autoseg import_nnunet {CASCADE.folder} -c 3d_lowres 3d_cascade_fullres -o both")
    assert (said.code, "next: `autoseg predict --model both -i IN -o OUT`" in said.err) == (0, True)
    said = shell("autoseg export --model both --nnunet theirs")
    assert said.code == 0, said.err
    low, cascade = (f"theirs/nnUNetTrainer__nnUNetPlans__{n}" for n in BOTH)
    assert said.out.split() == [low, cascade]
    predict = "nnUNetv2_predict_from_modelfolder -i IN -o OUT_"
    expected = [
        f"{predict}3d_lowres -m {low} -f 0 --save_probabilities",
        f"{predict}3d_cascade_fullres -m {cascade} -f 0 -prev_stage_predictions OUT_3d_lowres "
        "--save_probabilities",
        "nnUNetv2_ensemble -i OUT_3d_lowres OUT_3d_cascade_fullres -o OUT",
    ]
    text = (tmp_path / "theirs" / "inference_instructions.txt").read_text()
    assert text.splitlines() == expected
    assert all(line in said.err for line in expected)
    said = shell("autoseg import_nnunet theirs -o again --json")
    assert json.loads(said.out)["members"] == ["3d_lowres × 1 fold", "3d_cascade_fullres × 1 fold"]
    models = tmp_path / "autoseg_data" / "models"
    assert read_model(models / "again").digest == read_model(models / "both").digest
    other = shell(f"autoseg import_nnunet {CASCADE.folder} -c 3d_lowres -o both")
    assert (other.code, "another model is installed as both; choose another -o" in other.err) == (
        2,
        True,
    )


def renamed(member: Member, **change: object) -> Member:
    return member.model_copy(update=change)


def test_members_of_two_plans_have_their_own_folders_and_outputs(tmp_path: Path) -> None:
    spec, weights = imported(PLAIN, tmp_path / "w")
    (one,) = spec.members
    axes = one.configuration.preparation.model_copy(update={"axes": "stored:ikj"})
    two = renamed(one, plan="other", configuration=one.configuration.model_copy(
        update={"preparation": axes}))  # fmt: skip
    both = spec.model_copy(update={"members": (one, two)})
    folders = write_model(both, weights, tmp_path / "o", ending=".nii.gz", orientation=None)
    assert [f.name for f in folders] == [
        "nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainer__other__3d_fullres"
    ]  # fmt: skip
    orders = [json.loads((f / "plans.json").read_text())["transpose_forward"] for f in folders]
    assert orders[1] == [2, 0, 1] != orders[0]
    lines = (tmp_path / "o" / "inference_instructions.txt").read_text().splitlines()
    assert lines[-1] == (
        "nnUNetv2_ensemble -i OUT_nnUNetTrainer__nnUNetPlans__3d_fullres "
        "OUT_nnUNetTrainer__other__3d_fullres -o OUT"
    )


def test_members_that_nnunet_cannot_tell_apart_or_average_are_refused() -> None:
    spec, _ = imported(PLAIN)
    (one,) = spec.members
    changed = one.weights[0].model_copy(update={"sha256": "0" * 64})
    twin = renamed(one, run="nnUNetTrainerOther", weights=(changed,))
    with pytest.raises(PlanError, match="two members would both be nnUNetTrainer__nnUNetPlans__3d"):
        Written(spec.model_copy(update={"members": (one, twin)}), ".nii.gz", None)
    turned = one.configuration.preparation.model_copy(update={"axes": "SAR"})
    configuration = one.configuration.model_copy(update={"preparation": turned})
    two = renamed(one, plan="other", configuration=configuration)
    with pytest.raises(PlanError, match="turned and of others as stored"):
        Written(spec.model_copy(update={"members": (one, two)}), ".nii.gz", None)


@pytest.mark.parametrize(
    ("ending", "dimensions", "reader"),
    [
        (".tif", 2, "NaturalImage2DIO"), (".tif", 3, "Tiff3DIO"), (".tiff", 3, "Tiff3DIO"),
        (".jpg", 2, "NaturalImage2DIO"), (".nii.gz", 2, "SimpleITKIO"), (".nii", 3, "NibabelIO"),
    ],
)  # fmt: skip
def test_tif_files_are_pictures_or_volumes(ending: str, dimensions: int, reader: str) -> None:
    assert reader_of(ending, dimensions) == reader
    assert reader_and_order("stored", ending, None, dimensions) == (reader, (0, 1, 2))
