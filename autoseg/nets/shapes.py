"""The tensors of a network by name and shape, found without making it: for files of strangers.

A hostile document could ask for a network of any size. Numbers beyond reason are refused before
building; building itself makes no numbers and is stopped after a while.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autoseg.documents.networks.family import NetworkSpec
from autoseg.errors import AutosegError, PlanError
from autoseg.nets.build import build
from autoseg.nets.cost.blank import INITIALISERS

MOST_NUMBER = 1 << 16
"""No width, depth, kernel or grid of a network is larger."""
MOST_BYTES = 64 << 30
"""Of all weights of one network."""
MOST_SECONDS = 60.0
MOST_CALLS = 30_000
"""Of torch's functions while building; the largest presets make 8 000."""

KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

STUMBLES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NotImplementedError,
    RecursionError, RuntimeError, StopIteration, TypeError, ValueError,
)  # fmt: skip
"""What building runs into where a document's numbers do not fit together."""


class _Shapes(TorchFunctionMode):
    """Draws no random numbers, and gives up when the time is over."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.end, self.calls = time.monotonic() + seconds, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        if self.calls > MOST_CALLS or time.monotonic() > self.end:
            raise PlanError("it is so large that it cannot be built in reasonable time")
        if getattr(func, "__name__", "") in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def tensor_forms(
    spec: NetworkSpec, seconds: float = MOST_SECONDS
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> kind (as safetensors calls it) and shape of everything in the state of the network of a document.

    Raises PlanError, in little time and memory, for a network that is absurdly large or that
    cannot be built; the message says what of it.
    """
    most = max(_numbers(spec.dump()), default=0)
    if most > MOST_NUMBER:
        raise PlanError(f"it has a number {most:.4g} where networks have at most {MOST_NUMBER}")
    # where building is stopped within `no_grad`, that block cannot undo itself: torch asks us first
    gradients = torch.is_grad_enabled()
    try:
        with torch.device("meta"), _Shapes(seconds):
            state = build(spec).state_dict()
        found = {n: (KINDS[t.dtype], tuple(t.shape)) for n, t in state.items()}
    except AutosegError:
        raise
    except STUMBLES as error:
        first = (str(error) or type(error).__name__).split("\n")[0][:200]
        raise PlanError(f"it cannot be built ({first})") from error
    finally:
        torch.set_grad_enabled(gradients)
    held = sum(t.numel() * t.element_size() for t in state.values())
    if held > MOST_BYTES:
        raise PlanError(f"its weights would take {held / 2**30:.4g} GiB of memory")
    return found


def _numbers(value: Any) -> Iterator[float]:
    """Every number in a decoded document, by its size."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield abs(value)
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _numbers(inside)
    elif isinstance(value, (list, tuple)):
        for inside in value:
            yield from _numbers(inside)
