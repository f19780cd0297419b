"""How many samples at once: fixed on cores, learnt on a card, and never a change of the answer."""

import numpy as np
import pytest
import torch

from autoseg.documents.plan import Prediction
from autoseg.errors import AutosegError
from autoseg.infer import together
from autoseg.infer.together import NoRoom, Together, explained
from autoseg.infer.volume import mean_logits, mirrored
from tests.card import FULL
from tests.infer.test_volume import Shift
from tests.infer.whole import predict_logits

SHAPE = (2, 8, 8, 8)


class Card:
    """A card with room for `room` samples at once, as far as it can be asked without one."""

    def __init__(self, monkeypatch, room, free, taken=1000, error=FULL[0]):
        self.room, self.calls, self.error = room, [], error
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(together, "_measured", lambda device, compute: (compute(), taken))
        monkeypatch.setattr(together, "free_card_bytes", lambda device: free)

    def speaker(self, net):
        def said(x):
            self.calls.append(len(x))
            if len(x) > self.room:
                raise self.error
            return net(x)

        return said


def test_two_on_cores_and_one_where_memory_is_scarce(monkeypatch):
    monkeypatch.setattr(together, "free_bytes", lambda: 1000)
    assert Together("cpu").size(SHAPE) == 2
    assert Together("cpu", 200).size(SHAPE) == 2
    assert Together("cpu", 201).size(SHAPE) == 1
    assert Together("cuda").size(SHAPE) == 1


@pytest.mark.parametrize(("free", "size"), [(10**12, 64), (10**5, 7), (20_000, 1), (0, 1)])
def test_a_card_is_asked_for_one_and_then_for_what_fits(free, size, monkeypatch):
    card = Card(monkeypatch, 99, free)
    pace = Together("cuda")
    one = torch.ones(1, *SHAPE)
    assert pace.said(card.speaker(lambda x: [x[:, :1].half()]), one).dtype == torch.float32
    # a sample takes 1000 bytes of the network, 4096 itself, and 2048 of logits twice: 9192
    assert pace.size(SHAPE) == size
    assert pace.size((2, 16, 8, 8)) == 1  # another shape needs other memory


def test_large_patches_are_not_stacked_beyond_what_keeps_a_card_busy(monkeypatch):
    card = Card(monkeypatch, 99, 10**15)
    pace = Together("cuda")
    for shape, most in (((1, 128, 128, 128), 4), ((1, 512, 512), 32), ((1, 256, 256, 256), 2)):
        batch = torch.ones(1, 1, 1).expand(1, *shape)
        pace.said(card.speaker(lambda x: [x]), batch)
        assert pace.size(shape) == most


@pytest.mark.parametrize("error", FULL, ids=str)
def test_after_an_error_of_memory_half_as_many(error, monkeypatch):
    card, pace = Card(monkeypatch, 3, 10**12, error=error), Together("cuda")
    net = card.speaker(lambda x: [x[:, :1]])
    tiles = torch.randn(1, *SHAPE)
    flips = mirrored((0, 1, 2))
    found = mean_logits([net], tiles, flips, pace)
    assert card.calls == [1, 7, 3, 3, 1]
    torch.testing.assert_close(found, tiles[:, :1])
    assert pace.size(SHAPE) == 3
    mean_logits([net], tiles, flips, pace)
    assert card.calls[5:] == [3, 3, 2]  # remembered


def test_a_plan_that_asks_for_more_than_fits(monkeypatch):
    card, pace = Card(monkeypatch, 2, 10**12), Together("cuda")
    tiles = torch.randn(8, *SHAPE)
    found = mean_logits([card.speaker(lambda x: [x])], tiles, [()], pace, at_least=8)
    assert card.calls == [8, 4, 2, 2, 2, 2]
    torch.testing.assert_close(found, tiles)


def test_another_error_of_a_card_is_told_as_it_is(monkeypatch):
    card, pace = (
        Card(monkeypatch, 0, 10**12, error=RuntimeError("illegal address")),
        Together("cuda"),
    )
    with pytest.raises(RuntimeError, match="illegal address"):
        pace.said(card.speaker(lambda x: [x]), torch.ones(2, *SHAPE))


@pytest.mark.parametrize("error", FULL, ids=str)
def test_the_block_of_a_reader_is_explained(error, monkeypatch):
    monkeypatch.setattr(together, "free_card_bytes", lambda device: 2**30)
    there = pytest.raises(NoRoom, match=r"cuda has no room for this \(1.00 GiB")
    with there, explained(torch.device("cuda")):
        raise error
    with pytest.raises(RuntimeError, match="illegal"), explained(torch.device("cuda")):
        raise RuntimeError("illegal address")


def test_no_room_for_one_is_told(monkeypatch):
    card, pace = Card(monkeypatch, 0, 10**12), Together("cuda")
    with pytest.raises(AutosegError, match="no room for one patch of 8 x 8 x 8 voxels"):
        pace.said(card.speaker(lambda x: [x]), torch.ones(1, *SHAPE))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 16])
def test_how_many_at_once_does_not_change_the_answer(size, monkeypatch):
    monkeypatch.setattr(together, "ON_CORES", size)
    image = np.random.default_rng(0).standard_normal((2, 9, 13, 11)).astype(np.float32)
    nets = [Shift(3, seed) for seed in (1, 2)]
    asked = image, (6, 8, 8), 3, Prediction(), (0, 2)
    monkeypatch.setattr(together, "ON_CORES", 1)
    want = predict_logits(nets, *asked)
    monkeypatch.setattr(together, "ON_CORES", size)
    np.testing.assert_allclose(predict_logits(nets, *asked), want, atol=2e-6)
