"""A folder of label maps → cleaned label maps, one file a unit: what is done is skipped."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from autoseg.documents.dataset import suffix_of
from autoseg.documents.labels import LabelSet
from autoseg.documents.postprocessing import EVERYTHING, Cleaning, DenseCRF, Step
from autoseg.errors import AutosegError, BadData, Problem, counted, nearest, raise_fatal
from autoseg.files import Lock, explaining, sha256_file, sweep
from autoseg.image.checks import check_label_values
from autoseg.image.cleaning import cleaned
from autoseg.image.reading import ending_for, read_header, read_labels, write_labels
from autoseg.models.outputs import is_a_persons, kept_line, noting
from autoseg.pool import over_units
from autoseg.rules.postprocessing import classes_of
from autoseg.stage import Stamp, standing

VERSION = 1
STORED = "stored"
"""The file's own axes, slowest first; no array is turned."""
BYTES_PER_VOXEL = 40
"""Of a label map with what cleaning needs beside it."""

Refine = Callable[[str, DenseCRF], npt.NDArray[Any]]
"""(case, settings) -> class indices on the grid of the case's label map, in the same axes."""


@dataclass(frozen=True)
class Applied:
    """What came of cleaning a folder."""

    written: tuple[Path, ...]
    changed: int
    """How many of them differ from what they were."""
    skipped: int
    """Label maps that were done already."""
    kept: tuple[Path, ...]
    """Those that a person drew or corrected, left as they are."""
    warnings: tuple[Problem, ...]
    failed: tuple[Problem, ...]

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        done = f", {self.skipped} were there already" if self.skipped else ""
        yield f"{counted(len(self.written), 'label map')} written, {self.changed} of them changed{done}"
        if self.kept:
            yield kept_line(self.kept)


@dataclass(frozen=True)
class _Done:
    """What came of one file; `voxels` changed, None if it was done already or is kept."""

    path: Path
    voxels: int | None
    kept: bool = False
    problems: tuple[Problem, ...] = ()


def apply(
    folder: Path,
    output: Path,
    steps: Sequence[Step],
    labels: LabelSet,
    *,
    workers: int = 1,
    axes: str = STORED,
    overwrite: bool = False,
) -> Applied:
    """Clean the label maps of `folder` into `output`, each on its own grid.

    What is current is left alone, and so is what a person drew or corrected unless `overwrite`; a label map that fails does not end the others. Raises
    AutosegError before any work if the steps or the folders cannot be used.
    """
    usable = _usable(steps, labels)
    if folder.resolve() == output.resolve():
        raise AutosegError(
            f"{output} holds the label maps themselves, which are never overwritten; choose another "
            "output folder"
        )
    files = _label_maps(folder)
    with _opened(output):
        return _clean_files(files, output, usable, labels, workers, axes, overwrite=overwrite)


def apply_to(
    maps: Mapping[str, Path],
    output: Path,
    steps: Sequence[Step],
    labels: LabelSet,
    *,
    workers: int = 1,
    axes: str = STORED,
    refine: Refine | None = None,
) -> dict[str, Path]:
    """As `apply` for chosen files, case id -> label map: case id -> the cleaned one in `output`.

    With `refine` the first step may be a dense CRF; what it made of a case is kept in `output`
    too. Raises BadData for all label maps that failed.
    """
    field, rest = _parted(steps)
    if field is not None and refine is None:
        _usable(steps, labels)
    usable = _usable(rest, labels)
    files = dict(maps)
    with _opened(output):
        if field is not None and refine is not None:
            kept = output / ".autoseg" / "refined"
            for case in tqdm(maps, "dense CRF", unit="case", disable=None, leave=False):
                files[case] = _refine_file(case, maps[case], kept, field, refine, labels, axes)
        done = _clean_files(files, output, usable, labels, workers, axes, overwrite=True)
    raise_fatal(done.failed)
    return {case: _target(case, path, output) for case, path in files.items()}


def _parted(steps: Sequence[Step]) -> tuple[DenseCRF | None, Sequence[Step]]:
    """The dense CRF that goes first, if one does, and the other steps."""
    if steps and isinstance(steps[0], DenseCRF):
        return steps[0], steps[1:]
    return None, steps


@contextmanager
def _opened(output: Path) -> Iterator[None]:
    """The right to write to a folder, which is made and swept."""
    with explaining(output, "write to"):
        output.mkdir(parents=True, exist_ok=True)
    with Lock(output / ".autoseg" / "lock", f"the output folder {output}"):
        sweep(output)
        yield


def _clean_files(
    files: Mapping[str, Path],
    output: Path,
    steps: Sequence[Cleaning],
    labels: LabelSet,
    workers: int,
    axes: str,
    *,
    overwrite: bool,
) -> Applied:
    """Clean what is not current; a label map that fails does not end the others."""
    written, kept, changed, skipped = [], [], 0, 0
    warnings: list[Problem] = []
    failed: list[Problem] = []
    work = partial(_clean_file, output=output, steps=steps, labels=labels, axes=axes,
                   overwrite=overwrite)  # fmt: skip
    units = list(files.items())
    with tqdm(total=len(files), desc="postprocess", unit="case", disable=None) as bar:
        for (case, _), done in over_units(
            work, units, workers=workers, bytes_of=lambda u: _bytes(u[1])
        ):
            bar.update()
            if isinstance(done, AutosegError):
                failed += _problems(case, done)
            elif done.kept:
                kept.append(done.path)
            elif done.voxels is None:
                skipped += 1
            else:
                written.append(done.path)
                changed += done.voxels > 0
                warnings += done.problems
    failed.sort(key=lambda problem: problem.case)
    return Applied(tuple(sorted(written)), changed, skipped, tuple(sorted(kept)), tuple(warnings),
                   tuple(failed))  # fmt: skip


def _usable(steps: Sequence[Step], labels: LabelSet) -> tuple[Cleaning, ...]:
    """The steps, if a label map is enough for them. Raises AutosegError."""
    known = [EVERYTHING, *classes_of(labels)]
    usable = []
    for step in steps:
        if isinstance(step, DenseCRF):
            raise AutosegError(
                "the dense CRF needs probabilities and the image, so label maps alone cannot be "
                "refined by it; predict applies it, or leave this step out"
            )
        if step.of not in known:
            raise AutosegError(
                f"a step cleans {step.of!r}, which is no structure of these labels"
                + nearest(step.of, known)
            )
        usable.append(step)
    return tuple(usable)


def _label_maps(folder: Path) -> dict[str, Path]:
    """Case id -> label map. Raises AutosegError if there is none, or two of one case."""
    with explaining(folder, "list"):
        paths = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    found: dict[str, Path] = {}
    for path in paths:
        suffix = suffix_of(path.name)
        if not suffix:
            continue
        case = path.name[: -len(suffix)]
        if case in found:
            raise AutosegError(
                f"{folder} holds two label maps of {case}: {found[case].name} and {path.name}; "
                "keep one"
            )
        found[case] = path
    if not found:
        raise AutosegError(f"{folder} holds no label map to clean")
    return found


def _clean_file(
    unit: tuple[str, Path],
    *,
    output: Path,
    steps: Sequence[Cleaning],
    labels: LabelSet,
    axes: str,
    overwrite: bool,
) -> _Done:
    """Clean one label map, if that was not done already. Raises BadData."""
    case, path = unit
    target = _target(case, path, output)
    kept = output / ".autoseg" / f"{case}.json"
    stamp = Stamp(
        "postprocess",
        VERSION,
        {path.name: sha256_file(path)},
        {"steps": [step.dump() for step in steps], "labels": labels.dump(), "axes": axes},
    )
    if target.exists() and standing(kept, stamp).state == "current":
        return _Done(target, None)
    if not overwrite and is_a_persons(target, output, case):
        return _Done(target, None, kept=True)
    volume, problems = read_labels(path, axes)
    problems += check_label_values(case, volume.array, labels.values)
    raise_fatal(problems)
    classes = labels.to_classes(volume.array[0])
    found = cleaned(classes, volume.spacing_mm, steps, labels)
    write_labels(target, labels.to_values(found), axes, volume.grid, noting(output, case))
    stamp.write(kept)
    return _Done(target, int(np.count_nonzero(found != classes)), problems=tuple(problems))


def _target(case: str, path: Path, output: Path) -> Path:
    """Where a cleaned label map goes: the same format, if label maps are written in it."""
    return output / f"{case}{ending_for(suffix_of(path.name))}"


def _refine_file(
    case: str,
    path: Path,
    folder: Path,
    field: DenseCRF,
    refine: Refine,
    labels: LabelSet,
    axes: str,
) -> Path:
    """The label map that a dense CRF makes of a case, written if it is not current."""
    target, kept = _target(case, path, folder), folder / f"{case}.json"
    options = {"field": field.dump(), "labels": labels.dump(), "axes": axes}
    stamp = Stamp("refine", VERSION, {path.name: sha256_file(path)}, options)
    if not target.exists() or standing(kept, stamp).state != "current":
        volume = read_labels(path, axes)[0]
        classes = np.asarray(refine(case, field))
        if classes.shape != volume.array.shape[1:]:
            raise ValueError(f"{case}: the dense CRF gave no label map on the grid of the scan")
        folder.mkdir(parents=True, exist_ok=True)
        write_labels(target, labels.to_values(classes), axes, volume.grid)
        stamp.write(kept)
    return target


def _bytes(path: Path) -> int:
    """The memory that cleaning a file needs at most; 0 for one that cannot be read."""
    try:
        return BYTES_PER_VOXEL * int(np.prod(read_header(path).grid.shape))
    except AutosegError:
        return 0


def _problems(case: str, error: AutosegError) -> Iterable[Problem]:
    if isinstance(error, BadData):
        return error.problems
    return [Problem(case, "a label map could not be cleaned", str(error), "mend or remove it")]
