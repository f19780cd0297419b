"""Wraps that leave a unit out now and then while training."""

from torch import Tensor, nn

from autoseg.nets.kit import Kit
from autoseg.nets.units.words import Unit


class DropPath(nn.Module):
    """While training, each sample is zeroed with probability `rate`, else divided by 1 - rate.

    Which, is drawn from torch's random numbers. In evaluation nothing is changed.
    """

    def __init__(self, unit: nn.Module, rate: float) -> None:
        super().__init__()
        self.rate, self.unit = rate, unit

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.unit(x)
        if not self.training or self.rate == 0:
            return y
        kept = 1 - self.rate
        drawn = y.new_empty(len(y), *[1] * (y.ndim - 1)).bernoulli_(kept)
        return y * (drawn / kept)


def drop_path(unit: Unit, *, rate: float = 0.1) -> Unit:
    """The unit is left out for a share of the samples: for the inside of `residual`.

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382), which scales in evaluation instead.
    Raises ValueError for a rate that is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of 'drop_path' must be in [0, 1), found {rate}")

    def wrapped(kit: Kit, cin: int, cout: int) -> nn.Module:
        return DropPath(unit(kit, cin, cout), rate)

    return wrapped
