"""One training run of one fold: what it is (run.json), what was decided (journal), how it went.

run.json holds the whole configuration, so that a fold's folder can be understood, continued and
used for prediction without the plan that it came from.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from autoseg.documents.document import Document, Frozen
from autoseg.documents.labels import LabelSet
from autoseg.documents.plan import Configuration
from autoseg.files import explaining, flush_folder, replacing


class WeightsFile(Document):
    """A file that an encoder began with: where it was, and its content."""

    path: str
    sha256: str


class RunSpec(Document):
    """What a fold's training is made of."""

    schema_number: int = Field(1, alias="schema")
    dataset: str
    plan: str
    configuration_name: str
    run: str
    fold: str
    dimensions: int
    channels: tuple[str, ...]
    labels: LabelSet
    configuration: Configuration
    overrides: Frozen[str, Any]
    """What `--set` changed against the plan's configuration."""
    encoder_weights: WeightsFile | None = None
    """What the encoder began with instead of random numbers."""
    train_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    intensity_ranges: tuple[tuple[float, float] | None, ...]
    """Of each channel over the training set, to tell a foreign image at prediction."""
    spacing_ranges_mm: tuple[tuple[float, float], ...]
    """Of each plan axis over the training set."""
    version: str
    """The autoseg that made it."""


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add one JSON line, handed to the system before returning.

    A line that was cut short before (a full disk) is ended first, so that it spoils no other.
    """
    line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
    with explaining(path, "write"), open(path, "ab+") as handle:
        if handle.tell():
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                line = "\n" + line
        handle.write(line.encode("utf-8"))


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a JSON-lines file; a last line that was cut short by a kill is left out."""
    if not path.exists():
        return
    with explaining(path, "read"):
        text = path.read_bytes().decode("utf-8", "replace")
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict):
            yield entry


def keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Cut a history back to the entries up to `step`, in one write, and return them."""
    kept = [entry for entry in lines(path) if int(entry["step"]) <= step]
    if path.exists():
        with replacing(path) as half:
            half.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))
        flush_folder(path.parent)
    return kept


def forget_after(path: Path, step: int) -> None:
    """Cut a journal back to what holds for a run that goes on from `step`, in one write.

    What was decided after that step was decided by a process whose steps are lost: they are made
    again, and decide anew. A run without a state has no pace yet.
    """

    def holds(entry: dict[str, Any]) -> bool:
        return entry.get("step", 0) <= step and (step > 0 or entry.get("event") != "pace")

    found = list(lines(path))
    kept = [entry for entry in found if holds(entry)]
    if len(kept) < len(found):
        with replacing(path) as half:
            half.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))
