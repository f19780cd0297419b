"""The whole way on phantoms, through the command line: from a folder of scans to a scored report.

What the label maps look like is not the point (nobody learns in eight steps); where they lie, what
values they hold and that nothing is done twice is.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

LINES = (
    "autoseg plan_and_preprocess -d 1",
    "autoseg train 1 3d_fullres 0",
    "autoseg predict -i in/ -o out/",
)
"""The card's commands, as they stand."""


def moments(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written; locks are taken again each time."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith("lock")
    }


def put_scans(source: Path, target: Path) -> list[str]:
    """Copies a dataset's test scans to a folder; the ids of the cases."""
    shutil.copytree(source / "imagesTs", target)
    return sorted({p.name.split("_0000")[0] for p in target.iterdir()})


def test_the_three_commands_verbatim(shell, tmp_path: Path, tiny_plan: str) -> None:
    assert shell("autoseg demo").code == 0
    raw = tmp_path / "autoseg_data" / "raw" / "Dataset001_Phantom"
    assert len(list((raw / "imagesTr").iterdir())) == 12
    for folder in ("imagesTr", "labelsTr"):  # the demo's own scans, only fewer of them
        for path in sorted((raw / folder).iterdir())[5:]:
            path.unlink()
    assert shell(f"autoseg plan -d 1 {tiny_plan}").code == 0
    cases = put_scans(raw, tmp_path / "in")

    for line in LINES:
        said = shell(line)
        assert said.code == 0, said.err
        assert "Traceback" not in said.err
    assert "using the models of Dataset001_Phantom" in said.err

    for case in cases:
        scan = nib.load(tmp_path / "in" / f"{case}_0000.nii.gz")
        found = nib.load(tmp_path / "out" / f"{case}.nii.gz")
        assert found.shape == scan.shape
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
        assert set(np.unique(found.get_fdata())) <= {0, 1, 2}
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [
        f"{case}.nii.gz" for case in cases
    ]

    before = moments(tmp_path)
    for line in LINES:
        assert shell(line).code == 0
    assert moments(tmp_path) == before


def test_evaluate_scores_the_test_split(shell, trained: Path, tmp_path: Path) -> None:
    assert shell("autoseg predict -o out").code == 0  # without -i: the dataset's imagesTs
    said = shell("autoseg evaluate -i out -d 1 --json -o report.json")
    assert said.code == 0
    report = json.loads(said.out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert [c["case"] for c in report["cases"]] == ["phantom_007", "phantom_008"]
    labels = trained / "raw" / "Dataset001_Phantom" / "labelsTs"
    for case in report["cases"]:
        found = nib.load(tmp_path / "out" / f"{case['case']}.nii.gz").get_fdata() == 1
        truth = nib.load(labels / f"{case['case']}.nii.gz").get_fdata() == 1
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert case["labels"]["organ"]["values"]["dice"] == pytest.approx(dice, abs=1e-9)


def test_evaluate_without_a_dataset_names_labels_by_value(
    shell, trained: Path, tmp_path: Path
) -> None:
    labels = trained / "raw" / "Dataset001_Phantom" / "labelsTs"
    said = shell(f"autoseg evaluate {labels} {labels} --json")
    assert said.code == 0
    report = json.loads(said.out)
    assert list(report["summary"]["labels"]) == ["label 1", "label 2"]
    assert report["summary"]["labels"]["label 1"]["metrics"]["dice"]["mean"] == 1.0


def test_training_is_told_and_drawn(trained: Path) -> None:
    fold = trained / "results/Dataset001_Phantom/default/3d_fullres/default/fold_0"
    history = [json.loads(line) for line in (fold / "history.jsonl").read_text().splitlines()]
    losses = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(1, 9))
    assert [entry["step"] for entry in history if "dice" in entry] == [4, 8]
    with Image.open(fold / "curves.png") as curves:
        assert min(curves.size) > 200
    report = json.loads((fold / "validation" / "report.json").read_text())
    spec = json.loads((fold / "run.json").read_text())
    assert [c["case"] for c in report["cases"]] == spec["validation_cases"]
    assert {p.name for p in fold.glob("*.safetensors")} == {
        "best.safetensors", "last.safetensors", "weights.safetensors",
    }  # fmt: skip


def one_way(shell, configuration: str, plan: str) -> None:
    """Plan, train fold 0 and predict the test split of dataset 1, into out/."""
    for line in (
        f"autoseg plan_and_preprocess -d 1 {plan}",
        f"autoseg train 1 {configuration} 0 --steps 3",
        "autoseg predict -o out",
        "autoseg evaluate out -d 1",
    ):
        said = shell(line)
        assert said.code == 0, said.err


def test_two_dimensions_of_a_volume(shell, tiny: Path, tmp_path: Path) -> None:
    assert shell("autoseg train 1 2d 0 --steps 3").code == 0
    said = shell("autoseg predict -o out -c 2d")
    assert said.code == 0, said.err
    found = nib.load(tmp_path / "out" / "phantom_007.nii.gz")
    assert found.shape == (20, 24, 18)


def test_colour_pictures(shell, phantoms, tmp_path: Path, tiny_plan: str) -> None:
    root = tmp_path / "autoseg_data"
    folder = phantoms(root, "rgb", cases=4, test_cases=1, shape_vox=(48, 40, 1))
    one_way(shell, "2d", tiny_plan)
    with Image.open(tmp_path / "out" / "phantom_005.png") as found:
        assert (found.size, found.mode) == ((48, 40), "L")
        assert set(np.unique(np.asarray(found))) <= {0, 1, 2}
    plan = json.loads(
        (root / "preprocessed/Dataset001_Phantom/plans/default/plan.json").read_text()
    )
    assert list(plan["configurations"]) == ["2d"]
    assert plan["configurations"]["2d"]["network"]["in_channels"] == 3
    scaled = plan["configurations"]["2d"]["preparation"]["channels"]
    assert [c["scheme"] for c in scaled] == ["zscore"] * 3
    with Image.open(folder / "imagesTs" / "phantom_005_0000.png") as scan:
        assert scan.mode == "RGB"


def test_thick_ct_slices_with_other_label_values_and_formats(
    shell, phantoms, tmp_path: Path, tiny_plan: str
) -> None:
    """CT, 7.5 mm slices across the patient (separate-z), values {0, 7, 300}, labels as NRRD."""
    root = tmp_path / "autoseg_data"
    folder = phantoms(
        root, "ct", cases=4, test_cases=1, shape_vox=(26, 28, 8), spacing_mm=(1.5, 1.5, 7.5)
    )
    document = json.loads((folder / "dataset.json").read_text())
    document["labels"] = {"background": 0, "organ": 7, "lesion": 300}
    document["file_ending"] = ".nii.gz"
    (folder / "dataset.json").write_text(json.dumps(document))
    for path in [*folder.glob("labelsTr/*"), *folder.glob("labelsTs/*")]:
        labels = sitk.ReadImage(path)
        array = np.array([0, 7, 300], np.int16)[sitk.GetArrayFromImage(labels)]
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(labels)
        sitk.WriteImage(changed, path.with_name(path.name.replace(".nii.gz", ".nrrd")))
        path.unlink()

    plan = tiny_plan.replace("3d_fullres.patch_vox=[16,16,16]", "3d_fullres.patch_vox=[8,16,16]")
    one_way(shell, "3d_fullres", plan)

    found = nib.load(tmp_path / "out" / "phantom_005.nii.gz")
    assert found.shape == (26, 28, 8)
    assert set(np.unique(found.get_fdata())) <= {0, 7, 300}
    assert len(np.unique(found.get_fdata())) > 1
    places = root / "preprocessed/Dataset001_Phantom/plans/default/plan.json"
    made = json.loads(places.read_text())["configurations"]["3d_fullres"]
    assert made["preparation"]["axes"] == "SAR"
    assert made["preparation"]["spacing_mm"] == [7.5, 1.5, 1.5]
    (channel,) = made["preparation"]["channels"]
    assert channel["scheme"] == "ct"
    assert -100 < channel["mean"] < 150  # organ at 90 HU, lesion at 45 HU
    assert made["preparation"]["labels"]["values"] == [0, 7, 300]


def test_scans_of_other_orientation_come_back_on_their_own_grid(
    shell, trained: Path, tmp_path: Path
) -> None:
    """The same scan, stored the other way round, gets the same labels in the same places."""
    scan = nib.load(trained / "raw" / "Dataset001_Phantom" / "imagesTs" / "phantom_007_0000.nii.gz")
    (tmp_path / "in").mkdir()
    nib.save(scan, tmp_path / "in" / "straight_0000.nii.gz")
    turned = scan.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("PIR")
        )
    )
    assert nib.aff2axcodes(turned.affine) == ("P", "I", "R")
    nib.save(turned, tmp_path / "in" / "turned_0000.nii.gz")
    assert shell(LINES[2]).code == 0
    straight = nib.load(tmp_path / "out" / "straight.nii.gz")
    back = nib.load(tmp_path / "out" / "turned.nii.gz")
    assert nib.aff2axcodes(back.affine) == ("P", "I", "R")
    assert len(np.unique(straight.get_fdata())) > 1
    np.testing.assert_array_equal(nib.as_closest_canonical(back).get_fdata(), straight.get_fdata())


def test_files_that_dataset_json_maps(shell, tiny_root: Path, tmp_path: Path) -> None:
    """nnU-Net's optional `dataset` entry: files under any name, in any folder."""
    source = tiny_root / "raw" / "Dataset001_Phantom"
    folder = tmp_path / "autoseg_data" / "raw" / "Dataset001_Phantom"
    folder.mkdir(parents=True)
    document = json.loads((source / "dataset.json").read_text())
    document["dataset"] = {}
    elsewhere = tmp_path / "scans"
    elsewhere.mkdir()
    for number in (1, 2, 3):
        shutil.copy(
            source / "imagesTr" / f"phantom_00{number}_0000.nii.gz", elsewhere / f"{number}.nii.gz"
        )
        shutil.copy(source / "labelsTr" / f"phantom_00{number}.nii.gz", folder / f"{number}.nii.gz")
        document["dataset"][f"patient{number}"] = {
            "images": [str(elsewhere / f"{number}.nii.gz")],
            "label": f"{number}.nii.gz",
        }
    (folder / "dataset.json").write_text(json.dumps(document))
    said = shell("autoseg fingerprint -d 1 --json")
    assert said.code == 0, said.err
    cases = [c["case"] for c in json.loads(said.out)["cases"]]
    assert cases == ["patient1", "patient2", "patient3"]
    assert shell("autoseg plan_and_preprocess -d 1 -c 3d_fullres").code == 0
    prepared = tmp_path / "autoseg_data/preprocessed/Dataset001_Phantom/prepared"
    assert sorted(p.parent.name for p in prepared.glob("*/*/stamp.json")) == cases


def test_predict_wants_to_know_which_of_two_models(shell, trained: Path, tmp_path: Path) -> None:
    other = trained / "results" / "Dataset002_Other"
    shutil.copytree(trained / "results" / "Dataset001_Phantom", other)
    put_scans(trained / "raw" / "Dataset001_Phantom", tmp_path / "in")
    said = shell(LINES[2])
    assert said.code == 2
    assert said.err == (
        "autoseg: several datasets have models; choose one with -d: "
        "Dataset001_Phantom, Dataset002_Other\n"
    )
    assert not (tmp_path / "out").exists()
    assert shell(LINES[2] + " -d 1").code == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_scan_unlike_the_training_set(shell, trained: Path, tmp_path: Path) -> None:
    """A warning; with --strict exit 2, and the others are segmented all the same."""
    put_scans(trained / "raw" / "Dataset001_Phantom", tmp_path / "in")
    scan = nib.load(tmp_path / "in" / "phantom_007_0000.nii.gz")
    bright = scan.get_fdata() * 50
    nib.save(nib.Nifti1Image(bright, scan.affine), tmp_path / "in" / "phantom_007_0000.nii.gz")

    said = shell(LINES[2])
    assert said.code == 0
    assert re.search(
        r"warning: phantom_007: the intensities are outside .* .MRI runs from", said.err
    )
    assert "phantom_008" not in said.err

    said = shell("autoseg predict -i in -o strict --strict")
    assert said.code == 2
    assert "phantom_007" in said.err
    assert [p.name for p in (tmp_path / "strict").glob("*.nii.gz")] == ["phantom_008.nii.gz"]


@pytest.mark.parametrize("scale", [2.5, 0.3])
def test_a_spacing_unlike_the_training_set(
    shell, trained: Path, tmp_path: Path, scale: float
) -> None:
    (tmp_path / "in").mkdir()
    scan = nib.load(trained / "raw" / "Dataset001_Phantom" / "imagesTs" / "phantom_007_0000.nii.gz")
    image = nib.Nifti1Image(np.asarray(scan.dataobj)[:8, :8, :8], scan.affine * scale)
    nib.save(image, tmp_path / "in" / "odd_0000.nii.gz")
    said = shell("autoseg predict -i in -o out --strict")
    assert said.code == 2
    assert f"{3 * scale:.3g} mm along axis 0, the training cases had 3 to 3 mm" in said.err


def test_folds_are_averaged_and_all_trains_on_everything(shell, tiny: Path, tmp_path: Path) -> None:
    assert shell("autoseg train 1 3d_fullres 0 1 all --steps 2").code == 0
    results = tiny / "results/Dataset001_Phantom/default/3d_fullres/default"
    spec = json.loads((results / "fold_all" / "run.json").read_text())
    assert spec["train_cases"] == [f"phantom_00{n}" for n in range(1, 7)]
    assert spec["overrides"] == {"train.steps": 2}
    assert shell("autoseg predict -o both -f 0 1").code == 0
    assert shell("autoseg predict -o one -f 0").code == 0
    both, one = (
        json.loads((tmp_path / name / ".autoseg" / "phantom_007.json").read_text())
        for name in ("both", "one")
    )
    assert both["inputs"]["phantom_007_0000.nii.gz"] == one["inputs"]["phantom_007_0000.nii.gz"]
    assert both["inputs"]["model"] != one["inputs"]["model"]


def test_a_run_of_its_own(shell, tiny: Path) -> None:
    said = shell("autoseg train 1 3d_fullres 0 --set train.lr=0.5 --run hot --steps 2")
    assert said.code == 0, said.err
    fold = tiny / "results/Dataset001_Phantom/default/3d_fullres/hot/fold_0"
    spec = json.loads((fold / "run.json").read_text())
    assert spec["overrides"] == {"train.lr": 0.5, "train.steps": 2}
    assert spec["configuration"]["train"]["lr"] == 0.5


Phantoms = Callable[..., Path]


def test_fewer_cases_than_folds(shell, phantoms: Phantoms, tmp_path: Path, tiny_plan: str) -> None:
    phantoms(tmp_path / "autoseg_data", cases=2, test_cases=1)
    assert shell(f"autoseg plan_and_preprocess -d 1 {tiny_plan}").code == 0
    assert shell("autoseg train 1 3d_fullres 1 --steps 2").code == 0
    said = shell("autoseg train 1 3d_fullres 2 --steps 2")
    assert said.code == 2
    assert said.err.endswith("there is no fold '2'; the folds are 0, 1, or all\n")
