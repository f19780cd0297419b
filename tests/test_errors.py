"""Errors say what a person can mend, also where a worker process met them."""

from collections.abc import Iterator
from copy import copy

import pytest

from autoseg import errors
from autoseg.errors import AutosegError, BadData, Problem, counted
from autoseg.pool import over_units

FAULTS = (Problem("a", "a file is damaged", "3 bytes", "copy it again"),
          Problem("b", "a file is damaged", "0 bytes", "copy it again"))  # fmt: skip


def kinds(of: type[AutosegError] = AutosegError) -> Iterator[type[AutosegError]]:
    yield of
    for kind in of.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", [k for k in kinds() if k.__module__ == errors.__name__])
def test_every_error_crosses_processes(kind: type[AutosegError]) -> None:
    error = BadData(FAULTS) if kind is BadData else kind("what, where, found, fix")
    there = copy(error)  # by the same way as pickle does it
    assert (type(there), str(there), vars(there)) == (kind, str(error), vars(error))


def faulty(unit: str) -> str:
    if unit == "c":
        return unit
    raise BadData([problem for problem in FAULTS if problem.case == unit])


def test_faults_that_workers_meet_are_told_as_they_are() -> None:
    found = dict(over_units(faulty, ["a", "b", "c"], workers=2))
    assert found["c"] == "c"
    for case, problem in zip("ab", FAULTS, strict=True):
        told = found[case]
        assert isinstance(told, BadData) and told.problems == (problem,)


def test_one_is_no_plural() -> None:
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
