"""What every verb makes of the names that a person gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.flow.make import Job


def job_of(dataset: str, root: Path | None, **rest: Any) -> Job:
    """The work on a dataset given by number or name. Raises AutosegError listing the others."""
    from autoseg.flow.make import Job
    from autoseg.workspace import open_workspace

    return Job(open_workspace(root).dataset(dataset), **rest)


def several(names: tuple[str, ...] | str) -> tuple[str, ...]:
    """A single name given where several may be, as a tuple of one."""
    return (names,) if isinstance(names, str) else tuple(names)
