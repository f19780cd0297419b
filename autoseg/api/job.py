"""What every verb makes of the names that a person gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.flow.make import Job


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
"""What a folder may be called: no path, so that nothing is written elsewhere."""


def job_of(dataset: str, root: Path | None, **rest: Any) -> Job:
    """The work on a dataset given by number or name. Raises AutosegError listing the others.

    And for a plan or run whose name cannot be a folder's, or a number of processes below 0.
    """
    from autoseg.flow.make import Job
    from autoseg.workspace import open_workspace

    for what in ("plan", "run"):
        if what in rest:
            named(rest[what], what)
    processes(rest.get("workers"))
    return Job(open_workspace(root).dataset(dataset), **rest)


def named(name: str, what: str) -> str:
    """The name of a plan or a run, as it was given. Raises AutosegError if no folder can have it."""
    from autoseg.errors import AutosegError

    if not NAME.fullmatch(name):
        raise AutosegError(
            f"{name!r} cannot be the name of a {what}: letters, digits and . _ - are, up to 100, "
            "and a letter or a digit comes first"
        )
    return name


def processes(workers: int | None) -> int | None:
    """A number of processes, as it was given; None: as many as fit. Raises AutosegError below 0."""
    from autoseg.errors import AutosegError

    if workers is not None and workers < 0:
        raise AutosegError(f"--workers {workers} must not be below 0")
    return workers


def several(names: tuple[str, ...] | str) -> tuple[str, ...]:
    """A single name given where several may be, as a tuple of one."""
    return (names,) if isinstance(names, str) else tuple(names)
