"""Predictions × references → report: every pair is compared on its own grid, case by case."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from autoseg.documents.dataset import suffix_of
from autoseg.documents.labels import LabelSet
from autoseg.documents.report import CaseScores, Report, build_report, label_scores
from autoseg.errors import AutosegError, BadData, Problem, counted, nearest
from autoseg.files import explaining
from autoseg.image.checks import check_label_values, check_same_grid
from autoseg.image.metrics import TOLERANCE_MM, measure_labels, without_surfaces
from autoseg.image.reading import read_header, read_labels
from autoseg.pool import over_units

log = logging.getLogger(__name__)

VOXELS = 2
"""Edges of a voxel that are a tolerance where 1 mm is more."""
AS_ARRAYS = "stored"
"""Scores do not depend on the axes; the file's order, slowest axis first, spares a copy."""
UNLABELLED = "not wholly labelled"
"""Why a case with ignored voxels has no surface distances."""


def label_files(folder: Path) -> dict[str, Path]:
    """Case id -> label map, for the label maps of a folder. Raises AutosegError."""
    with explaining(folder, "list"):
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found: dict[str, Path] = {}
    for name in names:
        suffix = suffix_of(name)
        if suffix and not name.startswith("."):
            case = name[: -len(suffix)]
            if case in found:
                raise AutosegError(
                    f"{folder} holds two label maps of {case}: {found[case].name} and {name}; keep one"
                )
            found[case] = folder / name
    return found


def pairs_of(predictions: Path, references: Mapping[str, Path]) -> dict[str, tuple[Path, Path]]:
    """Case id -> (prediction, reference), for every prediction. Raises AutosegError."""
    predicted = label_files(predictions)
    if not predicted:
        raise AutosegError(f"{predictions} holds no label map to evaluate")
    without = [case for case in predicted if case not in references]
    if len(without) == len(predicted) > 1:
        # whose names are near is then another patient
        raise AutosegError(
            f"none of the {len(without)} label maps in {predictions} has a reference, as "
            f"{predicted[without[0]].name}; name the folder of their references with -r"
        )
    for case in without:
        raise AutosegError(f"{predicted[case]} has no reference{nearest(case, list(references))}")
    return {case: (path, references[case]) for case, path in predicted.items()}


def check_complete(
    pairs: Mapping[str, tuple[Path, Path]], expected: Iterable[str], *, partial: bool
) -> None:
    """Raises AutosegError for cases that have a reference and no prediction, unless `partial`.

    A mean over the others would hide what was not found at all.
    """
    missing = sorted(set(expected) - set(pairs))
    if not missing:
        return
    names = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
    found = f"{counted(len(missing), 'reference')} without a prediction: {names}"
    if not partial:
        raise AutosegError(f"{found}; predict them too, or score the others with --partial")
    log.warning("%s; the scores are those of the other %d", found, len(pairs))


def tolerance_for(pairs: Mapping[str, tuple[Path, Path]]) -> float:
    """The tolerance of the surface Dice, in mm, where nobody says one: 1 mm, or what voxels allow.

    With voxels of micrometres 1 mm would take every surface for found: it is then twice the longest
    edge of a voxel, of the median case.
    """
    edges = []
    for _, reference in pairs.values():
        with suppress(AutosegError):  # what cannot be read is told when it is scored
            edges.append(max(read_header(reference).grid.spacing_mm))
    return min([TOLERANCE_MM] + ([float(f"{VOXELS * np.median(edges):.3g}")] if edges else []))


def labels_seen(pairs: Mapping[str, tuple[Path, Path]]) -> LabelSet:
    """The labels that the files themselves hold, named by their values, where no dataset says more."""
    found: tuple[set[int], set[int]] = (set(), set())
    for pair in pairs.values():
        for side, path in zip(found, pair, strict=True):
            side |= {int(v) for v in np.unique(read_labels(path, AS_ARRAYS)[0].array)}
    predicted, referenced = (sorted(side - {0}) for side in found)
    if predicted and referenced and not set(predicted) & set(referenced):
        log.warning(
            "the predictions hold %s and the references %s: no value stands on both sides, so every "
            "Dice is 0; give both the same values", *(", ".join(map(str, side[:5])) for side in
                                                      (predicted, referenced)),
        )  # fmt: skip
    values = {0, *predicted, *referenced}
    if len(values) < 2:
        raise AutosegError("no label map holds anything but 0: there is nothing to score")
    ordered = sorted(values)
    return LabelSet(names=tuple(f"label {v}" for v in ordered), values=tuple(ordered))


def score_case(
    pair: tuple[str, tuple[Path, Path]], *, labels: LabelSet, tolerance_mm: float, surfaces: bool
) -> CaseScores:
    """The scores of one prediction against its reference, both in label values.

    Voxels that nobody labelled in the reference count in no score, and where there are such no
    surface does: its hidden parts have no border. A prediction's own ignore value is no structure.
    """
    case, (predicted_path, reference_path) = pair
    reference, problems = read_labels(reference_path, AS_ARRAYS)
    predicted, more = read_labels(predicted_path, AS_ARRAYS, reference.grid)
    problems += more
    problems += check_same_grid(case, reference.grid, predicted.grid, AS_ARRAYS, "prediction")
    for volume in (predicted, reference):
        problems += check_label_values(case, volume.array, labels.allowed)
    if any(p.fatal for p in problems):
        raise BadData([p for p in problems if p.fatal])
    known = None if labels.ignore is None else reference.array[0] != labels.ignore
    hidden = known is not None and not known.all()
    scores = measure_labels(
        predicted.array[0],
        reference.array[0],
        labels.structures,
        reference.spacing_mm,
        dimensions=2 if reference.grid.dimensions == 2 else 3,
        tolerance_mm=tolerance_mm,
        surfaces=surfaces and not hidden,
        valid=known if hidden else None,
    )
    if surfaces and hidden:
        scores = {name: without_surfaces(found, UNLABELLED) for name, found in scores.items()}
    return CaseScores(
        case=case,
        labels={
            name: label_scores(found.outcome, found.values, found.undefined)
            for name, found in scores.items()
        },
    )


def evaluate(
    pairs: Mapping[str, tuple[Path, Path]],
    labels: LabelSet,
    *,
    dataset: str,
    tolerance_mm: float | None = None,
    surfaces: bool = True,
    workers: int = 1,
    made_by: Sequence[str | None] = (None, None, None),
    fold: int | None = None,
) -> Report:
    """The report on `pairs` (case id -> prediction, reference). Raises BadData for all bad pairs.

    `made_by` names plan, configuration and run. Without `tolerance_mm` it follows the voxels.
    """
    if tolerance_mm is None:
        tolerance_mm = tolerance_for(pairs) if surfaces else TOLERANCE_MM
    score = partial(score_case, labels=labels, tolerance_mm=tolerance_mm, surfaces=surfaces)
    scored: list[CaseScores] = []
    failed: list[Problem] = []
    with tqdm(total=len(pairs), desc="evaluate", unit="case", disable=None, leave=False) as bar:
        for (case, _), outcome in over_units(score, list(pairs.items()), workers=workers):
            bar.update()
            if isinstance(outcome, BadData):
                failed += outcome.problems
            elif isinstance(outcome, AutosegError):
                failed.append(Problem(case, "a label map cannot be read", str(outcome), "mend it"))
            else:
                scored.append(outcome)
    if failed:
        raise BadData(failed)
    plan, configuration, run = made_by
    return build_report(
        scored,
        dataset=dataset,
        tolerance_mm=tolerance_mm,
        plan=plan,
        configuration=configuration,
        run=run,
        fold=fold,
    )
