"""What `autoseg.device` says of a real card, and that a card recovers from the end of its memory."""

import pytest
import torch

from autoseg import device as seam

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no card"),
]
MB = 2**20


def test_the_card_says_what_it_is():
    place = seam.pick_device("cuda")
    facts = seam.card_facts(place)
    assert seam.is_card(place)
    assert facts.name == torch.cuda.get_device_name(place)
    assert facts.memory_gb == pytest.approx(torch.cuda.mem_get_info(place)[1] / 2**30, rel=0.02)
    assert facts.capability == torch.cuda.get_device_capability(place)
    assert (facts.precision == "bfloat16") == torch.cuda.is_bf16_supported(
        including_emulation=False
    )


def test_measured_bytes_are_those_that_were_allocated():
    place = seam.pick_device("cuda")

    def compute() -> torch.Tensor:
        gone = torch.zeros(32 * MB // 4, device=place)
        made = torch.zeros(64 * MB // 4, device=place)
        del gone
        return made

    made, nbytes = seam.measured_on_card(place, compute)
    assert nbytes == pytest.approx(96 * MB, abs=2 * MB)
    assert made.nbytes == 64 * MB


def test_kept_memory_counts_as_free():
    """What torch's allocator keeps is this process's to take, given back or not."""
    place = seam.pick_device("cuda")
    seam.release_card_memory()
    before = seam.free_card_bytes(place)
    held = torch.zeros(256 * MB, dtype=torch.uint8, device=place)
    assert before - seam.free_card_bytes(place) == pytest.approx(256 * MB, abs=32 * MB)
    del held
    assert seam.free_card_bytes(place) == pytest.approx(before, abs=32 * MB)
    seam.release_card_memory()
    assert seam.free_card_bytes(place) == pytest.approx(before, abs=32 * MB)


def test_a_card_recovers_from_the_end_of_its_memory():
    place = seam.pick_device("cuda")
    whole = seam.card_facts(place).total_bytes
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2 * whole, dtype=torch.uint8, device=place)
    seam.release_card_memory()
    a = torch.ones(512, 512, device=place)
    assert float((a @ a).sum()) == 512.0**3


def test_waiting_waits():
    """A product takes longer than starting it: the clock runs until the card is done."""
    import time

    place = seam.pick_device("cuda")
    a = torch.ones(8192, 8192, device=place)
    (a @ a).sum().item()
    start = time.perf_counter()
    for _ in range(10):
        b = a @ a
    started = time.perf_counter() - start
    seam.synchronise(place)
    assert time.perf_counter() - start > 2 * started
    assert float(b[0, 0]) == 8192.0
