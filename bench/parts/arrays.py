"""Other grids: arrays resampled in memory, and one whole scan from its file."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from bench.equality import arrays_equal, checked, labels_equal
from bench.pairs import OURS, RIVAL, Row
from bench.parts.commands import pair
from bench.places import CT, ROOT
from bench.sides import side

HERE = ROOT / "arrays"
INTENSITIES = {"mean": 50.0, "std": 100.0, "percentile_00_5": -900.0, "percentile_99_5": 600.0}
COLUMNS = 58
"""Source voxels that a block of 32 new ones is made of at a zoom near 1: 32 and the spline's tails."""


def saved(name: str, row: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Both sides of a script that saves an array, and where."""
    folder = HERE / row
    folder.mkdir(parents=True, exist_ok=True)
    sides = pair(
        side("ours", name, {**arguments, "save": str(folder / "ours.npy")}),
        side("theirs", name, {**arguments, "save": str(folder / "theirs.npy")}),
    )
    return sides, folder


def text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def resampled(
    name: str, shape: Sequence[int], new: Sequence[int], labels: int, apart: bool = False
) -> Row:
    """An image by order 3 or a label map by order 1; `apart` with a coarse first axis."""
    target = [n / m for n, m in zip(shape, new, strict=True)]
    if apart:
        target[0] = 5.0
    sides, folder = saved(
        "resample", name,
        {"shape": list(shape), "new": list(new), "target_mm": target, "labels": labels},
    )  # fmt: skip
    what = f"labels ({labels})" if labels else "image, order 3"
    passes = [shape]
    for axis in (0, 1, 2):
        passes.append((*new[: axis + 1], *shape[axis + 1 :]))
    moved = 4 * sum(prod(a) + prod(b) for a, b in pairwise(passes) if a != b)
    operations = 2 * COLUMNS * sum(prod(b) for a, b in pairwise(passes) if a != b)
    size = {"voxels": prod(new)} if labels or apart else {
        "voxels": prod(new), "bytes": moved, "operations": operations
    }  # fmt: skip
    return Row(
        name, f"{what}, {text(shape)} → {text(new)}{', slices apart' if apart else ''}", sides,
        {OURS: "bench/ours/resample.py", RIVAL: "bench/theirs/resample.py"},
        check=checked(labels_equal if labels else arrays_equal, folder) if RIVAL in sides else None,
        size=size,
    )  # fmt: skip


def resample(quick: bool) -> list[Row]:
    small = [
        resampled("image_small", (48, 128, 128), (60, 160, 160), 0),
        resampled("labels_small", (48, 128, 128), (60, 160, 160), 5),
    ]
    if quick:
        return small
    return [
        *small[:1],
        resampled("image_middle", (96, 176, 176), (120, 220, 220), 0),
        resampled("image", (96, 256, 256), (120, 320, 320), 0),
        resampled("image_apart", (48, 256, 256), (48, 320, 320), 0, apart=True),
        *small[1:],
        resampled("labels", (96, 256, 256), (120, 320, 320), 5),
    ]


def scan(quick: bool) -> list[Row]:
    """The whole CT from its file to the network's grid; a part of preprocessing."""
    rows = []
    for name, spacing in (("ct_iso", (1.5, 1.5, 1.5)), ("ct_fine", (5.0, 0.75, 0.75))):
        if quick and name == "ct_fine":
            continue
        arguments = {"file": str(CT), "spacing_mm": spacing, "intensities": INTENSITIES}
        sides, folder = saved("preprocess_scan", name, arguments)
        rows.append(Row(
            name, f"preprocess, whole CT 51×512×512 to {text(spacing)} mm", sides,
            {OURS: "bench/ours/preprocess_scan.py", RIVAL: "bench/theirs/preprocess_scan.py"},
            {OURS: {"wall_s": 1 / 6}} if name == "ct_iso" else {},
            checked(arrays_equal, folder) if RIVAL in sides else None,
            times=2,
            note="read, crop, normalise, resample in one process; order 3 in-plane and the nearest "
            "slice between (its spacing is over 3 : 1), in both",
        ))  # fmt: skip
    return rows if CT.exists() else []
