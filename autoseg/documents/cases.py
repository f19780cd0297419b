"""A table of cases beside dataset.json: which patient, site or scanner each case comes from.

A header and a row a case, as people export it: commas, semicolons or tabs; a byte order mark, UTF-16
or Windows' own letters are read too. Cells are text; nothing is guessed about them.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg.documents.dataset import suffix_of
from autoseg.errors import AutosegError, BadData, Problem, nearest
from autoseg.files import explaining

TABLES = ("cases.csv", "cases.tsv")
"""Where a table of cases is looked for in a dataset's folder."""

CASE_COLUMNS = ("case", "case_id", "caseid", "id", "participant_id")
"""The column of case ids: the first of these that is there. Capitals do not matter."""

PATIENT_COLUMNS = (
    "patient", "patient_id", "patientid", "subject", "subject_id", "subjectid",
    "participant", "participant_id",
)  # fmt: skip
"""Columns that name the patient, without being asked for."""

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
NOTHING = {"", "n/a", "na", "nan", "none", "null"}
"""Cells that say nothing, in lower case."""


@dataclass(frozen=True)
class CaseTable:
    """What a table says of each case: `rows[case][column]`, without the column of case ids."""

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]

    @property
    def patient_column(self) -> str | None:
        """The column that names the patient, if one has a usual name."""
        by_name = {column.lower(): column for column in self.columns}
        return next((by_name[name] for name in PATIENT_COLUMNS if name in by_name), None)


def find_table(folder: Path) -> Path | None:
    """The table of cases in a dataset's folder. Raises AutosegError if there are two."""
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        raise AutosegError(f"{folder} holds {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def read_table(path: Path, cases: Sequence[str], others: Sequence[str] = ()) -> CaseTable:
    """The table in a file, with a row for each of `cases`; rows of `others` (test cases) may be there.

    Raises AutosegError if it cannot be read as a table, BadData with all that is wrong with its rows.
    """
    header, lines = _cells(path, _text(path))
    at = _case_column(path, header)
    problems: list[Problem] = []
    rows: dict[str, dict[str, str]] = {}
    for number, cells in lines:
        case = cells[at] if at < len(cells) else ""
        if len(cells) != len(header):
            found = f"row {number} of {path.name} has {len(cells)} cells, the header {len(header)}"
            fix = 'give every row as many cells as the header; quote cells that hold commas: "a, b"'
            problems.append(Problem(case or "?", "a row has another length", found, fix))
        elif not case:
            found = f"row {number} of {path.name} has nothing in {header[at]!r}"
            fix = "fill in the case id, or remove the row"
            problems.append(Problem("?", "a row names no case", found, fix))
        elif case in rows:
            found = f"row {number} of {path.name} names it again"
            problems.append(Problem(case, "a case has two rows", found, "keep one row a case"))
        else:
            rows[case] = {n: c for n, c in zip(header, cells, strict=True) if n != header[at]}
    problems += _strangers(path, rows, cases, others)
    if problems:
        raise BadData(problems)
    return CaseTable(path, tuple(n for n in header if n != header[at]), rows)


def groups_of(table: CaseTable, column: str, cases: Sequence[str]) -> dict[str, str]:
    """Case -> its cell in `column` (its patient, its site), for each of `cases`.

    Raises AutosegError for an unknown column, BadData for the cases where the cell is empty.
    """
    if column not in table.columns:
        near = [name for name in table.columns if name.lower() == column.lower()]
        if not near:
            raise AutosegError(
                f"{table.path} has no column {column!r}" + nearest(column, list(table.columns))
            )
        column = near[0]
    groups = {case: table.rows[case][column] for case in cases}
    fix = f"say which {column} each case belongs to in {table.path.name}"
    empty = [
        Problem(case, f"a case has no {column}", f"the cell holds {group!r}", fix)
        for case, group in groups.items()
        if group.lower() in NOTHING
    ]
    if empty:
        raise BadData(empty)
    return groups


def _text(path: Path) -> str:
    """The text of a table. Raises AutosegError for what is none."""
    with explaining(path, "read"):
        raw = path.read_bytes()
    if raw.startswith(b"PK\x03\x04") or raw.startswith(b"\xd0\xcf\x11\xe0"):
        raise AutosegError(
            f"{path} is an Excel workbook; save it as CSV (UTF-8) and name that file"
        )
    coded = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    for encoding in (coded, "cp1252"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise AutosegError(f"{path} is no text; save the table as CSV (UTF-8)")


def _cells(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the other rows with the numbers of their last lines."""
    lines = text.splitlines(keepends=True)
    if lines and lines[0].strip().lower() in {f"sep={mark}" for mark in DELIMITERS}:
        # Excel's own hint, which is no row
        lines[0] = "\n"
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise AutosegError(f"{path} is empty; it needs a header and a row a case")
    mark = _delimiter(first)
    reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=mark, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                rows.append((reader.line_num, stripped))
    except csv.Error as error:
        raise AutosegError(f"{path}, line {reader.line_num}: {error}; mend the quotes") from error
    header = rows[0][1] if rows else []
    while header and not header[-1]:
        # a spreadsheet's empty columns on the right
        header.pop()
    for _, row in rows[1:]:
        while len(row) > len(header) and not row[-1]:
            row.pop()
    if len(rows) < 2:
        raise AutosegError(f"{path} has no row below its header; it needs a row a case")
    return header, rows[1:]


def _delimiter(header: str) -> str:
    """What divides the cells: that which shows a column of case ids, else the most frequent mark."""

    def shows(mark: str) -> tuple[bool, int]:
        cells = {cell.strip().strip('"').lower() for cell in header.split(mark)}
        return not cells.isdisjoint(CASE_COLUMNS), header.count(mark)

    return max(DELIMITERS, key=shows)


def _case_column(path: Path, header: Sequence[str]) -> int:
    """Where the case ids stand. Raises AutosegError with what the header holds."""
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise AutosegError(f"{path} has two columns {doubled[0]!r}; rename one of them")
    lowered = [name.lower() for name in header]
    for name in CASE_COLUMNS:
        if name in lowered:
            return lowered.index(name)
    marks = " or ".join(DELIMITERS.values())
    raise AutosegError(
        f'{path} has no column "case"; found {", ".join(map(repr, header))}. The first row must name '
        f"the columns, divided by {marks}, one of them case"
    )


def _strangers(
    path: Path, rows: Mapping[str, object], cases: Sequence[str], others: Sequence[str]
) -> list[Problem]:
    """Rows of cases that the dataset has not, and cases that have no row."""
    known = {*cases, *others}
    missing = [case for case in cases if case not in rows]
    problems = []
    for case in rows:
        if case not in known:
            plain = case[: len(case) - len(suffix_of(case))]
            hint = (
                f"; write {plain!r}" if plain in known else nearest(case, missing or sorted(known))
            )
            if len(hint) > 120:
                hint = ""
            problems.append(
                Problem(
                    case,
                    "a row names a case that the dataset has not",
                    f"{path.name} names {case!r}{hint}",
                    "write ids as in imagesTr, without _0000 and the file ending, or remove the row",
                )
            )
    problems += [
        Problem(
            case,
            "a case has no row",
            f"{path.name} has no row for it",
            "add a row, or remove the table to split without it",
        )
        for case in missing
    ]
    return problems
