"""Reading, computing and writing one unit after another, at the same time.

While one unit is computed, on the caller's own thread, the next one is read and the one before is
written, each on a thread of its own: never more than three units are in memory.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

U = TypeVar("U")
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")

PATIENCE_S = 5.0
"""How long the reader is waited for after an error; what it has read later is dropped all the same."""


def overlapped(
    units: Sequence[U],
    read: Callable[[U], A],
    compute: Callable[[A], B],
    write: Callable[[B], R],
    *,
    drop: Callable[[A], object] = lambda _: None,
    fits: Callable[[U], bool] = lambda _: True,
) -> Generator[R, None, None]:
    """What `write` gives for each unit, in their order.

    A unit that does not fit beside another one is read when that is done. An error on any thread
    is raised here, after what was computed is written; what was read and will not be computed is
    handed to `drop`, be it later. `compute` drops for itself what it cannot use.
    """
    ahead: Future[A] | None = None
    behind: Future[R] | None = None
    try:
        for index, unit in enumerate(units):
            ahead = ahead or _begun(read, unit, "reader")
            given, ahead = ahead.result(), None
            if index + 1 < len(units) and fits(units[index + 1]):
                ahead = _begun(read, units[index + 1], "reader")
            made = compute(given)
            if behind is not None:
                wait([behind])
            before, behind = behind, _begun(write, made, "writer")
            if before is not None:
                yield before.result()
        if behind is not None:
            last, behind = behind, None
            yield last.result()
    finally:
        if behind is not None:
            wait([behind])
        if ahead is not None:
            wait([ahead], PATIENCE_S)
            # here and now if it is read, else on the reader's thread when it is
            ahead.add_done_callback(lambda done: done.exception() or drop(done.result()))


def _begun(work: Callable[[U], R], unit: U, name: str) -> Future[R]:
    """The work on a unit, on a thread that does not keep the process alive."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            made = work(unit)
        except BaseException as error:  # raised again by whoever asks for the result
            future.set_exception(error)
        else:
            future.set_result(made)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
