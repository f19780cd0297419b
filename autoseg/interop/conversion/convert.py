"""How does a draft become a dataset in nnU-Net's layout.

Every file is looked at first, and all that is wrong is told at once. Cases are made one by one in a
hidden folder beside the dataset, which takes its name when the last one is there: a half converted
dataset is never seen, and a stopped conversion goes on with the next case.
"""

import csv
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autoseg.documents.conversion import (
    CASE,
    Converted,
    Draft,
    Link,
    Source,
    SourceCase,
    order_of,
    with_background,
)
from autoseg.documents.dataset import suffix_of
from autoseg.documents.labels import parse_labels
from autoseg.errors import AutosegError, BadData, Problem, raise_fatal
from autoseg.files import (
    Lock,
    exchange,
    explaining,
    read_json,
    replacing,
    sha256_json,
    sweep,
    write_json,
)
from autoseg.interop.conversion.case import LOSSY, Made, Terms, Work, make_case
from autoseg.interop.conversion.look import Look, look, values_in
from autoseg.pool import over_units

VERSION = 1
MARK = ".converted"
"""The folder inside a dataset that says what each case was made from."""
FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
BYTES_A_FILE = 12
"""Memory for a byte of a packed file: float32 of int16 that shrank to a third."""


@dataclass(frozen=True)
class Manner:
    """How files are brought, and what may be replaced."""

    link: Link = ""
    overwrite: bool = False
    paint_over: bool = False
    pack: bool = False
    workers: int = 1


def convert(draft: Draft, folder: Path, manner: Manner) -> Converted:
    """The dataset `folder` (DatasetNNN_Name) made of a draft; nothing is done if it stands.

    Raises BadData with everything that is wrong with the source, AutosegError if `folder` holds
    other data.
    """
    raise_fatal((*draft.problems, *_faults(draft)))
    refuse_others(folder)
    document, terms, problems = _terms(draft, manner)
    made_from = {case.id: _identity(case, terms) for case in draft.cases}
    whole = sha256_json([document, made_from, _table(draft.cases)])
    done = _mark(folder)
    if done.get("made_from") == whole:
        return _result(draft, folder, document, 0, problems)
    if folder.exists() and not manner.overwrite:
        raise AutosegError(
            f"{folder} was converted from something else than is there now; choose another name, "
            "or repeat the command with --overwrite"
        )
    half = folder.with_name(f".converting-{folder.name}")
    with Lock(half / MARK / "lock", f"dataset {folder.name}"):
        _tidy(half, made_from)
        _reuse(folder, half, made_from)
        count, more = _make(draft.cases, half, terms, made_from, manner.workers)
        table = _table(draft.cases)
        if table:
            with replacing(half / "cases.csv") as path:
                path.write_text(table, encoding="utf-8")
        write_json(half / MARK / "dataset.json", {"made_from": whole})
        write_json(half / "dataset.json", document)
        (half / MARK / "lock").unlink()
        _take_place(half, folder)
    return _result(draft, folder, document, count, (*problems, *more))


def refuse_others(folder: Path) -> None:
    """Raises AutosegError where a dataset of this name or number is there that no conversion made."""
    if folder.exists() and not (folder / MARK).is_dir():
        raise AutosegError(
            f"{folder} exists and was not made by a conversion; choose another name or move it away"
        )
    number = folder.name.split("_")[0]
    others = [p.name for p in folder.parent.glob(f"{number}_*") if p.name != folder.name]
    if others:
        raise AutosegError(
            f"{others[0]} has the number {int(number[7:])} already; choose another one"
        )


def _faults(draft: Draft) -> list[Problem]:
    """What is wrong with the names and labels of cases, but what the draft itself tells."""
    problems = []
    told = {problem.case for problem in draft.problems if problem.fatal}
    seen: dict[str, SourceCase] = {}
    for case in draft.cases:
        if not CASE.match(case.id):
            fix = "name it with letters, digits, - _ and ."
            what = "a case's name cannot be that of a file"
            problems.append(Problem(case.id[:60], what, repr(case.id)[:200], fix))
        first = seen.setdefault(case.id.casefold(), case)
        if first is not case:
            found = " and ".join(f"{c.id} of {c.images[0].files[0]}" for c in (first, case))
            fix = "give each its own name; capitals do not tell files apart everywhere"
            problems.append(Problem(case.id, "two cases have one name", found, fix))
        if case.label is None and not case.test and case.id not in told:
            fix = "add its label, or make it a test case"
            problems.append(Problem(case.id, "an image has no label", "none was found", fix))
    if not told and all(case.test or case.label is None for case in draft.cases):
        found = f"cases with an image and a label: none of {len(draft.cases)}"
        fix = "look whether this is the folder, and its layout the one that was named"
        problems.append(Problem("all", "nothing to train on was found", found, fix))
    return problems


def _terms(draft: Draft, manner: Manner) -> tuple[dict[str, Any], Terms, tuple[Problem, ...]]:
    """dataset.json, and what holds for every case. Raises BadData for what headers show."""
    seen = look(draft)
    raise_fatal(seen.problems)
    ending = draft.label_ending or _label_ending(draft.cases, seen)
    channels = _channel_names(draft, seen)
    declared: Mapping[str, Any]
    if draft.labels is None:
        found = values_in(draft, manner.workers, manner.paint_over)
        declared = with_background({f"label {value}": value for value in found if value})
        order = None
    else:
        declared = draft.labels
        order = draft.order if draft.order is not None else order_of(declared)
    labels = parse_labels(declared, order)
    document: dict[str, Any] = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": dict(declared),
        **({"regions_class_order": list(order)} if order else {}),
        "numTraining": sum(not case.test for case in draft.cases),
        "file_ending": ending,
        **draft.facts,
    }
    terms = Terms(
        len(channels), draft.ranges, labels.allowed, labels.ignore, ending, draft.spacing_mm,
        manner.link, manner.paint_over, manner.pack,
    )  # fmt: skip
    return document, terms, seen.problems


def _channel_names(draft: Draft, seen: Look) -> tuple[str, ...]:
    if draft.channels:
        return draft.channels
    if seen.colour:
        return ("R", "G", "B")
    return tuple(f"channel {n}" for n in range(seen.channels))


def _label_ending(cases: Sequence[SourceCase], seen: Look) -> str:
    """The ending that all label files have already, if it may be kept; else one that fits."""
    labels = [source for case in cases if (source := case.label) is not None]
    endings = {suffix_of(path.name).lower() for source in labels for path in source.files}
    single = all(source.reads != "slices" for source in labels)
    if len(endings) == 1 and single and not endings & {*LOSSY, ""}:
        return endings.pop()
    return ".png" if seen.flat else ".nii.gz"


def _identity(case: SourceCase, terms: Terms) -> str:
    """A hash of what a case is made from: names, sizes and times of files, and the terms."""
    sources = [*case.images, case.label, case.field_of_view]
    facts = [None if s is None else [s.reads, list(s.values), _facts(s)] for s in sources]
    rules = [
        terms.channels, [list(r) for r in terms.ranges], list(terms.allowed), terms.ignore,
        terms.label_ending, terms.spacing_mm, terms.paint_over, terms.pack,
    ]  # fmt: skip
    return sha256_json([VERSION, case.id, case.test, facts, rules])


def _facts(source: Source) -> list[list[Any]]:
    found = []
    for path in source.files:
        with explaining(path, "read"):
            stat = path.stat()
        found.append([path.name, stat.st_size, stat.st_mtime_ns])
    return found


def _mark(folder: Path) -> dict[str, Any]:
    path = folder / MARK / "dataset.json"
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _record(folder: Path, case: str) -> Path:
    return folder / MARK / "cases" / f"{case}.json"


def _stands(folder: Path, case: str, made_from: str) -> tuple[str, ...] | None:
    """The files of a case that was made from the same; None if it must be made."""
    path = _record(folder, case)
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except AutosegError:
        return None
    if not isinstance(record, dict) or record.get("made_from") != made_from:
        return None
    files = tuple(str(name) for name in record.get("files", ()))
    return files if files and all((folder / name).is_file() for name in files) else None


def _tidy(half: Path, made_from: Mapping[str, str]) -> None:
    """Remove what an earlier try left of cases that are no longer wanted so."""
    sweep(half / MARK / "cases")
    kept: set[str] = set()
    for case, wanted in made_from.items():
        kept.update(_stands(half, case, wanted) or ())
    for name in FOLDERS:
        sweep(half / name)
        if (half / name).is_dir():
            for path in (half / name).iterdir():
                if path.relative_to(half).as_posix() not in kept:
                    path.unlink()


def _reuse(folder: Path, half: Path, made_from: Mapping[str, str]) -> None:
    """Take over from the dataset that stands the cases that did not change."""
    for case, wanted in made_from.items():
        files = _stands(folder, case, wanted)
        if files is None or _stands(half, case, wanted) is not None:
            continue
        for name in files:
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            _linked(folder / name, half / name)
        write_json(_record(half, case), read_json(_record(folder, case)), durable=False)


def _linked(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)


def _make(
    cases: Sequence[SourceCase],
    half: Path,
    terms: Terms,
    made_from: Mapping[str, str],
    workers: int,
) -> tuple[int, list[Problem]]:
    """How many cases were made, and the warnings. Raises BadData or AutosegError after the last."""
    todo = [
        Work(case, half, terms)
        for case in cases
        if _stands(half, case.id, made_from[case.id]) is None
    ]
    failed: list[AutosegError] = []
    problems: list[Problem] = []
    outcomes = over_units(make_case, todo, workers=workers, bytes_of=_bytes)
    for work, outcome in tqdm(outcomes, "convert", total=len(todo), unit="case", disable=None):
        if isinstance(outcome, Made):
            record = {"made_from": made_from[work.case.id], "files": list(outcome.files)}
            write_json(_record(half, work.case.id), record, durable=False)
            problems += outcome.problems
        else:
            failed.append(outcome)
    if failed:
        told = [p for error in failed if isinstance(error, BadData) for p in error.problems]
        others = [error for error in failed if not isinstance(error, BadData)]
        raise others[0] if others else BadData(sorted(told, key=lambda p: p.case))
    return len(todo), sorted(problems, key=lambda p: p.case)


def _bytes(work: Work) -> int:
    files = [path for source in work.case.images for path in source.files]
    return BYTES_A_FILE * sum(path.stat().st_size for path in files)


def _table(cases: Sequence[SourceCase]) -> str:
    """cases.csv, with a row a case; empty if nothing is known of any."""
    columns = sorted({column for case in cases for column in case.facts})
    if not columns:
        return ""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["case", *columns])
    for case in sorted(cases, key=lambda c: c.id):
        writer.writerow([case.id, *(case.facts.get(column, "") for column in columns)])
    return out.getvalue()


def _take_place(half: Path, folder: Path) -> None:
    """The finished folder under its name; what a person laid beside our files comes along."""
    with explaining(folder, "write"):
        if not folder.exists():
            os.replace(half, folder)
            return
        for path in folder.iterdir():
            if not (half / path.name).exists() and path.name not in (*FOLDERS, MARK, "cases.csv"):
                shutil.move(path, half / path.name)
        exchange(half, folder)
        shutil.rmtree(half, ignore_errors=True)


def _result(
    draft: Draft, folder: Path, document: Mapping[str, Any], made: int, problems: Sequence[Problem]
) -> Converted:
    test = sum(case.test for case in draft.cases)
    warnings = (*(p for p in draft.problems if not p.fatal), *problems)
    names = tuple(document["channel_names"].values())
    return Converted(
        folder, len(draft.cases) - test, test, made, names, document["labels"], warnings
    )
