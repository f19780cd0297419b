"""Self-attention among tokens: the layers of every transformer here, and two units made of them.

All attention goes through torch's fused kernels, which keep nothing as large as tokens x tokens.
A learnt bias makes such a matrix necessary; it is used inside windows only, and there a few windows
at a time, whose scores are computed again going back.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autoseg.nets.kit import Kit, chain
from autoseg.nets.tokens import INIT_STD, OnTokens, Windows, linear

HEAD_WIDTH = 32
ROTARY_BASE = 10000.0
SCORES_AT_ONCE = 2**24
"""How many scores of window attention exist at a time, in numbers."""
ALIGNED = 8
"""What CUDA's memory-efficient kernel needs the channels of a head to be a multiple of."""


def heads_for(width: int, wished: int) -> int:
    """The number of heads nearest below `wished` that divides `width`; 0 wishes 32 channels each."""
    most = min(width, max(1, wished or round(width / HEAD_WIDTH)))
    return next(h for h in range(most, 0, -1) if width % h == 0)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (N, heads, L, d), in memory linear in L.

    On CUDA the channels are padded with zeros, which change nothing but the choice of the kernel.
    """
    d = q.shape[-1]
    pad = -d % ALIGNED if q.is_cuda else 0
    if pad:
        q, k, v = (F.pad(x, (0, pad)) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=d**-0.5)[..., :d]


def rotary_angles(head: int, grid: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine (L, pairs) of the angles by which pairs of a head's channels turn at a token.

    Each axis of the grid turns its own share of the pairs, in proportion to the position along it,
    at speeds from 1 down to 1/10000 (Su et al. 2021, arXiv:2104.09864; per axis as in EVA-02, Fang
    et al. 2023, arXiv:2303.11331). Where the pairs do not divide, the last axes have one more.
    """
    pairs, axes = head // 2, len(grid)
    angles = []
    for axis, length in enumerate(grid):
        share = pairs // axes + (axis >= axes - pairs % axes)
        if share:
            steps = torch.arange(share, device=device, dtype=torch.float32) / share
            position = torch.arange(length, device=device, dtype=torch.float32)
            shape = [length if i == axis else 1 for i in range(axes)]
            turned = torch.outer(position, ROTARY_BASE**-steps).reshape(*shape, share)
            angles.append(turned.expand(*grid, share).flatten(0, -2))
    whole = torch.cat(angles, -1)
    return whole.cos(), whole.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Tokens (..., L, head) with each pair of neighbouring channels turned by its angle.

    An odd channel at the end stays. Computed in float32, since positions are told by small angles.
    """
    cos, sin = angles
    turning = 2 * cos.shape[-1]
    a, b = x[..., 0:turning:2].float(), x[..., 1:turning:2].float()
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x.dtype)
    return turned if turning == x.shape[-1] else torch.cat([turned, x[..., turning:]], -1)


class Attention(nn.Module):
    """Multi-head self-attention of all tokens: (N, L, C) -> (N, L, C) (Vaswani et al. 2017).

    `biases` says which of query, key and value have one. `rotary`: positions enter by rotation.
    `inner_norm`: a layer norm before the last projection (EVA-02).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        biases: tuple[bool, bool, bool] = (True, True, True),
        rotary: bool = True,
        inner_norm: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.query, self.key, self.value = (linear(width, width, bias) for bias in biases)
        self.norm = nn.LayerNorm(width) if inner_norm else nn.Identity()
        self.out = linear(width, width)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.rotary and q.shape[-1] > 1:
            angles = rotary_angles(q.shape[-1], grid, q.device)
            q, k = rotate(q, angles), rotate(k, angles)
        mixed: Tensor = self.out(self.norm(attend(q, k, v).transpose(1, 2).flatten(-2)))
        return mixed


class WindowAttention(nn.Module):
    """Self-attention inside windows, every other block's shifted by half of one.

    A bias is learnt for each head and each offset between two tokens. Tokens that pad the grid to
    whole windows take part as zeros; those that shifting brings together from opposite ends of the
    grid do not see each other (Liu et al. 2021, arXiv:2103.14030). A grid shorter than the window
    keeps the offsets that its tokens have; MONAI counts them along the whole window's rows there.
    """

    def __init__(self, width: int, heads: int, window: Sequence[int], shifted: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, tuple(window)
        self.shift = tuple(w // 2 if shifted else 0 for w in window)
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
        # flat, since a network is brought to channels-last by what ranks its weights have
        self.offsets = nn.Parameter(torch.empty(heads, prod(2 * w - 1 for w in window)))
        nn.init.normal_(self.offsets, std=INIT_STD)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window={self.window}, shift={self.shift}"

    def bias(self, window: Sequence[int]) -> Tensor:
        """(heads, N, N) for the N tokens of a window, which may be shorter than the layer's."""
        axes = len(window)
        at: list[slice | Tensor] = [slice(None)]
        for axis, (short, full) in enumerate(zip(window, self.window, strict=True)):
            place = torch.arange(short, device=self.offsets.device)
            offset = place[:, None] - place[None, :] + full - 1
            shape = [1] * (2 * axes)
            shape[axis] = shape[axes + axis] = short
            at.append(offset.reshape(shape))
        by_axis = self.offsets.reshape(self.heads, *(2 * w - 1 for w in self.window))
        return by_axis[tuple(at)].flatten(1, axes).flatten(2)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        windows = Windows(grid, self.window, self.shift)
        x = windows.split(tokens)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        regions = None
        if windows.shifted:
            regions = windows.regions(x.device).repeat(tokens.shape[0], 1)
        mixed = _attend_in_chunks(q, k, v, self.bias(windows.window), regions)
        return windows.join(self.out(mixed.transpose(1, 2).flatten(-2)))


def _attend_in_chunks(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, regions: Tensor | None
) -> Tensor:
    """Attention of (N, heads, L, d), a few of the N windows at a time."""
    step = max(1, SCORES_AT_ONCE // bias.numel())
    # CUDA's fused kernel keeps no scores by itself, but the bias of every window where a seam makes
    # them differ
    fused = q.is_cuda and q.shape[-1] % ALIGNED == 0 and regions is None
    again = torch.is_grad_enabled() and not fused
    done: list[Tensor] = []
    split = [torch.split(x, step) for x in (q, k, v)]
    for i, (some_q, some_k, some_v) in enumerate(zip(*split, strict=True)):
        number = None if regions is None else regions[i * step : (i + 1) * step]
        some = (some_q, some_k, some_v, bias, number)
        if again:
            done.append(
                checkpoint(_attend_biased, *some, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            done.append(_attend_biased(*some))
    return done[0] if len(done) == 1 else torch.cat(done)


def _attend_biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, regions: Tensor | None) -> Tensor:
    bias = bias.unsqueeze(0)
    if regions is not None:
        apart = regions[:, None, :, None] != regions[:, None, None, :]
        bias = bias.masked_fill(apart, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between them, at each token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(linear(width, hidden), nn.GELU(), linear(hidden, width))


class GatedMlp(nn.Module):
    """SwiGLU at each token, with a layer norm inside (Shazeer 2020, arXiv:2002.05202; EVA-02)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.value = linear(width, hidden), linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.out = linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(F.silu(self.gate(tokens)) * self.value(tokens)))
        return out


class Branch(nn.Module):
    """x + drop(scale * part(norm(x))): half of a pre-norm transformer block, on (N, L, C).

    `scale` is where a learnt factor for each channel starts (LayerScale, Touvron et al. 2021,
    arXiv:2103.17239), None: no factor. `path` is how often a sample's branch is left out in
    training (stochastic depth, Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(
        self,
        width: int,
        part: nn.Module,
        dropout: float = 0.0,
        scale: float | None = None,
        path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm, self.part = nn.LayerNorm(width), part
        self.drop = nn.Dropout(dropout)
        self.path = path
        self.scale = None if scale is None else nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, *where: Sequence[int]) -> Tensor:
        out: Tensor = self.drop(self.part(self.norm(x), *where))
        if self.scale is not None:
            out = out * self.scale
        if self.path and self.training:
            kept = 1 - self.path
            out = out * (torch.rand(x.shape[0], 1, 1, device=x.device) < kept).to(out.dtype) / kept
        return x + out


class Block(nn.Module):
    """A pre-norm transformer block: tokens are mixed, then each is transformed by itself.

    Layer norm and GELU are part of the definition, whatever norm and activation the network has.
    """

    def __init__(self, mix: Branch, transform: Branch) -> None:
        super().__init__()
        self.mix, self.transform = mix, transform

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        out: Tensor = self.transform(self.mix(tokens, grid))
        return out


class Blocks(nn.ModuleList):
    """Blocks one after another."""

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        for block in self:
            tokens = block(tokens, grid)
        return tokens


def block(width: int, mixer: nn.Module, mlp: float, dropout: float = 0.0) -> Block:
    """`mixer`, then an MLP that is `mlp` times as wide."""
    transform = Mlp(width, max(1, int(width * mlp)))
    return Block(Branch(width, mixer, dropout), Branch(width, transform, dropout))


def swin_blocks(
    width: int, heads: int, window: Sequence[int], mlp: float, depth: int, dropout: float
) -> Blocks:
    """`depth` blocks of window attention, every second one shifted."""
    return Blocks(
        block(width, WindowAttention(width, heads, window, shifted=i % 2 == 1), mlp, dropout)
        for i in range(depth)
    )


def flattened(kit: Kit, window: int) -> tuple[int, ...]:
    """`window` along each axis, but 1 where the level's kernel is 1."""
    return tuple(window if k > 1 else 1 for k in kit.kernel)


def attention(kit: Kit, cin: int, cout: int, *, heads: int = 0, mlp: float = 4.0) -> nn.Module:
    """A transformer block over all voxels of the level, rotary positions along each axis.

    `heads` 0: one for each 32 channels. Memory grows with the voxels, time with their square, so
    this is a word for coarse levels. Along an axis whose kernel is 1 voxels do not meet.
    """
    made = block(cout, Attention(cout, heads_for(cout, heads)), mlp, kit.dropout)
    return chain(_widened(kit, cin, cout), OnTokens(made, [k > 1 for k in kit.kernel]))


def swin(
    kit: Kit, cin: int, cout: int, *, heads: int = 0, window: int = 7, mlp: float = 4.0
) -> nn.Module:
    """Two transformer blocks with attention inside windows, the second one's shifted by a half.

    Liu et al. 2021, arXiv:2103.14030. `heads` 0: one for each 32 channels. The window is flat
    where the level's kernel is.
    """
    number, size = heads_for(cout, heads), flattened(kit, window)
    pair = swin_blocks(cout, number, size, mlp, 2, kit.dropout)
    return chain(_widened(kit, cin, cout), OnTokens(pair))


def _widened(kit: Kit, cin: int, cout: int) -> nn.Module:
    return nn.Identity() if cin == cout else kit.conv(cin, cout, 1)
