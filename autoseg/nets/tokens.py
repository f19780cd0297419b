"""Voxels as tokens: the one adapter between grids and what mixes rows of tokens, and windows of them.

Here belong the layers that see tokens only as rows or blocks of a grid. What mixes tokens (attention,
state spaces) stands in `units`; how many tokens a network has is its family's affair.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02
"""The spread of a transformer's fresh weights (Dosovitskiy et al. 2020, arXiv:2010.11929).

They are not cut off: the usual bound of 2 lies a hundred spreads away."""


def to_tokens(x: Tensor) -> Tensor:
    """Voxels (B, C, *S) as tokens (B, L, C), the last axis running fastest; a view where it can."""
    return x.movedim(1, -1).flatten(1, -2)


def to_voxels(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Tokens (B, L, C) as voxels (B, C, *grid), a channels-last view."""
    return _on_grid(tokens, grid).movedim(-1, 1)


def _on_grid(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, L, C) -> (B, *grid, C)."""
    return tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])


class OnTokens(nn.Module):
    """A mixer of tokens as a layer on voxels: (B, C, *S) -> (B, D, *S).

    `mixer(tokens (N, L, C), grid)` gives (N, L, D), where `grid` are the lengths whose product is L.
    An axis whose entry in `mixed` is false never mixes: its slices are samples of their own (they
    go into N, and are not in `grid`). Anisotropic levels mix where their kernel is longer than 1.
    With no such axis all of them mix, since there would be nothing to do.
    """

    def __init__(self, mixer: nn.Module, mixed: Sequence[bool] | None = None) -> None:
        super().__init__()
        self.mixer = mixer
        self.mixed = None if mixed is None or len(set(mixed)) == 1 else tuple(mixed)

    def extra_repr(self) -> str:
        return "" if self.mixed is None else f"mixed={self.mixed}"

    def forward(self, x: Tensor) -> Tensor:
        if self.mixed is None:
            tokens: Tensor = self.mixer(to_tokens(x), tuple(x.shape[2:]))
            return to_voxels(tokens, x.shape[2:])
        apart = [axis + 2 for axis, mixes in enumerate(self.mixed) if not mixes]
        inside = [axis + 2 for axis, mixes in enumerate(self.mixed) if mixes]
        order = [0, *apart, *inside, 1]
        y = x.permute(order)
        ahead, grid = y.shape[: 1 + len(apart)], tuple(y.shape[1 + len(apart) : -1])
        out: Tensor = self.mixer(y.reshape(prod(ahead), prod(grid), y.shape[-1]), grid)
        back = [order.index(axis) for axis in range(len(order))]
        return out.reshape(*ahead, *grid, out.shape[-1]).permute(back)


class Windows:
    """Blocks of `window` tokens on a grid that is rolled back by `shift`, padded at its ends.

    An axis that is not longer than its window is one window, and is not shifted. The seam that
    rolling makes runs through the last window of each shifted axis (Liu et al. 2021,
    arXiv:2103.14030).
    """

    def __init__(self, grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> None:
        self.grid = tuple(grid)
        axes = list(zip(grid, window, strict=True))
        self.window = tuple(min(n, w) for n, w in axes)
        self.shift = tuple(0 if n <= w else s for (n, w), s in zip(axes, shift, strict=True))
        self.counts = tuple(-(-n // w) for n, w in zip(self.grid, self.window, strict=True))
        self.padded = tuple(c * w for c, w in zip(self.counts, self.window, strict=True))

    @property
    def size(self) -> int:
        """Tokens in a window."""
        return prod(self.window)

    @property
    def shifted(self) -> bool:
        return any(self.shift)

    def split(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B * windows, tokens of a window, C); padding tokens are zeros."""
        x = _on_grid(tokens, self.grid)
        if self.padded != self.grid:
            ends = [(0, p - n) for n, p in zip(self.grid, self.padded, strict=True)]
            x = F.pad(x, (0, 0, *(side for end in reversed(ends) for side in end)))
        x = self._rolled(x, [-s for s in self.shift])
        blocks = [n for pair in zip(self.counts, self.window, strict=True) for n in pair]
        x = x.reshape(x.shape[0], *blocks, x.shape[-1])
        d = len(self.grid)
        order = [0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1]
        return x.permute(order).reshape(-1, self.size, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """The reverse of `split`, padding cut off."""
        d, channels = len(self.grid), windows.shape[-1]
        x = windows.reshape(-1, *self.counts, *self.window, channels)
        order = [0, *(axis for i in range(d) for axis in (1 + i, 1 + d + i)), 2 * d + 1]
        x = self._rolled(x.permute(order).reshape(-1, *self.padded, channels), self.shift)
        x = x[(slice(None), *(slice(n) for n in self.grid))]
        return x.flatten(1, -2)

    def regions(self, device: torch.device) -> Tensor:
        """(windows, tokens of a window): tokens of a window are neighbours if their numbers agree.

        Others met there by rolling alone, from opposite ends of the grid.
        """
        number = torch.zeros(1, *self.padded, 1, device=device, dtype=torch.uint8)
        for axis, (length, shift) in enumerate(zip(self.padded, self.shift, strict=True)):
            beyond = torch.arange(length, device=device) >= length - shift
            shape = [1] * (len(self.padded) + 2)
            shape[1 + axis] = length
            number = number + beyond.to(torch.uint8).view(shape) * 2**axis
        whole = Windows(self.padded, self.window, [0] * len(self.window))
        return whole.split(number.flatten(1, -2)).squeeze(-1)

    def _rolled(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        return x.roll(tuple(steps), tuple(range(1, len(steps) + 1))) if self.shifted else x


def linear(cin: int, cout: int, bias: bool = True) -> nn.Linear:
    """A linear layer with a transformer's fresh weights, its bias zero."""
    layer = nn.Linear(cin, cout, bias=bias)
    nn.init.normal_(layer.weight, std=INIT_STD)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def patches(cin: int, width: int, size: Sequence[int]) -> nn.Module:
    """(B, cin, *S) -> (B, width, *S / size): a projection of each block of voxels to one token."""
    layer: Any = (nn.Conv2d, nn.Conv3d)[len(size) - 2]
    made: nn.Module = layer(cin, width, tuple(size), tuple(size))
    return made


class PerVoxelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel of (B, C, *S)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Positions(nn.Module):
    """x (B, C, *S) + a learnt vector for each place of a grid, interpolated where S is another."""

    def __init__(self, width: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(1, width, *grid))
        nn.init.normal_(self.vectors, std=INIT_STD)

    def forward(self, x: Tensor) -> Tensor:
        vectors: Tensor = self.vectors
        if vectors.shape[2:] != x.shape[2:]:
            mode = "bilinear" if x.ndim == 4 else "trilinear"
            vectors = F.interpolate(vectors, x.shape[2:], mode=mode, align_corners=False)
        return x + vectors
