"""The figures of `make card` as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.card.kept import Document
from bench.card.parts import PARTS, Row

MIB = 2**20


def page(found: Mapping[str, Document], machine: Mapping[str, str]) -> str:
    """All parts, those that failed with what they said."""
    lines = ["# On a card", "", ", ".join(f"{k}: {v}" for k, v in machine.items()), ""]
    for part in PARTS:
        document = found.get(part.name)
        if document is None:
            continue
        lines += [
            f"## {part.what.capitalize()}",
            "",
            f"State: {document['state'] or 'not begun'}.",
            "",
        ]
        if document["error"]:
            lines += ["```text", str(document["error"]).strip(), "```", ""]
        lines += _table(document["rows"])
        if document["summary"]:
            lines += [f"* {key}: {_shown(value)}" for key, value in document["summary"].items()]
            lines.append("")
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> list[str]:
    """Rows as a table of what most of them have; long texts are left to the JSON."""
    shown = [k for row in rows for k, v in row.items() if isinstance(v, (int, float, str, bool))]
    columns = [k for k in dict.fromkeys(shown) if k not in ("said", "what", "whose")]
    if not columns:
        return []
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [
        *head,
        *(f"| {' | '.join(_cell(row.get(k), k) for k in columns)} |" for row in rows),
        "",
    ]


def _cell(value: Any, column: str) -> str:
    if value is None:
        return ""
    if column in ("allocated", "reserved", "context", "predicted") or column.endswith("_bytes"):
        return f"{value / MIB:.0f} MiB"
    return _shown(value).replace("|", "/").replace("\n", " ")[:160]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return str(value)
