"""The vocabulary of wraps: each makes a unit of a unit, wrap(unit, **settings) -> unit."""

from collections.abc import Callable

from autoseg.nets.units.words import Unit
from autoseg.nets.wraps import depth, gates, residual

Wrap = Callable[..., Unit]

WRAPS: dict[str, Wrap] = {
    "residual": residual.residual,
    "squeeze_excite": gates.squeeze_excite,
    "efficient_channel": gates.efficient_channel,
    "spatial_attention": gates.spatial_attention,
    "dual_attention": gates.dual_attention,
    "drop_path": depth.drop_path,
}
