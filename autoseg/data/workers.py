"""Worker processes that make the items of numbered steps, delivered in the order of the steps.

Also the thread that fetches them before they are asked for, for a card.

The processes and queues are batchgenerators' MultiThreadedAugmenter: worker i makes the steps
start + i, start + i + n, … and the queues are read in turn, so the order is fixed. Added here:
clean starts of processes, the words of a worker's error, and workers that end with their parent
(docs/decisions/0005-loading.md).
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any, Generic, TypeVar

import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter

from autoseg.errors import AutosegError

Item = dict[str, Any]
"""What one step gives; its tensors travel as arrays."""

T = TypeVar("T")

CACHED_PER_WORKER = 2
WATCH_S = 1.0
_starting = threading.Lock()


class StepSource:
    """The steps of one worker as batchgenerators' loaders see them; `produce` makes an item."""

    def __init__(self, produce: Callable[[int], Item], start: int, stop: int, workers: int) -> None:
        self.produce, self.start, self.stop, self.workers = produce, start, stop, workers
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
        self.steps = iter(range(self.start + index, self.stop, self.workers))

    def __iter__(self) -> "StepSource":
        return self

    def __next__(self) -> Item:
        step = next(self.steps)
        try:
            item = self.produce(step)
        except AutosegError as error:
            self.steps = iter(())
            return {"error": str(error)}
        # through the pipe: torch would use shared memory, of which a container may have little,
        # and file handles, which end with a worker that is closed early
        return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in item.items()}


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

    `produce` must pickle. Raises AutosegError with the words of a worker's error, or saying that a
    worker died.
    """

    def __init__(self, produce: Callable[[int], Item], start: int, stop: int, workers: int) -> None:
        source = StepSource(produce, start, stop, workers)
        with _spawning():
            self._workers = MultiThreadedAugmenter(source, None, workers, CACHED_PER_WORKER)
            self._workers.restart()
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
            yield item

    def close(self) -> None:
        """End the workers; nothing to do if they have ended."""
        self._workers._finish()


def _abort_when_one_dies(workers: Sequence[BaseProcess], abort: Event) -> None:
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
