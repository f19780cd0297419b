"""Compiling a network for its training steps: whether it pays, and going on without where it fails.

A compiled step is not bit-identical to an eager one, so what was decided is the run's to write
down. The weights and their names stay those of the network itself.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.device import out_of_memory, release_card_memory, synchronise
from autoseg.learn.loop import Forward
from autoseg.learn.manner import Wish
from autoseg.learn.variants import Variant

log = logging.getLogger(__name__)

Compiler = Callable[[nn.Module], Callable[[Tensor], Any]]

WORTH = 30
"""So many times the cost of compiling must lie ahead of a run."""
COST_S, GAIN = 90.0, 0.10
"""Before it was measured: what compiling costs, and the share of a step that it saves on a card."""
REPEATS = 5
LIMIT_S = 300.0
"""Compiling that takes longer is broken off, and the run goes on without."""

FAILURES = (
    RuntimeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What compilers raise: they have no common class, and may lack another compiler or its headers."""


class TooLong(BaseException):
    """Compiling took longer than its limit; no Exception, which compilers catch and go on from."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TooLong inside the block once it has taken so long.

    By an alarm of the system, which interrupts the compiler where it is: a child would need a
    second context and a second network on the card, and a thread could not be ended and would go
    on tracing beside the steps. Only the main thread of a POSIX system has alarms; elsewhere the
    block is not limited.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise TooLong(f"compiling took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def untraced(net: nn.Module) -> list[nn.Module]:
    """The parts of a network that say of themselves that tracing them takes too long."""
    return [part for part in net.modules() if getattr(part, "untraced", False)]


def mostly_untraced(net: nn.Module) -> bool:
    """Whether so many parts stay as they are that hardly two layers are left to be fused."""
    wide = (m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    parts = len(untraced(net))
    return parts > 0 and parts >= sum(prod(conv.kernel_size) > 1 for conv in wide)


@dataclass(frozen=True)
class Decision:
    """Whether steps are compiled, and why."""

    compiled: bool
    why: str
    cost_s: float | None = None
    gain: float | None = None
    """The share of a step's time that it saves; negative where it is slower."""

    def facts(self) -> dict[str, Any]:
        """What a journal tells, and what is remembered for other runs."""
        return {
            "compiled": self.compiled,
            "why": self.why,
            "cost_s": None if self.cost_s is None else round(self.cost_s, 2),
            "gain": None if self.gain is None else round(self.gain, 4),
        }


def worthwhile(
    wish: Wish, device: str, left_s: float, known: Mapping[str, Any] | None = None
) -> Decision:
    """Whether to compile with steps of `left_s` seconds ahead; `known` are facts of an earlier time.

    By itself it happens on a card alone, where more than WORTH times the cost is left and the gain
    is more than the cost.
    """
    if wish != "auto":
        return Decision(wish == "on", f"--compile {wish}")
    if device == "cpu":
        return Decision(False, "on cores only with --compile on")
    cost, gain = _figure(known, "cost_s", COST_S), _figure(known, "gain", GAIN)
    told = (
        f"{left_s:.0f} s of steps are left, compiling costs {cost:.0f} s, saves {gain:.0%} of them"
    )
    return Decision(left_s > WORTH * cost and left_s * gain > cost, told)


def _figure(known: Mapping[str, Any] | None, key: str, otherwise: float) -> float:
    value = (known or {}).get(key)
    return float(value) if isinstance(value, (int, float)) else otherwise


class Compiled:
    """The forward pass of a network, compiled; from its first failure on that of the network.

    `on_failure` is told of that failure once.
    """

    def __init__(self, net: nn.Module, compiler: Compiler, on_failure: Callable[[str], None]):
        self.net, self.on_failure = net, on_failure
        self.failed = False
        self._call: Callable[[Tensor], Any] | None = None
        try:
            self._call = compiler(net)
        except FAILURES as error:
            self.fail(error)

    def __call__(self, image: Tensor) -> Any:
        if self._call is not None:
            try:
                return self._call(image)
            except FAILURES as error:
                self.fail(error)
            release_card_memory()
        # where the fault is not the compiler's it is met again here, and told as it is
        return self.net(image)

    def fail(self, error: BaseException) -> None:
        """Go on without from here on."""
        self.failed, self._call = True, None
        for part in untraced(self.net) if isinstance(self.net, nn.Module) else ():
            part.__dict__.pop("forward", None)  # as it was before it was exempted
        said = (str(error).strip().splitlines() or ["without a word"])[0]
        kind = "no room to compile" if out_of_memory(error) else type(error).__name__
        self.on_failure(f"{kind}: {said[:300]}")


def compiler_of_torch(net: nn.Module) -> Callable[[Tensor], Any]:
    """What torch.compile makes of a network for batches of one shape, but for its untraced parts."""
    from torch._functorch import config  # takes long to import

    for part in untraced(net):
        whole = torch.compiler.disable(part.forward)  # type: ignore[no-untyped-call]
        part.__dict__["forward"] = whole
    # going back is compiled with going forwards and not in autograd's thread, where no alarm rings
    if hasattr(config, "force_non_lazy_backward_lowering"):  # a private setting, which may go
        config.force_non_lazy_backward_lowering = True
    made: Callable[[Tensor], Any] = torch.compile(net, dynamic=False)
    return made


def compiled(
    net: nn.Module,
    image: Tensor,
    variant: Variant,
    on_failure: Callable[[str], None],
    *,
    compiler: Compiler = compiler_of_torch,
    clock: Callable[[], float] = time.perf_counter,
    limit_s: float = LIMIT_S,
) -> tuple[Forward, float, float | None]:
    """A forward pass, the seconds that compiling took, and the share of a step's time it saves.

    Compiles for batches like `image`, forwards and backwards, here and now; weights, buffers and
    gradients are as before. Where that fails, or takes longer than `limit_s`, the network itself
    and None are returned.
    """
    variant.arrange(net)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    forward = Compiled(net, compiler, on_failure)
    with variant.pinned():
        try:
            plain = min(_pass(net, net, image, variant, clock) for _ in range(REPEATS))
            first, fast = 0.0, plain
            if not forward.failed:
                try:
                    with limited(limit_s):
                        first = _pass(net, forward, image, variant, clock)
                except (*FAILURES, TooLong) as error:  # going back is compiled as well
                    forward.fail(error)
                else:
                    passes = (_pass(net, forward, image, variant, clock) for _ in range(REPEATS))
                    fast = min(passes)
        finally:
            net.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(buffers[name])
    if forward.failed:
        release_card_memory()
        return net, max(0.0, first - plain), None
    return forward, max(0.0, first - fast), 1 - fast / plain if plain > 0 else 0.0


def _pass(
    net: nn.Module, forward: Forward, image: Tensor, variant: Variant, clock: Callable[[], float]
) -> float:
    """Seconds to go forwards and backwards once."""
    net.train()
    net.zero_grad(set_to_none=True)
    start = clock()
    with variant.autocast(image.device.type):
        logits = forward(variant.arranged(image))
    torch.stack([level.float().square().mean() for level in logits]).sum().backward()  # type: ignore[no-untyped-call]
    synchronise(image.device)
    return clock() - start
