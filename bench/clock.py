"""Seconds and memory of a piece of work inside a child process; both programs are measured by this.

It knows neither of them, and runs under either's interpreter. A script of `ours/` or `theirs/` is
given its arguments as one JSON object, and prints one JSON line at its end.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def asked() -> dict[str, Any]:
    """The arguments of this script."""
    arguments: dict[str, Any] = json.loads(sys.argv[1])
    return arguments


def measured(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What `work` returns; its wall and CPU seconds, and the most bytes resident while it ran.

    Resident are libraries and inputs, too: `resting_bytes` says how much there was before.
    """
    gc.collect()
    restart_peak()
    resting, cpu, start = resident("VmRSS"), cpu_seconds(), time.perf_counter()
    value = work()
    wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    return value, {
        "wall_s": wall, "cpu_s": cpu, "peak_bytes": resident("VmHWM"), "resting_bytes": resting,
    }  # fmt: skip


def cpu_seconds() -> float:
    """User and system seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def restart_peak() -> None:
    """Let VmHWM begin anew, where the system can: making the inputs does not count."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes; 0 where the system does not tell.

    Not `ru_maxrss`, which a process inherits from the one that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith(key + ":")), 0)


def tell(**found: Any) -> None:
    """Print the result of this script."""
    print(json.dumps(found), flush=True)
