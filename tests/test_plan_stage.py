"""The plan as a person meets it: side by side, pinned, edited by hand, and with its reasons."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg.costs import StepBytes
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.nets.build import build

PLANS = "preprocessed/Dataset001_Phantom/plans"
GOLDEN = sorted((Path(__file__).parent / "golden" / "nnunet").glob("*.json"))
NNUNET_KEYS = ("patch_size", "batch_size", "spacing", "median_image_size_in_voxels", "architecture")


def planned(shell, options: str = "") -> dict:
    """The plan that a command prints."""
    said = shell(f"autoseg plan -d 1 --json {options}")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_json_is_the_document_on_disk(shell, tiny: Path) -> None:
    made = planned(shell, "--name other --set batch_size=3")
    assert made == json.loads((tiny / PLANS / "other" / "plan.json").read_text())
    assert made["name"] == "other"
    assert made["schema"] == 1


def test_plans_live_side_by_side_and_share_prepared_cases(shell, tiny: Path) -> None:
    before = (tiny / PLANS / "default" / "plan.json").read_bytes()
    one = planned(shell, "--name one --set batch_size=3")
    two = planned(shell, "--name two --set spacing_mm=[4,4,4]")
    assert sorted(p.name for p in (tiny / PLANS).iterdir()) == ["default", "one", "two"]
    assert (tiny / PLANS / "default" / "plan.json").read_bytes() == before
    assert one["configurations"]["3d_fullres"]["train"]["batch_size"] == 3
    assert two["configurations"]["3d_fullres"]["preparation"]["spacing_mm"] == [4, 4, 4]

    folder = tiny / "preprocessed/Dataset001_Phantom/prepared"
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/stamp.json")}
    assert shell("autoseg preprocess 1 --plan one").code == 0
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/*/stamp.json")} == stamps
    assert shell("autoseg preprocess 1 --plan two -c 3d_fullres").code == 0
    assert len(list(folder.glob("*/*/stamp.json"))) == len(stamps) + 6


def test_a_second_plan_is_the_same_and_not_written_again(shell, tiny: Path, tiny_plan: str) -> None:
    path = tiny / PLANS / "default" / "plan.json"
    before = path.stat().st_mtime_ns
    said = shell(f"autoseg plan -d 1 {tiny_plan}")
    assert said.code == 0
    assert "made again" not in said.err
    assert path.stat().st_mtime_ns == before
    said = shell("autoseg plan_and_preprocess -d 1")  # without options: as it was asked for before
    assert said.code == 0
    assert path.stat().st_mtime_ns == before


def test_other_options_make_it_again_and_say_so(shell, tiny: Path) -> None:
    planned(shell, "--name p --set batch_size=3")
    said = shell("autoseg plan -d 1 --name p --set batch_size=4")
    assert said.code == 0
    assert "plan p of Dataset001_Phantom is made again: pins.batch_size 3 → 4" in said.err


def test_a_hand_edited_plan_is_never_overwritten(shell, tiny: Path) -> None:
    path = tiny / PLANS / "default" / "plan.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["3d_fullres"]["train"]["lr"] = 0.125
    path.write_text(json.dumps(plan))
    edited = path.read_bytes()

    said = shell("autoseg plan -d 1 --set batch_size=4")
    assert said.code == 2
    assert "plan 'default' was edited by hand and is kept as it is" in said.err
    assert "autoseg plan --name OTHER" in said.err
    assert path.read_bytes() == edited

    scan = tiny / "raw/Dataset001_Phantom/imagesTr/phantom_001_0000.nii.gz"
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 2, image.affine), scan)
    assert shell("autoseg plan_and_preprocess -d 1").code == 0  # a new fingerprint
    assert path.read_bytes() == edited

    assert shell("autoseg train 1 3d_fullres 0 --steps 1").code == 0
    run = tiny / "results/Dataset001_Phantom/default/3d_fullres/default/fold_0/run.json"
    assert json.loads(run.read_text())["configuration"]["train"]["lr"] == 0.125


def test_pins_are_kept_and_the_rest_is_decided_around_them(shell, tiny: Path) -> None:
    """A smaller patch leaves memory for a larger batch, a larger one takes it."""
    free = planned(shell, "--name free --gpu-memory 8")["configurations"]["3d_fullres"]
    pinned = planned(
        shell, "--name small --gpu-memory 8 --set 3d_fullres.patch_vox=[8,8,8] --set train.lr=0.5"
    )
    made = pinned["configurations"]["3d_fullres"]
    assert made["patch_vox"] == [8, 8, 8]
    assert made["train"]["lr"] == 0.5
    assert free["patch_vox"] != [8, 8, 8]
    assert made["network"] != free["network"]
    assert made["train"]["batch_size"] != free["train"]["batch_size"]
    why = pinned["why"]
    assert why["configurations.3d_fullres.patch_vox"] == "pinned by you"
    assert why["configurations.3d_fullres.train.lr"] == "pinned by you"
    assert why["configurations.3d_fullres.train.batch_size"] != "pinned by you"
    assert pinned["pinned"] == {"3d_fullres.patch_vox": [8, 8, 8], "train.lr": 0.5}
    assert why["gpu_memory_gb"] == "given by you"


def test_a_card_is_planned_for_by_the_bytes_of_a_step(shell, tiny: Path) -> None:
    """Other networks, words of them and too small a card, through the command."""
    plain = planned(shell, "--name plain --gpu-memory 8")
    gated = planned(
        shell, "--name gated --gpu-memory 8 --network resenc_m --set network.skip=attention_gate"
    )
    full = gated["configurations"]["3d_fullres"]
    assert (full["network"]["preset"], full["network"]["skip"]) == ("resenc_m", "attention_gate")
    assert gated["why"]["configurations.3d_fullres.network.skip"] == "pinned by you"
    why = plain["why"]["configurations.3d_fullres.patch_vox"]
    assert "GB of the 5.70 GB that a card of 8 GB leaves for a step" in why
    said = shell("autoseg plan -d 1 --name small --gpu-memory 1")
    assert said.code == 2
    assert "plain does not fit a card of 1 GB" in said.err
    assert "it works from --gpu-memory" in said.err
    said = shell("autoseg plan -d 1 --name theirs --planner nnunet --network attention_unet")
    assert said.code == 2
    assert "take one of plain, resenc_m, resenc_l, resenc_xl" in said.err


def test_what_is_pinned_of_the_training_is_counted() -> None:
    network = network_spec("plain", 1, 2, (32, 64), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))
    sgd, adamw, full = (
        StepBytes(pins)(network, (16, 16, 16), 2)
        for pins in ({}, {"train.optimiser": "adamw"}, {"3d_fullres.train.precision": "float32"})
    )
    weights = 4 * sum(p.numel() for p in build(network).parameters())
    # small weights are rounded up to 512 bytes
    assert 0.99 * weights < adamw - sgd < 1.2 * weights
    assert full > sgd
    with pytest.raises(PlanError, match="optimiser"):
        StepBytes({"train.optimiser": "sdg"})(network, (16, 16, 16), 2)


def test_every_decision_has_a_reason(shell, tiny: Path) -> None:
    made = planned(shell, "--name p")
    for name in made["configurations"]:
        for key in (
            "preparation.axes", "preparation.spacing_mm", "preparation.channels", "patch_vox",
            "median_shape_vox", "network.encoder", "sampling.foreground_share",
            "sampling.class_weights", "augmentation", "train.batch_size", "train.batch_dice",
            "train.steps",
        ):  # fmt: skip
            assert made["why"][f"configurations.{name}.{key}"], key


def lesions(folder: Path, edge_vox: int) -> None:
    """Four scans of 64 x 64 x 64 voxels, each with one cube of `edge_vox` voxels in it."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number in range(4):
        rng = np.random.default_rng(number)
        labels = np.zeros((64, 64, 64), np.uint8)
        start = rng.integers(2, 62 - edge_vox, 3)
        labels[tuple(slice(a, a + edge_vox) for a in start)] = 1
        image = (rng.integers(90, 110, labels.shape) + 50 * labels).astype(np.uint8)
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        nib.save(nib.Nifti1Image(image, affine), folder / f"imagesTr/case{number}_0000.nii")
        nib.save(nib.Nifti1Image(labels, affine), folder / f"labelsTr/case{number}.nii")
    document = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 4,
        "file_ending": ".nii",
    }
    (folder / "dataset.json").write_text(json.dumps(document))


def test_class_imbalance_decides(shell, tmp_path: Path) -> None:
    """Equal geometry, lesions of 1:10 and of 1:10,000: other values, and reasons that say so."""
    raw = tmp_path / "autoseg_data" / "raw"
    lesions(raw / "Dataset001_Common", 30)  # 27,000 of 262,144 voxels
    lesions(raw / "Dataset002_Rare", 3)  # 27 of 262,144
    made, said = {}, {}
    for number, name in ((1, "common"), (2, "rare")):
        answer = shell(f"autoseg plan -d {number} --set 3d_fullres.patch_vox=[32,32,32] --json")
        assert answer.code == 0, answer.err
        plan = json.loads(answer.out)
        made[name] = plan["configurations"]["3d_fullres"]
        said[name] = plan["why"]
    assert made["common"]["patch_vox"] == made["rare"]["patch_vox"]
    assert made["common"]["preparation"] == made["rare"]["preparation"]
    share = {name: c["sampling"]["foreground_share"] for name, c in made.items()}
    assert 1 / 3 <= share["common"] < 0.4
    assert share["rare"] > 0.55
    assert made["common"]["train"]["batch_dice"] is False
    assert made["rare"]["train"]["batch_dice"] is True
    for key in ("sampling.foreground_share", "train.batch_dice"):
        whys = {said[name][f"configurations.3d_fullres.{key}"] for name in made}
        assert len(whys) == 2
    rare = said["rare"]["configurations.3d_fullres.sampling.foreground_share"]
    common = said["common"]["configurations.3d_fullres.sampling.foreground_share"]
    assert "'lesion' fills 1:9,709 of the voxels" in rare
    assert "'lesion' fills 1:10 of the voxels" in common


@pytest.mark.parametrize("path", GOLDEN[::4], ids=lambda path: path.stem)
def test_nnunets_own_files_give_nnunets_plan(shell, tmp_path: Path, path: Path) -> None:
    """The held-out check of the card: the command prints nnU-Net's plan under nnU-Net's keys."""
    golden = json.loads(path.read_text())
    (tmp_path / "dataset_fingerprint.json").write_text(json.dumps(golden["fingerprint"]))
    (tmp_path / "dataset.json").write_text(json.dumps(golden["dataset"]))
    memory = golden["gpu_memory_gb"]
    said = shell(
        f"autoseg plan --planner nnunet --network {golden['network']} "
        + (f"--gpu-memory {memory:g} " if memory is not None else "")
        + (
            f"--set spacing_mm={json.dumps(golden['target_mm'], separators=(',', ':'))} "
            if golden["target_mm"]
            else ""
        )
        + "--fingerprint dataset_fingerprint.json --dataset-json dataset.json --json"
    )
    assert said.code == 0, said.err
    found = json.loads(said.out)["configurations"]
    wanted = golden["plans"]["configurations"]
    assert list(found) == list(wanted)
    for name, configuration in wanted.items():
        for key in NNUNET_KEYS:
            assert found[name].get(key) == configuration.get(key), (name, key)
    assert not (tmp_path / "autoseg_data").exists()


def test_nnunets_planner_on_a_folder(shell, tiny: Path) -> None:
    made = planned(shell, "--name theirs --planner nnunet --gpu-memory 8")
    assert made["planner"] == "nnunet"
    for configuration in made["configurations"].values():
        assert configuration["preparation"]["axes"] == "stored"
        assert configuration["train"]["steps"] == 250_000
        assert configuration["train"]["optimiser"] == "sgd"
        assert configuration["sampling"]["foreground_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--planner nnunet --fingerprint a.json", "belong together"),
        ("--fingerprint a.json --dataset-json b.json", "--planner nnunet"),
        ("--planner nnunet --fingerprint a.json --dataset-json b.json", "a.json"),
        ("", "needs dataset (-d)"),
    ],
)
def test_what_does_not_go_together(shell, line: str, told: str) -> None:
    said = shell(f"autoseg plan {line}")
    assert said.code == 2
    assert told in said.err


def test_a_plan_whose_stamp_is_lost_is_adopted(shell, tiny: Path) -> None:
    """What would be made just so was not edited by hand; what would not be made so is kept."""
    options = "--name p --set 3d_fullres.patch_vox=[16,16,16]"
    planned(shell, options)
    path = tiny / PLANS / "p" / "plan.json"
    stamp = path.with_name("stamp.json").read_bytes()
    path.with_name("notes.txt").write_text("mine")
    path.with_name("stamp.json").unlink()
    planned(shell, options)
    assert path.with_name("stamp.json").read_bytes() == stamp
    assert path.with_name("notes.txt").read_text() == "mine"
    said = shell("autoseg plan -d 1 --name p --set batch_size=3")
    assert (said.code, "made again" in said.err) == (0, True)

    path.with_name("stamp.json").unlink()
    edited = path.read_text().replace('"batch_size": 3', '"batch_size": 5')
    path.write_text(edited)
    assert shell("autoseg plan -d 1 --name p --set batch_size=3").code == 2
    assert path.read_text() == edited
    path.write_text(edited[:-9])  # a slip of the pen is told, and nothing is lost
    assert shell("autoseg plan -d 1 --name p").code == 2
    assert path.read_text() == edited[:-9]


def test_two_that_plan_at_once_leave_one_plan(
    shell, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one plans while this one is between its two files."""
    from autoseg.stages import plan as stage

    whole = stage.write_json

    def late(path: Path, value: object) -> None:
        monkeypatch.setattr(stage, "write_json", whole)
        planned(shell, "--name p --set batch_size=4")
        whole(path, value)

    monkeypatch.setattr(stage, "write_json", late)
    planned(shell, "--name p --set batch_size=3")
    said = shell("autoseg plan -d 1 --name p --set batch_size=2")
    assert said.code == 0, said.err
    assert [p.name for p in (tiny / PLANS).iterdir() if p.name.startswith(".")] == []
