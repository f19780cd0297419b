"""How does a mask become closed contours, and contours a mask again, exactly.

Points are (row, column) in pixels, pixel centres at whole numbers. Contours run half-way between
the centres inside and those outside, so a contour filled by its pixel centres gives the mask back.
A hole is joined to the contour around it by a channel of no width (the keyhole of DICOM's
CLOSED_PLANAR), which every reader understands, whatever it makes of contours in contours.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import find_contours

from autoseg.image.geometry import box_of

Points = NDArray[np.float64]


def contours_of(mask: NDArray[np.bool_]) -> list[Points]:
    """The closed contours (N, 2) of a mask (rows, columns), holes joined to what is around them.

    The first point is not repeated at the end. Pieces that touch at a corner alone are two.
    """
    box = box_of(mask)
    if box is None:
        return []
    offset = np.array([box[0].start - 1, box[1].start - 1])
    padded = np.pad(mask[box], 1).astype(np.float64)
    outer: list[Points] = []
    holes: list[Points] = []
    rings: list[Points] = find_contours(  # type: ignore[no-untyped-call, unused-ignore]
        padded, 0.5, fully_connected="low", positive_orientation="high"
    )
    for ring in rings:
        points = ring[:-1]
        (outer if _turn(points) > 0 else holes).append(points)
    around = _owners(outer, holes)
    found = []
    for number, points in enumerate(outer):
        inside = [hole for hole, owner in zip(holes, around) if owner == number]
        found.append(_without_straight(_joined(points, inside)) + offset)
    return found


def filled(points: Points, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (rows, columns) whose centres lie inside a closed contour, by the even-odd rule.

    A centre on the upper or left edge is inside, on the lower or right one outside.
    """
    rows, columns = shape
    start, end = points, np.roll(points, -1, axis=0)
    upper, lower = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.clip(np.ceil(upper), 0, rows).astype(np.int64)
    count = np.clip(np.ceil(lower), 0, rows).astype(np.int64) - first
    edge = np.repeat(np.arange(len(points)), count)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    row = first[edge] + within
    height = (end - start)[edge, 0]
    column = start[edge, 1] + (row - start[edge, 0]) * ((end - start)[edge, 1] / height)
    crossed = np.zeros((rows, columns + 1), np.int64)
    np.add.at(crossed, (row, np.clip(np.ceil(column), 0, columns).astype(np.int64)), 1)
    return np.asarray(np.cumsum(crossed, axis=1)[:, :columns] % 2 == 1)


def together(contours: Iterable[Points], shape: tuple[int, int]) -> tuple[NDArray[np.bool_], bool]:
    """The mask of several contours of one structure in one slice, and whether any two cross.

    A contour inside another is a hole in it, the next one inside an island again; contours that
    cross are united, and one that is there twice counts once.
    """
    boxed = (_boxed(points, shape) for points in contours)
    parts = [each for each in boxed if each is not None]
    parts.sort(key=lambda each: np.count_nonzero(each[1]), reverse=True)
    mask = np.zeros(shape, bool)
    seen = set()
    crossing = False
    for box, part in parts:
        key = (box[0].start, box[1].start, part.shape, part.tobytes())
        if key in seen:
            continue
        seen.add(key)
        shared = mask[box] & part
        if not shared.any():
            mask[box] |= part
        elif np.array_equal(shared, part):
            mask[box] &= ~part
        else:
            crossing = True
            mask[box] |= part
    return mask, crossing


def _boxed(
    points: Points, shape: tuple[int, int]
) -> tuple[tuple[slice, slice], NDArray[np.bool_]] | None:
    """A filled contour within its box; None where it holds no pixel centre."""
    low = np.clip(np.floor(points.min(axis=0)), 0, shape).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, shape).astype(np.int64)
    if np.any(high <= low):
        return None
    part = filled(points - low, (int(high[0] - low[0]), int(high[1] - low[1])))
    box = box_of(part)
    if box is None:
        return None
    rows, columns = box
    return (
        slice(int(low[0]) + rows.start, int(low[0]) + rows.stop),
        slice(int(low[1]) + columns.start, int(low[1]) + columns.stop),
    ), np.ascontiguousarray(part[box])


def _turn(points: Points) -> float:
    """Twice the signed area."""
    row, column = points[:, 0], points[:, 1]
    return float(np.sum(row * np.roll(column, -1) - np.roll(row, -1) * column))


def _owners(outer: Sequence[Points], holes: Sequence[Points]) -> list[int]:
    """For each hole the index of the smallest outer contour around it."""
    low = np.array([ring.min(axis=0) for ring in outer])
    high = np.array([ring.max(axis=0) for ring in outer])
    sizes = [abs(_turn(ring)) for ring in outer]
    owners = []
    for hole in holes:
        near = np.flatnonzero(np.all((low < hole[0]) & (hole[0] < high), axis=1))
        inside = [n for n in near.tolist() if _holds(outer[n], hole[0])]
        owners.append(min(inside, key=sizes.__getitem__))
    return owners


def _holds(ring: Points, point: Points) -> bool:
    """Whether a point that is no vertex of it lies inside a ring."""
    start, end = ring, np.roll(ring, -1, axis=0)
    spans = (start[:, 0] <= point[0]) != (end[:, 0] <= point[0])
    start, end = start[spans], end[spans]
    share = (point[0] - start[:, 0]) / (end[:, 0] - start[:, 0])
    return bool(np.count_nonzero(start[:, 1] + share * (end - start)[:, 1] <= point[1]) % 2)


def _joined(ring: Points, holes: Sequence[Points]) -> Points:
    """The ring with every hole joined by a channel to what was joined before it, left to right."""
    for hole in sorted(holes, key=lambda points: float(points[:, 1].min())):
        distances, on_ring = cKDTree(ring).query(hole)
        at_hole = int(distances.argmin())
        at = int(on_ring[at_hole])
        around = np.roll(hole, -at_hole, axis=0)
        ring = np.concatenate([ring[: at + 1], around, around[:1], ring[at:]])
    return ring


def _without_straight(ring: Points) -> Points:
    """The ring without the points in the middle of straight runs."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    onward = np.sum(before * after, axis=1) > 0
    return np.asarray(ring[~((cross == 0) & onward)])
