"""What several parts work on, made once: prepared cases, and one model in both programs' forms."""

from functools import cache
from pathlib import Path
from typing import Any

from bench.parts.commands import CORES
from bench.places import CT, DATA, HIPPOCAMPUS, ROOT
from bench.sides import OURS, command, rival_is_there, script, their

HERE = ROOT / "models"
TRAINED_STEPS = 60


@cache
def prepared_by_us() -> str:
    """Our folder of data set 4, planned as nnU-Net plans it."""
    root = ROOT / "prepared" / "ours"
    argv = [*OURS, "plan_and_preprocess", "-d", "4", "--planner", "nnunet", "--gpu-memory", "8",
            "-c", "3d_fullres", "--root", str(root)]  # fmt: skip
    # nothing is done where all is there
    command(argv, {"nnUNet_raw": str(DATA)})
    return str(root / "preprocessed" / HIPPOCAMPUS)


@cache
def prepared_by_nnunet() -> str:
    """nnU-Net's folder of data set 4."""
    root = ROOT / "prepared" / "theirs"
    folder = root / "preprocessed" / HIPPOCAMPUS
    if not (root / "ready").exists():
        environment = {"nnUNet_raw": str(DATA), "nnUNet_preprocessed": str(root / "preprocessed"),
                       "nnUNet_results": str(root / "results")}  # fmt: skip
        argv = [their("nnUNetv2_plan_and_preprocess"), "-d", "4", "-c", "3d_fullres", "-np", CORES,
                "-npfp", CORES]  # fmt: skip
        command(argv, environment)
        (root / "ready").touch()
    return str(folder)


def hippocampus(quick: bool) -> Path:
    """The folder of a model trained on data set 4 without its first 40 cases."""
    steps = 2 if quick else TRAINED_STEPS
    arguments = {"preset": "hippocampus", "preprocessed": prepared_by_us(), "steps": steps}
    return _made(f"trained_{steps}", arguments, "ZScoreNormalization", {}, mirror=True)


def whole_ct(intensities: dict[str, float]) -> Path:
    """The folder of a model with random weights for CT at 3 mm, without mirroring."""
    arguments = {"preset": "ct", "spacing_mm": [3.0] * 3, "patch_vox": [64, 96, 96],
                 "intensities": intensities}  # fmt: skip
    return _made("ct", arguments, "CTNormalization", intensities, mirror=False)


def _made(
    name: str,
    arguments: dict[str, Any],
    scheme: str,
    intensities: dict[str, float],
    *,
    mirror: bool,
) -> Path:
    folder = HERE / name
    if not (folder / "ready").exists():
        about = script("ours", "model", {**arguments, "folder": str(folder)})
        if rival_is_there():
            facts = {key: about[key] for key in ("features", "patch_vox", "spacing_mm", "strides",
                                                 "kernels")}  # fmt: skip
            script("theirs", "model", {**facts, "folder": str(folder), "normalization": scheme,
                                       "intensities": intensities, "mirror": mirror})  # fmt: skip
            (folder / "ready").touch()
    return folder


def scans(count: int) -> Path:
    """A folder with the first scans of data set 4, none of which the model was trained on."""
    folder = HERE / f"scans_{count}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((DATA / HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))[:count]:
        _linked(folder / path.name, path)
    return folder


def ct_scan() -> Path:
    """A folder with the whole CT."""
    folder = HERE / "scans_ct"
    folder.mkdir(parents=True, exist_ok=True)
    _linked(folder / "ct_0000.nii.gz", CT)
    return folder


def _linked(link: Path, path: Path) -> None:
    if not link.exists():
        link.symlink_to(path.resolve())
