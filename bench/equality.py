"""How far two results are from each other: arrays, label maps, folders of label maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.pairs import RIVAL, Check
from bench.sides import Result


def arrays_equal(ours: Path, theirs: Path) -> dict[str, Any]:
    """The largest difference of two saved arrays, as a share of the second one's deviation."""
    a, b = np.load(ours, mmap_mode="r"), np.load(theirs, mmap_mode="r")
    if a.shape != b.shape:
        return {"shapes": f"{a.shape} and {b.shape}"}
    away = float(np.abs(np.asarray(a, np.float64) - b).max())
    return {"largest difference / std": float(f"{away / float(np.std(b)):.2g}")}


def labels_equal(ours: Path, theirs: Path) -> dict[str, Any]:
    """How many voxels of two saved label maps differ."""
    a, b = np.load(ours, mmap_mode="r"), np.load(theirs, mmap_mode="r")
    if a.shape != b.shape:
        return {"shapes": f"{a.shape} and {b.shape}"}
    differ = a != b
    found = {"voxels that differ": int(differ.sum()), "of": a.size}
    if differ.any():
        found["of them background in nnU-Net"] = int((b[differ] == 0).sum())
    return found


def checked(compare: Any, folder: Path) -> Check:
    """A check of what `ours.npy` and `theirs.npy` in a folder hold, which it removes."""

    def check(_: Mapping[str, Result]) -> Mapping[str, Any]:
        paths = folder / "ours.npy", folder / "theirs.npy"
        found: dict[str, Any] = compare(*paths)
        for path in paths:
            path.unlink()
        return found

    return check


def dice(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The mean Dice of the structures that either label map holds; 1 where neither holds any."""
    scores = []
    for value in np.union1d(np.unique(found), np.unique(wanted)):
        if value:
            a, b = found == value, wanted == value
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores)) if scores else 1.0


def folder_dice(found: Path, wanted: Path) -> float:
    """The mean Dice of the label maps in `found` against those of the same name."""
    import nibabel as nib

    paths = sorted(found.glob("*.nii.gz"))
    if not paths:
        raise SystemExit(f"{found} holds no label map")
    pairs = [(nib.load(p), nib.load(wanted / p.name)) for p in paths]
    return float(np.mean([dice(np.asarray(a.dataobj), np.asarray(b.dataobj)) for a, b in pairs]))


def folders_checked(outputs: Mapping[str, Path], reference: Path | None) -> Check:
    """A check of each side's folder of label maps against the rival's, and against references."""

    def check(results: Mapping[str, Result]) -> Mapping[str, Any]:
        said = {}
        for side in results:
            if reference is not None:
                said[f"Dice of {side}"] = round(folder_dice(outputs[side], reference), 4)
            if side != RIVAL and RIVAL in outputs:
                between = folder_dice(outputs[side], outputs[RIVAL])
                said[f"Dice between {side} and {RIVAL}"] = round(between, 5)
        return said

    return check
