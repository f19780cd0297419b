"""What do the headers of a source's files say, before anything is written.

All that is wrong is told at once: files that are missing, empty, of another kind or size, with
another number of channels. The voxels of images are read later, case by case.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from autoseg.documents.conversion import Draft, Source, SourceCase
from autoseg.errors import AutosegError, BadData, Problem
from autoseg.files import explaining
from autoseg.image.reading import read_header
from autoseg.image.volume import Grid
from autoseg.interop.conversion.case import Terms, label_array
from autoseg.interop.conversion.nifti_frames import frames_of
from autoseg.pool import over_units


@dataclass(frozen=True)
class Look:
    """What the files say: channels of a case, whether they are colours, whether all are flat."""

    channels: int
    colour: bool
    flat: bool
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Facts:
    channels: int
    shape: tuple[int, int, int] | None
    colour: bool


def look(draft: Draft) -> Look:
    """What all headers of a draft say, and every fault that shows in them."""
    problems: list[Problem] = []
    facts: dict[str, _Facts] = {}
    cases = tqdm(draft.cases, "look", unit="case", disable=None, leave=False)
    for case in cases:
        try:
            facts[case.id] = _facts_of(case)
            problems += _label_size(case, facts[case.id])
            problems += [] if draft.ranges else _blurred(case)
        except BadData as error:
            problems += [replace(p, case=case.id) for p in error.problems]
        except AutosegError as error:
            fix = "restore the file, or take the case out"
            problems.append(Problem(case.id, "a file cannot be read", str(error), fix))
    counted = Counter(f.channels for f in facts.values() if f.channels)
    expected = len(draft.channels) or (counted.most_common(1)[0][0] if counted else 1)
    for name, found in facts.items():
        if found.channels and found.channels != expected:
            what = "the number of channels is not that of the dataset"
            fix = "add or remove the files of channels, or name the channels there are"
            problems.append(Problem(name, what, f"{found.channels}, expected {expected}", fix))
    flat = all(f.shape is not None and f.shape[2] == 1 for f in facts.values())
    colour = expected == 3 and all(f.colour for f in facts.values())
    return Look(expected, colour, flat, tuple(problems))


def _facts_of(case: SourceCase) -> _Facts:
    """Channels and size of a case's image. Raises BadData, AutosegError."""
    channels, colour = 0, True
    shape: tuple[int, int, int] | None = None
    for source in case.images:
        if source.reads == "dicom":
            return _Facts(0, None, False)
        many, own, coloured = _source_facts(source)
        channels, colour = channels + many, colour and coloured
        if shape is not None and own != shape:
            found = f"{_size(own)} after {_size(shape)} ({source.files[0].name})"
            what, fix = "channels of one case differ in size", "export them from the same series"
            raise BadData([Problem(case.id, what, found, fix)])
        shape = own
    return _Facts(channels, shape, colour)


def _source_facts(source: Source) -> tuple[int, tuple[int, int, int], bool]:
    """(channels, shape (i, j, k), whether they are colours) of one source of an image."""
    first = source.files[0]
    channels, shape = _file_facts(first)
    if source.reads == "slices":
        return channels, (shape[0], shape[1], len(source.files)), channels == 3
    return channels, shape, channels == 3 and shape[2] == 1


def _file_facts(path: Path) -> tuple[int, tuple[int, int, int]]:
    if path.name.lower().endswith(".gif"):
        try:
            with path.open("rb") as file, Image.open(file) as picture:
                return (1 if picture.mode in ("L", "1") else 3), (*picture.size, 1)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            fix = "copy or export the file again; this one is damaged"
            found = f"{path}: {error}"
            raise BadData([Problem(path.stem, "the file cannot be read", found, fix)]) from error
    frames = frames_of(path) if path.is_file() else None
    if frames is not None:
        return frames.count, frames.shape
    header = read_header(path)
    return header.channels, header.grid.shape


def _label_size(case: SourceCase, facts: _Facts) -> Iterator[Problem]:
    """Problems with the label files that their headers show. Raises BadData."""
    if case.label is None:
        return
    for path in case.label.files:
        _, shape = _file_facts(path)
        if case.label.reads == "slices":
            shape = (shape[0], shape[1], len(case.label.files))
        if facts.shape is not None and shape != facts.shape:
            what = "image and label differ in size"
            found = f"image {_size(facts.shape)}, label {_size(shape)} voxels ({path.name})"
            fix = "look whether the label belongs to this image; export both from the same series"
            yield Problem(case.id, what, found, fix)
            return


def _blurred(case: SourceCase) -> Iterator[Problem]:
    """A problem where a label map is a JPEG, whose values are no longer those that were drawn."""
    for path in () if case.label is None else case.label.files:
        with explaining(path, "read"), path.open("rb") as file:
            is_jpeg = file.read(3) == b"\xff\xd8\xff"
        if is_jpeg:
            what = "a label map is a JPEG, which blurs the values along outlines"
            fix = "export it as PNG, or say which grey values mean what: --values 0-127=0,128-255=1"
            yield Problem(case.id, what, path.name, fix)
            return


def values_in(draft: Draft, workers: int, paint_over: bool) -> list[int]:
    """Every value of the label maps, in ours. Raises BadData for maps that cannot be read."""
    labelled = [case for case in draft.cases if case.label is not None]
    terms = Terms(1, draft.ranges, (), None, "", draft.spacing_mm, "", paint_over, False)
    found: set[int] = set()
    problems: list[Problem] = []
    outcomes = over_units(partial(_values, terms=terms), labelled, workers=workers)
    bar = tqdm(outcomes, "labels", total=len(labelled), unit="case", disable=None, leave=False)
    for case, outcome in bar:
        if isinstance(outcome, BadData):
            problems += [replace(p, case=case.id) for p in outcome.problems]
        elif isinstance(outcome, AutosegError):
            raise outcome
        else:
            found |= outcome
    if problems:
        raise BadData(sorted(problems, key=lambda p: p.case))
    if len(found) > 100 or (found and min(found) < 0):
        shown = ", ".join(str(v) for v in sorted(found)[:6])
        raise AutosegError(
            f"the label maps hold {len(found)} different values ({shown}, …), which are hardly "
            "structures; say what they mean with --labels and --values"
        )
    return sorted(found)


def _values(case: SourceCase, terms: Terms) -> set[int]:
    assert case.label is not None
    grid = _grid(case.label)
    array = label_array(case.label, grid, None, case.id, terms)[0]
    return {int(value) for value in np.unique(array)}


def _grid(label: Source) -> Grid:
    """A grid of the label's own size, for labels that must be laid on something."""
    _, (i, j, k) = _file_facts(label.files[0])
    depth = len(label.files) if label.reads == "slices" else k
    return Grid.of((i, j, depth), np.eye(4), placed=False)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)
