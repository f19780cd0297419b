"""State-space mixers of tokens, and the units made of them.

Here belong the parameters around the scan: what is scanned, in which orders, and how the results come
together. The recurrence itself stands in `autoseg.nets.scan`. All of it is computed in float32
under autocast, as the states of long rows do not fit half precision.
"""

from collections.abc import Sequence
from functools import reduce
from importlib.util import find_spec
from math import ceil, log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from autoseg.errors import PlanError, nearest
from autoseg.nets.kit import Kit, chain
from autoseg.nets.scan import selective_scan
from autoseg.nets.tokens import OnTokens, PerVoxelNorm

STEPS = (1e-3, 1e-1)
"""Between these the step sizes of fresh channels lie, evenly on a log scale (Gu & Dao 2023)."""
SMALLEST_STEP = 1e-4
RANK = 16
"""Channels of the model for each number that the step sizes are computed from."""
KERNELS = ("torch", "mamba_ssm")


class Way(NamedTuple):
    """An order of voxels: the axis that runs fastest (the others keep theirs), and whether back."""

    fastest: int = -1
    reverse: bool = False


class States(nn.Module):
    """A selective state space along one row: x (B, L, E) -> y (B, L, E).

    Steps, inputs and outputs of the states depend on each token; the states' decay is learnt. `rank`
    numbers a token tell its steps. Gu & Dao 2023, arXiv:2312.00752, algorithm 2.
    """

    untraced = True
    """A compiler leaves this part as it is: tracing follows every step of every chunk of the scan."""

    def __init__(self, width: int, rank: int, state: int, kernel: str) -> None:
        super().__init__()
        self.split, self.kernel = (rank, state, state), checked(kernel)
        self.x_proj = nn.Linear(width, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, width)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        least, most = (log(step) for step in STEPS)
        steps = torch.empty(width).uniform_(least, most).exp().clamp(min=SMALLEST_STEP)
        with torch.no_grad():  # the inverse of softplus
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        rates = torch.arange(1, state + 1, dtype=torch.float32).log()
        self.A_log = _undecayed(rates.expand(width, state).clone())
        self.D = _undecayed(torch.ones(width))

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"

    def forward(self, x: Tensor, reverse: bool) -> Tensor:
        dt, B, C = self.x_proj(x).split(self.split, -1)
        A, delta = -self.A_log.exp(), self.dt_proj(dt)
        if self.kernel == "torch":
            return selective_scan(x, delta, A, B, C, self.D, softplus=True, reverse=reverse)
        return _fused_scan(x, delta, A, B, C, self.D, reverse)


class Local(nn.Module):
    """A convolution within each channel over the tokens before and at a token, behind it if reverse.

    Kept as the 2D convolution that reads tokens as they lie.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        bound = size**-0.5
        self.weight = nn.Parameter(torch.empty(width, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Tensor, reverse: bool) -> Tensor:
        width, size = self.weight.shape
        # zeros on both sides, and the rows that look the wrong way cut off: no copy is kept
        row = x.unsqueeze(1).permute(0, 3, 1, 2)
        kernel = self.weight.flip(1) if reverse else self.weight
        out = F.conv2d(
            row, kernel[:, None, None], self.bias, padding=(0, size - 1), groups=width
        ).permute(0, 2, 3, 1)
        return out[:, 0, size - 1 if reverse else 0 :][:, : x.shape[1]]


class Scanned(nn.Module):
    """One direction of a Mamba block: local convolution, SiLU, states."""

    def __init__(self, width: int, rank: int, state: int, size: int, kernel: str) -> None:
        super().__init__()
        self.local = Local(width, size)
        self.states = States(width, rank, state, kernel)

    def forward(self, x: Tensor, reverse: bool) -> Tensor:
        out: Tensor = self.states(F.silu(self.local(x, reverse)), reverse)
        return out


class _Gate(torch.autograd.Function):
    """x * silu(gate), of which only the two inputs are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return x * F.silu(gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors
        return dy * F.silu(gate), torch.ops.aten.silu_backward(dy * x, gate)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """x * silu(gate)."""
    y: Tensor = _Gate.apply(x, gate)  # type: ignore[no-untyped-call]
    return y


class Mamba(nn.Module):
    """The Mamba block, (N, L, C) -> (N, L, C): a gated sum of scans, one for each of `ways`.

    With one way it is Gu & Dao's (2023, arXiv:2312.00752), with a second one back Vision Mamba's
    (Zhu et al. 2024, arXiv:2401.09417), each way with weights of its own between the shared
    projections.
    """

    own_init = True

    def __init__(
        self, width: int, ways: Sequence[Way] = (Way(),), *, state: int = 16, size: int = 4,
        expand: int = 2, kernel: str = "torch",
    ) -> None:  # fmt: skip
        super().__init__()
        inner, rank = expand * width, ceil(width / RANK)
        self.ways = tuple(ways)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.scanned = nn.ModuleList(Scanned(inner, rank, state, size, kernel) for _ in self.ways)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        x, gate = self.in_proj(tokens).chunk(2, -1)
        out: Tensor = self.out_proj(gated(_all_ways(x, grid, self.ways, self.scanned), gate))
        return out


class Directions(nn.Module):
    """The sum of scans in several orders, tokens in and out: what is common to SS2D and its kin."""

    def __init__(
        self, width: int, rank: int, ways: Sequence[Way], *, state: int, kernel: str
    ) -> None:
        super().__init__()
        self.ways = tuple(ways)
        self.scanned = nn.ModuleList(States(width, rank, state, kernel) for _ in self.ways)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        return _all_ways(tokens, grid, self.ways, self.scanned)


class CrossScan(nn.Module):
    """VMamba's SS2D on voxels (B, C, *S): a convolution within channels, then scans in all orders.

    Each axis that the level convolves runs fastest once, forward and back: four scans in 2D, as
    Liu et al. 2024 have it (arXiv:2401.10166), six in 3D.
    """

    own_init = True

    def __init__(
        self, kit: Kit, width: int, *, state: int = 16, expand: int = 2, kernel: str = "torch"
    ) -> None:
        super().__init__()
        inner, mixed = expand * width, mixing(kit)
        ways = [Way(axis, back) for axis in range(sum(mixed)) for back in (False, True)]
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.local = kit.conv(inner, inner, groups=inner)
        states = Directions(inner, ceil(width / RANK), ways, state=state, kernel=kernel)
        self.states = OnTokens(states, mixed)
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.in_proj(x.movedim(1, -1)).chunk(2, -1)
        y = self.states(F.silu(self.local(y.movedim(-1, 1)))).movedim(1, -1)
        out: Tensor = self.out_proj(gated(self.norm(y), gate))
        return out.movedim(-1, 1)


class Precise(nn.Module):
    """layer(x) in float32 whatever autocast says, returned in the type of x, plus x if `added`."""

    def __init__(self, layer: nn.Module, added: bool) -> None:
        super().__init__()
        self.layer, self.added = layer, added

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.layer(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)
        return x + out if self.added else out


def mixing(kit: Kit) -> list[bool]:
    """Along which axes voxels meet: those that the level convolves, or all if there are none."""
    wide = [k > 1 for k in kit.kernel]
    return wide if any(wide) else [True] * kit.ndim


def mamba(
    kit: Kit, cin: int, cout: int, *, state: int = 16, size: int = 4, expand: int = 2,
    residual: bool = True, kernel: str = "torch",
) -> nn.Module:  # fmt: skip
    """x + Mamba(layer norm(x)) over the voxels in a row, the last axis running fastest.

    U-Mamba's layer (Ma et al. 2024, arXiv:2401.04722) is without the sum: `residual` false. Along an
    axis whose kernel is 1 voxels do not meet, where U-Mamba has all of them in one row. Its later
    code takes channels for tokens where there are more of them than voxels, which ties weights to
    the patch; not so here.
    """
    return on_tokens(
        kit, cin, cout, (Way(),), residual, state=state, size=size, expand=expand, kernel=kernel
    )


def mamba_both(
    kit: Kit, cin: int, cout: int, *, state: int = 16, size: int = 4, expand: int = 2,
    residual: bool = True, kernel: str = "torch",
) -> nn.Module:  # fmt: skip
    """x + Mamba(layer norm(x)) over the voxels in a row, forward and back.

    Vision Mamba's block (Zhu et al. 2024, arXiv:2401.09417) without its class token.
    """
    ways = (Way(), Way(reverse=True))
    return on_tokens(
        kit, cin, cout, ways, residual, state=state, size=size, expand=expand, kernel=kernel
    )


def mamba_cross(
    kit: Kit, cin: int, cout: int, *, state: int = 16, expand: int = 2, kernel: str = "torch"
) -> nn.Module:
    """x + SS2D(layer norm(x)): VM-UNet's block (Ruan & Xiang 2024, arXiv:2402.02491).

    In 3D six orders of the voxels instead of four.
    """
    scan = normed_cross_scan(kit, cout, state=state, expand=expand, kernel=kernel)
    return chain(widened(kit, cin, cout), Precise(scan, True))


def normed_cross_scan(kit: Kit, width: int, **settings: Any) -> nn.Module:
    """SS2D(layer norm(x)), with nothing around."""
    return nn.Sequential(PerVoxelNorm(width), CrossScan(kit, width, **settings))


class Normed(nn.Module):
    """mixer(layer norm(tokens), grid)."""

    def __init__(self, width: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(width), mixer

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        out: Tensor = self.mixer(self.norm(tokens), grid)
        return out


def on_tokens(
    kit: Kit, cin: int, cout: int, ways: Sequence[Way], residual: bool, **settings: Any
) -> nn.Module:
    mixer = OnTokens(Normed(cout, Mamba(cout, ways, **settings)), mixing(kit))
    return chain(widened(kit, cin, cout), Precise(mixer, residual))


def widened(kit: Kit, cin: int, cout: int) -> nn.Module:
    return nn.Identity() if cin == cout else kit.conv(cin, cout, 1)


def _all_ways(
    tokens: Tensor, grid: Sequence[int], ways: Sequence[Way], scans: nn.ModuleList
) -> Tensor:
    """The sum of all scans; each order of the tokens is made once."""
    axes = [way.fastest % len(grid) for way in ways]
    total: Tensor | None = None
    for axis in sorted(set(axes), reverse=True):
        row = _ordered(tokens, grid, axis)
        parts = [s(row, w.reverse) for s, w, a in zip(scans, ways, axes, strict=True) if a == axis]
        part = _restored(reduce(torch.add, parts), grid, axis)
        total = part if total is None else total + part
    assert total is not None
    return total


def _ordered(tokens: Tensor, grid: Sequence[int], axis: int) -> Tensor:
    """(N, L, C) in the order in which `axis` runs fastest, from that of the last."""
    if axis == len(grid) - 1:
        return tokens
    on_grid = tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])
    return on_grid.movedim(1 + axis, -2).flatten(1, -2)


def _restored(tokens: Tensor, grid: Sequence[int], axis: int) -> Tensor:
    """The reverse of `_ordered`."""
    if axis == len(grid) - 1:
        return tokens
    moved = [n for i, n in enumerate(grid) if i != axis] + [grid[axis]]
    on_grid = tokens.reshape(tokens.shape[0], *moved, tokens.shape[-1])
    return on_grid.movedim(-2, 1 + axis).flatten(1, -2)


def _undecayed(value: Tensor) -> nn.Parameter:
    """A parameter that weight decay must leave alone."""
    made = nn.Parameter(value)
    made.no_decay = True  # type: ignore[attr-defined]
    return made


def checked(kernel: str) -> str:
    """The name of what computes the scan. Raises PlanError where there is none, or it is missing."""
    if kernel not in KERNELS:
        raise PlanError(f"there is no scan kernel {kernel!r}{nearest(kernel, list(KERNELS))}")
    if kernel == "mamba_ssm" and find_spec("mamba_ssm") is None:
        raise PlanError(
            "the plan's scan kernel 'mamba_ssm' needs the package mamba-ssm, which is not installed; "
            "install it (CUDA only), or set kernel to 'torch', which computes the same"
        )
    return kernel


def _fused_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, reverse: bool
) -> Tensor:
    """What `selective_scan` computes, by the CUDA kernel of the authors."""
    from mamba_ssm.ops.selective_scan_interface import (  # type: ignore[import-not-found]
        selective_scan_fn,
    )

    rows = [z.flip(1) if reverse else z for z in (x, delta, B, C)]
    u, dt, b, c = (z.transpose(1, 2).contiguous() for z in rows)
    y: Tensor = selective_scan_fn(u, dt, A, b, c, D, delta_softplus=True).transpose(1, 2)
    return y.flip(1) if reverse else y
