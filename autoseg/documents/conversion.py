"""What is to become a dataset: which files of others make which case, and what their values mean.

The layouts of others (`interop.conversion.layout_*`) each give a `Draft`; `interop.conversion.convert` makes the
dataset of it. Only names and paths live here, and the two small languages in which a person says
what label values mean: `background=0,tumour=1` and `0=0,128-255=1`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autoseg.documents.labels import parse_labels
from autoseg.errors import AutosegError, Problem

Reads = Literal["file", "dicom", "slices", "parts", "structures"]
Link = Literal["", "hard", "soft"]
Range = tuple[int, int, int]

NAME = re.compile(r"^(?:Dataset)?(\d{1,4})[_ ]([A-Za-z0-9][A-Za-z0-9_-]*)$")
CASE = re.compile(r"^[^\W_][\w.+@() -]{0,180}$")
MOST = 1 << 31
RANGE = re.compile(r"^(\d{1,9})(?:-(\d{1,9}))?$")


@dataclass(frozen=True)
class Source:
    """Files that make one image, or one label map.

    `file`: one file; of a 4D NIfTI the last axis are channels. `dicom`: the files of one series.
    `slices`: pictures, in the order of the numbers in their names, or one to each slice of the
    image. `parts`: masks of single objects, to be joined. `structures`: a mask a structure, painted
    with `values` in this order.
    """

    files: tuple[Path, ...]
    reads: Reads = "file"
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class SourceCase:
    """One case: its images in the order of the channels, and what belongs to them.

    `facts` are its cells in cases.csv. Outside of `field_of_view` (0) nobody labelled.
    """

    id: str
    images: tuple[Source, ...]
    label: Source | None = None
    field_of_view: Source | None = None
    test: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class Draft:
    """A dataset before it is made.

    No `channels`: they are counted. No `labels`: the values found are the labels. `ranges` are
    (lowest, highest, ours) of the source's values; none: the values are ours. `facts` are further
    keys of dataset.json. `endings` change a file's ending where it is told apart from the source's.
    `spacing_mm` (slices, rows, columns) is for stacks of pictures, which do not know it.
    """

    cases: tuple[SourceCase, ...]
    channels: tuple[str, ...] = ()
    labels: Mapping[str, Any] | None = None
    order: tuple[int, ...] | None = None
    ranges: tuple[Range, ...] = ()
    label_ending: str = ""
    spacing_mm: tuple[float, float, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What a conversion left: the dataset's folder, its cases, and what was odd."""

    folder: Path
    labelled: int
    test: int
    made: int
    channels: tuple[str, ...]
    labels: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()


def dataset_name(text: str) -> str:
    """`Dataset012_Liver` of `12_Liver`, `012_Liver` or the whole name. Raises AutosegError."""
    found = NAME.match(text.strip())
    if found is None:
        raise AutosegError(f"{text!r} names no new dataset; give a number and a word, as 12_Liver")
    return f"Dataset{int(found[1]):03d}_{found[2]}"


def labels_of(text: str) -> dict[str, int | list[int]]:
    """`background=0,tumour=1,organ=1+2` as the labels of dataset.json. Raises AutosegError."""
    found: dict[str, int | list[int]] = {}
    for entry in text.split(","):
        name, sign, value = entry.rpartition("=")
        numbers = [part.strip() for part in value.split("+")]
        if not sign or not name.strip() or not all(n.isdecimal() for n in numbers):
            raise AutosegError(
                f"--labels: {entry.strip()!r} is no label; write names and values as "
                "background=0,tumour=1, several values of a region as organ=1+2"
            )
        if name.strip() in found:
            raise AutosegError(f"--labels: {name.strip()!r} is there twice")
        values = [int(n) for n in numbers]
        found[name.strip()] = values if len(values) > 1 else values[0]
    return with_background(found)


def with_background(labels: Mapping[str, Any]) -> dict[str, Any]:
    """The labels with background = 0 first, which a person need not say. Raises AutosegError."""
    zero = any(value in (0, [0]) for value in labels.values())
    complete = dict(labels) if zero else {"background": 0, **labels}
    for name, value in complete.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(n, int) and 0 <= n < MOST for n in numbers):
            raise AutosegError(
                f"label {name!r} has the value {value!r}; it must be a whole number from 0 on, or a "
                "list of them for a region"
            )
    if any(isinstance(value, list) for value in complete.values()):
        parse_labels(complete, order_of(complete))
    else:
        parse_labels(complete)
    return complete


def order_of(labels: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The value that each region is painted with: one that no later region holds; None: no regions.

    Raises AutosegError where a region has no value of its own.
    """
    regions = {n: v for n, v in labels.items() if v not in (0, [0]) and n != "ignore"}
    several = {n: set(v if isinstance(v, list) else [v]) for n, v in regions.items()}
    if all(len(values) == 1 for values in several.values()):
        return None
    order = []
    names = list(several)
    for at, name in enumerate(names):
        own = several[name].difference(*(several[later] for later in names[at + 1 :]))
        if not own:
            raise AutosegError(
                f"region {name!r} has no value that no later region holds; list large regions "
                "before those inside them"
            )
        order.append(min(own))
    return tuple(order)


def ranges_of(text: str) -> tuple[Range, ...]:
    """`0-127=0,128-255=1` as ranges: the source's values and ours. Raises AutosegError."""
    found: list[Range] = []
    for entry in text.split(","):
        theirs, _, ours = entry.partition("=")
        match = RANGE.match(theirs.strip())
        if match is None or not ours.strip().isdecimal():
            raise AutosegError(
                f"--values: {entry.strip()!r} is none; write the source's value, or a range of "
                "them, and yours: 0=0,255=1 or 0-127=0,128-255=1"
            )
        found.append((int(match[1]), int(match[2] or match[1]), int(ours)))
    last = -1
    for low, high, _ in sorted(found):
        if not last < low <= high:
            raise AutosegError(f"--values: {low}-{high} is upside down, or overlaps another range")
        last = high
    return tuple(found)
