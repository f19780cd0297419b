"""Where do the slices of a series lie: their order along the normal, the grid, and what is odd.

Slices are ordered by position, never by number or name. The third axis of the grid runs from the
first slice to the last, so a tilted gantry gives a sheared affine, and an even grid needs every
slice within a tenth of the spacing of its place.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import Problem
from autoseg.image.checks import check_affine
from autoseg.image.itk import RAS_FROM_LPS
from autoseg.image.volume import Grid
from autoseg.interop.dicom.frames import Frame

PLACE_TOLERANCE = 0.1
"""Of the spacing: how far a slice may be from where an even grid has it."""

SQUARE = 0.02
"""How far directions may be from unit vectors at right angles: scanners round them."""

SAME_PLACE_MM = 0.01
SHOWN = 4


def normal_of(frame: Frame) -> NDArray[np.float64]:
    """The unit normal of a frame that knows its place: row direction x column direction."""
    assert frame.row is not None and frame.column is not None
    normal = np.cross(frame.row, frame.column)
    length = float(np.linalg.norm(normal))
    return np.asarray(normal / length if length > 0 else normal)


def along_normal(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """The place of each frame along the normal of the first, in mm."""
    positions = np.array([frame.position for frame in frames], np.float64)
    return np.asarray(positions @ normal_of(frames[0]))


def stacks(frames: Sequence[Frame]) -> list[list[Frame]]:
    """The frames in order along the normal, those in one place together.

    Slices in one place differ by less than 0.01 mm along the normal.
    """
    if not frames:
        return []
    places_mm = along_normal(frames)
    order = np.argsort(places_mm, kind="stable")
    found = [[frames[order[0]]]]
    start = places_mm[order[0]]
    for at in order[1:]:
        if places_mm[at] - start < SAME_PLACE_MM:
            found[-1].append(frames[at])
        else:
            found.append([frames[at]])
            start = places_mm[at]
    return found


def grid_of(frames: Sequence[Frame]) -> Grid:
    """The grid of ordered slices with file axes (column, row, slice); one picture has no place."""
    first, count = frames[0], len(frames)
    between_rows, between_columns = first.spacing_mm
    shape = (first.instance.columns, first.instance.rows, count)
    affine = np.eye(4)
    if first.position is None or first.row is None or first.column is None:
        affine[0, 0], affine[1, 1] = between_columns, between_rows
        return Grid.of(shape, affine, placed=False)
    step = normal_of(first)
    if count > 1:
        last = np.asarray(frames[-1].position)
        step = (last - np.asarray(first.position)) / (count - 1)
    affine[:3, 0] = np.asarray(first.row) * between_columns
    affine[:3, 1] = np.asarray(first.column) * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return Grid.of(shape, RAS_FROM_LPS @ affine)


def evened(points_mm: NDArray[np.float64], frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Points (N, 3) in LPS moved along the normal as if the ordered slices were evenly spaced.

    Even slices move nothing, and nothing moves beyond the first and the last.
    """
    places_mm, normal = along_normal(frames), normal_of(frames[0])
    even_mm = np.linspace(places_mm[0], places_mm[-1], len(frames))
    moves_mm = np.interp(points_mm @ normal, places_mm, even_mm - places_mm)
    return np.asarray(points_mm + moves_mm[:, None] * normal)


def check_places(case: str, frames: Sequence[Frame], *, accept_uneven: bool) -> list[Problem]:
    """What is wrong with the places of ordered slices, each in a place of its own.

    With `accept_uneven` missing and unevenly spaced slices are warnings.
    """
    problems = list(_senseless(case, frames[0])) or list(check_affine(case, grid_of(frames).affine))
    if any(problem.fatal for problem in problems) or len(frames) < 3:
        return problems
    positions = np.array([frame.position for frame in frames], np.float64)
    places_mm = along_normal(frames)
    gaps_mm = np.diff(places_mm)
    spacing_mm = float(np.median(gaps_mm))
    even = positions[0] + np.linspace(0, 1, len(frames))[:, None] * (positions[-1] - positions[0])
    off_mm = np.linalg.norm(positions - even, axis=1)
    if off_mm.max() <= PLACE_TOLERANCE * spacing_mm:
        return problems
    return [*problems, *_uneven(case, gaps_mm, spacing_mm, off_mm, fatal=not accept_uneven)]


def _senseless(case: str, frame: Frame) -> Iterator[Problem]:
    """Fatal for pixels of no size, and for directions that are no unit vectors at right angles."""
    fix = "export the series again: its header is damaged"
    if min(frame.spacing_mm) <= 0:
        found = "PixelSpacing is " + " x ".join(f"{mm:g}" for mm in frame.spacing_mm)
        yield Problem(case, "the size of the pixels makes no sense", found, fix)
    pair = np.array([frame.row, frame.column], np.float64)
    if np.abs(pair @ pair.T - np.eye(2)).max() > SQUARE:
        shown = ", ".join(f"{value:g}" for value in pair.ravel())
        found = f"ImageOrientationPatient is {shown}, no unit vectors at right angles"
        yield Problem(case, "the directions of the image make no sense", found, fix)


def _uneven(
    case: str,
    gaps_mm: NDArray[np.float64],
    spacing_mm: float,
    off_mm: NDArray[np.float64],
    *,
    fatal: bool,
) -> Iterator[Problem]:
    fix = (
        "export the whole series again, or take its slices as evenly spaced (--accept-uneven), "
        "which moves them to where they are not: lengths and volumes along the gaps are then wrong"
    )
    even_mm = float(gaps_mm.sum()) / len(gaps_mm)
    taken = "" if fatal else f"; taken as {len(gaps_mm) + 1} slices {even_mm:.3g} mm apart"
    steps = gaps_mm / spacing_mm
    whole = np.rint(steps)
    if np.all(np.abs(steps - whole) <= PLACE_TOLERANCE * np.maximum(whole, 1)) and whole.max() > 1:
        missing = int(whole.sum()) - len(gaps_mm)
        where = ", ".join(str(int(at) + 1) for at in np.flatnonzero(whole > 1)[:SHOWN])
        found = f"{missing} missing at {spacing_mm:.3g} mm spacing, after slice {where}{taken}"
        yield Problem(case, "slices of a series are missing", found, fix, fatal)
    elif np.ptp(gaps_mm) > PLACE_TOLERANCE * spacing_mm:
        found = f"gaps of {gaps_mm.min():.3g} to {gaps_mm.max():.3g} mm{taken}"
        yield Problem(case, "the slices are not evenly spaced", found, fix, fatal)
    else:
        found = f"up to {off_mm.max():.3g} mm off the line from the first slice to the last{taken}"
        yield Problem(case, "the slices do not lie in one line", found, fix, fatal)


def lattice_of(frame: Frame, grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """How a frame's pixels fall on a grid: (index of pixel [0, 0], step a column and a row).

    The result is (3,) and (3, 2) integers in file axes; None where the pixels do not meet voxels
    within a tenth of a voxel.
    """
    assert frame.position is not None and frame.row is not None and frame.column is not None
    inverse = np.linalg.inv(RAS_FROM_LPS @ np.asarray(grid.affine))
    start = inverse[:3, :3] @ np.asarray(frame.position) + inverse[:3, 3]
    between_rows, between_columns = frame.spacing_mm
    directions = np.stack(
        [np.asarray(frame.row) * between_columns, np.asarray(frame.column) * between_rows], axis=1
    )
    steps = inverse[:3, :3] @ directions
    whole_start, whole_steps = np.rint(start), np.rint(steps)
    extent = np.array([frame.instance.columns - 1, frame.instance.rows - 1])
    drift = np.abs(start - whole_start) + np.abs(steps - whole_steps) @ extent
    if drift.max() > PLACE_TOLERANCE or not math.isclose(np.abs(whole_steps).sum(), 2):
        return None
    return whole_start.astype(np.int64), whole_steps.astype(np.int64)
