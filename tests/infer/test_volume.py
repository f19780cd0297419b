"""A whole volume through networks, against a naive loop over single tiles and copies."""

from itertools import chain, combinations, product

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.documents.plan import Prediction
from autoseg.infer import volume
from autoseg.infer.tiles import positions, tile_weights
from autoseg.infer.volume import logit_slabs, mirrored, tile_for
from tests.infer.whole import predict_logits


class Shift(nn.Module):
    """A small network that depends on place: two convolutions, the norm of the whole patch."""

    def __init__(self, ndim: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layer = (nn.Conv2d, nn.Conv3d)[ndim - 2]
        self.one, self.two = layer(2, 4, 3, padding=1), layer(4, 3, 3, padding=1)

    def forward(self, x):
        y = self.one(x).relu()
        return [self.two(y / (1 + y.mean(tuple(range(1, y.ndim)), keepdim=True)))]


def naive(nets, image, patch, prediction, axes):
    """One tile, one copy, one network at a time, in float64; the image is at least a patch."""
    flat = len(patch) == 2
    patch3 = (1, *patch) if flat else patch
    total = np.zeros((3, *image.shape[1:]))
    weight = np.zeros(image.shape[1:])
    gauss = tile_weights(patch3, prediction.sigma_scale).astype(np.float64)
    places = [positions(n, p, prediction.tile_step) for n, p in zip(image.shape[1:], patch3)]
    combos = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
    for corner in product(*places):
        box = tuple(slice(c, c + p) for c, p in zip(corner, patch3))
        tile = torch.from_numpy(image[(slice(None), *box)][None])
        tile = tile[:, :, 0] if flat else tile
        outs = []
        for net, flips in product(nets, combos):
            dims = [f + 2 for f in flips]
            with torch.no_grad():
                outs.append(net(tile.flip(dims))[0].flip(dims)[0].double().numpy())
        mean = np.mean(outs, 0)
        total[(slice(None), *box)] += (mean[:, None] if flat else mean) * gauss
        weight[box] += gauss
    return total / weight


@pytest.mark.parametrize("tile_batch", [1, 4])
@pytest.mark.parametrize(
    ("shape", "patch", "axes"),
    [
        ((9, 13, 11), (6, 8, 8), (0, 2)),
        ((9, 13, 11), (9, 13, 11), (0, 1, 2)),
        ((3, 13, 11), (8, 8), (0, 1)),
        ((1, 16, 8), (8, 8), ()),
    ],
)
def test_equals_the_naive_loop(shape, patch, axes, tile_batch):
    image = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    nets = [Shift(len(patch), seed) for seed in (1, 2)]
    prediction = Prediction(tile_batch=tile_batch)
    got = predict_logits(nets, image, patch, 3, prediction, axes)
    assert got.shape == (3, *shape) and got.dtype == np.float32
    np.testing.assert_allclose(got, naive(nets, image, patch, prediction, axes), atol=1e-5)


SHAPES = [
    ((9, 13, 11), (6, 8, 8)),
    ((40, 8, 9), (6, 8, 8)),
    ((4, 20, 6), (6, 8, 8)),  # padded along two axes
    ((1, 13, 11), (6, 8, 8)),
    ((17, 13, 11), (8, 8)),
    ((5, 6, 7), (8, 8)),
]


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_slabs_do_not_depend_on_how_much_is_handed_on_at_once(shape, patch, step, monkeypatch):
    image = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    nets = [Shift(len(patch), seed) for seed in (1, 2)]
    prediction = Prediction(tile_step=step, tile_batch=3, mirror=False)
    tile = (*[1] * (3 - len(patch)), *patch)
    margins = [max(0, p - n) for n, p in zip(shape, tile, strict=True)]
    wide = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in margins)])
    kept = tuple(slice(m // 2, m // 2 + n) for m, n in zip(margins, shape, strict=True))
    want = naive(nets, wide, patch, prediction, ())[(slice(None), *kept)]
    whole = predict_logits(nets, image, patch, 3, prediction)
    np.testing.assert_allclose(whole, want, atol=1e-5)
    monkeypatch.setattr(volume, "HANDED_BYTES", 1)
    rows = []
    for part, slab in logit_slabs(nets, image, patch, 3, prediction):
        rows.append(part)
        assert slab.shape == (3, 1, *shape[1:]) and slab.dtype == torch.float32
        np.testing.assert_array_equal(slab.numpy(), whole[:, part])
    assert rows == [slice(z, z + 1) for z in range(shape[0])]


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_apart_gives_what_each_network_says_alone(shape, patch):
    image = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    nets = [Shift(len(patch), seed) for seed in (1, 2, 3)]
    slabs = logit_slabs(nets, image, patch, 3, Prediction(), (0, 1), apart=True)
    found = torch.cat([slab for _, slab in slabs], 2).numpy()
    for net, alone in zip(nets, found, strict=True):
        np.testing.assert_array_equal(
            alone, predict_logits([net], image, patch, 3, Prediction(), (0, 1))
        )
    together = predict_logits(nets, image, patch, 3, Prediction(), (0, 1))
    np.testing.assert_allclose(found.mean(0), together, atol=1e-6)


@pytest.mark.parametrize(("patch", "depth"), [((6, 8, 8), 6), ((8, 8), 1)])
def test_the_sums_are_no_deeper_than_a_patch(patch, depth, monkeypatch):
    made, zeros = [], volume._zeros
    monkeypatch.setattr(volume, "_zeros", lambda *asked: made.append(asked[0]) or zeros(*asked))
    image = np.ones((2, 60, 13, 11), np.float32)
    slabs = logit_slabs([Shift(len(patch), 1)], image, patch, 3, Prediction(), apart=True)
    rows, slab = next(slabs)
    assert made == [(1, 3, depth, 13, 11)]
    assert rows == slice(0, {6: 3, 1: 1}[depth]) and slab.shape[2] == rows.stop


def test_sums_lie_in_main_memory_where_the_card_has_no_room(monkeypatch):
    image, zeros = np.ones((2, 9, 8, 8), np.float32), torch.zeros
    asked = []

    def full(*shape, device=None, **rest):
        asked.append(device)
        if device is not None:
            raise torch.OutOfMemoryError
        return zeros(*shape, **rest)

    want = predict_logits([Shift(3, 1)], image, (6, 8, 8), 3, Prediction())
    monkeypatch.setattr(torch, "zeros", full)
    got = predict_logits([Shift(3, 1)], image, (6, 8, 8), 3, Prediction(), device="cpu")
    assert asked == ["cpu", None]
    np.testing.assert_array_equal(got, want)


def test_rows_are_finished_before_later_tiles_are_looked_at():
    seen = []

    def net(x):
        seen.append(len(x))
        return [x]

    slabs = logit_slabs([net], np.ones((1, 32, 8, 8), np.float32), (8, 8, 8), 1, Prediction())
    counts = [(rows.stop, sum(seen)) for rows, _ in slabs]
    assert counts[:3] == [(4, 2), (8, 2), (12, 4)] and counts[-1] == (32, 7)
    assert seen == [2, 2, 2, 1]


def test_an_image_on_disk_is_read_tile_by_tile(tmp_path):
    image = np.random.default_rng(0).standard_normal((2, 9, 13, 11)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    want, got = (
        predict_logits([Shift(3, 1)], x, (6, 8, 8), 3, Prediction(mirror=False))
        for x in (torch.from_numpy(image), mapped)
    )
    np.testing.assert_array_equal(got, want)


def test_slabs_may_be_changed_and_added():
    slabs = logit_slabs(
        [Shift(3, 1)], np.ones((2, 9, 8, 8), np.float32), (6, 8, 8), 3, Prediction()
    )
    for _, slab in slabs:
        assert slab.clone().add_(slab).equal(2 * slab) and not slab.is_inference()


def test_a_network_with_other_outputs_is_misuse():
    with pytest.raises(ValueError, match="4 outputs are expected, a network gave 3"):
        predict_logits([Shift(3, 1)], np.ones((2, 8, 8, 8), np.float32), (8, 8, 8), 4, Prediction())


def test_a_small_image_is_padded_with_zeros_and_cut_again():
    image = np.random.default_rng(0).standard_normal((2, 5, 6, 12)).astype(np.float32)
    net = Shift(3, 1)
    wide = np.pad(image, [(0, 0), (1, 2), (1, 1), (0, 0)])
    prediction = Prediction(mirror=False)
    want = naive([net], wide, (8, 8, 8), prediction, ())[:, 1:-2, 1:-1]
    got = predict_logits([net], image, (8, 8, 8), 3, prediction, (0, 1, 2))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_mirroring_takes_every_combination_once():
    assert mirrored((0, 1, 2)) == [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    calls = []

    def net(x):
        calls.append(len(x))
        return [x[:, :1]]

    image = np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4)
    got = predict_logits([net], image, (4, 4, 4), 1, Prediction(), (0, 1, 2))
    assert calls == [2] * 4  # two at once on cores
    np.testing.assert_allclose(got, image, rtol=1e-6)


def test_slices_of_2d_networks_are_batched():
    calls = []

    def net(x):
        calls.append(tuple(x.shape))
        return [x]

    image = np.ones((1, 7, 8, 8), np.float32)
    predict_logits([net], image, (8, 8), 1, Prediction(tile_batch=4, mirror=False))
    assert calls == [(4, 1, 8, 8), (3, 1, 8, 8)]


def test_no_network_is_misuse():
    with pytest.raises(ValueError, match="no network"):
        predict_logits([], np.zeros((1, 4, 4, 4), np.float32), (4, 4, 4), 1, Prediction())


@pytest.mark.parametrize(
    ("shape", "patch", "divisor", "tile"),
    [
        ((10, 20, 30), (8, 16, 16), (4, 4, 4), (12, 20, 32)),  # 3.75 patches: whole
        ((10, 20, 50), (8, 16, 16), (4, 4, 4), (8, 16, 16)),  # 6 patches: tiles
        ((4, 9, 9), (8, 16, 16), (4, 4, 4), (8, 16, 16)),  # never smaller than the patch
        ((7, 30, 30), (16, 16), (8, 8), (1, 32, 32)),  # slices, each whole
    ],
)
def test_small_volumes_are_one_tile(shape, patch, divisor, tile):
    assert tile_for(shape, patch, divisor, 4.0) == tile
    flat = (1, *patch) if len(patch) == 2 else patch
    assert tile_for(shape, patch, divisor, 0.0) == flat
