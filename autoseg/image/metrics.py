"""How well a predicted mask fits its reference: overlap, size and surface distances.

Everything is measured from two boolean masks and their spacing. A score that does not exist is NaN
(no such structure in the case) or infinity (a surface distance to nothing), and each of them comes
with its reason; `docs/metrics.md` states every definition. How scores are averaged is decided by
whoever writes the report.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Box = tuple[slice, ...]
Dimensions = Literal[2, 3]
Outcome = Literal["both", "absent", "missed", "spurious"]

TOLERANCE_MM = 1.0
"""The default tolerance of the surface Dice; a task should state its annotators' own."""

TOLERANCE_SLACK = 1e-5
"""Relative: a voxel of 1.000001 mm, as headers store it, is within a tolerance of 1 mm."""


@dataclass(frozen=True)
class MaskScores:
    """The scores of one structure in one case.

    `outcome` says where the structure is: in both masks, in neither (absent), in the reference
    alone (missed) or in the prediction alone (spurious). `undefined` names the reason of every
    value that is not finite, and holds no other key.
    """

    outcome: Outcome
    values: dict[str, float]
    undefined: dict[str, str]


def dimensions_of(shape: Sequence[int]) -> Dimensions:
    """2 for an image of one slice (1, H, W), else 3."""
    return 2 if len(shape) == 3 and shape[0] == 1 else 3


def measure_labels(
    predicted: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    labels: Mapping[str, Sequence[int]],
    spacing_mm: Sequence[float],
    *,
    dimensions: Dimensions = 3,
    tolerance_mm: float = TOLERANCE_MM,
    surfaces: bool = True,
    valid: Mask | None = None,
) -> dict[str, MaskScores]:
    """The scores of every structure of two integer label maps (A, B, C), by name.

    `labels` maps a name to the values that it is made of: one for a class, several for a region.
    Both maps are searched once, whatever the number of labels.

    `dimensions=2` measures an image (1, H, W) as the plane that it is: its one slice has no top
    and bottom surface, and `spacing_mm[0]` is not used. `surfaces=False` leaves the surface
    distances out. Voxels outside `valid` (an ignore label) are not looked at: they count in no
    score, and no surface that touches them does. Raises ValueError for maps of unequal shape.
    """
    shape, spacing = _grid(predicted, reference, spacing_mm, dimensions, tolerance_mm, valid)
    predicted, reference = predicted.reshape(shape), reference.reshape(shape)
    looked_at = None if valid is None else valid.reshape(shape)
    voxels = predicted.size if looked_at is None else int(np.count_nonzero(looked_at))
    boxes = (find_objects(predicted), find_objects(reference))
    diagonal_mm = math.hypot(*(n * s for n, s in zip(shape, spacing, strict=True)))
    scores = {}
    for name, values in labels.items():
        held = [found[v - 1] for found in boxes for v in values if 0 < v <= len(found)]
        box = _union(held, shape)
        inside = None if looked_at is None else looked_at[box]
        masks = (_mask(predicted[box], values, inside), _mask(reference[box], values, inside))
        overlap, outcome = _overlap(*masks, spacing, voxels)
        if surfaces:
            distances = _distances(*masks, inside, spacing, tolerance_mm, outcome)
            overlap |= distances | _penalised(distances, diagonal_mm)
        undefined = {
            m: _reason(m, outcome) for m, value in overlap.items() if not math.isfinite(value)
        }
        scores[name] = MaskScores(outcome, overlap, undefined)
    return scores


def _grid(
    predicted: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    spacing_mm: Sequence[float],
    dimensions: Dimensions,
    tolerance_mm: float,
    valid: Mask | None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The shape and spacing that are measured, one axis fewer in 2D. Raises ValueError."""
    shapes = {predicted.shape, reference.shape} | ({valid.shape} if valid is not None else set())
    if len(shapes) != 1 or predicted.ndim != 3:
        raise ValueError(f"masks need one shape of three axes, found {sorted(shapes)}")
    if predicted.dtype.kind not in "iu" or reference.dtype.kind not in "iu":
        raise ValueError(f"label maps must be integer, not {predicted.dtype}, {reference.dtype}")
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing must be three positive lengths in mm, not {spacing_mm}")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"the tolerance must be a length in mm, not {tolerance_mm}")
    if dimensions not in (2, 3) or (dimensions == 2 and predicted.shape[0] != 1):
        raise ValueError(f"an image of shape {predicted.shape} cannot be measured in {dimensions}D")
    first = 3 - dimensions
    return predicted.shape[first:], tuple(float(s) for s in spacing_mm[first:])


def _union(boxes: Sequence[Box | None], shape: tuple[int, ...]) -> Box:
    """The box one voxel wider than all `boxes` that are not None; an empty one if all are.

    The margin lets a surface at the edge of the box see whether its neighbours are looked at.
    """
    found = [box for box in boxes if box is not None]
    if not found:
        return tuple(slice(0, 0) for _ in shape)
    return tuple(
        slice(
            max(min(b[axis].start for b in found) - 1, 0),
            min(max(b[axis].stop for b in found) + 1, length),
        )
        for axis, length in enumerate(shape)
    )


def _mask(part: npt.NDArray[Any], values: Sequence[int], inside: Mask | None) -> Mask:
    """Where `part` of a label map holds one of `values`, inside the voxels that are looked at."""
    if not values or min(values) < 1:
        raise ValueError(f"a structure is made of label values above 0, not {list(values)}")
    mask: Mask = np.equal(part, values[0])
    for value in values[1:]:
        mask |= part == value
    return mask if inside is None else mask & inside


# ---- overlap


def _overlap(
    predicted: Mask, reference: Mask, spacing_mm: tuple[float, ...], voxels: int
) -> tuple[dict[str, float], Outcome]:
    """Counts, overlap and size difference, where `voxels` is the number looked at in the image."""
    size_p, size_r = int(np.count_nonzero(predicted)), int(np.count_nonzero(reference))
    tp = int(np.count_nonzero(predicted & reference))
    fp, fn = size_p - tp, size_r - tp
    tn = voxels - tp - fp - fn
    size, power = ("volume", 3) if len(spacing_mm) == 3 else ("area", 2)
    values = {
        "tp": float(tp),
        "fp": float(fp),
        "fn": float(fn),
        "tn": float(tn),
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "accuracy": _ratio(tp + tn, voxels),
        f"{size}_difference_mm{power}": (size_p - size_r) * math.prod(spacing_mm),
        f"relative_{size}_difference": _ratio(size_p - size_r, size_r),
    }
    found: dict[tuple[bool, bool], Outcome] = {
        (True, True): "both",
        (False, False): "absent",
        (False, True): "missed",
        (True, False): "spurious",
    }
    return values, found[size_p > 0, size_r > 0]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _reason(metric: str, outcome: Outcome) -> str:
    """Why a value is not finite."""
    if metric in ("specificity", "accuracy"):
        return "no background"
    return outcome if outcome != "both" else "no surface"


# ---- surface distances


def _distances(
    predicted: Mask,
    reference: Mask,
    inside: Mask | None,
    spacing_mm: tuple[float, ...],
    tolerance_mm: float,
    outcome: Outcome,
) -> dict[str, float]:
    """The surface scores: NaN where the structure is in neither mask, infinite where in one."""
    if outcome == "absent":
        return _surface_scores(math.nan, math.nan, math.nan, math.nan)
    if outcome != "both":
        return _surface_scores(math.inf, math.inf, math.inf, 0.0)
    points_p, sizes_p = _surfels(predicted, inside, spacing_mm)
    points_r, sizes_r = _surfels(reference, inside, spacing_mm)
    if not len(points_p) or not len(points_r):
        return _surface_scores(math.nan, math.nan, math.nan, math.nan)
    to_r, to_p = _nearest(points_p, points_r), _nearest(points_r, points_p)
    whole = sizes_p.sum() + sizes_r.sum()
    limit = tolerance_mm * (1 + TOLERANCE_SLACK)
    near = sizes_p[to_r <= limit].sum() + sizes_r[to_p <= limit].sum()
    return _surface_scores(
        hd=float(max(to_r.max(), to_p.max())),
        hd95=max(_percentile(to_r, sizes_p, 0.95), _percentile(to_p, sizes_r, 0.95)),
        assd=float((to_r @ sizes_p + to_p @ sizes_r) / whole),
        nsd=float(near / whole),
    )


def _surface_scores(hd: float, hd95: float, assd: float, nsd: float) -> dict[str, float]:
    return {"hd_mm": hd, "hd95_mm": hd95, "assd_mm": assd, "nsd": nsd}


def _penalised(distances: Mapping[str, float], diagonal_mm: float) -> dict[str, float]:
    """The distances with the image diagonal in place of infinity, so that they can be averaged.

    A mean over the defined distances alone would praise a model for missing a hard structure.
    """
    return {
        metric.removesuffix("_mm") + "_penalised_mm": diagonal_mm if value == math.inf else value
        for metric, value in distances.items()
        if metric.endswith("_mm")
    }


def without_surfaces(scores: MaskScores, reason: str) -> MaskScores:
    """Scores that were measured without surfaces, with the surface scores as undefined by `reason`."""
    nowhere = _surface_scores(math.nan, math.nan, math.nan, math.nan)
    nowhere |= _penalised(nowhere, math.nan)
    undefined = scores.undefined | dict.fromkeys(nowhere, reason)
    return MaskScores(scores.outcome, scores.values | nowhere, undefined)


def _nearest(points: Floats, others: Floats) -> Floats:
    """The distance of each point to the nearest of `others`, exact.

    A tree over the surfaces needs no distance map of the space between them. Points of a grid
    need no balancing: without it the tree is several times faster and the answer is the same.
    """
    tree = cKDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], np.float64)


def _percentile(distances: Floats, sizes: Floats, fraction: float) -> float:
    """The smallest distance within which lies `fraction` of the surface, by its size."""
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(sizes[order])
    # the factor keeps a sum that is equal to the target but for rounding from missing it
    at = np.searchsorted(reached, fraction * reached[-1] * (1 - 1e-9))
    return float(distances[order[min(int(at), len(order) - 1)]])


def _surfels(
    mask: Mask, inside: Mask | None, spacing_mm: tuple[float, ...]
) -> tuple[Floats, Floats]:
    """Where the surface elements of a mask lie, in mm, and their areas (2D: lengths).

    There is one element at every corner point of the grid whose 2x2x2 (2x2) voxels are not all
    alike; beyond its edge the image is empty. Elements that touch a voxel outside `inside` are
    left out.
    """
    code = np.zeros([n + 1 for n in mask.shape], np.uint8)
    padded = np.pad(mask, 1).view(np.uint8)
    unseen = np.zeros(code.shape, bool)
    hidden = np.pad(~inside, 1) if inside is not None else None
    for bit, corner in enumerate(np.ndindex((2,) * mask.ndim)):
        window = tuple(slice(c, c + n) for c, n in zip(corner, code.shape, strict=True))
        code |= padded[window] << np.uint8(bit)
        if hidden is not None:
            unseen |= hidden[window]
    full = (1 << (1 << mask.ndim)) - 1
    where = np.nonzero((code != 0) & (code != full) & ~unseen)
    points = np.stack(where, axis=1) * np.asarray(spacing_mm)
    return points, surfel_sizes(spacing_mm)[code[where]]


@lru_cache(maxsize=64)
def surfel_sizes(spacing_mm: tuple[float, ...]) -> Floats:
    """The area (2D: length) of the surface element of each neighbourhood code."""
    return _lengths(*spacing_mm) if len(spacing_mm) == 2 else _areas(spacing_mm)


def _lengths(height_mm: float, width_mm: float) -> Floats:
    """Marching squares at level 1/2: (16,) lengths; bit i is corner i of np.ndindex(2, 2)."""
    diagonal = math.hypot(height_mm, width_mm) / 2
    lengths = np.full(16, diagonal)
    lengths[[0, 15]] = 0
    lengths[[0b0011, 0b1100]] = width_mm  # one row is set: the line runs along the columns
    lengths[[0b0101, 0b1010]] = height_mm
    lengths[[0b0110, 0b1001]] = 2 * diagonal
    return lengths


def _areas(spacing_mm: tuple[float, ...]) -> Floats:
    """Marching cubes at level 1/2: (256,) areas; bit i is corner i of np.ndindex(2, 2, 2)."""
    a, b, c = spacing_mm
    stretch = np.asarray([b * c, a * c, a * b])  # how an area vector grows with the three axes
    return np.asarray([np.linalg.norm(t * stretch, axis=1).sum() for t in _area_vectors()])


@lru_cache(maxsize=1)
def _area_vectors() -> tuple[Floats, ...]:
    """The area vectors (n, 3) of the triangles of each neighbourhood code, for unit spacing.

    The classic table (Lorensen and Cline 1987) cuts a mask and its complement differently where
    the faces are ambiguous. Up to four set corners are cut as they are, more as their complement:
    so the surface of a mask is that of its complement, and equal to that of the surface-distance
    package (DeepMind 2018) in all 256 codes.
    """
    vectors: list[Floats] = []
    for code in range(256):
        corners = np.asarray([code >> bit & 1 for bit in range(8)], np.float32)
        if corners.sum() > 4:
            corners = 1 - corners
        if not corners.any():
            vectors.append(np.zeros((0, 3)))
            continue
        cube = corners.reshape(2, 2, 2)
        vertices, faces, *_ = marching_cubes(cube, 0.5, method="lorensen")  # type: ignore[no-untyped-call]
        first, second, third = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
        vectors.append(np.cross(second - first, third - first) / 2)
    return tuple(vectors)
