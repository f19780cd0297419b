"""The figures of one part of `make card`: a JSON file that is whole whenever it is read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Document = dict[str, Any]
"""part, state ("running", "done", "stopped", "failed", "no time"), rows, summary, error."""


def read(path: Path, part: str) -> Document:
    """What is there of a part; a new document where there is nothing that can be read."""
    empty: Document = {"part": part, "state": "", "rows": [], "summary": {}, "error": None}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    return {**empty, **found} if isinstance(found, dict) else empty


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write it in one step."""
    half = path.with_name(f".{path.name}")
    half.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    half.replace(path)


def mark(path: Path, part: str, state: str, error: str | None = None) -> Document:
    """Say how a part ended; its rows stay."""
    document = read(path, part) | {"state": state, "error": error}
    write(path, document)
    return document
