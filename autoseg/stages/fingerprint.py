"""Cases → fingerprint: every training case is read once, checked and measured, case by case.

The measures of a case are one file; it is made again only when a file of the case has another
content. Size and modification time gate the hashing, so an unchanged dataset is not read at all.
"""

import dataclasses
import logging
from collections.abc import Iterator
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from autoseg.documents.dataset import Case, Dataset, read_dataset
from autoseg.documents.fingerprint import (
    QUANTILES,
    CaseMeasure,
    CaseSummary,
    ChannelMeasure,
    FileMark,
    Fingerprint,
    Intensity,
    LabelMeasure,
    LabelSummary,
    MeasuredCase,
    NamedProblem,
    measured_key,
)
from autoseg.documents.labels import IGNORE
from autoseg.errors import AutosegError, BadData, Problem
from autoseg.files import (
    explaining,
    read_json,
    sha256_file,
    sha256_json,
    sweep,
    write_changed,
    write_json,
)
from autoseg.image.checks import (
    check_channels,
    check_constant,
    check_label_not_empty,
    check_label_values,
    check_pair,
)
from autoseg.image.components import component_sizes_by_class
from autoseg.image.geometry import nonzero_limits
from autoseg.image.reading import read_header, read_image, read_labels
from autoseg.image.tif_spacing import spacing_files
from autoseg.image.volume import Volume
from autoseg.pool import keep_freed_memory, over_units
from autoseg.workspace import DatasetPlaces

log = logging.getLogger(__name__)

VERSION = 1
AS_STORED = "stored:ijk"
ROBUST_LIMIT = 8.0
"""A case is an outlier beyond this many robust standard deviations (1.4826 MAD) of the median.
Where most are the same: beyond a factor of two, or half of the brightness."""


def _place(path: Path, folder: Path) -> str:
    """How a file of the dataset is named in documents: relative to the dataset where it can be."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _mark(path: Path, old: FileMark | None, verify: bool) -> FileMark:
    with explaining(path, "read"):
        stat = path.stat()
    if old and not verify and (old.size, old.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return old
    return FileMark(size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256_file(path))


def marks(case: Case, folder: Path, old: MeasuredCase | None, verify: bool) -> dict[str, FileMark]:
    """The marks of a case's files; a file is hashed only if its size or time changed, or to verify."""
    known = old.files if old else {}
    return {
        name: _mark(path, known.get(name), verify)
        for path in _files(case)
        for name in [_place(path, folder)]
    }


def _files(case: Case) -> list[Path]:
    """All that a case is read from; of tif volumes the spacing lies in a file of its own."""
    return [*case.images, *([case.label] if case.label else []), *spacing_files(case.images)]


def read_measured(path: Path) -> MeasuredCase | None:
    """What was measured of a case before, or None; damaged or of an older version it counts as nothing."""
    if not path.exists():
        return None
    try:
        value = read_json(path)
        if not isinstance(value, dict) or value.get("version") != VERSION:
            return None
        return MeasuredCase.parse(value, str(path))
    except AutosegError as error:
        log.info("measured again: %s", error)
        return None


def _bytes_needed(case: Case) -> int:
    """Memory for measuring one case: a few float copies of its voxels, from the headers alone."""
    try:
        header = read_header(case.images[0])
    except AutosegError:
        return 0
    return prod(header.grid.shape) * max(header.channels, len(case.images)) * 4 * 6


def measure_case(case: Case, dataset: Dataset) -> tuple[CaseMeasure | None, list[Problem]]:
    """What is measured of one case and what is wrong with it; None if that makes measuring futile."""
    try:
        image, problems = read_image(case.images, AS_STORED)
        problems += check_channels(case.id, len(image.array), len(dataset.channels))
        problems += check_constant(case.id, image.array)
        labels = None
        if case.label is not None:
            labels, found = read_labels(case.label, AS_STORED, image.grid)
            problems += found
            problems += check_pair(case.id, image, labels)
            problems += check_label_values(case.id, labels.array, dataset.labels.allowed)
            problems += check_label_not_empty(case.id, labels.array, ignore=dataset.labels.ignore)
    except BadData as error:
        return None, [dataclasses.replace(p, case=case.id) for p in error.problems]
    except AutosegError as error:
        problem = Problem(case.id, "a file cannot be read", str(error), "replace the file")
        return None, [problem]
    problems = [dataclasses.replace(p, case=case.id) for p in problems]
    if any(p.fatal for p in problems) or labels is None:
        return None, problems
    classes = dataset.labels.to_classes(labels.array[0])
    return _measures(case.id, image, classes, len(dataset.labels.foreground)), problems


def _measures(
    case: str, image: Volume, classes: npt.NDArray[np.int16], structures: int
) -> CaseMeasure:
    box = nonzero_limits(image.array)
    grid = image.grid
    cropped = tuple(stop - start for start, stop in box_limits(box, grid.shape))
    foreground = classes > 0
    voxel_mm3 = float(prod(grid.spacing_mm))
    return CaseMeasure(
        case=case,
        dimensions=2 if grid.dimensions == 2 else 3,
        orientation=grid.orientation,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        cropped_shape=(cropped[0], cropped[1], cropped[2]),
        channels=tuple(_channel(channel, foreground) for channel in image.array),
        labels=tuple(
            _label(sizes, voxel_mm3) for sizes in component_sizes_by_class(classes, structures)
        ),
        ignored_vox=int(np.count_nonzero(classes[box] == IGNORE)),
    )


def box_limits(box: tuple[slice, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(start, stop) of each axis of a box of slices in an array of `shape`."""
    for part, size in zip(box, shape, strict=True):
        start, stop, _ = part.indices(size)
        yield start, stop


def _channel(values: npt.NDArray[np.float32], foreground: npt.NDArray[np.bool_]) -> ChannelMeasure:
    inside = values[foreground]
    low, high = float(values.min()), float(values.max())
    if inside.size == 0:
        return ChannelMeasure(mean=None, std=None, quantiles=(), low=low, high=high)
    return ChannelMeasure(
        mean=float(inside.mean(dtype=np.float64)),
        std=float(inside.std(dtype=np.float64)),
        quantiles=tuple(float(f"{q:.7g}") for q in evenly_spaced_quantiles(inside)),
        low=low,
        high=high,
    )


def evenly_spaced_quantiles(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """QUANTILES quantiles from the least to the largest of some values, as np.quantile gives them.

    Sorting once takes a tenth of the time in which np.quantile searches for two thousand ranks.
    """
    ordered = np.sort(values, axis=None)
    ranks = np.linspace(0, 1, QUANTILES) * (ordered.size - 1)
    below = np.floor(ranks).astype(np.intp)
    share = ranks - below
    low, high = ordered[below], ordered[np.minimum(below + 1, ordered.size - 1)]
    gap = high - low
    return np.where(share < 0.5, low + gap * share, high - gap * (1 - share))


def _label(sizes: npt.NDArray[np.int64], voxel_mm3: float) -> LabelMeasure:
    """What is measured of a structure whose components have these voxels."""
    voxels = int(sizes.sum())
    some = sizes.size > 0
    return LabelMeasure(
        voxels=voxels,
        volume_mm3=voxels * voxel_mm3,
        components=int(sizes.size),
        smallest_mm3=float(sizes.min() * voxel_mm3) if some else None,
        median_mm3=float(np.median(sizes) * voxel_mm3) if some else None,
        largest_mm3=float(sizes.max() * voxel_mm3) if some else None,
    )


def _work(case: Case, dataset: Dataset, measured: Path, verify: bool) -> tuple[MeasuredCase, bool]:
    """Bring one case's file up to date; whether it had to be measured again."""
    keep_freed_memory()
    path = measured / f"{case.id}.json"
    old = read_measured(path)
    new = MeasuredCase(
        version=VERSION,
        label_values=dataset.labels.allowed,
        channels=len(dataset.channels),
        files=marks(case, dataset.folder, old, verify),
        measure=None,
    )
    if old is not None and measured_key(old) == measured_key(new):
        if old.files != new.files:  # same content, another time stamp: remember the time only
            old = MeasuredCase.parse({**old.dump(), "files": new.dump()["files"]}, str(path))
            write_json(path, old.dump(), durable=False)
        return old, False
    measure, problems = measure_case(case, dataset)
    new = MeasuredCase.parse(
        {
            **new.dump(),
            "measure": measure.dump() if measure else None,
            "problems": [p.to_dict() for p in problems],
        },
        str(path),
    )
    write_json(path, new.dump(), durable=False)
    return new, True


def unchanged(case: Case, dataset: Dataset, measured: Path) -> MeasuredCase | None:
    """What was measured of a case, if its files have the sizes and times they had then."""
    old = read_measured(measured / f"{case.id}.json")
    if old is None:
        return None
    if (old.label_values, old.channels) != (dataset.labels.allowed, len(dataset.channels)):
        return None
    files = _files(case)
    if {_place(path, dataset.folder) for path in files} != old.files.keys():
        return None
    for path in files:
        known = old.files[_place(path, dataset.folder)]
        with explaining(path, "read"):
            stat = path.stat()
        if (known.size, known.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            return None
    return old


def fingerprint(places: DatasetPlaces, *, workers: int = 1, verify: bool = False) -> Fingerprint:
    """Measure what is new or changed and write fingerprint.json and checks.json.

    Raises BadData with everything that is wrong; what was measured until then is kept.
    """
    dataset, problems = read_dataset(places.raw)
    sweep(places.fingerprint_folder)
    sweep(places.measured)
    work = partial(_work, dataset=dataset, measured=places.measured, verify=verify)
    results: dict[str, MeasuredCase] = {}
    redone = 0
    cases = [case for case in dataset.cases if case.label is not None]
    if not verify:
        old = {case.id: unchanged(case, dataset, places.measured) for case in cases}
        results = {name: measured for name, measured in old.items() if measured is not None}
    todo = [case for case in cases if case.id not in results]
    bar = tqdm(total=len(cases), initial=len(results), desc="fingerprint", unit="case",
               disable=None)  # fmt: skip
    with bar:
        for case, result in over_units(work, todo, workers=workers, bytes_of=_bytes_needed):
            bar.update()
            if isinstance(result, AutosegError):
                fault, fix = "a case cannot be measured", "correct that and repeat"
                problems.append(Problem(case.id, fault, str(result), fix))
                continue
            results[case.id], new = result
            redone += new
    if redone:
        log.info("fingerprint of %s: %d of %d cases measured", dataset.name, redone, len(cases))
    for case_id in sorted(results):
        problems += [Problem(**p.dump()) for p in results[case_id].problems]
    checks = {"problems": [p.to_dict() for p in problems]}
    write_changed(places.checks, checks)
    fatal = [p for p in problems if p.fatal]
    if fatal:
        raise BadData(fatal)
    for text in {f"{p.case}: {p.what}: {p.found}" for p in problems}:
        log.warning(text)
    made = summary(dataset, [results[c.id] for c in cases])
    write_changed(places.fingerprint, made.dump())
    return made


def summary(dataset: Dataset, measured: list[MeasuredCase]) -> Fingerprint:
    """The fingerprint of all measured cases, sorted as given."""
    pairs = [(m, m.measure) for m in measured if m.measure is not None]
    measures = [measure for _, measure in pairs]
    _check_one_dimension(measures)
    voxels = np.array([[x.voxels for x in m.labels] for m in measures], dtype=np.int64)
    inside = np.array([prod(m.cropped_shape) - m.ignored_vox for m in measures], dtype=np.int64)
    foreground = int(voxels.sum())
    return Fingerprint(
        dataset=dataset.name,
        dimensions=measures[0].dimensions,
        channels=dataset.channels,
        cases=tuple(_case_summary(m, sha256_json(measured_key(kept))) for kept, m in pairs),
        intensities=tuple(
            _intensity(name, [m.channels[i] for m in measures])
            for i, name in enumerate(dataset.channels)
        ),
        labels=tuple(
            _label_summary(dataset, i, [m.labels[i] for m in measures], int(inside.sum()))
            for i in range(len(dataset.labels.foreground))
        ),
        median_crop_share=float(
            np.median([prod(m.cropped_shape) / prod(m.shape) for m in measures])
        ),
        imbalance=float((inside.sum() - foreground) / foreground) if foreground else None,
        cases_without_label=tuple(
            m.case for m, row in zip(measures, voxels, strict=True) if not row.any()
        ),
        outliers=tuple(_outliers(measures, dataset)),
        regions=dataset.labels.regions,
        ignore=dataset.labels.ignore,
    )


def _check_one_dimension(measures: list[CaseMeasure]) -> None:
    """Raises BadData where single slices and volumes are mixed."""
    flat = [m.case for m in measures if m.dimensions == 2]
    if 0 < len(flat) < len(measures):
        found = f"{len(flat)} of {len(measures)} cases are a single slice"
        fix = "split them into two datasets"
        raise BadData([Problem(flat[0], "2D and 3D images are mixed", found, fix)])


def _case_summary(measure: CaseMeasure, digest: str) -> CaseSummary:
    """What the fingerprint keeps of a case."""
    voxel_mm3 = prod(measure.spacing_mm)
    return CaseSummary(
        case=measure.case,
        dimensions=measure.dimensions,
        orientation=measure.orientation,
        shape=measure.shape,
        spacing_mm=measure.spacing_mm,
        cropped_shape=measure.cropped_shape,
        label_voxels=tuple(x.voxels for x in measure.labels),
        label_components=tuple(x.components for x in measure.labels),
        label_component_vox=tuple(
            None if x.median_mm3 is None else x.median_mm3 / voxel_mm3 for x in measure.labels
        ),
        intensity_ranges=tuple((c.low, c.high) for c in measure.channels),
        digest=digest,
    )


def _intensity(name: str, channels: list[ChannelMeasure]) -> Intensity:
    """Pooled as nnU-Net samples: every case with a foreground has the same weight."""
    some = [c for c in channels if c.mean is not None and c.std is not None]
    fields: dict[str, Any] = dict.fromkeys(Intensity.model_fields)
    if not some:
        return Intensity(
            **{**fields, "channel": name, "why_undefined": "no case has a labelled voxel"}
        )
    means = np.array([c.mean for c in some], np.float64)
    spreads = np.array([c.std for c in some], np.float64)
    points = np.concatenate([np.asarray(c.quantiles) for c in some])
    low, p5, median, p95, high = np.percentile(points, [0.5, 5, 50, 95, 99.5])
    return Intensity(
        channel=name,
        mean=float(means.mean()),
        median=float(median),
        std=float(np.sqrt((spreads**2 + means**2).mean() - means.mean() ** 2)),
        min=float(points.min()),
        max=float(points.max()),
        percentile_00_5=float(low),
        percentile_05=float(p5),
        percentile_95=float(p95),
        percentile_99_5=float(high),
    )


def _label_summary(
    dataset: Dataset, index: int, measures: list[LabelMeasure], inside: int
) -> LabelSummary:
    shown = [m for m in measures if m.voxels]
    middle = [m.median_mm3 for m in shown if m.median_mm3 is not None]
    small = [m.smallest_mm3 for m in shown if m.smallest_mm3 is not None]
    return LabelSummary(
        name=dataset.labels.foreground[index],
        value=dataset.labels.values[index + 1],
        cases=len(shown),
        share_of_voxels=sum(m.voxels for m in shown) / max(inside, 1),
        median_volume_mm3=float(np.median([m.volume_mm3 for m in shown])) if shown else None,
        median_components=float(np.median([m.components for m in shown])) if shown else None,
        median_component_mm3=float(np.median(middle)) if middle else None,
        smallest_component_mm3=float(min(small)) if small else None,
    )


def _outliers(measures: list[CaseMeasure], dataset: Dataset) -> Iterator[NamedProblem]:
    """Cases that differ from the others in spacing, brightness or structure volume: to be looked at.

    The volume of a structure is known where somebody labelled every voxel.
    """
    rows: list[tuple[str, str, str, list[float | None]]] = [
        ("the voxel volume is unlike the others'", "mm³", "check the spacing in its header",
         [float(np.log(prod(m.spacing_mm))) for m in measures]),
    ]  # fmt: skip
    for i, name in enumerate(dataset.channels):
        rows.append(
            (f"the brightness of channel {name} is unlike the others'", "", "look at the image",
             [m.channels[i].mean for m in measures])
        )  # fmt: skip
    for i, name in enumerate(dataset.labels.foreground):
        rows.append(
            (f"the volume of {name} is unlike the others'", "mm³", "look at its label",
             [float(np.log(m.labels[i].volume_mm3))
              if m.labels[i].voxels and not m.ignored_vox else None for m in measures])
        )  # fmt: skip
    for what, unit, fix, values in rows:
        known = np.array([v for v in values if v is not None])
        if known.size < 8:
            continue
        middle = float(np.median(known))
        limit = ROBUST_LIMIT * 1.4826 * float(np.median(np.abs(known - middle)))
        limit = limit or (float(np.log(2)) if unit else abs(middle) / 2)
        for measure, value in zip(measures, values, strict=True):
            if value is None or limit <= 0 or abs(value - middle) <= limit:
                continue
            shown = (np.exp(value), np.exp(middle)) if unit else (value, middle)
            found = f"{shown[0]:.4g} {unit}, the median is {shown[1]:.4g} {unit}".strip()
            yield NamedProblem(case=measure.case, what=what, found=found, fix=fix, fatal=False)
