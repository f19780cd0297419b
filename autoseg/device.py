"""On which device do networks run, and what does it offer? The one place that asks a card.

A card's name, memory and capability, waiting for it and giving memory back: everything else asks
here, and here alone is CUDA asked. So tests can put a simulated card, whose tensors are the CPU's,
in the place of `driver` (docs/decisions/0022-devices.md).
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch

from autoseg.errors import AutosegError
from autoseg.pool import keep_freed_memory

T = TypeVar("T")
Precision = Literal["float32", "bfloat16", "float16"]

BFLOAT16_FROM = (8, 0)
"""The first compute capability (Ampere) whose tensor cores multiply bfloat16; what older cards do
with it is emulated and slow (CUDA C++ Programming Guide, table of arithmetic throughput)."""

ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"
NO_MEMORY = (
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm",
)
"""What CUDA, cuBLAS and cuDNN say in plain RuntimeErrors where a card's memory is at its end:
their handles and workspaces are allocated beside torch's tensors, and cuDNN's search for an
algorithm finds none that fits. cuDNN's internal error is mostly a handle without room."""

ENOUGH, ENOUGH_FREE = 0.95, 0.85
"""Shares of the memory that a plan was fitted to which a card must have, and have free; the planner
leaves a tenth and what CUDA and a desktop take."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says of itself: its name, its memory in bytes and its compute capability."""

    name: str
    total_bytes: int
    capability: tuple[int, int]

    @property
    def memory_gb(self) -> float:
        """GiB, as in `--gpu-memory`."""
        return self.total_bytes / 2**30

    @property
    def precision(self) -> Precision:
        """The 16-bit floats that networks are trained and run in on this card."""
        return "bfloat16" if self.capability >= BFLOAT16_FROM else "float16"


class Driver(Protocol):
    """What is asked of the cards of a machine. `Cuda` is the real one."""

    def count(self) -> int:
        """How many cards torch can use; 0 where there is none."""

    def why_none(self) -> str:
        """Why there is none, in words."""

    def place(self, index: int) -> torch.device:
        """Where the tensors of a card lie."""

    def owns(self, device: torch.device) -> bool:
        """Whether the tensors of `device` lie on a card."""

    def facts(self, device: torch.device) -> CardFacts:
        """What the card says of itself."""

    def free_bytes(self, device: torch.device) -> int:
        """What this process can still take: free, or kept by torch's allocator and not in use."""

    def synchronise(self, device: torch.device) -> None:
        """Wait until the card has done what it was given."""

    def measured(self, device: torch.device, compute: Callable[[], T]) -> tuple[T, int]:
        """What is computed, and the most bytes that it took beside what was there before."""

    def release(self) -> None:
        """Give what torch's allocator keeps, and does not use, back to other programs."""

    def prepare(self) -> None:
        """Settings of the allocator, for the process, before the first tensor lies on a card."""


class Cuda:
    """The cards that torch's CUDA sees."""

    def count(self) -> int:
        with warnings.catch_warnings():
            # a driver that is too old is told by `why_none`
            warnings.simplefilter("ignore")
            return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def why_none(self) -> str:
        if torch.version.cuda is None and torch.version.hip is None:
            return "this torch was built without CUDA"
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            told = (str(error).strip().splitlines() or ["no reason was given"])[0]
            if "too old" in told or "insufficient" in told:
                return f"the NVIDIA driver is too old for this torch ({told}); update the driver"
            return f"CUDA cannot be used ({told})"
        return "this torch sees no card"

    def place(self, index: int) -> torch.device:
        return torch.device("cuda", index)

    def owns(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def facts(self, device: torch.device) -> CardFacts:
        found = torch.cuda.get_device_properties(device)
        return CardFacts(found.name, int(found.total_memory), (found.major, found.minor))

    def free_bytes(self, device: torch.device) -> int:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept

    def synchronise(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def measured(self, device: torch.device, compute: Callable[[], T]) -> tuple[T, int]:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        made = compute()
        return made, torch.cuda.max_memory_allocated(device) - before

    def release(self) -> None:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def prepare(self) -> None:
        """Segments that grow, so that fewer gaps are left between tensors of many sizes.

        torch's default is fixed segments; what the user set, and a CUDA that is at work already,
        are left as they are. Only Linux has the driver's call for it. The environment is for
        worker processes, and older names of the variable warn.
        """
        chosen = any(name in os.environ for name in ALLOCATOR_SETTINGS)
        if chosen or not sys.platform.startswith("linux") or torch.version.cuda is None:
            return
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return
        os.environ[ALLOCATOR_SETTINGS[0]] = EXPANDABLE
        with contextlib.suppress(AttributeError, RuntimeError, ValueError):
            # the environment may have been read when torch was imported
            torch._C._accelerator_setAllocatorSettings(EXPANDABLE)


driver: Driver = Cuda()
"""Whom to ask; replaced by tests alone."""


def is_card(device: torch.device) -> bool:
    """Whether tensors there are a card's: steps are asynchronous, and memory is the card's own."""
    return driver.owns(device)


def card_facts(device: torch.device) -> CardFacts:
    """What the card of `device` says of itself."""
    return driver.facts(device)


def free_card_bytes(device: torch.device) -> int:
    """What this process can still take of a card's memory."""
    return driver.free_bytes(device)


def measured_on_card(device: torch.device, compute: Callable[[], T]) -> tuple[T, int]:
    """What is computed on a card, and the most bytes that it took beside what was there."""
    return driver.measured(device, compute)


def release_card_memory() -> None:
    """Give what torch keeps of cards and does not use back to other programs."""
    driver.release()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a card does not suffice."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in NO_MEMORY)


def short_of_plan(planned_gb: float | None, device: torch.device) -> str:
    """What a card lacks of the memory (GiB) that a plan was fitted to, in a line; "" if nothing.

    A card that is sold as 24 GB has 23.6 GiB, which plans allow for: less than 95 % is told.
    """
    if planned_gb is None or not driver.owns(device):
        return ""
    facts, free = driver.facts(device), driver.free_bytes(device) / 2**30
    if facts.memory_gb < ENOUGH * planned_gb:
        lack = f"{facts.name} has {facts.memory_gb:.1f}"
        change = f"`--gpu-memory {facts.memory_gb:.0f}` plans for this one"
    elif free < ENOUGH_FREE * planned_gb:
        lack = f"of the {facts.memory_gb:.1f} of {facts.name} {free:.1f} are free, as another program uses it"
        change = "end that program"
    else:
        return ""
    return (
        f"planned for a card with {planned_gb:g} GiB, but {lack}: a step may not fit; {change}, or "
        "--auto-shrink trains a smaller plan"
    )


def synchronise(device: torch.device) -> None:
    """Wait for a card; returns at once on the CPU."""
    if driver.owns(device):
        driver.synchronise(device)


def _card(index: int) -> torch.device:
    """A card, with the settings under which its networks are computed.

    Shapes of patches are fixed, so cuDNN may look once for its fastest algorithms; and float32
    products go through TF32 (10 bits of mantissa, as float16), as nnU-Net's convolutions do.
    Both are set here alone, and never where networks are computed on cores.
    """
    driver.prepare()
    torch.backends.cudnn.benchmark = True
    # by this function and not by torch.backends.fp32_precision, after which torch refuses to say
    # what is set; convolutions have a switch of their own
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
    return driver.place(index)


def pick_device(wanted: str | None) -> torch.device:
    """The device asked for, else the first card, else the CPU. Raises AutosegError."""
    keep_freed_memory()
    if wanted in (None, "auto"):
        return _card(0) if driver.count() else torch.device("cpu")
    try:
        device = torch.device(str(wanted))
    except RuntimeError:
        raise AutosegError(f"--device {wanted!r} is unknown; use cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise AutosegError(f"--device {wanted}: autoseg computes on cpu and cuda alone")
    if device.type == "cpu":
        return device
    count = driver.count()
    if not count:
        raise AutosegError(f"--device {wanted}: {driver.why_none()}; use --device cpu")
    if (device.index or 0) >= count:
        raise AutosegError(f"--device {wanted}: there are {count} cards, from cuda:0 on")
    return _card(device.index or 0)
