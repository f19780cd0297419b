"""Memory that loading processes share with the training."""

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from autoseg.data import ring as rings
from autoseg.data import workers
from autoseg.data.batches import Batches
from autoseg.data.ring import ABORT, SLOTS, Ring
from tests.data.test_batches import SPEC, same

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs anonymous files")


@pytest.fixture
def ring():
    made = Ring(1)
    yield made
    made.close()


def test_an_item_comes_back_and_its_arrays_lie_in_the_slot(ring):
    item = {
        "images": np.arange(9999, dtype=np.float16),
        "none": None,
        "boxes": [(1, 2)],
        "labels": np.ones((3, 5), np.int8),
    }
    message = ring.put(item, 1)
    found = ring.take(message)
    np.testing.assert_array_equal(found["images"], item["images"])
    np.testing.assert_array_equal(found["labels"], item["labels"])
    assert (found["none"], found["boxes"]) == (None, [(1, 2)])
    assert np.shares_memory(found["images"], ring.memory(1, 1))
    assert not np.shares_memory(found["images"], ring.memory(0, 1))


def test_a_slot_in_use_is_waited_for_and_an_end_is_noticed(ring):
    ring.put({"a": np.zeros(10)}, 0)
    threading.Timer(0.1, ring.free, [0]).start()
    began = time.monotonic()
    message = ring.put({"a": np.ones(100_000)}, 0)
    assert time.monotonic() - began > 0.05
    assert ring.take(message)["a"].sum() == 100_000
    ring.flag(ABORT).set()
    assert ring.put({"a": np.ones(1)}, 0) is None


def test_messages_are_short_enough_for_a_pipe_to_take_them_whole(ring):
    import pickle

    message = ring.put({"parameters": list(range(50_000)), "images": np.zeros(3)}, 0)
    assert len(pickle.dumps({"message": message})) < 512


def test_without_memory_for_an_item_it_goes_through_the_pipe(ring, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    source = workers.StepSource(lambda step: {"a": np.full(4, step)}, 0, 3, 1, ring)
    source.steps = iter(range(3))
    assert [workers.pickle.loads(next(source)["pickled"])["a"][0] for _ in range(3)] == [0, 1, 2]
    assert not any(ring.flags[rings.FIRST : rings.FIRST + SLOTS])


def test_batches_are_the_same_through_pipes(three_cases, monkeypatch):
    def none(workers):
        raise OSError("no anonymous files on this system")

    expected = list(Batches(three_cases, SPEC, 0, 4))
    monkeypatch.setattr(workers, "Ring", none)
    assert same(list(Batches(three_cases, SPEC, 0, 4, 1)), expected)


def test_where_no_process_can_be_started_the_training_loads_itself(
    three_cases, monkeypatch, caplog
):
    """A /dev/shm of 64 KB has no room for the queues' locks; that is not a full disk."""

    class Full:
        def __init__(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workers, "MultiThreadedAugmenter", Full)
    with caplog.at_level(logging.WARNING):
        found = list(Batches(three_cases, SPEC, 0, 3, 2, augment_here=True))
    assert same(found, list(Batches(three_cases, SPEC, 0, 3)))
    assert "loading processes cannot be started" in caplog.text
    assert "--shm-size" in caplog.text
    assert "disk" not in caplog.text


def test_nothing_is_left_after_a_kill():
    """The memory has no name: it ends with the processes that have it open."""
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    script = (
        "import os, signal, numpy as np\n"
        "from autoseg.data.ring import Ring\n"
        "ring = Ring(2); ring.put({'a': np.zeros(1000)}, 3)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(__file__).parents[2])
    ended = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root})
    assert ended.returncode == -9
    after = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    assert not {f for f in after - before if "autoseg" in f.name}
