"""What can the processor cores do: how many threads are worth trying, and do 16-bit floats work.

What is fast cannot be told from the names of processors: instructions that are announced may be
slow, or end the process. So 16-bit floats are first tried in a child.
"""

import functools
import os
import subprocess
import sys

import torch

PROBE_S = 60.0
PROBE = """
import torch
with torch.autocast("cpu", torch.bfloat16):
    for size in (64, 1024):
        a = torch.ones(size, size, requires_grad=True)
        (a @ a).float().sum().backward()
    x = torch.ones(1, 16, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    net = torch.nn.Conv3d(16, 16, 3, padding=1)
    value = net(x).float().sum()
    value.backward()
raise SystemExit(0 if torch.isfinite(value) else 1)
"""


def thread_counts() -> list[int]:
    """Numbers of CPU threads worth timing: all physical cores, half of them, one."""
    cores = usable_cores()
    return list(dict.fromkeys([cores, max(1, cores // 2), 1]))


def usable_cores() -> int:
    """Physical cores that this process may run on, no more than OMP_NUM_THREADS asks for."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    physical = int(torch.cpu.get_capabilities().get("num_physical_cores") or allowed)
    wished = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(allowed, physical, int(wished) if wished.isdigit() else allowed))


def announces_bfloat16() -> bool:
    """Whether the processor says that it has instructions for bfloat16."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@functools.cache
def bfloat16_works() -> bool:
    """Whether a child process survives products and convolutions in bfloat16.

    A virtual machine may announce instructions that kill the process that uses them.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", PROBE],
            timeout=PROBE_S,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0
