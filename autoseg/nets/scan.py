"""The selective scan of state-space networks, in pure torch: a recurrence whose time and memory are linear.

Here belong the recurrence, how it is cut into pieces that fit a cache, and what it keeps for going
back. What is scanned, and in which order, is said in `units`.

A row of tokens is cut into chunks. What does not depend on the recurrence is computed for a tile of
chunks at once; then all chunks of the tile step together, first from zero to find what each adds,
then, once those are joined, from the state that each truly enters with. The decay over a chunk is
the exponential of a sum, never a quotient, so that nothing overflows. Between forward and backward
the entering state of each chunk is kept and nothing else; the states inside are computed again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 32
"""Tokens between two states that are kept: a state of 16 numbers a channel then costs half of
what the channel's tokens do."""
ROWS = {"cpu": 2**15, "cuda": 2**17}
"""Numbers that step together: on a CPU what leaves a tile in the cache, on a card what makes a
kernel worth its start."""
_ARRANGED_FOR: ContextVar[str | None] = ContextVar("arranged_for", default=None)


@contextmanager
def arranged_for(device: str) -> Iterator[None]:
    """Scans inside take the tiles of `device` ("cpu", "cuda"), wherever their tensors are.

    For those who count what a card would need on tensors that lie elsewhere.
    """
    token = _ARRANGED_FOR.set(device)
    try:
        yield
    finally:
        _ARRANGED_FOR.reset(token)


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    softplus: bool = False,
    reverse: bool = False,
    chunk: int = CHUNK,
) -> Tensor:
    """y (B, L, D) with y_t = C_t h_t + D x_t, where h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t.

    `x` and `delta` (B, L, D), `A` (D, N) not positive, `B` and `C` (B, L, N), `D` (D). With
    `softplus` the step is softplus(delta), which is then not kept; with `reverse` time runs from the
    last token to the first. Computed in float32 also under autocast, in float64 for float64;
    y has the type of `x`. Gu & Dao 2023, arXiv:2312.00752, algorithm 2.
    """
    keep = torch.is_grad_enabled() and any(z.requires_grad for z in (x, delta, A, B, C, D))
    device = _ARRANGED_FOR.get() or x.device.type
    way = _Way(softplus, reverse, chunk, ROWS.get(device, ROWS["cuda"]), keep)
    y: Tensor = _Scan.apply(x, delta, A, B, C, D, way)  # type: ignore[no-untyped-call]
    return y


class _Tile(NamedTuple):
    """Tokens from `start` on: `chunks` of `steps` each, the first of them chunk `first` of the row."""

    start: int
    steps: int
    chunks: int
    first: int

    def cut(self, z: Tensor) -> Tensor:
        """(B, L, F) -> (steps, B, chunks, F), a view of this tile."""
        part = z.narrow(1, self.start, self.steps * self.chunks)
        return part.view(len(z), self.chunks, self.steps, z.shape[2]).permute(2, 0, 1, 3)


@dataclass(frozen=True)
class _Way:
    """How one call goes through its tokens."""

    softplus: bool
    reverse: bool
    chunk: int
    row: int
    keep: bool = True

    def tiles(self, batch: int, length: int, width: int, state: int) -> list[_Tile]:
        """In the order of the scan; only the last chunk of a row may be shorter than the others."""
        whole, rest = divmod(length, self.chunk)
        together = max(1, self.row // max(1, batch * width * state))
        tiles = [
            _Tile(first * self.chunk, self.chunk, min(together, whole - first), first)
            for first in range(0, whole, together)
        ]
        if rest:
            tiles.append(_Tile(whole * self.chunk, rest, 1, whole))
        return tiles[::-1] if self.reverse else tiles

    def order(self, steps: int) -> list[int]:
        """The steps of a chunk in the order of the scan."""
        return list(range(steps))[::-1] if self.reverse else list(range(steps))

    def step(self, delta: Tensor) -> Tensor:
        return F.softplus(delta) if self.softplus else delta


class ScanBytes(NamedTuple):
    """What a scan allocates beside its inputs, in bytes.

    `kept` from forward to backward, the output not counted; `forward` and `backward` while at work,
    beside what is kept, the output and the gradients of the inputs.
    """

    kept: int
    forward: int
    backward: int


def scan_bytes(
    batch: int, length: int, width: int, state: int, chunk: int = CHUNK, device: str = "cpu"
) -> ScanBytes:
    """The memory of `selective_scan` in float32 on `device`."""
    way = _Way(softplus=False, reverse=False, chunk=chunk, row=ROWS[device])
    sizes = (batch, length, width, state)
    tiles = way.tiles(*sizes)
    numbers = [
        sum(tile.chunks for tile in tiles) * batch * width * state,
        *(sum(_Work.sizes(need, tiles, sizes)) for need in (FORWARD, BACKWARD)),
    ]
    return ScanBytes(*(4 * n for n in numbers))


class _Need(NamedTuple):
    """Buffers of a tile's size, how many of them have a step more, and rows of what steps together."""

    tiles: int
    longer: int
    rows: int


FORWARD = _Need(2, 0, 8)
BACKWARD = _Need(3, 1, 14)
"""The rows are what was counted with 8 and 16 numbers a state, within 3 in a hundred of the whole."""


class _Work:
    """The buffers of one call, made once: fresh memory for each tile would cost as much as the scan."""

    def __init__(
        self, need: _Need, tiles: Sequence[_Tile], sizes: tuple[int, int, int, int], like: Tensor,
        spare: bool,
    ) -> None:  # fmt: skip
        self.batch, _, self.width, self.state = sizes
        *buffers, small = self.sizes(need, tiles, sizes)
        self.buffers = [like.new_empty(n) for n in buffers]
        # stands for the little that tiles allocate themselves, where no tile is computed
        self.spare = like.new_empty(small if spare else 0)

    @staticmethod
    def sizes(
        need: _Need, tiles: Sequence[_Tile], sizes: tuple[int, int, int, int]
    ) -> tuple[int, ...]:
        """Numbers in each of the buffers, and in all that is small."""
        inside = sizes[0] * sizes[2] * sizes[3]
        tile = max(tile.steps * tile.chunks for tile in tiles) * inside
        row = max(tile.chunks for tile in tiles) * inside
        buffers = [tile + (row if i < need.longer else 0) for i in range(need.tiles)]
        return (*buffers, need.rows * row)

    def views(self, tile: _Tile, *more: int) -> list[Tensor]:
        """One buffer each, (steps + more, B, chunks, N, D)."""
        inside = (self.batch, tile.chunks, self.state, self.width)
        shapes = [(tile.steps + extra, *inside) for extra in more]
        return [
            buffer[: prod(shape)].view(shape)
            for buffer, shape in zip(self.buffers, shapes, strict=True)
        ]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, way: _Way
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y, states = _forward(_Inputs(x, delta, A, B, C, D), way)
        if way.keep:
            ctx.save_for_backward(x, delta, A, B, C, D, states)
            ctx.way = way
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        with torch.autocast(dy.device.type, enabled=False):
            return (*_backward(_Inputs(*inputs), states, dy, ctx.way), None)


class _Inputs(NamedTuple):
    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    @property
    def kind(self) -> torch.dtype:
        """What is computed in."""
        return torch.promote_types(self.x.dtype, torch.float32)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch, length, width, state."""
        return (*self.x.shape, self.A.shape[1])

    @property
    def only_counted(self) -> bool:
        """Whether the tensors hold nothing, so that only what is allocated matters.

        Not while a graph is traced, which must hold every step.
        """
        return isinstance(self.x, FakeTensor) and not torch.compiler.is_compiling()


def _forward(given: _Inputs, way: _Way) -> tuple[Tensor, Tensor]:
    """The scan's output, and the state that each chunk is entered with: (chunks, B, N, D)."""
    kind, tiles = given.kind, way.tiles(*given.sizes)
    decay, skip = given.A.t().to(kind).contiguous(), given.D.to(kind)
    y = torch.empty_like(given.x, memory_format=torch.contiguous_format)
    kept = sum(tile.chunks for tile in tiles) if way.keep else 0
    states = decay.new_empty(kept, given.sizes[0], *decay.shape)
    carry = decay.new_zeros(given.sizes[0], *decay.shape)
    work = _Work(FORWARD, tiles, given.sizes, decay, given.only_counted)
    for tile in () if given.only_counted else tiles:
        a, h = work.views(tile, 0, 0)
        x, step, B, C = (tile.cut(z).to(kind) for z in (given.x, given.delta, given.B, given.C))
        step = way.step(step)
        torch.mul(step.unsqueeze(3), decay, out=a).exp_()
        torch.mul((step * x).unsqueeze(3), B.unsqueeze(4), out=h)
        order = way.order(tile.steps)
        now, factors = [h[t] for t in order], [a[t] for t in order]
        enter = carry.unsqueeze(1)
        if tile.chunks > 1:
            ends = _alone(now, factors[1:])
            enter = _entered(ends, _through(step, decay), carry, way.reverse)
        if way.keep:
            states.narrow(0, tile.first, tile.chunks).copy_(enter.movedim(1, 0))
        _settle(now, factors[1:], enter * factors[0])
        out = torch.matmul(C.unsqueeze(3), h).squeeze(3)
        tile.cut(y).copy_(out.addcmul_(x, skip))
        carry = now[-1][:, 0 if way.reverse else -1].clone()
    return y, states


def _backward(given: _Inputs, states: Tensor, dy: Tensor, way: _Way) -> list[Tensor]:
    """The gradients of all inputs; tiles and steps go against the order of the scan."""
    kind, tiles = given.kind, way.tiles(*given.sizes)
    decay, skip = given.A.t().to(kind).contiguous(), given.D.to(kind)
    into = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in given]
    dA, dD = torch.zeros_like(decay), torch.zeros_like(skip)
    carry = decay.new_zeros(given.sizes[0], *decay.shape)
    work = _Work(BACKWARD, tiles, given.sizes, decay, given.only_counted)
    for tile in () if given.only_counted else tiles[::-1]:
        h, a, g = work.views(tile, 1, 0, 0)
        x, raw, B, C = (tile.cut(z).to(kind) for z in (given.x, given.delta, given.B, given.C))
        from_y, step = tile.cut(dy).to(kind), way.step(raw)
        fed = step * x
        order = way.order(tile.steps)
        before, after = (h[1:], h[:-1]) if way.reverse else (h[:-1], h[1:])
        torch.mul(step.unsqueeze(3), decay, out=a).exp_()
        torch.mul(fed.unsqueeze(3), B.unsqueeze(4), out=after)
        enter = before[order[0]].copy_(states.narrow(0, tile.first, tile.chunks).movedim(0, 1))
        factors = [a[t] for t in order]
        _settle([after[t] for t in order], factors[1:], enter * factors[0])
        torch.mul(C.unsqueeze(4), from_y.unsqueeze(3), out=g)
        carry = _going_back([g[t] for t in order], factors, carry, _through(step, decay), way)
        into_fed = torch.matmul(B.unsqueeze(3), g).squeeze(3)
        tile.cut(into[3]).copy_(torch.matmul(g, fed.unsqueeze(4)).squeeze(4))
        tile.cut(into[4]).copy_(torch.matmul(after, from_y.unsqueeze(4)).squeeze(4))
        tile.cut(into[0]).copy_((into_fed * step).addcmul_(from_y, skip))
        a.mul_(before).mul_(g)  # what exp(step A) changes, were it larger by its own size
        into_step = into_fed.mul_(x)
        for n, rate in enumerate(decay):
            into_step.addcmul_(a[:, :, :, n], rate)
        tile.cut(into[1]).copy_(into_step.mul_(raw.sigmoid()) if way.softplus else into_step)
        dA += _summed(a, step)
        dD += (from_y * x).sum((0, 1, 2))
    into[2].copy_(dA.t())
    into[5].copy_(dD)
    return into


def _going_back(
    now: list[Tensor], factors: list[Tensor], carry: Tensor, through: Tensor, way: _Way
) -> Tensor:
    """What leaves the tile against the order of the scan; `now` then holds the states' gradients.

    Both lists are in the order of the scan; `now` holds what each step's output adds.
    """
    now, factors = now[::-1], factors[::-1]
    enter = carry.unsqueeze(1)
    if enter.shape[1] != now[0].shape[1]:
        ends = _alone(now, factors) * factors[-1]
        enter = _entered(ends, through, carry, not way.reverse)
    _settle(now, factors, enter)
    last = -1 if way.reverse else 0
    return now[-1][:, last] * factors[-1][:, last]


def _alone(now: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    """The last state of chunks that are entered with nothing; `factors` from the second step on."""
    state = now[0].clone()
    for this, factor in zip(now[1:], factors, strict=False):
        torch.addcmul(this, factor, state, out=state)
    return state


def _settle(now: Sequence[Tensor], factors: Sequence[Tensor], first: Tensor) -> None:
    """The recurrence in place, `first` being what comes into the first step."""
    state = now[0].add_(first)
    for this, factor in zip(now[1:], factors, strict=False):
        state = this.addcmul_(factor, state)


def _through(step: Tensor, decay: Tensor) -> Tensor:
    """What is left of a state after a whole chunk, (B, chunks, N, D), from steps (T, B, chunks, D)."""
    return torch.mul(step.sum(0).unsqueeze(2), decay).exp_()


def _entered(ends: Tensor, through: Tensor, carry: Tensor, reverse: bool) -> Tensor:
    """What each chunk is entered with, (B, chunks, N, D), by doubling (Hillis & Steele 1986).

    `ends` are the states that chunks end with when entered with nothing; `carry` enters the first.
    """
    if reverse:
        ends, through = ends.flip(1), through.flip(1)
    state = torch.cat([carry.unsqueeze(1), ends[:, :-1]], 1)
    left = torch.cat([torch.zeros_like(through[:, :1]), through[:, :-1]], 1)
    shift = 1
    while shift < state.shape[1]:
        joined = torch.addcmul(state[:, shift:], left[:, shift:], state[:, :-shift])
        state = torch.cat([state[:, :shift], joined], 1)
        left = torch.cat([left[:, :shift], left[:, shift:] * left[:, :-shift]], 1)
        shift *= 2
    return state.flip(1) if reverse else state


def _summed(q: Tensor, step: Tensor) -> Tensor:
    """Sum over tokens of q (T, B, chunks, N, D) times step (T, B, chunks, D): (N, D)."""
    total = torch.zeros_like(q[0])
    for this, by in zip(q, step, strict=True):
        total.addcmul_(this, by.unsqueeze(2))
    return total.sum((0, 1))
