import gc
import threading

import numpy as np
import pytest
import torch

from autoseg.data.augment_memory import LENT, _held, blank, kept

CPU = torch.device("cpu")
SHAPE = (3, 5, 7)


def fresh(kind=np.float32):
    return blank(SHAPE, kind, CPU)


@pytest.fixture(autouse=True)
def nothing_lent(monkeypatch):
    monkeypatch.setattr(_held, "lent", [])


def test_memory_is_used_again_once_nobody_has_it():
    first = fresh()
    place = first.data_ptr()
    assert (first.shape, first.dtype) == (SHAPE, torch.float32)
    del first
    assert fresh().data_ptr() == place
    # of the same size in bytes, but of another kind
    again = fresh(np.int32)
    assert (again.data_ptr(), again.dtype) == (place, torch.int32)


@pytest.mark.parametrize(
    "part", [lambda t: t, lambda t: t[1:], lambda t: t.numpy(), lambda t: t.view(-1).numpy()[3:]]
)
def test_memory_that_somebody_has_is_left_alone(part):
    first = fresh()
    place, mine = first.data_ptr(), part(first)
    del first
    gc.collect()
    others = [fresh() for _ in range(2 * LENT)]
    assert place not in {other.data_ptr() for other in others}
    assert len({other.data_ptr() for other in others}) == 2 * LENT
    assert mine is not None


def test_few_pieces_are_remembered():
    tensors = [blank((k + 1,), np.float32, CPU) for k in range(3 * LENT)]
    assert len(_held.lent) == LENT
    assert len(tensors) == 3 * LENT


def test_threads_have_memory_of_their_own():
    places = [kept("a", (4,), np.float32).ctypes.data]
    thread = threading.Thread(target=lambda: places.append(kept("a", (4,), np.float32).ctypes.data))
    thread.start()
    thread.join()
    assert places[0] != places[1]
    assert kept("a", (2, 2), np.float32).ctypes.data == places[0]


def test_names_and_kinds_have_memory_of_their_own():
    one, other = kept("a", (4,), np.float32), kept("b", (4,), np.float32)
    assert not np.shares_memory(one, other)
    assert not np.shares_memory(one, kept("a", (4,), np.int32))
    assert np.shares_memory(one, kept("a", (3,), np.float32))
