"""The vocabulary of wraps: each makes a unit of a unit, wrap(unit, **settings) -> unit."""

from collections.abc import Callable

from autoseg.nets.units.words import Unit
from autoseg.nets.wraps import residual

Wrap = Callable[..., Unit]

WRAPS: dict[str, Wrap] = {
    "residual": residual.residual,
}
