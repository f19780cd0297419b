"""A made-up dataset and devices whose costs can be worked out by hand, for the tests of rules."""

from collections.abc import Iterator
from math import prod
from typing import Any

from autoseg.documents.fingerprint import CaseSummary, Fingerprint, Intensity, LabelSummary
from autoseg.rules.world import Device


def levels(network: Any, patch_vox: tuple[int, ...]) -> Iterator[tuple[float, int, int]]:
    """Voxels, width and the width before of each level; the last width is repeated."""
    grid, before = float(prod(patch_vox)), network.in_channels
    for level, stride in enumerate(network.strides):
        grid /= prod(stride)
        width = network.widths[min(level, len(network.widths) - 1)]
        yield grid, width, before
        before = width


def bytes_of(network: Any, patch_vox: tuple[int, ...], batch: int) -> float:
    """20 bytes a weight and 6 a value, 5 values a voxel and channel; 2 if they are computed twice."""
    weights, values = 0.0, float(network.in_channels * prod(patch_vox))
    for grid, width, before in levels(network, patch_vox):
        weights += 3 ** len(patch_vox) * (before * width + 3 * width * width)
        values += 5 * width * grid
    return 20 * weights + batch * (2.0 if network.recompute else 6.0) * values


def operations_of(network: Any, patch_vox: tuple[int, ...]) -> int:
    """Of two convolutions a level on the way down and up."""
    total = sum(g * w * (before + 4 * w) for g, w, before in levels(network, patch_vox))
    return round(3 ** len(patch_vox) * total)


CARD = Device(8.0, "given by you", bytes_of)
CORES = Device(None, "no card is there", operations_of=operations_of)


def fingerprint(
    *,
    channels: tuple[str, ...] = ("CT",),
    cases: int = 20,
    orientation: str = "LPS",
    others: int = 0,
    shape: tuple[int, int, int] = (320, 320, 60),
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 4.0),
    lesion_vox: int = 6000,
    mean: float = 40.0,
    dimensions: int = 3,
) -> Fingerprint:
    """A dataset of equal cases, `others` of them stored as RAS."""
    voxels = shape[0] * shape[1] * shape[2]
    intensity = {
        "mean": mean, "median": 41.0, "std": 50.0, "min": -900.0, "max": 900.0,
        "percentile_00_5": -100.0, "percentile_05": -40.0, "percentile_95": 120.0,
        "percentile_99_5": 200.0,
    }  # fmt: skip
    return Fingerprint(
        dataset="Dataset900_Made",
        dimensions=dimensions,
        channels=channels,
        cases=tuple(
            CaseSummary(
                case=f"case_{i:03d}",
                dimensions=dimensions,
                orientation="RAS" if i < others else orientation,
                shape=shape,
                spacing_mm=spacing_mm,
                cropped_shape=shape,
                label_voxels=(lesion_vox,),
                label_components=(1,),
                label_component_vox=(float(lesion_vox),),
                intensity_ranges=((-1000.0, 1500.0),) * len(channels),
                digest=f"{i:064d}",
            )
            for i in range(cases)
        ),
        intensities=tuple(Intensity(channel=name, **intensity) for name in channels),
        labels=(
            LabelSummary(
                name="lesion", value=1, cases=cases, share_of_voxels=lesion_vox / voxels,
                median_volume_mm3=float(lesion_vox), median_components=1.0,
                median_component_mm3=float(lesion_vox), smallest_component_mm3=float(lesion_vox),
            ),
        ),
        median_crop_share=1.0,
        imbalance=voxels / lesion_vox,
        cases_without_label=(),
        outliers=(),
    )  # fmt: skip
