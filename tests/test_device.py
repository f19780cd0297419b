"""Where networks are computed, what a card says of itself, and what is said of places that are none."""

import os

import pytest
import torch

from autoseg import device
from autoseg.device import (
    ALLOCATOR_SETTINGS,
    EXPANDABLE,
    CardFacts,
    Cuda,
    card_facts,
    is_card,
    out_of_memory,
    pick_device,
    short_of_plan,
    synchronise,
)
from autoseg.errors import AutosegError
from autoseg.flow.use import _part
from tests.card import AMPERE, TURING, Memory, card, settings_kept, simulated


@pytest.mark.parametrize(
    ("wanted", "told"),
    [("mps", "cpu and cuda alone"), ("meta", "cpu and cuda alone"), ("gpu", "is unknown")],
)
def test_other_devices_are_refused(wanted: str, told: str) -> None:
    with pytest.raises(AutosegError, match=told):
        pick_device(wanted)


def test_a_card_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with settings_kept():
        assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(AutosegError, match=r"cuda:5: there are 2 cards"):
        pick_device("cuda:5")


def test_cuda_without_a_card_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(AutosegError, match="built without CUDA; use --device cpu"):
        pick_device("cuda")
    assert pick_device(None) == torch.device("cpu")


def test_a_driver_that_is_too_old_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040).\nPlease update"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(AutosegError, match=r"driver is too old .*11040.*update the driver") as told:
        pick_device("cuda")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), "float16"), ((8, 0), "bfloat16"), ((8, 6), "bfloat16"), ((12, 0), "bfloat16")],
)
def test_the_precision_follows_the_capability(capability: tuple[int, int], precision: str) -> None:
    assert CardFacts("x", 8 << 30, capability).precision == precision


def test_the_cpu_is_no_card() -> None:
    assert not is_card(torch.device("cpu"))
    assert Cuda().owns(torch.device("cuda:1"))


def test_the_second_of_two_simulated_cards_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(monkeypatch, card(8, TURING), card(24, AMPERE, "the second")) as cards:
        place = pick_device("cuda:1")
        assert is_card(place)
        assert card_facts(place).name == "the second"
        synchronise(place)
        assert cards.waited == [1]
        with pytest.raises(AutosegError, match="there are 2 cards"):
            pick_device("cuda:2")
    assert isinstance(device.driver, Cuda)


def test_simulated_memory_ends_where_it_says() -> None:
    with Memory(3 * 4096) as memory:
        held = [torch.zeros(1024) for _ in range(3)]
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            torch.zeros(1024)
        del held[0]
        held.append(torch.zeros(1024))
        assert memory.refused == 1


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with CUDA whose allocator nobody has set yet; the settings that it is given."""
    given: list[str] = []
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", given.append, raising=False)
    return given


def test_segments_grow_where_nobody_chose_otherwise(
    allocator: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Cuda().prepare()
    assert (os.environ[ALLOCATOR_SETTINGS[0]], allocator) == (EXPANDABLE, [EXPANDABLE])
    Cuda().prepare()
    assert allocator == [EXPANDABLE]


@pytest.mark.parametrize("chosen", [*ALLOCATOR_SETTINGS, "initialised", "windows", "no CUDA"])
def test_the_users_allocator_is_left_alone(
    chosen: str, allocator: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if chosen in ALLOCATOR_SETTINGS:
        monkeypatch.setenv(chosen, "max_split_size_mb:128")
    elif chosen == "initialised":
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    elif chosen == "windows":
        monkeypatch.setattr("sys.platform", "win32")
    else:
        monkeypatch.setattr(torch.version, "cuda", None)
    Cuda().prepare()
    assert allocator == []
    assert EXPANDABLE not in os.environ.values()


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_a_card_is_full(error: Exception, is_memory: bool) -> None:
    assert out_of_memory(error) == is_memory


@pytest.mark.parametrize(
    ("planned_gb", "there_gb", "taken_gb", "told"),
    [
        (24, 23.6, 0.6, ""),
        (8, 24, 15, ""),
        (24, 7.8, 0.0, "planned for a card with 24 GiB, but a card has 7.8: "),
        (24, 23.6, 9.5, "but of the 23.6 of a card 14.1 are free, as another program uses it"),
    ],
)
def test_what_a_card_lacks_of_its_plan_is_told_with_numbers(
    planned_gb: float, there_gb: float, taken_gb: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated(monkeypatch, card(there_gb), taken=int(taken_gb * 2**30)):
        found = short_of_plan(planned_gb, pick_device(None))
    assert told in found and bool(found) == bool(told)
    assert "\n" not in found


def test_a_process_that_predicts_sets_its_card_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def share(*, device: torch.device) -> None:
        found.append((device, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()))

    threads = torch.get_num_threads()
    with simulated(monkeypatch, card(8), card(8)) as cards:
        torch.backends.cudnn.benchmark = False
        _part(share, torch.device("cuda:1"), threads, None)  # type: ignore[arg-type]
    assert found == [(torch.device("cpu"), True, "high")]
    assert (cards.chosen, cards.prepared) == (1, 1)
