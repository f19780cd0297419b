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


class AttentionGate(Join):
    """[below, alpha * kept], alpha = sigmoid(psi(relu(W_x kept + W_g below))) for each voxel.

    Attention U-Net (Oktay et al. 2018, arXiv:1804.03999). There the signal g comes from the coarser
    grid and alpha is interpolated; here it is `below` after its step up, on the grid of `kept`, so
    that the gate is as fine as what it gates. The hidden width is kept / `ratio`.
    """

    def __init__(self, kit: Kit, kept: int, below: int, *, ratio: int = 2) -> None:
        super().__init__()
        hidden = max(1, kept // ratio)
        self.from_kept = kit.conv(kept, hidden, 1, bias=False)
        self.from_below = kit.conv(below, hidden, 1)
        self.psi = kit.conv(hidden, 1, 1)
        self.width = kept + below

    def alpha(self, kept: Tensor, below: Tensor) -> Tensor:
        """How much of each voxel passes, (B, 1, *S) in (0, 1)."""
        return torch.sigmoid(self.psi(torch.relu(self.from_kept(kept) + self.from_below(below))))

    def forward(self, kept: Tensor, below: Tensor) -> Tensor:
        return torch.cat([below, kept * self.alpha(kept, below)], 1)


class ConvLSTM(nn.Module):
    """An LSTM whose products are convolutions; steps (B, cin, *S) to the last state (B, hidden, *S).

    Shi et al. 2015, arXiv:1506.04214, without the weights from cell to gates, of which there would
    be one for each voxel of a fixed grid.
    """

    def __init__(self, kit: Kit, cin: int, hidden: int) -> None:
        super().__init__()
        self.from_input = kit.conv(cin, 4 * hidden)
        self.from_state = kit.conv(hidden, 4 * hidden, bias=False)

    def forward(self, first: Tensor, *later: Tensor) -> Tensor:
        # before the first step state and cell are zero, so that nothing is there to forget
        enter, _, leave, new = self.from_input(first).chunk(4, 1)
        cell = enter.sigmoid() * new.tanh()
        state: Tensor = leave.sigmoid() * cell.tanh()
        for x in later:
            gates = self.from_input(x) + self.from_state(state)
            enter, forget, leave, new = gates.chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            state = leave.sigmoid() * cell.tanh()
        return state


class Lstm(Join):
    """tanh(W [state after (kept, below), state after (below, kept)]), as wide as `kept`.

    The bidirectional ConvLSTM of BCDU-Net (Azad et al. 2019, arXiv:1909.00166). Each direction has
    half the width; `below` goes through a 1x1 convolution where its width is another.
    """

    def __init__(self, kit: Kit, kept: int, below: int) -> None:
        super().__init__()
        hidden = max(1, kept // 2)
        self.enter = nn.Identity() if kept == below else kit.conv(below, kept, 1)
        self.down, self.up = ConvLSTM(kit, kept, hidden), ConvLSTM(kit, kept, hidden)
        self.merge = kit.conv(2 * hidden, kept, 1)
        self.width = kept

    def forward(self, kept: Tensor, below: Tensor) -> Tensor:
        below = self.enter(below)
        both = torch.cat([self.down(kept, below), self.up(below, kept)], 1)
        return torch.tanh(self.merge(both))


JOINS: dict[str, Joins] = {
    "concat": Concat,
    "add": Add,
    "attention_gate": AttentionGate,
    "lstm": Lstm,
}
