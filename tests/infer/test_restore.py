"""Back to the full grid: slab by slab must equal resampling everything at once by skimage."""

from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.special import softmax
from skimage.transform import resize

from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.documents.plan import Prediction
from autoseg.infer import winners
from autoseg.infer.meaning import certain_background, painted, probabilities
from autoseg.infer.restore import classes_on, restored, rows_at_once
from autoseg.infer.volume import logit_slabs
from tests.infer.whole import predict_logits, restore_labels


def naive(logits, shape, apart):
    """All classes at once in float64: linear, or linear in the plane and nearest along `apart`."""
    out = []
    for one in logits.astype(np.float64):
        if apart is None:
            out.append(resize(one, shape, order=1, mode="edge", anti_aliasing=False))
            continue
        stack = np.moveaxis(one, apart, 0)
        plane = [n for axis, n in enumerate(shape) if axis != apart]
        stack = np.stack(
            [resize(s, plane, order=1, mode="edge", anti_aliasing=False) for s in stack]
        )
        n, m = len(stack), shape[apart]
        at = np.meshgrid(n / m * (np.arange(m) + 0.5) - 0.5, *map(np.arange, plane), indexing="ij")
        stack = map_coordinates(stack, at, order=0, mode="nearest")
        out.append(np.moveaxis(stack, 0, apart))
    return np.stack(out)


def placed(inner, box, full, outside):
    """The crop on the full grid, `outside` around it."""
    out = np.empty((*inner.shape[:-3], *full), inner.dtype)
    out[...] = np.asarray(outside, np.float32)[:, None, None, None]
    out[(..., *(slice(a, b) for a, b in box))] = inner
    return out


def cut(logits, sizes):
    """Logits (..., Z, Y, X) as slabs of these numbers of rows, over and over."""
    start, pieces = 0, []
    while start < logits.shape[-3]:
        stop = min(start + sizes[len(pieces) % len(sizes)], logits.shape[-3])
        pieces.append((slice(start, stop), torch.from_numpy(logits[..., start:stop, :, :].copy())))
        start = stop
    return pieces


CASES = [
    ((6, 7, 8), (9, 11, 6), (1.0, 1.0, 1.0), (0.7, 0.6, 1.3), None),
    ((12, 7, 8), (5, 7, 8), (1.0, 1.0, 1.0), (2.4, 1.0, 1.0), None),
    ((5, 12, 10), (9, 20, 17), (5.0, 1.0, 1.0), (2.8, 0.6, 0.6), 0),
    ((12, 5, 10), (20, 9, 10), (1.0, 1.0, 1.0), (0.6, 4.0, 1.0), 1),
    ((6, 8, 5), (7, 6, 11), (1.0, 1.0, 5.0), (0.9, 1.3, 2.3), 2),
    ((4, 9, 9), (4, 9, 9), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
    ((1, 9, 8), (1, 16, 15), (1.0, 1.0, 1.0), (1.0, 0.5, 0.5), None),
    ((3, 9, 70), (3, 9, 150), (1.0, 1.0, 1.0), (1.0, 1.0, 0.5), None),
]


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (4, [2, 1, 3]), (99, [99])])
@pytest.mark.parametrize(("shape", "crop", "spacing", "target", "apart"), CASES)
def test_equals_resampling_everything_at_once(shape, crop, spacing, target, apart, rows, sizes):
    logits = 3 * np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    full = tuple(n + 3 for n in crop)
    box, outside = [(1, 1 + crop[0]), (0, crop[1]), (3, 3 + crop[2])], (0.0, -7.0, -8.0, -9.0)
    want = placed(naive(logits, crop, apart), box, full, outside)
    slabs = cut(logits, sizes)
    found = list(restored(slabs, shape, box, full, spacing, target, rows=rows, outside=outside))
    assert [r for r, _ in found] == [
        slice(z, min(z + rows, full[0])) for z in range(0, full[0], rows)
    ]
    np.testing.assert_allclose(torch.cat([c for _, c in found], 1), want, atol=5e-6)
    labels = restore_labels(logits, box, full, spacing, target, slab_bytes=rows)
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(
        labels, placed(naive(logits, crop, apart), box, full, (9, 0, 0, 0)).argmax(0)
    )


@settings(max_examples=40)
@given(st.data())
def test_chunks_and_slabs_change_no_bit(data):
    sizes = st.tuples(*[st.integers(1, 9)] * 3)
    shape, crop, before, after = (data.draw(sizes) for _ in range(4))
    box = [(b, b + n) for b, n in zip(before, crop, strict=True)]
    full = [b + n + a for b, n, a in zip(before, crop, after, strict=True)]
    logits = np.random.default_rng(2).standard_normal((2, 3, *shape)).astype(np.float32)

    def joined(rows, pieces):
        chunks = restored(
            cut(logits, pieces),
            shape,
            box,
            full,
            (4, 1, 1),
            (1, 1, 1),
            rows=rows,
            outside=[1, 2, 3],
        )
        return torch.cat([chunk for _, chunk in chunks], 2).numpy()

    whole = joined(full[0], [shape[0]])
    assert whole.shape == (2, 3, *full)
    counts = st.lists(st.integers(1, 5), min_size=1, max_size=3)
    np.testing.assert_array_equal(joined(data.draw(st.integers(1, 7)), data.draw(counts)), whole)
    np.testing.assert_array_equal(whole[:, :, 0, 0, 0], [[1, 2, 3]] * 2)


REGIONS = parse_labels(
    {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, order=[1, 2, 3]
)


def plain(count):
    return LabelSet(names=tuple("abcdefghi"[:count]), values=tuple(range(count)))


def some_logits(kind, shape, rng):
    """Noise, or what is harder to tell apart."""
    noise = rng.standard_normal(shape).astype(np.float32)
    if kind == "ties":
        return np.round(noise)
    if kind == "last bits":
        return np.float32(1) + np.round(noise) * np.float32(2**-23)
    if kind == "smooth":
        return noise.cumsum(-1).cumsum(-2).astype(np.float32)
    return noise if kind == "noise" else np.zeros_like(noise)


@pytest.mark.parametrize(("crowded", "expected"), [(winners.DENSE, 3), (2.0, 0), (-1.0, 3)])
@settings(max_examples=50)
@given(data=st.data())
def test_classes_are_those_of_resampling_all_by_skimage_to_the_last_voxel(crowded, expected, data):
    sizes = st.tuples(*[st.integers(1, 11)] * 3)
    shape, crop, before, after = (data.draw(sizes) for _ in range(4))
    crop = data.draw(st.sampled_from([crop, tuple(2 * n for n in shape), shape]))
    spacing = data.draw(st.sampled_from([(1, 1, 1), (4, 1, 1), (1, 4, 1), (1, 1, 4)]))
    kind = data.draw(st.sampled_from(["noise", "ties", "last bits", "smooth", "constant"]))
    regional, seed = data.draw(st.booleans()), data.draw(st.integers(0, 99))
    labels = REGIONS if regional else plain(data.draw(st.integers(2, 6)))
    logits = some_logits(kind, (labels.outputs, *shape), np.random.default_rng(seed))
    box = [(b, b + n) for b, n in zip(before, crop, strict=True)]
    full = tuple(b + n + a for b, n, a in zip(before, crop, after, strict=True))
    pieces = cut(logits, data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winners, "DENSE", crowded)
        patch.setattr(winners, "EXPECTED", expected)
        found = classes_on(pieces, shape, box, full, spacing, (1, 1, 1), labels=labels)
    apart = spacing.index(4) if 4 in spacing else None
    values = logits if shape == crop else naive(logits, crop, apart).astype(np.float32)
    inside = values.argmax(0)
    if regional:
        held = torch.from_numpy(values).sigmoid().numpy() > 0.5
        inside = np.zeros(crop)
        for one, region in zip(held, labels.regions, strict=True):
            inside[one] = region.paint
    want = np.zeros(full, np.int16)
    want[tuple(slice(a, b) for a, b in box)] = inside
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(("shape", "crop", "spacing", "target", "apart"), CASES)
def test_classes_are_what_restored_logits_are_painted_as(shape, crop, spacing, target, apart):
    logits = 3 * np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    full, box = tuple(n + 3 for n in crop), [(1, 1 + crop[0]), (0, crop[1]), (3, 3 + crop[2])]
    for labels in (plain(4), REGIONS):
        some = logits[: labels.outputs]
        chunks = restored(
            cut(some, [2]), shape, box, full, spacing, target, rows=3,
            outside=certain_background(labels),
        )  # fmt: skip
        want = torch.cat([painted(chunk, labels, of="logits") for _, chunk in chunks])
        found = classes_on(cut(some, [3]), shape, box, full, spacing, target, labels=labels)
        np.testing.assert_array_equal(found, want)
        assert len(np.unique(found)) == labels.count


def test_only_what_neighbours_disagree_on_is_computed():
    logits = np.zeros((5, 24, 24, 24), np.float32)
    logits[0], logits[1, :, :, 12:] = 1, 3
    computed = []

    class Watched(winners.Winners):
        def _exact(self, number, places, classes):
            computed.append(len(classes))
            return super()._exact(number, places, classes)

        def _roughly(self, plane, places, voxel, classes):
            computed.append(len(classes))
            return super()._roughly(plane, places, voxel, classes)

    source = torch.from_numpy(logits)
    watched = Watched(
        lambda low, high: (source[:, low], source[:, high]),
        logits.shape[1:], (48, 48, 48), None, torch.device("cpu"),
    )  # fmt: skip
    rows = [watched.row(row).numpy() for row in range(48)]
    border = np.unique([np.flatnonzero(np.diff(row[-1])) for row in rows])
    np.testing.assert_array_equal(border, [23])
    assert sum(computed) == 48 * 48 * 2 * 2


@pytest.mark.parametrize(("depth", "full"), [(12, 24), (12, 12), (12, 3)])
def test_slabs_are_pulled_when_needed_and_dropped_when_not(depth, full):
    alive, most, pulled = set(), [0], [0]

    class Watched(torch.Tensor):
        def __del__(self):
            alive.discard(id(self))

    def slabs():
        for z in range(depth):
            one = torch.zeros(2, 1, 4, 4).as_subclass(Watched)
            alive.add(id(one))
            pulled[0] += 1
            most[0] = max(most[0], len(alive))
            yield slice(z, z + 1), one
            del one

    shape, box = (depth, 4, 4), [(0, full), (0, 4), (0, 4)]
    chunks = restored(
        slabs(), shape, box, (full, 4, 4), (1, 1, 1), (depth / full, 1, 1), rows=1, outside=(0, 0)
    )
    seen = [pulled[0] for _ in chunks]
    assert most[0] <= 4
    wanted = [min(depth, ceil((row + 0.5) * depth / full - 0.5) + 1) for row in range(full)]
    assert seen == wanted


def test_two_networks_of_other_grids_meet_on_the_full_one():
    labels = LabelSet(names=("background", "a", "b"), values=(0, 1, 2))
    full, box, mm = (14, 15, 16), [(1, 13), (0, 15), (2, 16)], (1.0, 1.0, 1.0)
    rows, prediction = rows_at_once(3, full, 10_000), Prediction(mirror=False)
    assert rows == 3

    def net(factor):
        return lambda x: [torch.cat([x * 0, x * factor, -x * factor], 1)]

    chunks, wholes = [], []
    for factor, shape, patch in ((1.0, (12, 15, 14), (5, 8, 8)), (2.0, (7, 20, 9), (20, 8))):
        image = np.random.default_rng(3).standard_normal((1, *shape)).astype(np.float32)
        own = [m * (b - a) / n for m, (a, b), n in zip(mm, box, shape, strict=True)]
        slabs = logit_slabs([net(factor)], image, patch, 3, prediction)
        chunks.append(
            restored(
                slabs, shape, box, full, own, mm, rows=rows, outside=certain_background(labels)
            )
        )
        logits = predict_logits([net(factor)], image, patch, 3, prediction)
        outside = certain_background(labels)
        wholes.append(placed(naive(logits, [b - a for a, b in box], None), box, full, outside))
    found = np.empty(full, np.int16)
    for (here, one), (there, other) in zip(*chunks, strict=True):
        assert here == there
        mean = (probabilities(one, regional=False) + probabilities(other, regional=False)) / 2
        found[here] = painted(mean, labels, of="probabilities").numpy()
    want = np.mean([softmax(whole, 0) for whole in wholes], 0).argmax(0)
    np.testing.assert_array_equal(found, want)
    assert set(np.unique(found)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([(0, 3)], "after 3 rows came nothing"),
        ([(0, 3), (4, 5)], "after 3 rows came rows 4 to 5"),
        ([(0, 3), (3, 9)], "after 3 rows came rows 3 to 9"),
        ([], "after 0 rows came nothing"),
    ],
)
def test_slabs_that_do_not_make_up_the_volume_are_misuse(pieces, reason):
    slabs = [(slice(a, b), torch.zeros(2, b - a, 4, 4)) for a, b in pieces]
    box = [(0, 5), (0, 4), (0, 4)]
    chunks = restored(
        slabs, (5, 4, 4), box, (5, 4, 4), (1, 1, 1), (1, 1, 1), rows=1, outside=(0, 0)
    )
    with pytest.raises(ValueError, match=reason):
        list(chunks)


def test_one_value_outside_for_each_output():
    chunks = restored(
        [(slice(0, 1), torch.zeros(2, 1, 4, 4))], (1, 4, 4), [(0, 1), (0, 4), (0, 4)], (1, 4, 4),
        (1, 1, 1), (1, 1, 1), rows=1, outside=(0, 0, 0),
    )  # fmt: skip
    with pytest.raises(ValueError, match="3 values outside of the box, 2 outputs"):
        next(chunks)


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (2, 2, 2, 4, 4)])
def test_classes_need_one_score_an_output(shape):
    box = [(0, 2), (0, 4), (0, 4)]
    with pytest.raises(ValueError, match="the labels have 2 outputs"):
        classes_on(
            [(slice(0, 2), torch.zeros(shape))], (2, 4, 4), box, (2, 4, 4), (1, 1, 1), (1, 1, 1),
            labels=plain(2),
        )  # fmt: skip


def test_rows_at_once_fill_the_bytes_or_are_one():
    assert rows_at_once(20, (300, 512, 512), 64 << 20) == 3
    assert rows_at_once(20, (300, 512, 512), 1) == 1
    assert rows_at_once(2, (30, 10, 10), 8000) == 10


def test_of_equal_logits_the_lower_class_wins():
    logits = np.zeros((3, 2, 2, 2), np.float32)
    box = [(0, 2)] * 3
    assert not restore_labels(logits, box, (2, 2, 2), (1, 1, 1), (1, 1, 1)).any()
