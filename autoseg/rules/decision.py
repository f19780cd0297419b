"""What a rule returns, and how the numbers in its reason are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)

Spacing = tuple[float, ...]
Size = tuple[int, ...]


@dataclass(frozen=True)
class Decision(Generic[T_co]):
    """A value and why it is that value: one sentence that holds the numbers that decided."""

    value: T_co
    why: str


def sizes(values: Sequence[float]) -> str:
    """`40 x 56 x 35.5`: voxels along each axis."""
    return " x ".join(f"{value:g}" for value in values)


def lengths(values_mm: Sequence[float]) -> str:
    """`1 x 0.768 x 0.768 mm`: millimetres along each axis."""
    return " x ".join(f"{value:.4g}" for value in values_mm) + " mm"


def count(number: float) -> str:
    """`12,345` or, from a million on, `19.2 million`."""
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,.0f}"
