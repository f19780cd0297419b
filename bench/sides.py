"""One side of a comparison: a command, or a script of ours or theirs, in a process of its own."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.places import NNUNET, REPOSITORY

Result = dict[str, Any]
"""wall_s, cpu_s, peak_bytes and whatever else a script told; or `failed`, with the reason."""

Side = Callable[[], Result]

OURS = [sys.executable, "-m", "autoseg"]
SAMPLE_S = 0.05
NO_MEMORY = ("MemoryError", "Unable to allocate", "not enough memory", "Cannot allocate memory")


def their(name: str) -> str:
    """A program of nnU-Net's environment."""
    return str(NNUNET / "bin" / name)


def rival_is_there() -> bool:
    return Path(their("python")).exists()


def script(
    whose: str,
    name: str,
    arguments: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    limit_bytes: int | None = None,
    *,
    may_fail: bool = False,
) -> Result:
    """What bench/<whose>/<name>.py tells of itself; `whose` is ours or theirs."""
    interpreter = sys.executable if whose == "ours" else their("python")
    path = REPOSITORY / "bench" / whose / f"{name}.py"
    paths = {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    found = command(
        [interpreter, str(path), json.dumps(arguments)], {**paths, **(environment or {})}, limit_bytes,
        may_fail=may_fail,
    )  # fmt: skip
    if "failed" not in found:
        found |= json.loads(found["said"].strip().splitlines()[-1])
    return {key: value for key, value in found.items() if key != "said"}


def side(whose: str, name: str, arguments: Mapping[str, Any], **rest: Any) -> Side:
    """The script as a side that can be run again and again."""
    return partial(script, whose, name, arguments, **rest)


def command(
    argv: Sequence[str],
    environment: Mapping[str, str] | None = None,
    limit_bytes: int | None = None,
    *,
    may_fail: bool = False,
) -> Result:
    """Wall and CPU seconds of a command and all it started, and the most they held together.

    The peak is the sum of their resident bytes, looked at every 50 ms; pages that processes share
    count once for each. `limit_bytes` is the address space of the process: where that is the reason
    of its failure, this is told as `failed`; any other failure ends the benchmark, unless it may be
    that this machine cannot do it.
    """

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        start = time.perf_counter()
        child = subprocess.Popen(
            argv, env={**os.environ, **(environment or {})}, stdout=said, stderr=complained,
            cwd=REPOSITORY, preexec_fn=limit,
        )  # fmt: skip
        watch = _Watch(child.pid)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        peak = watch.end()
        said.seek(0)
        complained.seek(0)
        out, errors = said.read(), complained.read()
    if child.returncode != 0:
        if child.returncode == -9 or any(sign in errors for sign in NO_MEMORY):
            return {"failed": "out of memory"}
        if may_fail:
            return {"failed": "not possible on this machine"}
        raise SystemExit(f"{' '.join(argv)} failed:\n{out[-2000:]}{errors[-3000:]}")
    return {"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": peak, "said": out}


class _Watch:
    """The most bytes that a process and its descendants had resident together."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.peak = max(self.peak, sum(_resident(pid) for pid in _tree(self.pid)))

    def end(self) -> int:
        self._over.set()
        self._thread.join()
        return self.peak


def _tree(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
