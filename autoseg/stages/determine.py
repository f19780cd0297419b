"""Pairs of prediction and reference → the cleaning steps that help, on the cross-validation.

What a step does to the Dice of a case is kept in one file a case, so that a search that was stopped
goes on, and one that is repeated measures nothing.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from autoseg.documents.labels import IGNORE, LabelSet
from autoseg.documents.postprocessing import DenseCRF, Postprocessing, Step, Tried
from autoseg.errors import AutosegError, BadData, Problem, raise_fatal
from autoseg.files import (
    Lock,
    explaining,
    read_json,
    replacing,
    sha256_file,
    sha256_json,
    sweep,
    write_json,
)
from autoseg.image.checks import check_label_values, check_same_grid
from autoseg.image.cleaning import cleaned
from autoseg.image.components import component_sizes_vox
from autoseg.image.metrics import dimensions_of, measure_labels
from autoseg.image.reading import read_header, read_labels
from autoseg.pool import over_units
from autoseg.rules.postprocessing import (
    Waves,
    classes_of,
    depends_on,
    fields_to_try,
    record,
    steps_to_try,
    supersedes,
    touched,
    worth_keeping,
)
from autoseg.rules.selection import FEWEST_CASES, mean_dice
from autoseg.stage import Stamp

VERSION = 1
PARTS = 5
"""Of the cases, for the estimate that holds out what it scores."""
STORED = "stored"
"""The file's own axes, slowest first; no array is turned."""
BYTES_PER_VOXEL = 40
"""Of a label map and its reference with what cleaning needs beside them."""

Classes = npt.NDArray[np.int16]
Refine = Callable[[str, DenseCRF], npt.NDArray[Any]]
"""(case, settings) -> class indices on the grid of the case's prediction, in the same axes."""
Wanted = tuple[tuple[Step, ...], Step | None]
"""The steps that go before, and the step whose effect is measured (None: the label map itself)."""
Scores = dict[str, dict[str, float | None]]


def determine(
    pairs: Mapping[str, tuple[Path, Path]],
    labels: LabelSet,
    *,
    folder: Path,
    workers: int = 1,
    axes: str = STORED,
    refine: Refine | None = None,
    settings: Sequence[DenseCRF] | None = None,
) -> Postprocessing:
    """The steps that improve `pairs` (case id -> prediction, reference), and all that was tried.

    A step is kept if the mean foreground Dice gets better (`rules.selection.better`) and that of no
    structure falls; the next is tried on top of it. `folder` holds what was measured. With
    `refine`, which speaks in `axes`, dense CRFs are tried first: `settings`, or some for the
    spacing of the label maps.
    Raises BadData for all bad pairs.
    """
    if not pairs:
        raise ValueError("postprocessing is chosen on pairs of prediction and reference")
    with explaining(folder, "write to"):
        folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / ".lock", f"the choice of postprocessing in {folder}"):
        sweep(folder)
        bench = _Bench(_units(pairs, labels, axes), labels, folder, workers, axes, refine)
        return _searched(bench, settings)


def _searched(bench: "_Bench", settings: Sequence[DenseCRF] | None) -> Postprocessing:
    """Every step in its turn, on top of what was kept."""
    bench.measure([((), None)])
    raw = bench.scores((), None)
    waves = bench.waves(settings)
    kept, state, tried = _search(bench, waves, set(raw))
    held_out = _held_out(bench, waves, sorted(raw)) if kept else None
    bench.tidy(kept)
    return Postprocessing(
        steps=kept,
        tried=tuple(tried),
        cases=len(state),
        before=mean_dice(raw),
        after=mean_dice(state),
        held_out=held_out,
    )


def _held_out(bench: "_Bench", waves: Waves, cases: Sequence[str]) -> float | None:
    """The mean Dice where each case is cleaned by steps that were chosen without it.

    The whole search is repeated for each of PARTS parts of the cases, on the others (nested
    cross-validation: Varma & Simon 2006, doi:10.1186/1471-2105-7-91). None where a search would have
    too few cases.
    """
    if len(cases) < PARTS * FEWEST_CASES // (PARTS - 1) + 1:
        return None
    honest: Scores = {}
    for number in range(PARTS):
        part = cases[number::PARTS]
        _, state, _ = _search(bench, waves, set(cases).difference(part))
        honest |= {case: state[case] for case in part}
    return mean_dice(honest)


def _search(
    bench: "_Bench", waves: Waves, judged: set[str]
) -> tuple[tuple[Step, ...], Scores, list[Tried]]:
    """The steps that help the `judged` cases, what they leave of all cases, and what was tried."""
    state = bench.scores((), None)
    kept: tuple[Step, ...] = ()
    tried: list[Tried] = []
    for wave in waves:
        for place, step in enumerate(wave):
            before = depends_on(step, kept, bench.labels)
            if not bench.knows(before, step):
                bench.measure([(depends_on(s, kept, bench.labels), s) for s in wave[place:]])
            changed = bench.scores(before, step)
            after = {case: {**scores, **changed[case]} for case, scores in state.items()}
            now, then = ({c: scores[c] for c in judged} for scores in (state, after))
            verdict = worth_keeping(now, then)
            tried = record(tried, step, verdict, now, then)
            if verdict.value:
                kept = (*(s for s in kept if not supersedes(step, s)), step)
                state = after
    return kept, state, tried


@dataclass(frozen=True)
class _Unit:
    """One case of the cross-validation; `made_from` hashes all that its scores depend on."""

    case: str
    prediction: Path
    reference: Path
    made_from: str

    def __str__(self) -> str:
        return self.case


def _units(
    pairs: Mapping[str, tuple[Path, Path]], labels: LabelSet, axes: str
) -> tuple[_Unit, ...]:
    found = []
    for case, (prediction, reference) in sorted(pairs.items()):
        files = {"prediction": sha256_file(prediction), "reference": sha256_file(reference)}
        stamp = Stamp("determine", VERSION, files, {"labels": labels.dump(), "axes": axes})
        found.append(_Unit(case, prediction, reference, stamp.digest))
    return tuple(found)


class _Bench:
    """Measures what steps do to the scores of every case, each no more than once."""

    def __init__(
        self,
        units: tuple[_Unit, ...],
        labels: LabelSet,
        folder: Path,
        workers: int,
        axes: str,
        refine: Refine | None,
    ) -> None:
        self.units, self.labels, self.folder = units, labels, folder
        self.workers, self.axes, self.refine = workers, axes, refine
        self.known = {unit.case: _known(folder, unit) for unit in units}

    def knows(self, before: Sequence[Step], step: Step | None) -> bool:
        """Whether the effect of a step is measured in every case."""
        key = _key(before, step)
        return all(key in known["dice"] for known in self.known.values())

    def scores(self, before: Sequence[Step], step: Step | None) -> Scores:
        """Case -> Dice of the structures that the step can change; it must have been measured."""
        key = _key(before, step)
        return {case: dict(known["dice"][key]) for case, known in self.known.items()}

    def measure(self, wanted: Sequence[Wanted]) -> None:
        """Measure what is not known yet. Raises BadData for all bad pairs."""
        todo = [
            unit
            for unit in self.units
            if any(_key(*want) not in self.known[unit.case]["dice"] for want in wanted)
        ]
        fields = dict.fromkeys(
            s for before, step in wanted for s in (*before, step) if isinstance(s, DenseCRF)
        )
        if not todo:
            return
        self._refine(todo, list(fields))
        work = partial(
            _measure, wanted=tuple(wanted), labels=self.labels, folder=self.folder, axes=self.axes
        )
        failed: list[Problem] = []
        with tqdm(total=len(todo), desc="postprocessing", unit="case", disable=None) as bar:
            for unit, outcome in over_units(
                work, todo, workers=self.workers, bytes_of=lambda u: _bytes(u.reference)
            ):
                bar.update()
                if isinstance(outcome, BadData):
                    failed += outcome.problems
                elif isinstance(outcome, AutosegError):
                    what = "a label map cannot be read"
                    failed.append(Problem(unit.case, what, str(outcome), "mend it"))
                else:
                    self.known[unit.case] = outcome
        raise_fatal(failed)

    def _refine(self, units: Sequence[_Unit], fields: Sequence[DenseCRF]) -> None:
        """Write the label maps that the dense CRFs give, where they are not there yet."""
        todo = [
            (unit, field)
            for field in fields
            for unit in units
            if _refined(self.folder, unit, field) is None
        ]
        for unit, field in tqdm(todo, "dense CRF", unit="case", disable=None, leave=False):
            if self.refine is None:
                raise ValueError("a dense CRF needs `refine`")
            classes = np.asarray(self.refine(unit.case, field))
            with replacing(_refined_path(self.folder, unit, field)) as half:
                np.savez_compressed(
                    half, classes=classes.astype(np.int16), made_from=np.array(unit.made_from)
                )

    def waves(self, settings: Sequence[DenseCRF] | None) -> tuple[tuple[Step, ...], ...]:
        """The steps to try, by what the references hold; the label maps must have been measured."""
        everything = list(self.known.values())
        volumes = {
            name: [v for known in everything for v in known["volumes_mm3"][name]]
            for name in classes_of(self.labels)
        }
        fields: Sequence[DenseCRF] = ()
        if self.refine is not None:
            median = np.median([known["spacing_mm"] for known in everything], axis=0)
            fields = settings if settings is not None else fields_to_try(median.tolist())
        voxel_mm3 = min(float(np.prod(known["spacing_mm"])) for known in everything)
        return steps_to_try(self.labels, volumes, voxel_mm3, fields)

    def tidy(self, kept: Sequence[Step]) -> None:
        """Remove the label maps of dense CRFs that were not kept; their scores stay."""
        wanted = {_key((), step) for step in kept if isinstance(step, DenseCRF)}
        for path in self.folder.glob("crf_*/*.npz"):
            if path.parent.name.removeprefix("crf_") not in wanted:
                path.unlink()
        for place in self.folder.glob("crf_*"):
            if not any(place.iterdir()):
                place.rmdir()


def _key(before: Sequence[Step], step: Step | None) -> str:
    """What the scores of a step are kept under."""
    return sha256_json([[s.dump() for s in before], step.dump() if step else None])[:16]


def _known_path(folder: Path, unit: _Unit) -> Path:
    return folder / f"{unit.case}.json"


def _known(folder: Path, unit: _Unit) -> dict[str, Any]:
    """What was measured of a case and is still true."""
    nothing = {"made_from": unit.made_from, "dice": {}}
    path = _known_path(folder, unit)
    if not path.exists():
        return nothing
    try:
        found = read_json(path)
    except AutosegError:
        return nothing
    true = isinstance(found, dict) and found.get("made_from") == unit.made_from
    return dict(found) if true else nothing


def _refined_path(folder: Path, unit: _Unit, field: DenseCRF) -> Path:
    return folder / f"crf_{_key((), field)}" / f"{unit.case}.npz"


def _refined(folder: Path, unit: _Unit, field: DenseCRF) -> Classes | None:
    """The label map that a dense CRF gave; None if it is missing, damaged or of other files."""
    try:
        with np.load(_refined_path(folder, unit, field), allow_pickle=False) as stored:
            if str(stored["made_from"]) != unit.made_from:
                return None
            classes: Classes = stored["classes"]
            return classes
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _measure(
    unit: _Unit, *, wanted: tuple[Wanted, ...], labels: LabelSet, folder: Path, axes: str
) -> dict[str, Any]:
    """Measure what is wanted of a case and not known yet, and keep it in the case's file."""
    known = _known(folder, unit)
    todo = {_key(*want): want for want in wanted if _key(*want) not in known["dice"]}
    predicted, reference, spacing_mm = _read_pair(unit, labels, axes)
    if "volumes_mm3" not in known:
        known["spacing_mm"] = list(spacing_mm)
        known["volumes_mm3"] = _volumes_mm3(reference, spacing_mm, labels)
    bases: dict[str, tuple[Classes, Classes]] = {}
    for key, (before, step) in todo.items():
        steps = (step,) if isinstance(step, DenseCRF) else before
        base = _key(steps, None)
        if base not in bases:
            bases = {base: _base(unit, steps, predicted, reference, spacing_mm, labels, folder)}
        found, truth = bases[base]
        if step is not None and not isinstance(step, DenseCRF):
            found = cleaned(found, spacing_mm, [step], labels)
        known["dice"][key] = _dice(found, truth, touched(step, labels), spacing_mm, labels)
    write_json(_known_path(folder, unit), known, durable=False)
    return known


def _base(
    unit: _Unit,
    steps: Sequence[Step],
    predicted: Classes,
    reference: Classes,
    spacing_mm: Sequence[float],
    labels: LabelSet,
    folder: Path,
) -> tuple[Classes, Classes]:
    """The label map after some steps and its reference, both cut to where there is something."""
    found = predicted
    if steps and isinstance(steps[0], DenseCRF):
        refined = _refined(folder, unit, steps[0])
        if refined is None or refined.shape != predicted.shape:
            _refined_path(folder, unit, steps[0]).unlink(missing_ok=True)
            raise ValueError(
                f"{unit.case}: the dense CRF gave no label map on the grid of the scan"
            )
        found = refined
    box = _box((found != 0) | (reference > 0))
    alone = [s for s in steps if not isinstance(s, DenseCRF)]
    return cleaned(found[box], spacing_mm, alone, labels), reference[box]


def _box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box one voxel wider than a mask, as far as the array goes."""
    sides = []
    for axis in range(mask.ndim):
        held = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        sides.append(slice(max(held[0] - 1, 0), held[-1] + 2) if held.size else slice(0, 1))
    return tuple(sides)


def _dice(
    found: Classes,
    reference: Classes,
    names: Sequence[str],
    spacing_mm: Sequence[float],
    labels: LabelSet,
) -> dict[str, float | None]:
    """The Dice of each structure, None where it is in neither; unlabelled voxels do not count."""
    classes = classes_of(labels)
    scores = measure_labels(
        found,
        np.maximum(reference, 0),
        {name: classes[name] for name in names},
        spacing_mm,
        dimensions=dimensions_of(found.shape),
        surfaces=False,
        valid=reference != IGNORE if labels.ignore is not None else None,
    )
    return {
        name: None if np.isnan(s.values["dice"]) else s.values["dice"] for name, s in scores.items()
    }


def _volumes_mm3(
    reference: Classes, spacing_mm: Sequence[float], labels: LabelSet
) -> dict[str, list[float]]:
    """The volumes of the pieces of each structure."""
    part = reference[_box(reference > 0)]
    voxel_mm3 = float(np.prod(spacing_mm))
    return {
        name: (component_sizes_vox(np.isin(part, classes)) * voxel_mm3).tolist()
        for name, classes in classes_of(labels).items()
    }


def _read_pair(
    unit: _Unit, labels: LabelSet, axes: str
) -> tuple[Classes, Classes, tuple[float, ...]]:
    """Prediction and reference (*axes) as class indices, and the spacing. Raises BadData."""
    reference, problems = read_labels(unit.reference, axes)
    predicted, more = read_labels(unit.prediction, axes, reference.grid)
    problems += more
    problems += check_same_grid(unit.case, reference.grid, predicted.grid, axes, "prediction")
    problems += check_label_values(unit.case, predicted.array, labels.values)
    problems += check_label_values(unit.case, reference.array, labels.allowed)
    raise_fatal(problems)
    return (
        labels.to_classes(predicted.array[0]),
        labels.to_classes(reference.array[0]),
        reference.spacing_mm,
    )


def _bytes(path: Path) -> int:
    """The memory that the work on a case needs at most; 0 for a file that cannot be read."""
    try:
        return BYTES_PER_VOXEL * int(np.prod(read_header(path).grid.shape))
    except AutosegError:
        return 0
