"""Worker processes that make the items of numbered steps, delivered in the order of the steps.

Also the thread that fetches them before they are asked for, for a card.

The processes and queues are batchgenerators' MultiThreadedAugmenter: worker i makes the steps
start + i, start + i + n, … and the queues are read in turn, so the order is fixed. Added here:
items in shared memory instead of pipes, clean starts of processes, the words of a worker's error,
and workers that end with their parent (docs/decisions/0005-loading.md).
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter

from autoseg.data.ring import ABORT, PAUSE, SLOTS, Ring
from autoseg.errors import AutosegError

log = logging.getLogger(__name__)

Item = dict[str, Any]
"""What one step gives; its tensors travel as arrays."""

T = TypeVar("T")

CACHED_PER_WORKER = 2
WATCH_S = 1.0
_starting = threading.Lock()


class NoWorkers(AutosegError):
    """The system has no room for what loading processes need."""


class StepSource:
    """The steps of one worker as batchgenerators' loaders see them; `produce` makes an item.

    What is sent through the queue is short: where the item lies in the ring. Without a ring, or
    where there is no memory for the item, it is the pickled item.
    """

    def __init__(
        self, produce: Callable[[int], Item], start: int, stop: int, workers: int, ring: Ring | None
    ) -> None:
        self.produce, self.start, self.stop, self.workers = produce, start, stop, workers
        self.ring, self.index, self.made = ring, 0, 0
        self.parent = os.getpid()
        self.steps: Iterator[int] = iter(())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "steps": None}

    def set_thread_id(self, index: int) -> None:
        """Called once in each worker, before its first item."""
        torch.set_num_threads(1)
        # Ctrl-C reaches every process of the terminal; the parent decides when the work ends
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(self.parent,), daemon=True).start()
        self.index = index
        self.steps = iter(range(self.start + index, self.stop, self.workers))

    def __iter__(self) -> "StepSource":
        return self

    def __next__(self) -> dict[str, Any]:
        step = next(self.steps)
        try:
            item = self.produce(step)
        except AutosegError as error:
            self.steps = iter(())
            return {"error": str(error)}
        item = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in item.items()}
        if self.ring is not None:
            slot = self.index * SLOTS + self.made % SLOTS
            with contextlib.suppress(OSError):
                message = self.ring.put(item, slot)
                self.made += 1
                if message is None:
                    raise StopIteration
                return {"message": message}
        # pickled now, not by the queue's thread: the memory is written over by the next item
        return {"pickled": pickle.dumps(item, protocol=5)}


def _end_with(parent: int) -> None:
    """End this process once `parent` is gone, even if that was killed without a word."""
    handle = multiprocessing.parent_process()
    while os.getppid() == parent and (handle is None or handle.is_alive()):
        time.sleep(WATCH_S)
    os._exit(1)


@contextmanager
def _spawning() -> Iterator[None]:
    """Processes started inside begin afresh instead of as a copy of this one.

    A fork of a process with threads (torch's, a card's) can hang in the copy. The standard library
    knows the way of starting only as a global setting, so it is put back afterwards.
    """
    with _starting:
        before = multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method("spawn", force=True)
        try:
            yield
        finally:
            multiprocessing.set_start_method(before, force=True)


class Loader:
    """The items that `produce` makes of steps start … stop - 1, in order, from worker processes.

    Arrays of an item last until the next one is asked for. `produce` must pickle. Raises NoWorkers
    if processes cannot be started, AutosegError with the words of a worker's error, or saying that
    a worker died.
    """

    def __init__(self, produce: Callable[[int], Item], start: int, stop: int, workers: int) -> None:
        self._ring: Ring | None = None
        try:
            self._ring = Ring(workers)
        except OSError as error:
            log.info("patches come through pipes, which is slower: %s", error)
        source = StepSource(produce, start, stop, workers, self._ring)
        with _spawning(), _enough_locks(workers):
            self._workers = MultiThreadedAugmenter(source, None, workers, CACHED_PER_WORKER)
            if self._ring is not None:
                self._workers.abort_event = self._ring.flag(ABORT)
                self._workers.pause_event = self._ring.flag(PAUSE)
            try:
                self._workers.restart()
            except OSError:
                self.close()
                raise
        threading.Thread(
            target=_abort_when_one_dies,
            args=(list(self._workers._processes), self._workers.abort_event),
            daemon=True,
        ).start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            try:
                item = next(self._workers)
            except StopIteration:
                return
            except RuntimeError as error:
                raise AutosegError(
                    "a process that loads training patches died; its last words, if any, are "
                    "above. If memory ran out, use fewer workers; a script that trains needs "
                    'its `if __name__ == "__main__":` line'
                ) from error
            if "error" in item:
                self.close()
                raise AutosegError(item["error"])
            if "message" in item:
                assert self._ring is not None
                yield self._ring.take(item["message"])
                self._ring.free(item["message"][0])
            else:
                yield pickle.loads(item["pickled"])

    def close(self) -> None:
        """End the workers; nothing to do if they have ended."""
        self._workers._finish()
        if self._ring is not None:
            self._ring.close()


@contextmanager
def _enough_locks(workers: int) -> Iterator[None]:
    """Raises NoWorkers where the system has no room for the locks of the queues.

    They are the standard library's and lie in /dev/shm, some pages a worker.
    """
    try:
        yield
    except OSError as error:
        raise NoWorkers(
            f"{workers} loading processes cannot be started ({error.strerror or error}); they need "
            "some shared memory and open files: give a container --shm-size=64m, raise `ulimit -n`"
        ) from error


def _abort_when_one_dies(workers: Sequence[BaseProcess], abort: Any) -> None:
    """Make the consumer stop waiting once a worker has ended, for whatever reason.

    batchgenerators looks after its workers only between two messages, and would wait for ever on
    one that was killed in the middle of a message.
    """
    connection.wait([worker.sentinel for worker in workers])
    abort.set()


class Ahead(Generic[T]):
    """The things of an iterator in their order, fetched by a thread while the last are in use.

    `count` things are fetched before they are asked for. An error of the iterator is raised where
    its thing is asked for. `close()` waits for what is being fetched and fetches no more.
    """

    def __init__(self, things: Iterator[T], count: int) -> None:
        self._things = things
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._coming = deque(self._fetch() for _ in range(count))

    def _fetch(self) -> Future[T | None]:
        return self._thread.submit(next, self._things, None)

    def __iter__(self) -> Iterator[T]:
        try:
            while self._coming and (thing := self._coming.popleft().result()) is not None:
                self._coming.append(self._fetch())
                yield thing
        finally:
            self.close()

    def close(self) -> None:
        """End the thread; nothing to do if it has ended."""
        self._coming.clear()
        self._thread.shutdown(cancel_futures=True)
