"""How do DICOM scans and their structures become a dataset in nnU-Net's layout.

One unit a case, redone only when its files or the options changed; `dataset.json` is written last,
when every case is there, so a half converted folder is never taken for a dataset.
"""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autoseg.errors import AutosegError, BadData, Problem, raise_fatal
from autoseg.files import Lock, sweep, write_json
from autoseg.image.reading import write_labels
from autoseg.interop.dicom.choosing import Scan, choose, identity
from autoseg.interop.dicom.labels import read_structures
from autoseg.interop.dicom.pixels import BYTES_A_VOXEL, colours_of, read_scan
from autoseg.interop.dicom.results import write_channels
from autoseg.interop.dicom.series import Found, Series, drawn_on, find
from autoseg.interop.dicom.structures import StructureFile
from autoseg.pool import over_units
from autoseg.stage import Stamp, standing

VERSION = 1
KEPT = ".dicom"
"""The folder inside the dataset where stamps and the lock lie."""

AXES = "stored"
Labels = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Converted:
    """What a conversion left: the dataset folder, and its cases."""

    folder: Path
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    redone: int
    labels: Mapping[str, int]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class _Unit:
    scan: Scan
    drawn: Series | None
    files: tuple[StructureFile, ...]
    target: Path
    values: dict[str, int] = field(default_factory=dict)
    paint_over: bool = False
    accept_uneven: bool = False

    def __str__(self) -> str:
        return self.scan.case


def convert_dicom(
    source: Path,
    target: Path,
    *,
    labels: Labels | None = None,
    series: Sequence[str] = (),
    channel_names: Sequence[str] = (),
    paint_over: bool = False,
    accept_uneven: bool = False,
    workers: int = 1,
) -> Converted:
    """The dataset `target` (DatasetNNN_Name) made from a folder or zip of DICOM.

    `labels` maps a label to the names of structures that make it, which may hold * and ?; without
    it every structure is a label. Labels are numbered in their order; with `paint_over` later ones
    win where structures overlap. `series` chooses the series of each channel (`choose`); without
    it the series that structures were drawn on. Scans without structures go to imagesTs. Raises
    AutosegError, after all cases were tried, if any could not be converted.
    """
    found = find(source)
    raise_fatal(found.problems)
    scans, problems = choose(found, series, drawn=True)
    units = [_unit(found, scan, target, paint_over, accept_uneven) for scan in scans]
    labelled = [unit for unit in units if unit.files]
    if not labelled:
        raise AutosegError(
            f"{source}: no DICOM-SEG or RTSTRUCT refers to one of its {len(units)} scans; put the "
            "structures beside the images that they were drawn on"
        )
    values, members = _numbered(source, labelled, labels)
    for unit in units:
        unit.values.update(members)
    names = _channels(labelled, channel_names)
    with Lock(target / KEPT / "lock", f"dataset {target.name}"):
        _tidy(source, target, units)
        redone, more = _convert_all(units, workers)
        write_json(
            target / "dataset.json",
            {
                "channel_names": {str(n): name for n, name in enumerate(names)},
                "labels": {"background": 0, **values},
                "numTraining": len(labelled),
                "file_ending": ".nii.gz",
            },
        )
    return Converted(
        folder=target,
        labelled=tuple(unit.scan.case for unit in labelled),
        unlabelled=tuple(unit.scan.case for unit in units if not unit.files),
        redone=redone,
        labels=values,
        problems=(*found.problems, *problems, *more),
    )


def _unit(found: Found, scan: Scan, target: Path, paint_over: bool, accept_uneven: bool) -> _Unit:
    """The scan with the structures that were drawn on one of its channels."""
    for series in scan.channels:
        files = drawn_on(found.structures, series)
        if files:
            return _Unit(scan, series, tuple(files), target, {}, paint_over, accept_uneven)
    return _Unit(scan, None, (), target, {}, paint_over, accept_uneven)


def _numbered(
    source: Path, units: Sequence[_Unit], labels: Labels | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Label -> value, and structure name (in lower case) -> value. Raises AutosegError."""
    spelled: dict[str, str] = {}
    for unit in units:
        for file in unit.files:
            for name in file.names:
                spelled.setdefault(name.strip().lower(), name.strip())
    if labels is None:
        special = [name for name in spelled if name in ("background", "ignore")]
        if special:
            raise AutosegError(
                f"{source}: a structure is called {special[0]!r}, which means something else in a "
                "dataset; say which structures make which label (labels)"
            )
        values = {spelled[name]: n for n, name in enumerate(sorted(spelled), start=1)}
        return values, {name: n for n, name in enumerate(sorted(spelled), start=1)}
    values = {label: n for n, label in enumerate(labels, start=1)}
    members: dict[str, int] = {}
    for label, patterns in labels.items():
        asked = [patterns] if isinstance(patterns, str) else list(patterns)
        fits = [n for n in spelled if any(fnmatchcase(n, p.strip().lower()) for p in asked)]
        if not fits:
            raise AutosegError(
                f"{source}: no structure is called {' or '.join(asked)} (label {label!r}); there "
                f"are {', '.join(sorted(spelled.values())[:20]) or 'none'}"
            )
        taken = [name for name in fits if name in members]
        if taken:
            raise AutosegError(
                f"{source}: structure {spelled[taken[0]]!r} would belong to two labels, the second "
                f"{label!r}; make the names of structures more exact"
            )
        members.update(dict.fromkeys(fits, values[label]))
    return values, members


def _channels(units: Sequence[_Unit], wanted: Sequence[str]) -> list[str]:
    """The names of the channels: those given, else modality and, of MR, the description."""
    first = units[0].scan
    names: list[str] = []
    for series in first.channels:
        of = series.frames[0].instance
        name = of.modality if of.modality in ("CT", "PT") else of.description or of.modality
        names += [f"{name} {c}" for c in "RGB"] if colours_of(of) == 3 else [name or "image"]
    modalities = Counter(s.frames[0].instance.modality for u in units for s in u.scan.channels[:1])
    if not wanted and len(modalities) > 1:
        raise AutosegError(
            f"the scans are of several modalities ({', '.join(sorted(modalities))}); choose the "
            "series of one, or name the channel yourself if that is meant"
        )
    if wanted and len(wanted) != len(names):
        raise AutosegError(f"{len(wanted)} channel names for {len(names)} channels")
    return list(wanted) or names


def _tidy(source: Path, target: Path, units: Sequence[_Unit]) -> None:
    """Remove the files of cases that now lie in another folder: structures were added or removed.

    Raises AutosegError for cases of an earlier conversion that the source does not hold any more.
    """
    now = {unit.scan.case: unit for unit in units}
    before = sorted(path.stem for path in (target / KEPT).glob("*.json"))
    gone = [case for case in before if case not in now]
    if gone:
        shown = ", ".join(gone[:4]) + (", …" if len(gone) > 4 else "")
        raise AutosegError(
            f"{target} holds cases that are not in {source}: {shown}; convert all of "
            "them at once, choose another name, or move the dataset away"
        )
    for case in before:
        others = "imagesTs" if now[case].files else "imagesTr"
        for path in (target / others).glob(f"{glob.escape(case)}_????.nii.gz"):
            path.unlink()
        if not now[case].files:
            (target / "labelsTr" / f"{case}.nii.gz").unlink(missing_ok=True)


def _convert_all(units: Sequence[_Unit], workers: int) -> tuple[int, list[Problem]]:
    """How many cases were made anew, and the warnings. Raises BadData, AutosegError."""
    target = units[0].target
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        sweep(target / folder)
    todo = [unit for unit in units if not _stands(unit)]
    problems: list[Problem] = []
    failed: list[AutosegError] = []
    outcomes = over_units(_convert, todo, workers=workers, bytes_of=_bytes)
    for _, outcome in tqdm(outcomes, "convert", total=len(todo), unit="case", disable=None):
        if isinstance(outcome, AutosegError):
            failed.append(outcome)
        else:
            problems += outcome
    if failed:
        told = [p for error in failed if isinstance(error, BadData) for p in error.problems]
        raise BadData(told) if len(told) >= len(failed) else failed[0]
    return len(todo), problems


def _bytes(unit: _Unit) -> int:
    return sum(
        len(s.frames) * s.frames[0].instance.rows * s.frames[0].instance.columns * BYTES_A_VOXEL
        for s in unit.scan.channels
    )


def _places(unit: _Unit) -> tuple[Path, Path]:
    """The folder of the images and the label file."""
    images = unit.target / ("imagesTr" if unit.files else "imagesTs")
    return images, unit.target / "labelsTr" / f"{unit.scan.case}.nii.gz"


def _stands(unit: _Unit) -> bool:
    """Whether the files of a case are there and made from what is there now."""
    images, label = _places(unit)
    here = (images / f"{unit.scan.case}_0000.nii.gz").exists()
    here = here and (not unit.files or label.exists())
    return here and standing(_stamp_path(unit), _stamp(unit)).state == "current"


def _stamp_path(unit: _Unit) -> Path:
    return unit.target / KEPT / f"{unit.scan.case}.json"


def _stamp(unit: _Unit) -> Stamp:
    inputs = {"scan": unit.scan.digest}
    for file in unit.files:
        inputs[file.name] = identity(file.source, [file.name])
    names = {name.strip().lower() for file in unit.files for name in file.names}
    options: dict[str, Any] = {
        "labels": {name: value for name, value in unit.values.items() if name in names},
        "paint_over": unit.paint_over,
        "accept_uneven": unit.accept_uneven,
    }
    return Stamp("convert_dicom", VERSION, inputs, options)


def _convert(unit: _Unit) -> list[Problem]:
    """Write the files of one case; the warnings. Raises AutosegError."""
    images, label = _places(unit)
    path = _stamp_path(unit)
    path.unlink(missing_ok=True)
    case = unit.scan.case
    volume, problems = read_scan(unit.scan, AXES, accept_uneven=unit.accept_uneven)
    if unit.drawn is not None:
        drawn, found = read_structures(
            unit.files,
            unit.drawn,
            unit.values,
            AXES,
            case,
            paint_over=unit.paint_over,
            accept_uneven=unit.accept_uneven,
        )
        problems += found
        label.parent.mkdir(parents=True, exist_ok=True)
        write_labels(label, drawn.array[0], AXES, drawn.grid)
    write_channels(images, case, volume)
    _stamp(unit).write(path)
    return problems
