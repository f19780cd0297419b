"""The vocabulary of units: (B, cin, *S) -> (B, cout, *S).

A unit is built as unit(kit, cin, cout), with its settings as keywords. It never changes the grid,
so that any of them fits into any position of the sentence.
"""

from collections.abc import Callable

from torch import nn

from autoseg.nets.units import plain

Unit = Callable[..., nn.Module]

UNITS: dict[str, Unit] = {
    "plain": plain.plain,
    "pair": plain.pair,
}
