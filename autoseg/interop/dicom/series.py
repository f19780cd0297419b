"""Which series does a source hold: told apart and described.

Frames belong together by series, patient, size, pixel spacing and direction; where two lie in one
place, what differs between them (echo, b-value, time point, …) splits the series further.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from autoseg.errors import AutosegError, Problem
from autoseg.image.volume import Grid
from autoseg.interop.dicom.frames import KINDS, VOLUMETRIC, Frame, frames_of
from autoseg.interop.dicom.placing import grid_of, normal_of, stacks
from autoseg.interop.dicom.source import (
    DAMAGE,
    Damaged,
    Source,
    damaged_file,
    is_dicom,
    opened,
    read_header,
)
from autoseg.interop.dicom.structures import StructureFile, structure_of

CALLED = (".dcm", ".dicom", ".ima")
"""Endings of names that mean DICOM: such a file without it is a slice that was lost on its way."""

SAME_DIRECTION = 2e-3
SAME_SPACING = 1e-3
STRAIGHT = 0.8
"""Cosine above which a plane is called by the nearest of the three of the body."""


@dataclass(frozen=True)
class Series:
    """Frames that make one volume (or one picture), ordered by position.

    `part` says what tells it from others of one series, as "echo time 4.2"; `folder` is the top
    folder of its files below the source. Frames in one place that nothing tells apart are all in
    `frames`, which reading then refuses or finds equal; `astray` are those of a volume that do not
    say where they lie, which reading refuses.
    """

    source: Path
    frames: tuple[Frame, ...]
    part: str = ""
    folder: str = ""
    astray: tuple[Frame, ...] = ()

    @property
    def uid(self) -> str:
        """The Series Instance UID; empty where it was taken out."""
        return self.frames[0].instance.series

    @property
    def person(self) -> tuple[str, str]:
        """Patient and study; the top folder stands for a study whose identity was taken out."""
        first = self.frames[0].instance
        return first.patient, first.study or self.folder

    @property
    def kind(self) -> Literal["volume", "slice", "picture"]:
        """A picture does not say where in the patient it lies; a slice is a volume of one."""
        if self.frames[0].position is None:
            return "picture"
        return "volume" if len(self.frames) > 1 else "slice"

    @property
    def grid(self) -> Grid:
        """The voxel grid, as if slices were evenly spaced; see `placing.check_places`."""
        return grid_of(self.frames)

    @property
    def described(self) -> str:
        """What a person recognises it by: modality, description, size, spacing."""
        first = self.frames[0].instance
        size = f"{len(self.frames)} x {first.rows} x {first.columns}"
        spacing_mm = " x ".join(f"{mm:.3g}" for mm in reversed(self.grid.spacing_mm))
        number = "" if first.number is None else f" (series number {first.number})"
        what = first.description or "without description"
        words = [first.modality, what, self.part, "mosaic" if first.mosaic else ""]
        place = "" if self.kind == "picture" else f", {spacing_mm} mm"
        taken = f", of {first.taken}" if first.taken else ""
        return (
            f"{', '.join(w for w in words if w)}{number}: {size}{place}{taken}, "
            f"UID {self.uid or 'none'}"
        )


@dataclass(frozen=True)
class Found:
    """What a source holds: image series, files of structures, and what is wrong."""

    path: Path
    series: tuple[Series, ...]
    structures: tuple[StructureFile, ...]
    problems: tuple[Problem, ...]
    passed_over: int = 0
    """Files that are not DICOM."""


@dataclass
class _Gathered:
    frames: list[Frame] = field(default_factory=list)
    structures: list[StructureFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    strangers: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """DICOM that is no image, by modality."""


def find(path: Path) -> Found:
    """Every series and structure file in a folder (with those below it), zip or file.

    Only headers are read. Raises AutosegError where nothing in it is DICOM.
    """
    with opened(path) as source:
        gathered = _gather(source)
    series = _series_of(path, _without_copies(gathered))
    if not (series or gathered.structures or gathered.problems):
        raise AutosegError(_nothing_in(path, gathered))
    return Found(
        path,
        tuple(series),
        tuple(gathered.structures),
        tuple(gathered.problems),
        gathered.strangers,
    )


def _nothing_in(path: Path, gathered: _Gathered) -> str:
    others = ", ".join(f"{count} of {kind}" for kind, count in sorted(gathered.others.items()))
    known = f", but other DICOM files ({others})" if others else ""
    strangers = gathered.strangers
    passed = f"; passed over what is no DICOM (files: {strangers})" if strangers else ""
    return f"{path} holds no DICOM image{known}{passed}; name the folder of the images"


def _gather(source: Source) -> _Gathered:
    found = _Gathered()
    for item in source.items():
        try:
            if not is_dicom(source.start(item.name)):
                found.strangers += 1
                if item.name.lower().endswith(CALLED):
                    held = "its content is none" if item.size else "it is empty (0 bytes)"
                    raise Damaged(f"its name says that it is DICOM, but {held}")
                continue
            with source.stream(item.name) as stream:
                header = read_header(stream)
            structure = structure_of(header, source.path, item.name)
            if structure is not None:
                found.structures.append(structure)
                continue
            frames = frames_of(header, item.name, item.size)
            found.frames += frames
            if not frames:
                found.others[str(header.get("Modality") or "another kind")] += 1
        except Damaged as error:
            found.problems.append(damaged_file(item.name, str(error)))
        except DAMAGE as error:
            found.problems.append(damaged_file(item.name, str(error) or type(error).__name__))
    for name in source.astray:
        what, fix = "a link leads to no file", "nothing, if no slice is missing; else mend the link"
        found.problems.append(Problem(name, what, "it was passed over", fix, fatal=False))
    return found


def _without_copies(gathered: _Gathered) -> list[Frame]:
    """The frames without those of files that hold the same instance once more.

    Slices in different places are different, even where an anonymiser gave all of them one UID.
    """
    kept: dict[tuple[object, ...], Frame] = {}
    copies: dict[str, str] = {}
    for frame in gathered.frames:
        of = frame.instance
        place = (frame.position, frame.tags, frame.acquired)
        key = (of.series, of.uid or of.name, frame.index, place)
        if key in kept:
            copies[of.name] = kept[key].instance.name
        else:
            kept[key] = frame
    if copies:
        one, other = next(iter(copies.items()))
        found = f"{len(copies)} file(s), as {one} of {other}"
        fix = "nothing: the first of each is used"
        what = "an image is there twice"
        gathered.problems.append(Problem(one, what, found, fix, fatal=False))
    return list(kept.values())


def _series_of(path: Path, frames: Iterable[Frame]) -> list[Series]:
    groups: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        of = frame.instance
        # a picture without a place is a case of its own, but a slice of a volume without one is
        # a fault of the volume; without UIDs, folders tell series apart
        alone = of.name if frame.position is None and of.modality not in VOLUMETRIC else ""
        where = "" if of.series else PurePosixPath(of.name).parent.as_posix()
        size = (of.rows, of.columns, of.samples)
        groups[
            of.patient, of.study, of.series, where, of.modality, of.localizer, size, alone
        ].append(frame)
    found = []
    for group in groups.values():
        placed = [frame for frame in group if frame.position is not None]
        astray = tuple(frame for frame in group if frame.position is None)
        if not placed:
            found.append(_series(path, group, "", ()))
        for plane, part in _by_plane(placed):
            for words, rest in _told_apart(part):
                both = ", ".join(word for word in (plane, words) if word)
                found.append(_series(path, rest, both, astray))
    return sorted(found, key=_listing)


def _listing(series: Series) -> tuple[object, ...]:
    first = series.frames[0].instance
    number = -1 if first.number is None else first.number
    part = _natural(series.part)
    taken = first.taken
    return (*series.person, number, taken, series.folder, series.uid, part, first.name)


def _natural(text: str) -> tuple[tuple[bool, float, str], ...]:
    """A key that sorts the numbers in a text by size."""
    words = re.findall(r"\d+(?:\.\d+)?|\D+", text)
    return tuple((w[0].isdigit(), float(w) if w[0].isdigit() else 0.0, w) for w in words)


def _series(path: Path, frames: Sequence[Frame], words: str, astray: tuple[Frame, ...]) -> Series:
    tops = {PurePosixPath(f.instance.name).parts[0] for f in frames if "/" in f.instance.name}
    inside = all("/" in f.instance.name for f in frames)
    folder = tops.pop() if len(tops) == 1 and inside else ""
    ordered = frames
    if frames[0].position is not None:
        ordered = [frame for stack in stacks(frames) for frame in stack]
    return Series(path, tuple(ordered), words, folder, astray)


def _by_plane(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """The frames apart by direction and pixel spacing, which may differ by rounding alone.

    With each the name of its plane, if there are several: axial, or "2: oblique" of many oblique.
    """
    found: list[tuple[np.ndarray, list[Frame]]] = []
    for frame in frames:
        assert frame.row is not None and frame.column is not None
        plane = np.array([*frame.row, *frame.column])
        spacing_mm = np.array(frame.spacing_mm)
        for known, group in found:
            near = np.abs(known - plane).max() <= SAME_DIRECTION
            if near and np.allclose(group[0].spacing_mm, spacing_mm, SAME_SPACING, 1e-6):
                group.append(frame)
                break
        else:
            found.append((plane, [frame]))
    if len(found) < 2:
        return [("", group) for _, group in found]
    names = [_plane_of(group[0]) for _, group in found]
    if len(set(names)) < len(names):
        names = [f"plane {n} ({name})" for n, name in enumerate(names, start=1)]
    return [(name, group) for name, (_, group) in zip(names, found)]


def _plane_of(frame: Frame) -> str:
    """How a person calls the plane of a frame, by where its normal points."""
    normal = np.abs(normal_of(frame))
    at = int(normal.argmax())
    return ("sagittal", "coronal", "axial")[at] if normal[at] > STRAIGHT else "oblique"


def _told_apart(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """The frames apart by what differs where several lie in one place, each with its words."""
    piles = stacks(frames)
    most = max(len(pile) for pile in piles)
    if most == 1:
        return [("", frames)]
    for number, kind in enumerate(KINDS):
        groups: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.tags[number]].append(frame)
        if 1 < len(groups) <= most:
            return [
                (", ".join(w for w in (f"{kind} {value or 'none'}", words) if w), rest)
                for value, group in groups.items()
                for words, rest in _told_apart(group)
            ]
    times = [sorted(frame.acquired for frame in pile) for pile in piles]
    if all(len(set(row)) == most and all(row) for row in times):
        by_time = [sorted(pile, key=lambda frame: frame.acquired) for pile in piles]
        return [(f"time {n + 1} of {most}", [pile[n] for pile in by_time]) for n in range(most)]
    return [("", frames)]


def drawn_on(files: Sequence[StructureFile], series: Series) -> list[StructureFile]:
    """The files of structures that refer to a series; by frame of reference if no UID tells.

    A file that names other images is never taken for this series.
    """
    own = {frame.instance.uid for frame in series.frames} - {""}
    first = series.frames[0].instance
    found = []
    for file in files:
        if file.instances:
            fits = bool(file.instances & own)
        elif file.series:
            fits = series.uid in file.series
        else:
            fits = bool(first.frame_of_reference) and (
                file.frame_of_reference == first.frame_of_reference
            )
        if fits:
            found.append(file)
    return found
