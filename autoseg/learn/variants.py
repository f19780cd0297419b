"""Variants: the arrangements of the same computation, and which is the fastest on this machine.

On a card the precision is decided and only memory layouts are timed, so that no trial needs more
memory than the plan counted; on cores 16-bit floats and numbers of threads are timed too.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autoseg.device import (
    Precision,
    is_card,
    out_of_memory,
    release_card_memory,
    synchronise,
)
from autoseg.learn.cores import announces_bfloat16, bfloat16_works, thread_counts
from autoseg.learn.precision import Asked, resolved_precision

Layout = Literal["contiguous", "channels_last"]

TIE = 0.03
"""A variant must be faster than an earlier one by this share to be chosen."""
NO_ROOM = "no room"
"""Why a variant has no time whose step did not fit into the card's memory."""


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

    `make_step` builds what one step of a variant does; nothing of it is left when the next is
    built. However long it takes, candidates are tried until one is timed; one whose first step takes
    twice the best so far is not repeated. One that does not fit into a card's memory has no time.
    Raises torch.OutOfMemoryError if none fits.
    """
    end, best, timings = clock() + seconds, float("inf"), list[Timing]()
    for index, variant in enumerate(candidates):
        if best < float("inf") and clock() >= end:
            timings.append(Timing(variant, None, "no time was left to measure it"))
            continue
        share = (end - clock()) / (len(candidates) - index)
        took = _tried(make_step, variant, device, clock, clock() + share, 2 * best)
        if isinstance(took, str):
            timings.append(Timing(variant, None, NO_ROOM))
            refusal = took
        else:
            best = min(best, took)
            timings.append(Timing(variant, took))
    if all(timing.why == NO_ROOM for timing in timings):
        raise torch.OutOfMemoryError(f"no layout of the step has room: {refusal}")
    return timings


def _tried(
    make_step: Callable[[Variant], Callable[[], object]],
    variant: Variant,
    device: torch.device,
    clock: Callable[[], float],
    end: float,
    slow: float,
) -> float | str:
    """The best time of a variant's step, or the first line of a card's refusal to give memory."""
    refusal = ""
    try:
        with variant.pinned():
            return _best_step(make_step(variant), device, clock, end, slow)
    except RuntimeError as error:
        if not is_card(device) or not out_of_memory(error):
            raise
        refusal = (str(error).strip().splitlines() or ["out of memory"])[0]
    finally:
        # the frames of a failure, and cycles in torch's graphs, hold networks and activations
        if is_card(device):
            gc.collect()
            release_card_memory()
    return refusal


def _best_step(
    step: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float],
    end: float,
    slow: float,
) -> float:
    """The least seconds of a step after one to warm up; that one alone where it is hopeless.

    A card's first step looks for algorithms and loads kernels, so the second one is judged there.
    """
    judged = 2 if is_card(device) else 1
    times: list[float] = []
    while len(times) < 3 or clock() < end:
        start = clock()
        step()
        synchronise(device)
        times.append(clock() - start)
        if (len(times) >= judged and times[-1] > slow) or (len(times) > 1 and clock() >= end):
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
    device: torch.device,
    precision: Asked = "auto",
    layout: Literal["auto", "contiguous", "channels_last"] = "auto",
    threads: int | None = None,
    *,
    explicit: bool = False,
) -> list[Variant]:
    """The variants worth timing on a device, likeliest first; what is not "auto" is fixed.

    The precision is that of `resolved_precision`; on cores that announce bfloat16 and can compute
    it, "auto" tries it too. Raises AutosegError where an `explicit` precision cannot be computed.
    """
    on_card = is_card(device)
    precisions = [resolved_precision(precision, device, explicit=explicit)[0]]
    if precision == "auto" and not on_card and announces_bfloat16() and bfloat16_works():
        precisions.append("bfloat16")
    layouts: list[Layout] = ["channels_last", "contiguous"] if layout == "auto" else [layout]
    return [
        Variant(number, form, count)
        for number in precisions
        for form in layouts
        for count in ([threads] if threads or on_card else thread_counts())
    ]
