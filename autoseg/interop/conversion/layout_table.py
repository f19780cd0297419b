"""Which files make which case, where a table lists them: a CSV with a row a case."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from autoseg.documents.cases import CASE_COLUMNS, PATIENT_COLUMNS
from autoseg.documents.conversion import Draft, Source, SourceCase
from autoseg.errors import AutosegError, Problem
from autoseg.files import explaining
from autoseg.interop.conversion.layout_files import case_name, is_there, told_apart
from autoseg.interop.conversion.layout_folders import Wanted

LABEL_COLUMNS = ("label", "mask", "segmentation", "seg")
SPLIT_COLUMNS = ("split", "part", "set")
TEST = ("test", "testing", "ts")
MOST_BYTES = 64 << 20


def table(path: Path, wanted: Wanted) -> Draft:
    """The cases that a CSV lists: image, or image_0, image_1, …; label; case, patient, split.

    Relative paths begin at the table's folder. `split` is test for test cases. All other columns go
    to cases.csv. Raises AutosegError.
    """
    rows = _rows(path)
    images = _image_columns(path, list(rows[0]))
    problems: list[Problem] = []
    found = [_case(path, number, row, images, problems) for number, row in enumerate(rows, start=2)]
    given = {row[name] for row in rows for name in CASE_COLUMNS if row.get(name)}
    cases = told_apart((case for case in found if case is not None), given)
    names = wanted.channels
    if not names and len(images) > 1 and not all(c[6:].isdecimal() for c in images):
        names = tuple(column[6:] for column in images)
    return Draft(tuple(cases), names, problems=tuple(problems))


def _rows(path: Path) -> list[dict[str, str]]:
    with explaining(path, "read"):
        if path.stat().st_size > MOST_BYTES:
            raise AutosegError(f"{path} is larger than {MOST_BYTES >> 20} MB; is it a table?")
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    if "\0" in text or raw.startswith(b"PK"):
        raise AutosegError(f"{path} is no text; save the table as CSV (UTF-8)")
    first = next((line for line in text.splitlines() if line.strip()), "")
    mark = max(",;\t", key=first.count)
    try:
        lines = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        ]
    except csv.Error as error:
        raise AutosegError(f"{path}: {error}; mend the quotes") from error
    lines = [row for row in lines if any(row)]
    if len(lines) < 2:
        raise AutosegError(f"{path} needs a header and a row a case")
    header = [name.lower() for name in lines[0]]
    if len(set(header)) != len(header):
        raise AutosegError(f"{path}: two columns have one name: {', '.join(header)}")
    for number, row in enumerate(lines[1:], start=2):
        if len(row) != len(header):
            raise AutosegError(
                f"{path}: row {number} has {len(row)} cells, the header {len(header)}; quote cells "
                'that hold the delimiter: "a, b"'
            )
    return [dict(zip(header, row, strict=True)) for row in lines[1:]]


def _image_columns(path: Path, header: list[str]) -> list[str]:
    """The columns of images, in the order of the channels. Raises AutosegError."""
    several = [name for name in header if name.startswith("image_")]
    numbered = [name for name in several if name[6:].isdecimal()]
    if numbered:
        several = sorted(numbered, key=lambda name: int(name[6:]))
    if "image" in header and several:
        raise AutosegError(f"{path} has a column image and {several[0]}; use one or the others")
    if "image" not in header and not several:
        raise AutosegError(
            f"{path} has no column image (or image_0, image_1, …); found {', '.join(header)}"
        )
    return several or ["image"]


def _case(
    path: Path,
    number: int,
    row: Mapping[str, str],
    images: list[str],
    problems: list[Problem],
) -> SourceCase | None:
    """The case of a row; None, with a problem, where it cannot be one."""
    empty = [name for name in images if not row[name]]
    if empty:
        found = f"row {number} has nothing in {empty[0]}"
        problems.append(Problem(f"row {number}", "a row names no image", found, "fill it in"))
        return None
    files = [path.parent / row[name] for name in images]
    column = next((name for name in CASE_COLUMNS if row.get(name)), None)
    case = row[column] if column else case_name(files[:1])
    label = next((row[name] for name in LABEL_COLUMNS if row.get(name)), "")
    split = next((row[name].lower() for name in SPLIT_COLUMNS if row.get(name)), "")
    for file in [*files, *([path.parent / label] if label else [])]:
        if not is_there(file):
            found = f"row {number}: {file}"
            fix = f"mend the path; relative ones begin at {path.parent}"
            problems.append(Problem(case, "a listed file is missing", found, fix))
    if not label and split not in TEST:
        found = f"row {number} has no label" + (f" and is {split}" if split else "")
        fix = "name its label, or write test in a column split"
        problems.append(Problem(case, "an image has no label", found, fix))
    used = {*images, *LABEL_COLUMNS, *CASE_COLUMNS}
    patient = next((name for name in PATIENT_COLUMNS if name in row), None)
    facts = {name: cell for name, cell in row.items() if name not in used and name}
    if patient in CASE_COLUMNS and column != patient and patient is not None:
        facts["patient"] = row[patient]
    source = Source((path.parent / label,)) if label else None
    return SourceCase(
        case, tuple(Source((f,)) for f in files), source, test=split in TEST, facts=facts
    )


def label_table(path: Path) -> dict[str, int]:
    """Name -> value of a table of labels: columns name and value (or index, as BIDS has them).

    Raises AutosegError.
    """
    rows = _rows(path)
    names = next((n for n in ("name", "structure", "label") if n in rows[0]), None)
    values = next((n for n in ("value", "index", "id", "number") if n in rows[0]), None)
    if names is None or values is None:
        raise AutosegError(f"{path} needs the columns name and value; found {', '.join(rows[0])}")
    found: dict[str, int] = {}
    for row in rows:
        name, value = row[names], row[values]
        if not name or not value.isdecimal() or name in found:
            raise AutosegError(f"{path}: {name!r} = {value!r} is no label, or is there twice")
        found[name] = int(value)
    return found
