"""How we tell a person what is wrong with their data, plan or command.

    AutosegError            the user can mend it: one explained line, exit code 2
    ├── BadData             a list of Problems in a dataset, grouped by rule
    ├── PlanError           a plan, or a value pinned in it, cannot work
    ├── Busy                another process is writing the same unit
    ├── Stale               a trained fold or an edited plan was made from something else
    ├── TrainingDiverged    the loss is no longer a number
    ├── OutOfMemory         a training step does not fit into the memory of the device
    └── Interrupted         stopped by a signal, state saved; the same command goes on

A `ValueError` is a wrong use of the Python functions, an `assert` one of our own invariants.
"""

import difflib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

SHOWN_PER_RULE = 4


class AutosegError(Exception):
    """Something the user can mend; the message says what, where, what was found, what to do."""

    exit_code = 2


class PlanError(AutosegError):
    """A plan document, or a value that was pinned in it, cannot work."""


class Busy(AutosegError):
    """Another live process holds the lock of a unit."""


class Stale(AutosegError):
    """A unit that is never redone silently was made from something else than is there now."""


class TrainingDiverged(AutosegError):
    """The loss became NaN or infinite."""


class OutOfMemory(AutosegError):
    """A training step does not fit into the memory of the device."""

    lasting = False
    """Whether this process cannot compute any more, however small the next step is."""
    configuration = ""
    """Whose step it was, where that is known: a cascade trains the stage before it, too."""


class Interrupted(AutosegError):
    """A signal stopped the work after its state was saved."""

    exit_code = 130


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one case, said so that a radiographer could act on it.

    `what` is the rule, in the same words for every case, so that cases can be grouped; `found`
    holds the numbers with their units; `fix` says what to do. A problem that is not `fatal` is a
    warning, which is reported and recorded but stops nothing.
    """

    case: str
    what: str
    found: str
    fix: str
    fatal: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def grouped(problems: Iterable[Problem]) -> str:
    """The problems as text, one paragraph a rule, the first few cases of each."""
    rules: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        rules[problem.what, problem.fix].append(problem)
    paragraphs = []
    for (what, fix), found in rules.items():
        lines = [f"{what} ({counted(len(found), 'case')})"]
        lines += [f"  {p.case}: {p.found}" for p in found[:SHOWN_PER_RULE]]
        if len(found) > SHOWN_PER_RULE:
            lines.append(f"  … and {len(found) - SHOWN_PER_RULE} more")
        lines.append(f"  to fix: {fix}")
        paragraphs.append("\n".join(lines))
    return "\n".join(paragraphs)


class BadData(AutosegError):
    """All that is wrong with a dataset, grouped by rule: one run tells everything."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(grouped(self.problems))

    def __reduce__(self) -> tuple[type["BadData"], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)  # a worker's faults reach the process that asked


def raise_fatal(problems: Iterable[Problem]) -> None:
    """Raise BadData if any of `problems` is fatal; the warnings travel with it."""
    found = tuple(problems)
    if any(p.fatal for p in found):
        raise BadData(p for p in found if p.fatal)


def counted(count: int, thing: str) -> str:
    """`1 case` or `2 cases`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?` for the known name that is nearest, else the list of known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"
