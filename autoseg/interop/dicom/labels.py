"""What label map do the structures of DICOM-SEG and RTSTRUCT files make on the grid of a series.

Segmentations are laid voxel on voxel, so they must share the lattice of the series; contours are
filled at voxel centres in the slice that they lie in. Where two structures claim a voxel, the
caller says whether later values may paint over earlier ones.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import BadData, Problem, raise_fatal
from autoseg.image.geometry import arrange
from autoseg.image.itk import RAS_FROM_LPS
from autoseg.image.volume import Grid, Volume
from autoseg.interop.dicom.contours import Points, together
from autoseg.interop.dicom.frames import Frame, every_frame
from autoseg.interop.dicom.pixels import Slices, slices_of, unpacked
from autoseg.interop.dicom.placing import evened, lattice_of
from autoseg.interop.dicom.series import Series
from autoseg.interop.dicom.source import (
    DAMAGE,
    Damaged,
    damage,
    damaged_file,
    opened,
    read_whole,
)
from autoseg.interop.dicom.structures import StructureFile, roi_names, segment_names

Mask = NDArray[np.bool_]
Drawn = Iterator[tuple[str, Mask, list[Problem]]]
IN_SLICE = 0.5
"""Of the slice spacing: a contour farther from every slice than this belongs to none."""
FLAT = 0.1
"""Of the slice spacing: how far the points of a contour may be from one plane."""
SHOWN = 4


def read_structures(
    files: Sequence[StructureFile],
    series: Series,
    values: Mapping[str, int],
    axes: str,
    case: str,
    *,
    paint_over: bool = False,
    accept_uneven: bool = False,
) -> tuple[Volume, list[Problem]]:
    """The label map (1, *axes) of the structures named in `values`, and the warnings.

    Names are compared without case; several may have one value. Voxels of two values are a fatal
    Problem unless `paint_over` is set: then the one that comes later in `values` wins. Raises
    BadData.
    """
    slices = slices_of(series, case, accept_uneven=accept_uneven)
    grid = slices.grid
    value_of = {name.strip().lower(): value for name, value in values.items()}
    order = list(dict.fromkeys(values.values()))
    called = {value: name for name, value in reversed(list(values.items()))}
    map_kji = np.zeros(grid.shape[::-1], np.int32)
    rank = np.full(map_kji.shape, -1, np.int16)
    problems: list[Problem] = list(_twice(case, files, value_of))
    raise_fatal(problems)
    overlaps: dict[tuple[int, int], int] = defaultdict(int)
    seen: set[str] = set()
    for file in files:
        for name, mask, found in _masks(file, slices, case, lambda name: name.lower() in value_of):
            problems += found
            seen.add(name.lower())
            at = order.index(value_of[name.lower()])
            others, counts = np.unique(rank[mask], return_counts=True)
            for other, count in zip(others.tolist(), counts.tolist()):
                if other not in (-1, at):
                    overlaps[min(at, other), max(at, other)] += count
            mask &= rank < at
            rank[mask] = at
            map_kji[mask] = order[at]
    names = [called[value] for value in order]
    problems += _overlapping(case, names, overlaps, fatal=not paint_over)
    absent = {v for n, v in value_of.items()} - {value_of[name] for name in seen}
    problems += _absent(case, [called[value] for value in order if value in absent])
    raise_fatal(problems)
    arranged = arrange(map_kji.transpose(2, 1, 0)[None], grid.arrangement(axes))
    return Volume(np.ascontiguousarray(arranged), axes, grid), problems


def _twice(
    case: str, files: Sequence[StructureFile], wanted: Mapping[str, int]
) -> Iterator[Problem]:
    """Fatal for a structure that several files draw: an older version, or another observer."""
    drawn: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for name in sorted({name.lower() for name in file.names} & set(wanted)):
            drawn[name].append(file.name)
    for name, where in drawn.items():
        if len(where) > 1:
            found = f"{name} in {' and '.join(where[:SHOWN])}"
            fix = "keep the file that counts, and move the others out of the folder"
            yield Problem(case, "several files draw the same structure", found, fix)


def _overlapping(
    case: str, names: Sequence[str], overlaps: Mapping[tuple[int, int], int], *, fatal: bool
) -> Iterator[Problem]:
    for (one, other), count in sorted(overlaps.items()):
        found = f"{names[one]} and {names[other]} share {count} voxels"
        fix = (
            "leave one of them out, or list the inner structure last and let later ones paint over "
            "earlier ones"
            if fatal
            else f"nothing, if {names[other]} is right there: it was painted over {names[one]}"
        )
        yield Problem(case, "two structures overlap", found, fix, fatal)


def _absent(case: str, names: Sequence[str]) -> Iterator[Problem]:
    if names:
        shown = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
        fix = "nothing, if it is truly absent; otherwise check its name in the file"
        yield Problem(case, "a structure was not drawn", shown, fix, fatal=False)


def _masks(file: StructureFile, slices: Slices, case: str, wanted: Callable[[str], bool]) -> Drawn:
    """(name, mask (k, j, i), warnings) of each wanted structure of a file. Raises BadData."""
    try:
        with opened(file.source) as source, source.stream(file.name) as stream:
            dataset = read_whole(stream)
            reader = _segments if file.kind == "SEG" else _contoured
            with damage():
                yield from reader(dataset, file, slices, case, wanted)
    except Damaged as error:
        raise BadData([damaged_file(case, f"{file.name}: {error}")]) from error
    except DAMAGE as error:
        raise BadData([damaged_file(case, f"{file.name}: {error}")]) from error


# ---- DICOM-SEG


def _segments(
    dataset: Any, file: StructureFile, slices: Slices, case: str, wanted: Callable[[str], bool]
) -> Drawn:
    names, grid = segment_names(dataset), slices.grid
    kind = str(dataset.get("SegmentationType") or "BINARY")
    frames = every_frame(dataset, file.name)
    numbers = [_segment_number(dataset, frame.index) for frame in frames]
    level = 0.5
    warnings: list[Problem] = []
    if kind == "FRACTIONAL":
        level = 0.5 * float(dataset.MaximumFractionalValue)
        what, fix = "a segmentation holds probabilities", "nothing: half and more counts as inside"
        warnings.append(Problem(case, what, file.name, fix, fatal=False))
    for number, name in names.items():
        if not wanted(name):
            continue
        mask = np.zeros(grid.shape[::-1], bool)
        chosen = [f for f, n in zip(frames, numbers) if kind == "LABELMAP" or n == number]
        for frame, pixels in zip(chosen, unpacked(dataset, chosen)):
            inside = pixels == number if kind == "LABELMAP" else pixels >= level
            _lay(mask, inside, _evened(frame, slices), grid, case, file)
        yield name, mask, warnings
        warnings = []


def _evened(frame: Frame, slices: Slices) -> Frame:
    """The frame where the even grid of the series has it."""
    if frame.position is None or not slices.grid.placed:
        return frame
    x, y, z = evened(np.array([frame.position]), slices.frames)[0].tolist()
    return replace(frame, position=(x, y, z))


def _segment_number(dataset: Any, index: int) -> int | None:
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for group in (*own[index : index + 1], *shared[:1]):
        for item in group.get("SegmentIdentificationSequence") or ():
            return int(item.ReferencedSegmentNumber)
    return None


def _lay(
    mask: Mask, inside: Mask, frame: Frame, grid: Grid, case: str, file: StructureFile
) -> None:
    """Set the voxels under a frame's pixels. Raises BadData if they do not meet."""
    if not inside.any():
        return
    if not grid.placed or frame.position is None:
        lattice = (np.zeros(3, np.int64), np.eye(3, 2, dtype=np.int64))
    else:
        found = lattice_of(frame, grid)
        if found is None:
            raise _elsewhere(case, file, "its pixels do not meet the voxels of the series")
        lattice = found
    start, steps = lattice
    rows, columns = np.nonzero(inside)
    index = start[:, None] + steps @ np.stack([columns, rows])
    if np.any(index < 0) or np.any(index >= np.array(grid.shape)[:, None]):
        raise _elsewhere(case, file, "it reaches beyond the series")
    mask[index[2], index[1], index[0]] = True


def _elsewhere(case: str, file: StructureFile, why: str) -> BadData:
    what = "structures and series are not in the same place"
    fix = "choose the series that they were drawn on, or resample them to this one"
    return BadData([Problem(case, what, f"{file.name}: {why}", fix)])


# ---- RTSTRUCT


def _contoured(
    dataset: Any, _file: StructureFile, slices: Slices, case: str, wanted: Callable[[str], bool]
) -> Drawn:
    names, grid = roi_names(dataset), slices.grid
    for item in dataset.get("ROIContourSequence") or ():
        name = names.get(int(item.ReferencedROINumber), "")
        if not wanted(name):
            continue
        by_slice, problems = _by_slice(item, slices, case, name)
        mask = np.zeros(grid.shape[::-1], bool)
        crossed = []
        for at, contours in by_slice.items():
            mask[at], crossing = together(contours, (grid.shape[1], grid.shape[0]))
            crossed += [str(at + 1)] * crossing
        if crossed:
            found = f"{name}: in slice {', '.join(crossed[:SHOWN])}"
            fix = "nothing, if their union is meant; otherwise redraw them"
            what = "contours of one structure cross"
            problems.append(Problem(case, what, found, fix, fatal=False))
        skipped = (
            sorted(set(range(min(by_slice), max(by_slice))) - set(by_slice)) if by_slice else []
        )
        if skipped:
            found = f"{name}: no contour in {len(skipped)} slices between its first and last"
            fix = "nothing, if it has a gap there; otherwise interpolate the contours"
            what = "a structure is drawn with gaps"
            problems.append(Problem(case, what, found, fix, fatal=False))
        yield name, mask, problems


def _by_slice(
    item: Any, slices: Slices, case: str, name: str
) -> tuple[dict[int, list[Points]], list[Problem]]:
    """The contours of a structure by slice, in pixels, and warnings. Raises BadData."""
    grid = slices.grid
    inverse = np.linalg.inv(RAS_FROM_LPS @ np.asarray(grid.affine))
    found: dict[int, list[Points]] = defaultdict(list)
    rings, other = _rings(item, name)
    ends = np.cumsum([len(ring) for ring in rings])
    points_mm = evened(np.concatenate([np.empty((0, 3)), *rings]), slices.frames)
    points = points_mm @ inverse[:3, :3].T + inverse[:3, 3]
    for index in np.split(points, ends[:-1]) if rings else ():
        low, high = float(index[:, 2].min()), float(index[:, 2].max())
        if high - low > FLAT:
            raise _off_slices(case, f"{name} has contours that do not lie in the slices")
        if not -IN_SLICE <= low <= grid.shape[2] - 1 + IN_SLICE:
            raise _off_slices(case, f"{name} has contours outside the series")
        at = min(max(round((low + high) / 2), 0), grid.shape[2] - 1)
        found[at].append(index[:, 1::-1])
    problems = []
    if other:
        what, fix = "contours that enclose nothing were left out", "nothing: points and open lines"
        problems.append(Problem(case, what, f"{other} of {name}", fix, fatal=False))
    return found, problems


def _rings(item: Any, name: str) -> tuple[list[NDArray[np.float64]], int]:
    """The closed contours (N, 3) of a structure in mm, and how many others there are."""
    rings = []
    other = 0
    for contour in item.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType") or "CLOSED_PLANAR")
        values = _contour_data(contour)
        if not kind.startswith("CLOSED_PLANAR") or values.size < 9:
            other += 1
            continue
        if values.size % 3 or not np.all(np.isfinite(values)):
            raise ValueError(
                f"a contour of {name} holds {values.size} numbers or no numbers at all"
            )
        rings.append(values.reshape(-1, 3))
    return rings, other


def _contour_data(contour: Any) -> NDArray[np.float64]:
    """The numbers of a contour, read from the file's own text: pydicom makes objects of them."""
    if "ContourData" not in contour:
        return np.empty(0)
    raw = contour.get_item("ContourData").value
    if isinstance(raw, bytes):
        raw = raw.decode("ascii").strip(" \0").split("\\")
    return np.asarray([v for v in raw or () if v != ""], np.float64)


def _off_slices(case: str, why: str) -> BadData:
    what = "structures and series are not in the same place"
    fix = "choose the series that they were drawn on"
    return BadData([Problem(case, what, why, fix)])
