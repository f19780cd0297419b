"""nnU-Net 2.8.1's own planners are the oracle: their frozen plans must come out key for key.

The golden files were made by running its planners on random fingerprints; each holds the
fingerprint, dataset.json, planner and memory that went in, and the plans.json that came out.
"""

import json
from pathlib import Path

import pytest

from autoseg.errors import AutosegError
from autoseg.interop.nnunet.plan import plan, plan_from_files

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "nnunet").glob("*.json"))
FLAT = {"strides": "strides", "kernels": "kernel_sizes", "features": "features_per_stage"}


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def planned(golden: dict, **changed) -> dict:
    target = golden["target_mm"]
    arguments = {
        "dataset_name": golden["plans"]["dataset_name"],
        "network": golden["network"],
        "gpu_memory_gb": golden["gpu_memory_gb"],
        "target_mm": tuple(target) if target else None,
        **changed,
    }
    return plan(golden["fingerprint"], golden["dataset"], **arguments)


def test_golden_files_cover_the_branches() -> None:
    plans = [load(path)["plans"] for path in GOLDEN]
    names = {name for p in plans for name in p["configurations"]}
    assert names == {"2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"}
    assert len({p["plans_name"] for p in plans}) == 4
    assert any(p["transpose_forward"] != [0, 1, 2] for p in plans)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_equals_nnunet_key_for_key(path: Path) -> None:
    golden = load(path)
    found = json.loads(json.dumps(planned(golden)))
    for configuration in found["configurations"].values():
        if "architecture" not in configuration:
            continue
        network = configuration["architecture"]["arch_kwargs"]
        for flat, key in FLAT.items():
            assert configuration.pop(flat) == network[key]
    # Compared as text, so that 36 and 36.0 differ and the order of keys counts.
    assert json.dumps(found, indent=1) == json.dumps(golden["plans"], indent=1)


def test_planner_memory_is_its_preset() -> None:
    golden = load(next(path for path in GOLDEN if "huge" in path.stem))
    for network, memory in {"plain": 8, "resenc_m": 8, "resenc_l": 24, "resenc_xl": 40}.items():
        unsaid = planned(golden, network=network, gpu_memory_gb=None)
        assert unsaid == planned(golden, network=network, gpu_memory_gb=memory)
        assert unsaid != planned(golden, network=network, gpu_memory_gb=memory / 16)


def test_reads_the_two_files(tmp_path: Path) -> None:
    golden = load(GOLDEN[0])
    fingerprint, dataset = tmp_path / "dataset_fingerprint.json", tmp_path / "dataset.json"
    fingerprint.write_text(json.dumps(golden["fingerprint"]))
    dataset.write_text(json.dumps(golden["dataset"]))
    found = plan_from_files(fingerprint, dataset, dataset_name="Dataset001_X")
    assert found == planned(golden, network="plain", gpu_memory_gb=None, target_mm=None)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    golden = load(GOLDEN[0])
    fingerprint, dataset = tmp_path / "dataset_fingerprint.json", tmp_path / "dataset.json"
    fingerprint.write_text(json.dumps({**golden["fingerprint"], "spacings": []}))
    dataset.write_text("{}")
    with pytest.raises(AutosegError, match=r"dataset\.json lacks labels, numTraining"):
        plan_from_files(fingerprint, dataset, dataset_name="Dataset001_X")
    dataset.write_text(json.dumps(golden["dataset"]))
    with pytest.raises(AutosegError, match="0 spacings and"):
        plan_from_files(fingerprint, dataset, dataset_name="Dataset001_X")
    fingerprint.write_text("[]")
    with pytest.raises(AutosegError, match="holds no JSON object"):
        plan_from_files(fingerprint, dataset, dataset_name="Dataset001_X")


@pytest.mark.parametrize(
    ("ending", "wish", "reader"),
    [
        (".nii.gz", None, "SimpleITKIO"),
        (".nii", None, "NibabelIO"),
        (".PNG", None, "NaturalImage2DIO"),
        (".tif", None, "Tiff3DIO"),
        (".tiff", None, "Tiff3DIO"),
        (".nii.gz", "NibabelIOWithReorient", "NibabelIOWithReorient"),
        (".nii.gz", "SimpleITKIOWithReorient", "SimpleITKIOWithReorient"),
        (".nii.gz", "NoSuchIO", "SimpleITKIO"),
    ],
)
def test_reader_follows_the_file_ending(ending: str, wish: str | None, reader: str) -> None:
    golden = load(GOLDEN[0])
    golden["dataset"]["file_ending"] = ending
    if wish:
        golden["dataset"]["overwrite_image_reader_writer"] = wish
    assert planned(golden)["image_reader_writer"] == reader


def test_tif_files_of_one_slice_are_pictures() -> None:
    golden = load(GOLDEN[0])
    golden["dataset"]["file_ending"] = ".tif"
    shapes = golden["fingerprint"]["shapes_after_crop"]
    golden["fingerprint"]["shapes_after_crop"] = [[1, 300, 300] for _ in shapes]
    golden["fingerprint"]["spacings"] = [[999, 1, 1] for _ in shapes]
    assert planned(golden)["image_reader_writer"] == "NaturalImage2DIO"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "resenc"}, "choose one of plain, resenc_m"),
        ({"gpu_memory_gb": 0.0}, "gpu_memory is 0 GB"),
        ({"gpu_memory_gb": 1e-9}, "no patch fits the memory budget"),
    ],
)
def test_impossible_wishes_are_explained(changed: dict, message: str) -> None:
    with pytest.raises(AutosegError, match=message):
        planned(load(GOLDEN[0]), **changed)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("spacings", [0.0, 1.0, 1.0], "case 1 of the fingerprint has spacing"),
        ("shapes_after_crop", [10, 20], "case 1 of the fingerprint has spacing"),
    ],
)
def test_damaged_fingerprint_names_the_case(key: str, value: list, message: str) -> None:
    golden = load(GOLDEN[0])
    golden["fingerprint"][key][1] = value
    with pytest.raises(AutosegError, match=message):
        planned(golden)


def test_dataset_without_channels_is_refused() -> None:
    golden = load(GOLDEN[0])
    golden["dataset"]["modality"] = golden["dataset"].pop("channel_names")
    assert planned(golden) == planned(load(GOLDEN[0]))
    golden["dataset"].pop("modality")
    with pytest.raises(AutosegError, match="names no channel"):
        planned(golden)


def test_unknown_ending_is_refused() -> None:
    golden = load(GOLDEN[0])
    golden["dataset"]["file_ending"] = ".jpg"
    with pytest.raises(AutosegError, match=r"no reader for '\.jpg'"):
        planned(golden)
