"""Probabilities of several configurations × cases → label maps of their mean, a case a unit.

Files are read a few rows at a time, so memory does not grow with the number of configurations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from autoseg.documents.postprocessing import Cleaning
from autoseg.errors import AutosegError, Busy, Problem, counted, nearest
from autoseg.files import Lock, explaining, sweep
from autoseg.image.cleaning import cleaned
from autoseg.infer.meaning import painted
from autoseg.models.outputs import is_a_persons, kept_line, noting
from autoseg.models.probabilities import (
    in_axes_of,
    mean_chunks,
    open_probabilities,
    probability_files,
)
from autoseg.models.segment import write_classes
from autoseg.stage import Stamp, standing

VERSION = 1


@dataclass
class Averaged:
    """What came of an ensemble."""

    written: list[Path] = field(default_factory=list)
    skipped: int = 0
    """Cases that were done already."""
    elsewhere: list[str] = field(default_factory=list)
    """Cases that another process is at."""
    kept: list[Path] = field(default_factory=list)
    """Label maps that a person drew or corrected, left as they are."""
    failed: list[Problem] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        done = f", {self.skipped} were there already" if self.skipped else ""
        yield f"{counted(len(self.written), 'label map')} written{done}"
        if self.elsewhere:
            yield f"{len(self.elsewhere)} are being made by another process"
        if self.kept:
            yield kept_line(self.kept)


def sources_of(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Case id -> its file in each folder. Raises AutosegError if a folder lacks a case."""
    found = [probability_files(folder) for folder in folders]
    everything = sorted({case for files in found for case in files})
    for folder, files in zip(folders, found, strict=True):
        missing = [case for case in everything if case not in files]
        if missing:
            raise AutosegError(
                f"{folder} has no probabilities of {missing[0]}{nearest(missing[0], list(files))}; "
                "predict the same cases with every configuration"
            )
    return {case: [files[case] for files in found] for case in everything}


def ensemble(
    sources: Mapping[str, Sequence[Path]],
    output: Path,
    *,
    ending: str | None = None,
    steps: Sequence[Cleaning] = (),
    overwrite: bool = False,
) -> Averaged:
    """Write the label map of each case's mean probability; one that fails does not end the others.

    Without `ending` a case that lies somewhere in a patient becomes a .nii.gz, another a .png.
    Label maps that a person drew or corrected are kept, unless `overwrite`.
    """
    with explaining(output, "write to"):
        output.mkdir(parents=True, exist_ok=True)
    sweep(output)
    done = Averaged()
    for case, files in tqdm(sources.items(), "ensemble", unit="case", disable=None):
        kept = output / ".autoseg" / f"{case}.json"
        try:
            path = output / f"{case}{ending or _ending(files[0])}"
            with Lock(output / ".autoseg" / f"{case}.lock", f"case {case}"):
                marks = {str(i): _mark(file) for i, file in enumerate(files)}
                stamp = Stamp("ensemble", VERSION, marks, {"steps": [s.dump() for s in steps]})
                if path.exists() and standing(kept, stamp).state == "current":
                    done.skipped += 1
                    continue
                if not overwrite and is_a_persons(path, output, case):
                    done.kept.append(path)
                    continue
                _average(files, path, steps, noting(output, case))
                stamp.write(kept)
                done.written.append(path)
        except Busy:
            done.elsewhere.append(case)
        except AutosegError as error:
            done.failed.append(
                Problem(case, "its probabilities cannot be averaged", str(error), "mend that")
            )
    return done


def _ending(path: Path) -> str:
    return ".nii.gz" if open_probabilities(path).grid.placed else ".png"


def _mark(path: Path) -> str:
    """What tells a file from a later one of the same name; hashing gigabytes would take too long."""
    with explaining(path, "read"):
        stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _average(
    files: Sequence[Path], path: Path, steps: Sequence[Cleaning], noted: Callable[[Path], None]
) -> None:
    opened = [open_probabilities(file) for file in files]
    first = opened[0]
    views = [in_axes_of(one, first) for one in opened]
    found = np.zeros(first.shape, np.int16)
    for rows, mean in mean_chunks(views, first.labels):
        found[rows] = painted(mean, first.labels, of="probabilities").numpy()
    found = cleaned(found, first.spacing_mm, steps, first.labels)
    write_classes(path, found, first.labels, first.axes, first.grid, noted)
