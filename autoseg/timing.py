"""Where did the time go? Named parts of the work, nested, on every thread that does some of it.

`with part("forward"):` costs next to nothing while nobody records. While a `Recording` runs, each
part is timed by the wall clock; the answer is a table, and a trace for a viewer of timelines. What
a generator does while it is pulled belongs to whoever made it: `pulled("tiles", tiles)` tells it there.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from autoseg.files import replacing, write_json

T = TypeVar("T")

EVENTS = 100_000
"""Parts kept for the trace, about 15 MB as a file; the table counts those after them as well."""
BACKGROUND = "in the background"
"""Above the parts of all threads but the one that records."""
ELSEWHERE = "elsewhere"
"""What the recording thread did outside of all parts."""


@dataclass(frozen=True)
class Row:
    """A part by its path of names: how often, and seconds with and without the parts inside it.

    `share` is that of `total_s` in the recorded time; threads beside each other may add to over 1.
    """

    path: tuple[str, ...]
    calls: int
    total_s: float
    self_s: float
    share: float


class Recording:
    """The parts that ran between `start` and `stop`, which may be called several times in turn.

    `synchronise` is called where a part of the recording thread begins and ends: a card works on
    after it was told what to do, and its time would count for the part that first waits for it.
    """

    def __init__(self, synchronise: Callable[[], None] | None = None) -> None:
        self.synchronise = synchronise
        self.elapsed_s = 0.0
        self.left_out = 0
        """Parts that are in the table but not in the trace."""
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, ...], tuple[int, float]] = {}
        self._events: list[tuple[str, tuple[int, str], float, float]] = []
        self._thread: int | None = None
        self._began = self._first = 0.0

    @property
    def running(self) -> bool:
        return _recorder is self

    def start(self) -> None:
        """Record from here on, on this thread and in the background.

        Raises ValueError while something is recorded.
        """
        global _recorder
        if _recorder is not None:
            raise ValueError("one recording runs already; stop it first")
        self._thread = threading.get_ident()
        if self.synchronise is not None:
            self.synchronise()
        self._began = time.perf_counter()
        self._first = self._first or self._began
        _recorder = self

    def stop(self) -> None:
        """Record no longer; what has begun and not ended is not counted."""
        global _recorder
        if not self.running:
            return
        if self.synchronise is not None and threading.get_ident() == self._thread:
            self.synchronise()
        self.elapsed_s += time.perf_counter() - self._began
        _recorder = None

    def add(self, path: tuple[str, ...], began: float, ended: float, lent_s: float = 0.0) -> None:
        """Count one part that ran on this thread, by the readings of `time.perf_counter`.

        The table leaves out the `lent_s` in which it waited for what is told elsewhere; the trace
        shows when things happened, and does not.
        """
        if not self.running or began < self._began:
            return
        # the number of a thread that has ended is given to another
        thread = threading.get_ident(), threading.current_thread().name
        path = path if thread[0] == self._thread else (BACKGROUND, *path)
        with self._lock:
            calls, total = self._sums.get(path, (0, 0.0))
            self._sums[path] = (calls + 1, total + ended - began - lent_s)
            if len(self._events) < EVENTS:
                self._events.append((path[-1], thread, began - self._first, ended - began))
            else:
                self.left_out += 1

    def settle(self) -> None:
        """Wait for the card, where there is one and this thread is the one that records."""
        if self.synchronise is not None and threading.get_ident() == self._thread:
            self.synchronise()

    def table(self) -> list[Row]:
        """Every part after the one around it, the longest first; last what lay outside of all."""
        with self._lock:
            sums = dict(self._sums)
        for path in list(sums):  # a part may go on while those inside it have ended
            for depth in range(1, len(path)):
                sums.setdefault(path[:depth], (0, 0.0))
        inside: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for path in sums:
            inside.setdefault(path[:-1], []).append(path)
        for path in sorted(sums, key=len, reverse=True):
            if not sums[path][0]:
                sums[path] = (0, sum(sums[p][1] for p in inside[path]))
        elapsed = self.elapsed_s or 1e-9
        rows: list[Row] = []

        def walk(above: tuple[str, ...]) -> None:
            for path in sorted(inside.get(above, ()), key=lambda p: -sums[p][1]):
                calls, total = sums[path]
                within = sum(sums[p][1] for p in inside.get(path, ()))
                rows.append(Row(path, calls, total, max(0.0, total - within), total / elapsed))
                walk(path)

        walk(())
        known = sum(r.total_s for r in rows if len(r.path) == 1 and r.path[0] != BACKGROUND)
        rest = max(0.0, self.elapsed_s - known)
        return [*rows, Row((ELSEWHERE,), 0, rest, rest, rest / elapsed)]

    def text(self) -> str:
        """The table to be read by people."""
        rows = self.table()
        names = ["  " * (len(row.path) - 1) + row.path[-1] for row in rows]
        wide = max(len("part"), *map(len, names))
        lines = [
            f"{self.elapsed_s:.3f} s recorded",
            f"{'part':{wide}}  {'calls':>7}  {'total s':>9}  {'self s':>9}  {'share':>7}",
        ]
        for name, row in zip(names, rows, strict=True):
            lines.append(
                f"{name:{wide}}  {row.calls or '':>7}  {row.total_s:9.3f}  {row.self_s:9.3f}  "
                f"{100 * row.share:5.1f} %"
            )
        return "\n".join(lines) + "\n"

    def trace(self) -> dict[str, Any]:
        """The parts as Chrome trace events, which Perfetto and chrome://tracing show."""
        with self._lock:
            kept = list(self._events)
        threads = dict.fromkeys(thread for _, thread, _, _ in kept)
        process, numbers = os.getpid(), {t: i for i, t in enumerate(threads)}
        events: list[dict[str, Any]] = [
            {"name": "thread_name", "ph": "M", "pid": process, "tid": number,
             "args": {"name": thread[1]}}
            for thread, number in numbers.items()
        ]  # fmt: skip
        events += [
            {"name": name, "cat": "part", "ph": "X", "pid": process, "tid": numbers[thread],
             "ts": round(began * 1e6, 1), "dur": round(took * 1e6, 1)}
            for name, thread, began, took in kept
        ]  # fmt: skip
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def write(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write profile.txt, profile.json (with `facts`, plain values) and trace.json."""
        parts = [
            {"part": " / ".join(row.path), "calls": row.calls, "total_s": round(row.total_s, 6),
             "self_s": round(row.self_s, 6), "share": round(row.share, 5)}
            for row in self.table()
        ]  # fmt: skip
        head = dict(facts or {})
        said = "".join(f"{key}: {value}\n" for key, value in head.items())
        with replacing(folder / "profile.txt", durable=False) as half:
            half.write_text(said + self.text(), encoding="utf-8")
        document = head | {"recorded_s": round(self.elapsed_s, 6), "parts": parts}
        write_json(folder / "profile.json", document | {"not_in_trace": self.left_out})
        with replacing(folder / "trace.json", durable=False) as half:
            half.write_text(json.dumps(self.trace()), encoding="utf-8")


_recorder: Recording | None = None
_here = threading.local()


class _Silent:
    """What a part is while nobody records."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class _Part:
    """A part that is timed, and counted where it ends."""

    __slots__ = ("began", "lent_s", "name", "outer", "path", "recording")

    def __init__(self, name: str, recording: Recording) -> None:
        self.name, self.recording = name, recording
        self.lent_s = 0.0
        self.began = time.perf_counter()

    def __enter__(self) -> None:
        self.outer: tuple[_Part, ...] = _open()
        self.path: tuple[str, ...] = (*(part.name for part in self.outer), self.name)
        _here.open = (*self.outer, self)
        self.recording.settle()
        self.began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # a card that failed would only fail again, and hide the first error
            self.recording.settle()
        self.recording.add(self.path, self.began, time.perf_counter(), self.lent_s)
        _here.open = self.outer


def _open() -> tuple[_Part, ...]:
    """The parts that this thread is in, outermost first."""
    found: tuple[_Part, ...] = getattr(_here, "open", ())
    return found


_SILENT = _Silent()


def part(name: str) -> AbstractContextManager[None]:
    """A block of work whose time is told under `name`, inside the part around it."""
    recorder = _recorder
    return _SILENT if recorder is None else _Part(name, recorder)


def pulled(name: str, things: Iterable[T]) -> Iterator[T]:
    """The same things; making each of them counts as a part `name` of where this was called.

    The parts in which they are asked for are not charged with it.
    """
    recorder = _recorder
    return iter(things) if recorder is None else _pulled(name, iter(things), _open(), recorder)


def _pulled(
    name: str, things: Iterator[T], home: tuple[_Part, ...], recorder: Recording
) -> Iterator[T]:
    """`things`, each made as a part of `home`, as far as that goes on."""
    while True:
        asking = _open()
        # what has ended since they were made cannot be charged any more
        shared = sum(1 for one, other in zip(home, asking, strict=False) if one is other)
        _here.open = home[:shared]
        making = _Part(name, recorder)
        try:
            with making:
                thing = next(things)
        except StopIteration:
            return
        finally:
            _here.open = asking
            took = time.perf_counter() - making.began
            for waiting in asking[shared:]:
                waiting.lent_s += took
        yield thing


@contextmanager
def recording(synchronise: Callable[[], None] | None = None) -> Iterator[Recording]:
    """A Recording of what the block does; it stops also where the block fails."""
    taken = Recording(synchronise)
    taken.start()
    try:
        yield taken
    finally:
        taken.stop()
