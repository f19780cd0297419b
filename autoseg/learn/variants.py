"""Variants: the arrangements of the same computation, and which is the fastest on this machine.

What is fast cannot be told from the names of processors: instructions that are announced may be
slow, or end the process. So candidates are timed, and 16-bit floats are first tried in a child.
"""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autoseg.device import Precision, synchronise
from autoseg.errors import AutosegError

Layout = Literal["contiguous", "channels_last"]

TIE = 0.03
"""A variant must be faster than an earlier one by this share to be chosen."""
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


@dataclass(frozen=True)
class Variant:
    """How a network is computed: its numbers, its memory layout and the CPU threads."""

    precision: Precision = "float32"
    layout: Layout = "contiguous"
    threads: int | None = None
    """None: as many as torch has."""

    def arranged(self, tensor: Tensor) -> Tensor:
        """`tensor` (B, C, *S) in this layout.

        One channel fits both layouts, and torch would take it for contiguous and leave the whole
        network so: the strides of the layout are written out.
        """
        form = self.memory_format(tensor.ndim)
        if self.layout == "channels_last" and tensor.shape[1] == 1:
            return torch.empty_like(tensor, memory_format=form).copy_(tensor)
        return tensor.contiguous(memory_format=form)

    def arrange(self, net: nn.Module) -> None:
        """Bring the weights of `net` into this layout, in place."""
        for p in net.parameters():
            if p.ndim in (4, 5):
                p.data = p.data.contiguous(memory_format=self.memory_format(p.ndim))

    def memory_format(self, ndim: int) -> torch.memory_format:
        if self.layout == "contiguous":
            return torch.contiguous_format
        return torch.channels_last if ndim == 4 else torch.channels_last_3d

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """The context that computes in this precision on a type of device."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device, getattr(torch, self.precision))

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Use this number of threads inside the block: sums depend on it in the last bit."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def speaking(self, net: nn.Module) -> Callable[[Tensor], list[Tensor]]:
        """`net`, arranged, as a function of a float32 batch on its device; no gradients are kept.

        Call it inside `pinned`. Evaluation mode is the caller's to set.
        """
        self.arrange(net)

        def logits(image: Tensor) -> list[Tensor]:
            with torch.inference_mode(), self.autocast(image.device.type):
                out: list[Tensor] = net(self.arranged(image))
            return out

        return logits


@dataclass(frozen=True)
class Timing:
    """Seconds of one step of a variant; None where it was not finished, with the reason."""

    variant: Variant
    seconds: float | None
    why: str = ""


def measure(
    make_step: Callable[[Variant], Callable[[], object]],
    candidates: Sequence[Variant],
    seconds: float,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """The best time of a step of every candidate, in their order, within about `seconds` in all.

    `make_step` builds what one step of a variant does. The first candidate is always timed; one
    whose first step takes twice the best so far is not repeated.
    """
    end, best, timings = clock() + seconds, float("inf"), list[Timing]()
    for index, variant in enumerate(candidates):
        if index and clock() >= end:
            timings.append(Timing(variant, None, "no time was left to measure it"))
            continue
        share = (end - clock()) / (len(candidates) - index)
        with variant.pinned():
            took = _best_step(make_step(variant), device, clock, clock() + share, 2 * best)
        best = min(best, took)
        timings.append(Timing(variant, took))
    return timings


def _best_step(
    step: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float],
    end: float,
    slow: float,
) -> float:
    """The least seconds of a step after one to warm up; that one alone where it is hopeless."""
    times: list[float] = []
    while len(times) < 3 or clock() < end:
        start = clock()
        step()
        synchronise(device)
        times.append(clock() - start)
        if times[-1] > slow or (len(times) > 1 and clock() >= end):
            break
    return min(times[1:] or times)


def fastest(timings: Sequence[Timing]) -> Variant:
    """The earliest variant within TIE of the least time, so that noise does not choose.

    Raises ValueError if none was timed.
    """
    timed = [(t.seconds, t.variant) for t in timings if t.seconds is not None]
    if not timed:
        raise ValueError("no variant was timed")
    least = min(seconds for seconds, _ in timed)
    return next(variant for seconds, variant in timed if seconds * (1 - TIE) <= least)


def candidates(
    device: str,
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    layout: Literal["auto", "contiguous", "channels_last"] = "auto",
    threads: int | None = None,
) -> list[Variant]:
    """The variants worth timing on a type of device, likeliest first; what is not "auto" is fixed.

    Raises AutosegError where a fixed precision cannot be computed there.
    """
    precisions: list[Precision] = ["float32"]
    if precision != "auto":
        refuse_impossible(device, precision)
        precisions = [precision]
    elif device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        precisions.append("bfloat16")
    elif device == "cuda":
        precisions.append("float16")
    elif announces_bfloat16() and bfloat16_works():
        precisions.append("bfloat16")
    layouts: list[Layout] = ["channels_last", "contiguous"] if layout == "auto" else [layout]
    return [
        Variant(number, form, count)
        for number in precisions
        for form in layouts
        for count in ([threads] if threads or device != "cpu" else thread_counts())
    ]


def refuse_impossible(device: str, precision: Precision) -> None:
    """Raise AutosegError where a precision cannot be computed on a type of device."""
    if device != "cpu" or precision == "float32":
        return
    if precision == "float16":
        raise AutosegError("the precision is float16, which only a card computes; choose float32")
    if not bfloat16_works():
        raise AutosegError(
            "the precision is bfloat16, which this processor cannot compute; choose float32"
        )


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
