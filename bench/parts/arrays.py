"""Other grids: arrays resampled in memory, and one whole scan from its file."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from bench.equality import arrays_equal, checked, labels_equal
from bench.pairs import OURS, RIVAL, Row
from bench.parts.commands import pair
from bench.places import CT, ROOT
from bench.sides import Side, side

HERE = ROOT / "arrays"
INTENSITIES = {"mean": 50.0, "std": 100.0, "percentile_00_5": -900.0, "percentile_99_5": 600.0}


def saved(
    name: str, row: str, arguments: Mapping[str, Any], **limits: Any
) -> tuple[dict[str, Side], Path]:
    """Both sides of a script that saves an array, and the folder in which they do."""
    folder = HERE / row
    folder.mkdir(parents=True, exist_ok=True)
    sides = pair(
        side("ours", name, {**arguments, "save": str(folder / "ours.npy")}, **limits),
        side("theirs", name, {**arguments, "save": str(folder / "theirs.npy")}, **limits),
    )
    return sides, folder


def text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number > 1 else ''}"


def resampled(
    name: str,
    shape: Sequence[int],
    new: Sequence[int],
    labels: int = 0,
    *,
    apart: bool = False,
    pairs: int = 2,
    pair_s: float = 15,
    size: Mapping[str, float] | None = None,
) -> Row:
    """An image by order 3 or a label map by order 1; `apart` with a coarse first axis."""
    target = [n / m for n, m in zip(shape, new, strict=True)]
    if apart:
        target[0] = 5.0
    sides, folder = saved(
        "resample", name,
        {"shape": list(shape), "new": list(new), "target_mm": target, "labels": labels},
    )  # fmt: skip
    what = f"label map of {labels}, order 1" if labels else "image, order 3"
    return Row(
        name, f"{what}, {text(shape)} → {text(new)}{', slices apart' if apart else ''}", sides,
        {OURS: "bench/ours/resample.py", RIVAL: "bench/theirs/resample.py"},
        check=checked(labels_equal if labels else arrays_equal, folder) if RIVAL in sides else None,
        pairs=pairs, pair_s=pair_s, size=size or {},
        least={} if labels or apart else spline_least(shape, new),
    )  # fmt: skip


def spline_least(shape: Sequence[int], new: Sequence[int]) -> dict[str, float]:
    """Voxels read once and written once in float32; an axis after another, the products that
    autoseg's blocks of a cubic spline's matrices are made of, an operation each and one to add."""
    from autoseg.image.resample import blocks_of

    operations, now = 0, list(shape)
    for axis, (n_in, n_out) in enumerate(zip(shape, new, strict=True)):
        if n_in != n_out:
            products = sum(weights.size for _, _, weights in blocks_of(n_in, n_out, 3))
            operations += 2 * products * prod(now) // n_in
            now[axis] = n_out
    return {"bytes": 4 * (prod(shape) + prod(new)), "operations": operations}


SMALL = (48, 128, 128), (60, 160, 160)
LARGE = (96, 256, 256), (120, 320, 320)


def resample(quick: bool) -> list[Row]:
    def voxels(new: Sequence[int]) -> dict[str, float]:
        return {"voxels": prod(new)}

    small = [
        resampled("image_small", *SMALL, pairs=5, pair_s=10, size=voxels(SMALL[1])),
        resampled("labels_small", *SMALL, labels=5, pairs=3, pair_s=10, size={"labels": 5}),
    ]
    if quick:
        return small
    middle = (96, 176, 176), (120, 220, 220)
    return [
        *small[:1],
        resampled("image_middle", *middle, size=voxels(middle[1])),
        resampled("image", *LARGE, pairs=3, pair_s=22, size=voxels(LARGE[1])),
        resampled("image_apart", (48, 256, 256), (48, 320, 320), apart=True, pair_s=12),
        *small[1:],
        resampled("labels", *LARGE, labels=5, pairs=1, pair_s=24),
    ]


def prepared(
    name: str, files: Sequence[Path], spacing_mm: Sequence[float], what: str, **rest: Any
) -> Row:
    """One scan from its files, a channel each, to the network's grid."""
    arguments = {
        "files": [str(path) for path in files],
        "spacing_mm": spacing_mm,
        "intensities": INTENSITIES,
    }
    sides, folder = saved("preprocess_scan", name, arguments)
    return Row(
        name, f"preprocess, {what} to {text(spacing_mm)} mm", sides,
        {OURS: "bench/ours/preprocess_scan.py", RIVAL: "bench/theirs/preprocess_scan.py"},
        check=checked(arrays_equal, folder) if RIVAL in sides else None, **rest,
    )  # fmt: skip


def scan(quick: bool) -> list[Row]:
    """The whole CT from its file to the network's grid; a part of preprocessing."""
    if not CT.exists():
        return []
    what = "whole CT 51×512×512"
    note = ("read, crop, normalise, resample in one process; order 3 in-plane and the nearest slice "
            "between (its spacing is over 3 : 1), in both")  # fmt: skip
    iso = prepared("ct_iso", [CT], (1.5, 1.5, 1.5), what, note=note, pair_s=25,
                   targets={OURS: {"wall_s": 1 / 6}})  # fmt: skip
    fine = prepared("ct_fine", [CT], (5.0, 0.75, 0.75), what, note=note, pairs=1)
    return [iso] if quick else [iso, fine]
