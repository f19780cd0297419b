"""What a training is scored by: the plan's patches up to a limit, read beside the first steps."""

import dataclasses
import os
import threading

import pytest
import torch

from autoseg.data import held_out
from autoseg.data.batches import validation_batches
from autoseg.data.held_out import MOST_BYTES, MOST_PATCHES, HeldOut, amount
from autoseg.errors import AutosegError
from tests.data.test_batches import SPEC

PLANS = {
    "brats 2d, 24 GB": (498, (192, 160), 4),
    "brats 2d, 80 GB": (1762, (192, 160), 4),
    "brats 2d, 139 GB": (2587, (192, 160), 4),
    "liver 2d, 80 GB": (206, (512, 512), 1),
    "liver 3d, 80 GB": (2, (320, 320, 320), 1),
    "brats 3d, 80 GB": (15, (160, 192, 160), 4),
    "more than all memory": (2, (640, 640, 640), 4),
}
"""Batch, patch and channels of plans that fill cards, where ten batches are up to 18 GiB."""


def spec_of(batch: int, patch: tuple[int, ...]):
    return dataclasses.replace(SPEC, patch_vox=patch, batch_size=batch)


@pytest.mark.parametrize("batches", [1, 10, 2000])
@pytest.mark.parametrize("plan", PLANS)
def test_large_cards_hold_no_more_than_the_limits(plan: str, batches: int) -> None:
    batch, patch, channels = PLANS[plan]
    found = amount(spec_of(batch, patch), batches, channels)
    held = found.batches * found.batch_size
    assert 1 <= held <= min(MOST_PATCHES, batch * batches)
    assert found.nbytes <= MOST_BYTES or held == 1
    assert found.batch_size <= batch
    assert found.batches <= batches
    assert found.batch_size > 1 or held == 1
    room = min(MOST_PATCHES, batch * batches, MOST_BYTES * held // found.nbytes)
    assert held > room - max(found.batch_size, found.batches)  # the limit is used


@pytest.mark.parametrize(
    ("batch", "patch", "channels"),
    [(2, (128, 128, 128), 4), (2, (160, 192, 160), 4), (9, (40, 56, 40), 1), (50, (256, 256), 1)],
)
def test_plans_of_usual_size_are_scored_by_all_that_they_ask_for(batch, patch, channels) -> None:
    found = amount(spec_of(batch, patch), 10, channels)
    assert (found.batches, found.batch_size) == (10, batch)


@pytest.mark.parametrize("ahead", [False, True])
def test_below_the_limit_they_are_the_plan_s_in_fewer_bytes(three_cases, ahead: bool) -> None:
    scored = HeldOut(three_cases, SPEC, 3, 2, ahead=ahead)
    found, want = scored.batches(), list(validation_batches(three_cases, SPEC, 3))
    assert len(found) == 3
    for (images, labels), (plain, classes) in zip(found, want, strict=True):
        assert torch.equal(images, plain)
        assert torch.equal(labels.long(), classes)
        assert labels.dtype == torch.int8
    assert scored.batches() is found
    scored.close()


def test_beyond_the_limit_fewer_are_held(three_cases, monkeypatch) -> None:
    monkeypatch.setattr(held_out, "MOST_PATCHES", 7)
    scored = HeldOut(three_cases, spec_of(1762, SPEC.patch_vox), 3, 2, ahead=False)
    assert [len(images) for images, _ in scored.batches()] == [2, 2, 2]


def test_many_classes_keep_their_numbers(three_cases, monkeypatch) -> None:
    images, labels = next(validation_batches(three_cases, SPEC, 1))
    labels[0].fill_(300)
    monkeypatch.setattr(held_out, "validation_batches", lambda *_: iter([(images, labels)]))
    ((_, found),) = HeldOut(three_cases, SPEC, 1, 2, ahead=False).batches()
    assert found.dtype == torch.int16
    assert torch.equal(found.long(), labels)


def test_they_are_read_before_they_are_asked_for_on_a_card_alone(three_cases, monkeypatch) -> None:
    read = threading.Semaphore(0)

    def told(*rest):
        for batch in validation_batches(*rest):
            read.release()
            yield batch

    monkeypatch.setattr(held_out, "validation_batches", told)
    later = HeldOut(three_cases, SPEC, 3, 2, ahead=False)
    assert not read.acquire(blocking=False)
    later.batches()
    assert all(read.acquire(blocking=False) for _ in range(3))
    at_once = HeldOut(three_cases, SPEC, 3, 2, ahead=True)
    assert all(read.acquire(timeout=30) for _ in range(3))
    at_once.close()


def test_a_damaged_case_is_named_when_they_are_asked_for(three_cases) -> None:
    os.truncate(three_cases.folder / "case_1" / "image.npy", 300)
    for ahead in (False, True):
        scored = HeldOut(three_cases, SPEC, 20, 2, ahead=ahead)
        with pytest.raises(AutosegError, match=r"case_1.*run preprocess again"):
            scored.batches()
        scored.close()


def test_a_run_that_ends_early_reads_no_further(three_cases, monkeypatch) -> None:
    begun, goes_on, count = threading.Event(), threading.Event(), []

    def slow(*rest):
        for batch in validation_batches(*rest):
            count.append(1)
            begun.set()
            assert goes_on.wait(30)
            yield batch

    monkeypatch.setattr(held_out, "validation_batches", slow)
    scored = HeldOut(three_cases, SPEC, 50, 2, ahead=True)
    assert begun.wait(30)
    closing = threading.Thread(target=scored.close)
    closing.start()
    goes_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert len(count) < 50
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]
