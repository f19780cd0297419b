"""When a unit of work must be done again, and why.

A unit is a case, a fold or an image. Its stamp hashes what it was made from and the slice of the
plan that it reads, nothing more; equal stamps mean that the work need not be repeated. The stamp
is written last, so a unit without one is half done.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from autoseg.errors import AutosegError
from autoseg.files import finite, read_json, sha256_json, write_json

log = logging.getLogger(__name__)

State = Literal["missing", "half done", "current", "stale"]


@dataclass(frozen=True)
class Stamp:
    """Why a unit is what it is.

    `inputs` maps the name of what it was made from to a hash; `options` is the part of the plan
    that it reads; `version` is raised by hand when a stage starts to mean something else.
    """

    stage: str
    version: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # as they come back from the file, so that a stamp equals itself once it was written
        object.__setattr__(self, "options", finite(self.options))

    @property
    def digest(self) -> str:
        """What stands for this unit among the inputs of the next."""
        return sha256_json(asdict(self))

    def write(self, path: Path, *, durable: bool = False) -> None:
        write_json(path, asdict(self), durable=durable)


def read_stamp(path: Path) -> Stamp | None:
    """The stamp in a file, or None if there is none that can be used.

    A stamp that is empty or damaged, as a power cut leaves it, stands for nothing: its unit is half
    done, and is made again like any other.
    """
    if not path.exists():
        return None
    try:
        return stamp_of(read_json(path))
    except AutosegError as error:
        log.warning("%s; what it stood for counts as half done", error)
        return None


def read_made(path: Path) -> tuple[Stamp, str] | None:
    """The stamp of a document that people may edit, and the hash of what was made; None as above."""
    if not path.exists():
        return None
    try:
        value = read_json(path)
        if not isinstance(value, dict) or not isinstance(value.get("made"), str):
            raise AutosegError(f"{path} is damaged: it lacks what was made")
        return stamp_of(value.get("stamp")), value["made"]
    except AutosegError as error:
        log.warning("%s; what it stood for counts as unknown", error)
        return None


def stamp_of(value: Any) -> Stamp:
    """The stamp in a decoded document. Raises AutosegError for anything else."""
    if not isinstance(value, dict) or set(value) != {f.name for f in fields(Stamp)}:
        raise AutosegError("a stamp is damaged: it lacks stage, version, inputs or options")
    stage, version, inputs, options = (value[f.name] for f in fields(Stamp))
    sound = isinstance(stage, str) and type(version) is int and isinstance(options, dict)
    if not (
        sound and isinstance(inputs, dict) and all(isinstance(v, str) for v in inputs.values())
    ):
        raise AutosegError("a stamp is damaged: a value is of another kind")
    try:
        return Stamp(stage, version, inputs, options)
    except ValueError as error:  # NaN or infinity
        raise AutosegError(f"a stamp is damaged: {error}") from error


@dataclass(frozen=True)
class Standing:
    """How a unit stands, and why in a few words."""

    state: State
    why: str = ""


def standing(path: Path, wanted: Stamp, *, begun: bool = False) -> Standing:
    """How the unit whose stamp lies at `path` stands against the stamp that it should have.

    `begun` says that something of it exists, which tells half done from missing.
    """
    old = read_stamp(path)
    if old is None:
        if path.exists():
            return Standing("half done", "its stamp is damaged")
        return Standing("half done") if begun else Standing("missing")
    changes = differences(old, wanted)
    return Standing("stale", "; ".join(changes)) if changes else Standing("current")


def differences(old: Stamp, new: Stamp) -> list[str]:
    """What changed from one stamp to the other, a phrase each; empty if they are equal."""
    return [
        f"{key} {_short(before)} → {_short(after)}"
        for key, before, after in _changed(finite(asdict(old)), finite(asdict(new)), "")
    ]


def _changed(old: Any, new: Any, key: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            change
            for name in names
            for change in _changed(
                old.get(name, "nothing"), new.get(name, "nothing"), f"{key}.{name}" if key else name
            )
        ]
    return [] if old == new else [(key.removeprefix("options."), old, new)]


def _short(value: Any) -> str:
    text = str(value)
    if len(text) == 64 and all(c in "0123456789abcdef" for c in text):
        return text[:8]
    return text if len(text) <= 40 else text[:39] + "…"
