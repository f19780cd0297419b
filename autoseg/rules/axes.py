"""Along which anatomical axes do all arrays of a plan run?

Letters name the side towards which an axis runs ("SAR": superior, anterior, right). An orientation
names the axes of a file, first (fastest) one first; arrays run the other way round, slowest first,
as in nnU-Net.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from autoseg.rules.decision import Decision

T = TypeVar("T")

OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
STORED = "stored"


def majority_axes(orientations: Mapping[str, int]) -> Decision[str]:
    """The axes of the orientation that most cases are stored in, slowest first.

    Ties go to the orientation that comes first in the alphabet. `orientations` counts cases.
    """
    chosen = min(orientations, key=lambda name: (-orientations[name], name))
    total = sum(orientations.values())
    others = ", ".join(f"{n} {o}" for o, n in sorted(orientations.items()) if o != chosen)
    turned = f"; the others ({others}) are turned to it when they are read" if others else ""
    return Decision(
        chosen[::-1],
        f"{orientations[chosen]} of {total} cases are stored as {chosen}{turned}.",
    )


def in_axes(values: Sequence[T], orientation: str, axes: str) -> tuple[T, ...]:
    """Per-axis values of a file, given in the order of its `orientation`, in the order of `axes`."""
    if axes.startswith(STORED):
        order = axes.partition(":")[2] or "kji"
        return tuple(values["ijk".index(letter)] for letter in order)
    places = {letter: i for i, letter in enumerate(orientation)}
    return tuple(
        values[places[letter] if letter in places else places[OPPOSITE[letter]]] for letter in axes
    )


def reordered(axes: str, order: Sequence[int]) -> str:
    """`axes` with its letters in another order."""
    if axes.startswith(STORED):
        letters = axes.partition(":")[2] or "kji"
        turned = "".join(letters[i] for i in order)
        return STORED if turned == "kji" else f"{STORED}:{turned}"
    return "".join(axes[i] for i in order)
