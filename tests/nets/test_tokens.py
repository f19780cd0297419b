"""Tokens, windows, attention and patches against plain loops; what they keep for going back."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from autoseg.nets.kit import Kit
from autoseg.nets.resize.merging import PatchExpanding, PatchMerging
from autoseg.nets.tokens import OnTokens, PerVoxelNorm, Positions, Windows, to_tokens, to_voxels
from autoseg.nets.units import attention as layers
from autoseg.nets.units.attention import (
    Attention,
    WindowAttention,
    attend,
    heads_for,
    rotary_angles,
    rotate,
)

# grid, window, shift: even, padded, shorter than its window, flat, two axes
WINDOWS = [
    ((4, 6, 8), (2, 3, 4), (1, 1, 2)),
    ((5, 7, 4), (3, 3, 3), (1, 1, 1)),
    ((2, 9, 5), (4, 4, 4), (2, 2, 2)),
    ((4, 6, 6), (1, 3, 3), (0, 1, 1)),
    ((10, 7), (4, 4), (2, 2)),
]


class Mixer(nn.Module):
    """The mean over all tokens, so that who meets whom is seen."""

    def forward(self, tokens, grid):
        self.grid = grid
        return tokens.mean(1, keepdim=True).expand_as(tokens)


@pytest.mark.parametrize("last", [False, True])
def test_tokens_are_voxels_in_order(last):
    x = torch.arange(48.0).reshape(2, 3, 2, 2, 2)
    x = x.contiguous(memory_format=torch.channels_last_3d) if last else x
    tokens = to_tokens(x)
    assert tokens.shape == (2, 8, 3)
    assert tokens[1, 5].equal(x[1, :, 1, 0, 1])
    assert to_voxels(tokens, (2, 2, 2)).equal(x)


@pytest.mark.parametrize("mixed", list(product([False, True], repeat=3)))
def test_only_mixed_axes_mix(mixed):
    x = torch.randn(2, 4, 3, 5, 6)
    adapter = OnTokens(Mixer(), mixed)
    # with nothing to mix everything is
    axes = [i + 2 for i, mixes in enumerate(mixed) if mixes or not any(mixed)]
    torch.testing.assert_close(adapter(x), x.mean(axes, keepdim=True).expand_as(x))
    assert adapter.mixer.grid == tuple(x.shape[axis] for axis in axes)


@pytest.mark.parametrize(("grid", "window", "shift"), WINDOWS)
def test_windows_come_back(grid, window, shift):
    windows = Windows(grid, window, shift)
    tokens = torch.randn(2, torch.Size(grid).numel(), 3)
    split = windows.split(tokens)
    assert split.shape[1] == windows.size
    assert split.shape[0] == 2 * torch.Size(windows.counts).numel()
    assert windows.join(split).equal(tokens)
    # padding is zeros, and nothing else is added or lost
    assert torch.count_nonzero(split) == tokens.numel()


@pytest.mark.parametrize(("grid", "window", "shift"), WINDOWS)
def test_regions_are_told_apart_at_the_seam(grid, window, shift):
    """Two tokens of a window share a number where they lie inside one window of the grid."""
    windows = Windows(grid, window, shift)
    whole = Windows(windows.padded, windows.window, windows.shift)
    places = torch.stack(
        torch.meshgrid(*[torch.arange(n) for n in windows.padded], indexing="ij"), -1
    )
    split = whole.split(places.flatten(0, -2)[None])
    near = (split[:, :, None] - split[:, None]).abs() < torch.tensor(windows.window)
    numbers = windows.regions(torch.device("cpu"))
    assert (numbers[:, :, None] == numbers[:, None]).equal(near.all(-1))
    assert windows.shifted == (not near.all())


def test_a_window_holds_neighbours():
    windows = Windows((4, 6), (2, 3), (0, 0)).split(torch.arange(24.0)[None, :, None])
    assert windows[..., 0].tolist() == [
        [0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]
    ]  # fmt: skip
    shifted = Windows((4,), (2,), (1,)).split(torch.arange(4.0)[None, :, None])
    assert shifted[..., 0].tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize("head", [5, 8, 64])
def test_attention_is_its_formula(head):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 11, head, dtype=torch.float64)
    want = (q @ k.mT / head**0.5).softmax(-1) @ v
    assert (attend(q, k, v) - want).abs().max() < 1e-12


def test_heads_adapt_to_any_width():
    assert [heads_for(w, 0) for w in (1, 5, 32, 96, 100, 320)] == [1, 1, 1, 3, 2, 10]
    assert [heads_for(w, 4) for w in (2, 6, 12)] == [2, 3, 4]


@pytest.mark.parametrize("grid", [(5, 4, 3), (6, 7), (9,)])
@pytest.mark.parametrize("head", [12, 8, 7, 2])
def test_rotation_tells_offsets_alone(grid, head):
    """Scores of a query and a key depend on the offset between their places, along every axis."""
    torch.manual_seed(0)
    turned = rotary_angles(head, grid, torch.device("cpu"))
    q, k = torch.randn(2, 1, head)
    count = torch.Size(grid).numel()
    queries, keys = (rotate(x.expand(count, head), turned) for x in (q, k))
    assert queries.norm(dim=-1).sub(q.norm()).abs().max() < 1e-5
    scores = queries @ keys.T
    seen: dict[tuple[int, ...], float] = {}
    places = list(product(*map(range, grid)))
    for (i, a), (j, b) in product(enumerate(places), repeat=2):
        offset = tuple(x - y for x, y in zip(a, b, strict=True))
        want = seen.setdefault(offset, float(scores[i, j]))
        assert abs(float(scores[i, j]) - want) < 1e-4
    # the offset along an axis makes a difference wherever there are pairs for that axis
    told = [seen[tuple(int(i == axis) for i in range(len(grid)))] for axis in range(len(grid))]
    changed = sum(abs(x - seen[(0,) * len(grid)]) > 1e-6 for x in told)
    assert changed == min(len(grid), head // 2)


def test_rotation_is_by_position_times_speed():
    cos, sin = rotary_angles(12, (2, 3, 4), torch.device("cpu"))
    angle = torch.atan2(sin, cos)[1 * 12 + 2 * 4 + 3]
    assert torch.allclose(angle, torch.tensor([1, 0.01, 2, 0.02, 3, 0.03]), atol=1e-6)
    assert rotate(torch.ones(24, 12), (cos, sin))[0].equal(torch.ones(12))


def slow_attention(part, tokens, bias):
    """One sample (L, C), head by head; `bias` (heads, L, L) is added to the scores."""
    q, k, v = (
        F.linear(tokens, x.weight, x.bias).reshape(len(tokens), part.heads, -1)
        for x in (part.query, part.key, part.value)
    )
    out = [
        ((q[:, h] @ k[:, h].T) / q.shape[-1] ** 0.5 + bias[h]).softmax(-1) @ v[:, h]
        for h in range(part.heads)
    ]
    return F.linear(torch.stack(out, 1).flatten(1), part.out.weight, part.out.bias)


def shaken(module):
    torch.manual_seed(1)
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module.double()


def test_the_attention_layer_is_its_formula():
    part = shaken(Attention(6, 2, rotary=False))
    tokens = torch.randn(2, 10, 6, dtype=torch.float64)
    want = torch.stack([slow_attention(part, x, torch.zeros(2, 10, 10)) for x in tokens])
    assert (part(tokens, (2, 5)) - want).abs().max() < 1e-12


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("grid", "window", "_shift"), WINDOWS)
@torch.no_grad()
def test_window_attention_is_its_definition(grid, window, _shift, shifted):
    """Each window by itself: an offset's bias, padding as zeros, nobody beyond the seam."""
    part = shaken(WindowAttention(4, 2, window, shifted))
    count = torch.Size(grid).numel()
    tokens = torch.randn(2, count, 4, dtype=torch.float64)
    offsets = part.offsets.reshape(2, *(2 * w - 1 for w in window))
    short = [min(n, w) for n, w in zip(grid, window, strict=True)]
    shift = [w // 2 if shifted and n > w else 0 for n, w in zip(grid, window, strict=True)]
    padded = [-(-n // w) * w for n, w in zip(grid, short, strict=True)]
    members: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for place in product(*map(range, padded)):
        moved = [(p - s) % n for p, s, n in zip(place, shift, padded, strict=True)]
        key = tuple(m // w for m, w in zip(moved, short, strict=True))
        members.setdefault(key, []).append(place)
    flat = torch.arange(count).reshape(grid)
    want = torch.zeros_like(tokens)
    for places in members.values():
        inside = [all(p < n for p, n in zip(place, grid, strict=True)) for place in places]

        bias = torch.full((2, len(places), len(places)), float("-inf"))
        for (i, a), (j, b) in product(enumerate(places), repeat=2):
            offset = [x - y for x, y in zip(a, b, strict=True)]
            if all(abs(o) < w for o, w in zip(offset, short, strict=True)):
                at = [o + w - 1 for o, w in zip(offset, window, strict=True)]
                bias[:, i, j] = offsets[(slice(None), *at)]
        for sample in range(2):
            rows = [
                tokens[sample, flat[place]] if here else torch.zeros_like(tokens[0, 0])
                for place, here in zip(places, inside, strict=True)
            ]
            out = slow_attention(part, torch.stack(rows), bias)
            for place, here, row in zip(places, inside, out, strict=True):
                if here:
                    want[sample, flat[place]] = row
    assert (part(tokens, grid) - want).abs().max() < 1e-12


def test_nothing_crosses_the_seam():
    """Going back from one token reaches its own window, and not the grid's other end."""
    part = WindowAttention(4, 1, (4,), shifted=True)
    tokens = torch.randn(1, 8, 4, requires_grad=True)
    part(tokens, (8,))[0, 7].sum().backward()
    assert tokens.grad[0].abs().sum(-1).gt(0).tolist() == [False] * 6 + [True] * 2
    tokens.grad = None
    part(tokens, (8,))[0, 3].sum().backward()
    assert tokens.grad[0].abs().sum(-1).gt(0).tolist() == [False] * 2 + [True] * 4 + [False] * 2


def test_chunks_of_windows_change_nothing(monkeypatch):
    found = []
    for most in (2**24, 1, 2 * 27 * 27 * 3):
        monkeypatch.setattr(layers, "SCORES_AT_ONCE", most)
        part = shaken(WindowAttention(6, 2, (3, 3, 3), shifted=True))
        tokens = torch.randn(2, 140, 6, dtype=torch.float64, generator=torch.manual_seed(3))
        tokens.requires_grad_()
        out = part(tokens, (5, 7, 4))
        out.square().sum().backward()
        found.append([out, tokens.grad, *(p.grad for p in part.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def saved_bytes(unit, size, fake=False) -> int:
    """What going forward keeps for going back, each storage once, weights too."""
    seen: dict[int, int] = {}
    kept = []

    def keep(tensor):
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage.nbytes()
        kept.append(storage)
        return tensor

    with FakeTensorMode() if fake else nullcontext():
        module = unit(Kit((3, 3, 3)), 16, 16)
        x = torch.randn(1, 16, *size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module(x).sum()
    return sum(seen.values())


@pytest.mark.parametrize(
    ("unit", "sizes"),
    [(layers.attention, [(8, 8, n) for n in (8, 16, 32)]),
     (layers.swin, [(14, 14, n) for n in (14, 28, 56)])],
)  # fmt: skip
def test_memory_is_linear_in_tokens(unit, sizes):
    a, b, c = (saved_bytes(unit, size) for size in sizes)
    # from the second step on it grows by twice as much, since the tokens do
    assert 1.9 < (c - b) / (b - a) < 2.1
    # about seventeen numbers a channel for each block, as without any attention
    tokens = torch.Size(sizes[1]).numel()
    assert (c - b) / (4 * 16 * tokens) < (18 if unit is layers.attention else 36)
    assert saved_bytes(unit, sizes[1], fake=True) == b


def test_flat_levels_stay_flat():
    for unit in (layers.attention, layers.swin):
        torch.manual_seed(0)
        module = unit(Kit((1, 3, 3)), 3, 4)
        x = torch.randn(1, 3, 3, 8, 8, requires_grad=True)
        module(x)[0, :, 1, 4, 4].sum().backward()
        reached = x.grad[0].abs().sum((0, 2, 3)) > 0
        assert reached.tolist() == [False, True, False]
        assert (x.grad[0, :, 1].abs().sum(0) > 0).sum() > 40


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2), (2, 2, 2), (3, 1, 2)])
def test_patches_merge_and_expand_as_defined(stride):
    merging, expanding = PatchMerging(3, 5, stride).double(), PatchExpanding(3, 5, stride).double()
    grid = (3, 2, 4)[: len(stride)]
    fine = torch.randn(2, 3, *(g * s for g, s in zip(grid, stride, strict=True))).double()
    coarse = torch.randn(2, 3, *grid).double()
    merged, expanded = merging(fine), expanding(coarse)
    assert merged.shape == (2, 5, *grid)
    assert expanded.shape == (2, 5, *fine.shape[2:])
    for at in product(*map(range, grid)):
        block = (slice(None), slice(None), *(slice(a * s, a * s + s) for a, s in zip(at, stride)))
        row = fine[block].movedim(1, -1).flatten(1)
        want = merging.project(F.layer_norm(row, row.shape[1:]))
        torch.testing.assert_close(merged[(..., *at)], want)
        spread = expanding.project(coarse[(..., *at)]).reshape(2, *stride, 5)
        torch.testing.assert_close(expanded[block].movedim(1, -1), F.layer_norm(spread, (5,)))


def test_positions_are_interpolated_to_other_grids():
    positions = Positions(2, (3, 4))
    zero = torch.zeros(1, 2, 3, 4)
    assert positions(zero).equal(positions.vectors)
    more = positions(torch.zeros(1, 2, 6, 8))
    want = F.interpolate(positions.vectors, (6, 8), mode="bilinear", align_corners=False)
    assert more.equal(want)


def test_voxels_are_normed_by_themselves():
    x = torch.randn(2, 5, 3, 4)
    want = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(PerVoxelNorm(5)(x), want, rtol=1e-4, atol=1e-5)
