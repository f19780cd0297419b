"""Dataset × fingerprint → folds: a splits file, and beside it how it was made.

Without a splits file the folds follow from the dataset alone, in the same way every time; a file of
the raw folder goes before all.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from autoseg.documents.cases import find_table, groups_of, read_table
from autoseg.documents.dataset import Dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.run import RunSpec
from autoseg.documents.splits import (
    FOLDS,
    SPLIT_FILES,
    Split,
    as_document,
    read_splits,
    splits_file,
    write_splits,
)
from autoseg.errors import AutosegError, BadData, Problem, Stale
from autoseg.files import Lock, read_json, sha256_json, write_json
from autoseg.rules.decision import Decision
from autoseg.rules.folds import FoldsReport, fold_report, make_folds, scans_of_patients
from autoseg.workspace import DatasetPlaces, Fold

log = logging.getLogger(__name__)

RECORD = "folds.json"
"""Beside the splits file: how it was made, and what is in each fold."""


@dataclass(frozen=True)
class SplitReport:
    """The folds of a dataset, how they were made, and what each holds."""

    path: Path
    grouped_by: str | None
    why: str
    folds: FoldsReport
    written: bool
    """False if the file held these folds already."""
    stale: tuple[str, ...] = ()
    """Folds that were begun with other cases, and must be trained again."""

    def lines(self) -> list[str]:
        """What a person reads."""
        said = "written" if self.written else "unchanged"
        retrain = [f"to be trained again (train --redo): {fold}" for fold in self.stale]
        kept = [f"kept together by {self.grouped_by}"] if self.grouped_by else []
        return [*self.folds.lines(), *kept, self.why, *retrain, f"{said}: {self.path}"]


@dataclass(frozen=True)
class Grouping:
    """Which cases stay together, and what that was read from; None where each is by itself."""

    groups: Mapping[str, str] | None = None
    by: str | None = None


def split(
    places: DatasetPlaces,
    dataset: Dataset,
    fingerprint: Fingerprint,
    *,
    by: str | None = None,
    pattern: str | None = None,
    table: Path | None = None,
    folds: int = FOLDS,
    redo: bool = False,
) -> SplitReport:
    """Make the folds and write them to the preprocessed folder.

    `by` is a column of the `table` (default: cases.csv or .tsv of the raw folder), `pattern` a
    regular expression whose first group (or whole match) in a case id is its patient. Raises
    AutosegError for a splits file in the raw folder, and Stale, unless `redo`, where one that a
    person wrote or folds were trained with would be replaced.
    """
    theirs = splits_file(places.raw)
    if theirs is not None:
        raise AutosegError(
            f"{theirs} says which cases each fold holds out, and goes before any other; remove it to "
            "split anew"
        )
    ids = labelled(dataset)
    if folds < 2 or len(ids) < 2:
        raise AutosegError(
            f"{len(ids)} cases cannot be split into {folds} folds; it takes two of both at least"
        )
    grouping = _grouping(places, dataset, by, pattern, table)
    found = _decided(dataset, fingerprint, grouping, folds)
    presence, structures = _presence(dataset, fingerprint)
    report = fold_report(found.value, presence, structures, grouping.groups)
    path = places.preprocessed / SPLIT_FILES[0]
    with Lock(places.preprocessed / ".splits.lock", f"the splits file of {places.name}"):
        stale = _stale_folds(places, ids, found.value, dataset, fingerprint)
        same = path.exists() and read_json(path) == as_document(found.value)
        if not same and not redo:
            _refuse(places, stale)
        if not same:
            write_splits(path, found.value)
        result = SplitReport(path, grouping.by, found.why, report, not same, tuple(stale))
        _record(result, found.value, folds)
    return result


def labelled(dataset: Dataset) -> list[str]:
    """The ids of the cases that can be trained on, in order."""
    return [case.id for case in dataset.cases if case.label is not None]


def current_splits(
    places: DatasetPlaces, dataset: Dataset, fingerprint: Fingerprint
) -> tuple[Split, ...]:
    """The folds: of a splits file in the raw or the preprocessed folder, else the default ones."""
    for folder in (places.raw, places.preprocessed):
        path = splits_file(folder)
        if path is not None:
            return read_splits(path, labelled(dataset))
    return default_splits(places, dataset, fingerprint)


def default_splits(
    places: DatasetPlaces, dataset: Dataset, fingerprint: Fingerprint
) -> tuple[Split, ...]:
    """The folds where nobody asked for any: by patient where a table in the raw folder names them."""
    grouping = _grouping(places, dataset)
    if grouping.groups is None:
        hint = scans_of_patients(labelled(dataset))
        if hint.value is not None:
            _tell(
                f"{hint.why}; if they are, `autoseg split -d {places.name} --pattern '{hint.value}'` "
                "keeps a patient in one fold"
            )
    return _decided(dataset, fingerprint, grouping, FOLDS).value


@cache
def _tell(line: str) -> None:
    """Warn once; the folds are asked for many times."""
    log.warning("%s", line)


def _decided(
    dataset: Dataset, fingerprint: Fingerprint, grouping: Grouping, folds: int
) -> Decision[tuple[Split, ...]]:
    presence, structures = _presence(dataset, fingerprint)
    return make_folds(presence, grouping.groups, folds=folds, structures=structures)


def _presence(
    dataset: Dataset, fingerprint: Fingerprint
) -> tuple[dict[str, tuple[bool, ...]], tuple[str, ...]]:
    """Which structures (regions, where there are any) each case shows, and their names."""
    regions = {r.name: r.classes for r in dataset.labels.regions}
    alone = {name: (i + 1,) for i, name in enumerate(dataset.labels.foreground)}
    structures = regions or alone
    voxels = {c.case: c.label_voxels for c in fingerprint.cases}
    shown: dict[str, tuple[bool, ...]] = {}
    for case in labelled(dataset):
        counts = (0, *voxels.get(case, ()))
        there = {index for index, count in enumerate(counts) if count > 0}
        shown[case] = tuple(not there.isdisjoint(s) for s in structures.values())
    return shown, tuple(structures)


def _grouping(
    places: DatasetPlaces,
    dataset: Dataset,
    by: str | None = None,
    pattern: str | None = None,
    table: Path | None = None,
) -> Grouping:
    """What is kept together as asked, else by the patient column of the table in the raw folder.

    Raises AutosegError for what cannot be used, BadData for the cases that lack it.
    """
    ids = labelled(dataset)
    if pattern is not None:
        if by is not None or table is not None:
            raise AutosegError("give a column of a table (--by) or a --pattern, not both")
        return Grouping(_matched(pattern, ids), f"pattern {pattern}")
    path = table or find_table(places.raw)
    if path is None:
        if by is None:
            return Grouping()
        raise AutosegError(
            f"{places.raw} holds no cases.csv to read {by!r} from; write one with the columns case "
            f"and {by}, or name another --table, or give a --pattern"
        )
    found = read_table(path, ids, [case.id for case in dataset.test_cases])
    column = by or found.patient_column
    if column is None:
        if table is None:
            return Grouping()
        raise AutosegError(
            f"{path} has no column that is surely the patient; say which of "
            f"{', '.join(found.columns)} it is (--by)"
        )
    return Grouping(groups_of(found, column, ids), f"column {column} of {path.name}")


def _matched(pattern: str, ids: Sequence[str]) -> dict[str, str]:
    """Case -> what the pattern finds in its id. Raises AutosegError, BadData where it finds nothing."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise AutosegError(f"{pattern!r} is no regular expression: {error}") from error
    groups, unlike = {}, []
    for case in ids:
        match = compiled.search(case)
        found = (match[1] if compiled.groups else match[0]) if match else None
        if found:
            groups[case] = found
        else:
            what = "a case id does not match the pattern"
            fix = "every id must match, its first group being the patient"
            unlike.append(Problem(case, what, f"{pattern!r} finds nothing in it", fix))
    if unlike:
        raise BadData(unlike)
    return groups


def _stale_folds(
    places: DatasetPlaces,
    ids: Sequence[str],
    new: Sequence[Split],
    dataset: Dataset,
    fingerprint: Fingerprint,
) -> list[str]:
    """Begun folds that are current and would not be with the `new` splits."""
    begun = [
        (folder, RunSpec.read(Fold(folder).run))
        for folder in sorted(places.results.glob("*/*/*/fold_*"))
        if Fold(folder).run.exists()
    ]
    if not begun:
        return []
    path = splits_file(places.preprocessed)
    try:
        old = read_splits(path, ids) if path else default_splits(places, dataset, fingerprint)
    except AutosegError:
        # a file that cannot be used is what no fold can be current with
        return []
    found = []
    for folder, spec in begun:
        if not spec.fold.isdigit():
            continue
        k, held = int(spec.fold), Split(spec.train_cases, spec.validation_cases)
        if list(old[k : k + 1]) == [held] and list(new[k : k + 1]) != [held]:
            found.append("/".join(folder.parts[-4:]))
    return found


def _refuse(places: DatasetPlaces, stale: Sequence[str]) -> None:
    """Raise Stale where other folds may not take the place of those that are there."""
    if stale:
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise Stale(
            f"{stale[0]}{more} of {places.name} were trained with the folds that are there and would "
            "have to be trained again; --redo splits all the same"
        )
    path = splits_file(places.preprocessed)
    if path is None:
        return
    record = places.preprocessed / RECORD
    made = read_json(record) if record.exists() else None
    if not isinstance(made, dict) or made.get("splits") != sha256_json(read_json(path)):
        raise Stale(
            f"{path} was not written by `autoseg split` as it is now; --redo puts other folds in its "
            "place, or remove it"
        )


def _record(result: SplitReport, splits: Sequence[Split], folds: int) -> None:
    """Write down how the splits file was made."""
    report = asdict(result.folds)
    write_json(
        result.path.with_name(RECORD),
        {
            "schema": 1,
            "splits": sha256_json(as_document(splits)),
            "asked_folds": folds,
            "grouped_by": result.grouped_by,
            "why": result.why,
            **report,
        },
    )
