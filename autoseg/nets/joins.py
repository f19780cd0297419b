"""Joins, the only words with two inputs: how a level's features meet those from below.

A join is built as (kit, channels kept, channels below), its settings as keywords, and maps
(kept (B, c, *S), below (B, d, *S)) to (B, e, *S); its attribute `width` says e, from which the
decoder goes on.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from autoseg.nets.kit import Kit


class Join(nn.Module):
    """What every join is: a module of two inputs that says how wide its output is."""

    width: int


Joins = Callable[..., Join]


class Concat(Join):
    """[below, kept] along the channels, in nnU-Net's order."""

    def __init__(self, kit: Kit, kept: int, below: int) -> None:  # noqa: ARG002
        super().__init__()
        self.width = kept + below

    def forward(self, kept: Tensor, below: Tensor) -> Tensor:
        return torch.cat([below, kept], 1)


class Add(Join):
    """below + kept, which takes half the memory of `Concat`. Both need one width."""

    def __init__(self, kit: Kit, kept: int, below: int) -> None:  # noqa: ARG002
        super().__init__()
        if kept != below:
            raise ValueError(f"the join 'add' needs equal widths, found {kept} and {below}")
        self.width = kept

    def forward(self, kept: Tensor, below: Tensor) -> Tensor:
        return below + kept


JOINS: dict[str, Joins] = {"concat": Concat, "add": Add}
