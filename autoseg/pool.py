"""How work on units is spread over processes, within the memory that there is.

Units are admitted by the bytes that they need; a worker that dies (out of memory, mostly) costs
its unit one retry alone, then becomes that unit's error. Workers end when their parent is gone.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from autoseg.errors import AutosegError

U = TypeVar("U")
R = TypeVar("R")

log = logging.getLogger(__name__)

RESERVE = 0.15
"""Share of the free memory that is left to the rest of the machine."""


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_bytes() -> int:
    """Memory that can be taken now, in bytes; the container's limit counts where there is one."""
    free = 4 << 30
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo") as lines:
        row = next(line for line in lines if line.startswith("MemAvailable:"))
        free = int(row.split()[1]) * 1024
    with (
        contextlib.suppress(OSError, ValueError),
        open("/sys/fs/cgroup/memory.max") as limit,
        open("/sys/fs/cgroup/memory.current") as now,
    ):
        free = min(free, int(limit.read()) - int(now.read()))
    return max(free, 256 << 20)


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees, instead of asking for them again and again.

    By default glibc gives every block of some MB back to the system at once; fetching and clearing
    its pages anew took 40 % of the time of predictions on cores. Does nothing elsewhere.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def give_freed_memory_back() -> None:
    """Return what this process has freed to the system, and what torch keeps of a card to others."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def die_with_parent() -> None:
    """Make this process end when its parent does, however the parent ended."""
    parent = os.getppid()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin_worker() -> None:
    from threadpoolctl import threadpool_limits

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threadpool_limits(1)


def _context() -> multiprocessing.context.BaseContext:
    """Fork where it is safe (Linux, no torch and its threads in this process yet), else spawn."""
    forkable = sys.platform == "linux" and "torch" not in sys.modules
    return multiprocessing.get_context("fork" if forkable else "spawn")


def over_units(
    work: Callable[[U], R],
    units: Sequence[U],
    *,
    workers: int,
    bytes_of: Callable[[U], int] | None = None,
) -> Iterator[tuple[U, R | AutosegError]]:
    """Yield each unit with its result, or with the AutosegError that its work raised.

    Units come in the order in which they end. `work` must be importable by a spawned process.
    """
    if workers <= 1 or len(units) <= 1:
        for unit in units:
            yield unit, _outcome(work, unit)
        return
    yield from _spread(work, list(units), workers, bytes_of or (lambda _: 0))


def _outcome(work: Callable[[U], R], unit: U) -> R | AutosegError:
    try:
        return work(unit)
    except AutosegError as error:
        return error
    except MemoryError:
        name = getattr(unit, "id", unit)
        return AutosegError(f"{name}: the memory of this machine does not suffice for it")


def _spread(
    work: Callable[[U], R], queue: list[U], workers: int, bytes_of: Callable[[U], int]
) -> Iterator[tuple[U, R | AutosegError]]:
    budget = int(free_bytes() * (1 - RESERVE))
    retried: set[int] = set()
    alone: list[U] = []
    while queue or alone:
        crowd = workers if queue else 1
        waiting = queue if queue else alone
        running: dict[Future[R | AutosegError], U] = {}
        needs: dict[Future[R | AutosegError], int] = {}
        executor = ProcessPoolExecutor(crowd, _context(), initializer=_begin_worker)
        try:
            while waiting or running:
                while waiting and len(running) < crowd:
                    need = bytes_of(waiting[0])
                    if running and sum(needs.values()) + need > budget:
                        break
                    unit = waiting.pop(0)
                    future = executor.submit(_outcome, work, unit)
                    running[future], needs[future] = unit, need
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    result = future.result()
                    unit = running.pop(future)
                    needs.pop(future)
                    yield unit, result
        except BrokenProcessPool:
            for unit in running.values():
                if id(unit) in retried:
                    yield (
                        unit,
                        AutosegError(
                            f"{unit}: its worker process died twice, most likely for want of memory "
                            f"({free_bytes() / 2**30:.1f} GiB are free); close other programs, or use "
                            "a machine with more memory"
                        ),
                    )
                else:
                    log.warning("a worker died; %s is tried again alone", unit)
                    retried.add(id(unit))
                    alone.append(unit)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
