import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.data.augment import one_thread
from autoseg.data.batches import (
    Batches,
    BatchSpec,
    Bringer,
    augmented_here,
    packed,
    read_step,
    unpacked,
    validation_batches,
)
from autoseg.data.store import StoredCases
from autoseg.data.workers import Ahead
from autoseg.documents.plan import Augmentation, Sampling
from autoseg.errors import AutosegError

LIVELY = Augmentation(
    rotation_degrees=(30, 30, 30), mirror_axes=(0, 1, 2), rotation_p=0.6, noise_p=0.5,
    blur_p=0.5, brightness_p=0.5, contrast_p=0.5, low_resolution_p=0.5, gamma_p=0.5,
)  # fmt: skip
QUIET = Augmentation(
    rotation_degrees=(0,), mirror_axes=(), rotation_p=0, scale_p=0, noise_p=0, blur_p=0,
    brightness_p=0, contrast_p=0, low_resolution_p=0, gamma_p=0, gamma_inverted_p=0,
)  # fmt: skip
SPEC = BatchSpec(
    patch_vox=(8, 10, 12),
    batch_size=3,
    sampling=Sampling(foreground_share=1 / 3, class_weights=(0.5, 0.5)),
    augmentation=LIVELY,
    seed=17,
    masked_channels=(1,),
)
FLAT = dataclasses.replace(
    SPEC,
    patch_vox=(10, 12),
    augmentation=LIVELY.model_copy(update={"mirror_axes": (0, 1), "rotation_degrees": (180.0,)}),
)


def same(one, other):
    """Whether two lists of batches, not empty, are equal to the last bit."""
    pairs = zip(one, other, strict=True)
    return len(one) > 0 and all(
        torch.equal(images, images2) and torch.equal(labels, labels2)
        for (images, labels), (images2, labels2) in pairs
    )


@pytest.mark.parametrize("spec", [SPEC, FLAT])
def test_a_batch_has_the_promised_shape(three_cases, spec):
    for images, labels in Batches(three_cases, spec, 0, 4):
        assert images.shape == (3, 2, *spec.patch_vox)
        assert labels.shape == (3, *spec.patch_vox)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert torch.isfinite(images).all()
        assert set(labels.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(three_cases, workers):
    expected = list(Batches(three_cases, SPEC, 2, 9))
    with Batches(three_cases, SPEC, 2, 9, workers) as batches:
        assert len(batches) == 7
        assert same(list(batches), expected)
    for (images, _), (later, _) in itertools.pairwise(expected):
        assert not torch.equal(images, later)


def test_augmenting_here_what_workers_read_gives_the_same(three_cases):
    expected = list(Batches(three_cases, FLAT, 0, 3))
    assert same(list(Batches(three_cases, FLAT, 0, 3, 1, augment_here=True)), expected)


def test_a_resumed_run_sees_the_batches_it_would_have_seen(three_cases):
    whole = list(Batches(three_cases, FLAT, 0, 6))
    assert same(list(Batches(three_cases, FLAT, 4, 6)), whole[4:])


def test_batches_do_not_depend_on_this_process_threads(three_cases):
    before = torch.get_num_threads()
    first = list(Batches(three_cases, SPEC, 0, 2))
    torch.set_num_threads(before + 1)
    try:
        assert same(list(Batches(three_cases, SPEC, 0, 2)), first)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_one_thread_is_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_without_augmentation_a_batch_is_cut_from_the_cases(three_cases):
    spec = dataclasses.replace(SPEC, augmentation=QUIET, masked_channels=())
    images, labels = next(iter(Batches(three_cases, spec, 5, 6)))
    for sample, image, label in zip(read_step(three_cases, spec, 5), images, labels, strict=True):
        np.testing.assert_array_equal(image.numpy(), sample.image)
        np.testing.assert_array_equal(label.numpy(), np.maximum(sample.labels, 0))


def test_what_is_cut_off_beyond_the_border_changes_nothing(three_cases):
    """Boxes are read only where there is a case; padding them by hand must give the same."""
    samples = [s for step in range(6) for s in read_step(three_cases, SPEC, step)]
    moved = [s for s in samples if s.parameters.matrix is not None]
    assert len(moved) > 5
    wide = [
        dataclasses.replace(
            s,
            image=np.pad(s.image, [(0, 0)] + [(4, 4)] * 3),
            labels=np.pad(s.labels, 4, constant_values=-1),
            shift=tuple(n - 4 for n in s.shift),
        )
        for s in moved
    ]
    clean = [
        dataclasses.replace(s, parameters=type(s.parameters)(matrix=s.parameters.matrix))
        for s in moved
    ]
    wide = [
        dataclasses.replace(w, parameters=c.parameters) for w, c in zip(wide, clean, strict=True)
    ]
    (a, la), (b, lb) = augmented_here(clean, SPEC), augmented_here(wide, SPEC)
    np.testing.assert_allclose(a[:, 0].numpy(), b[:, 0].numpy(), atol=3e-5)
    assert (la != lb).float().mean() < 1e-3


def test_cases_in_memory_are_only_read(three_cases):
    """All that is done to a patch is done to a copy."""
    cases = StoredCases(three_cases.folder, three_cases.ids, three_cases.bytes_on_disk())
    before = [(cases[i].image.copy(), cases[i].labels.copy()) for i in range(3)]
    list(Batches(cases, dataclasses.replace(SPEC, batch_size=2), 0, 12))
    for i, (image, labels) in enumerate(before):
        np.testing.assert_array_equal(cases[i].image, image)
        np.testing.assert_array_equal(cases[i].labels, labels)


def test_a_batch_in_use_is_not_written_over(three_cases):
    """Its memory is used again for a later batch, but only once nobody has it any more."""
    batches = iter(Batches(three_cases, SPEC, 0, 12))
    held = [next(batches) for _ in range(3)]
    parts = held[0][0][1, 0], held[1][1].numpy()[2]
    copies = [(images.clone(), labels.clone()) for images, labels in held]
    expected = parts[0].clone(), parts[1].copy()
    del held[0]
    for _ in batches:
        pass
    assert same(held, copies[1:])
    assert torch.equal(parts[0], expected[0])
    np.testing.assert_array_equal(parts[1], expected[1])


def test_samples_for_a_card_are_packed_and_parted_again(three_cases):
    samples = read_step(three_cases, SPEC, 0)
    samples[1] = dataclasses.replace(samples[1], labels=samples[1].labels.astype(np.int16))
    found = unpacked(packed(samples))
    assert len(found) == len(samples) == 3
    for one, sample in zip(found, samples, strict=True):
        np.testing.assert_array_equal(one.image, sample.image)
        np.testing.assert_array_equal(one.labels, sample.labels)
        assert (one.shift, one.previous) == (sample.shift, None)


def test_validation_batches_are_fixed_and_plain(three_cases):
    first = list(validation_batches(three_cases, SPEC, 3))
    assert same(first, list(validation_batches(three_cases, SPEC, 3)))
    louder = dataclasses.replace(SPEC, augmentation=QUIET)
    assert same(first, list(validation_batches(three_cases, louder, 3)))
    training = list(Batches(three_cases, louder, 0, 3))
    assert not torch.equal(first[0][0], training[0][0])
    values = {v for i in range(3) for v in three_cases[i].image.ravel().tolist()} | {0.0}
    assert set(first[0][0].ravel().tolist()) <= values


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_case_is_named_by_whoever_meets_it(three_cases, workers):
    os.truncate(three_cases.folder / "case_1" / "image.npy", 300)
    with pytest.raises(AutosegError, match=r"case_1.*run preprocess again"):
        list(Batches(three_cases, SPEC, 0, 20, workers))


def children():
    """The process numbers of this process' children (Linux)."""
    listing = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
    ).stdout
    return [int(line.split()[0]) for line in listing.splitlines() if "spawn_main" in line]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes as Linux does")
def test_a_killed_worker_is_told_and_the_rest_end(three_cases):
    batches = iter(Batches(three_cases, SPEC, 0, 10_000, 2))
    next(batches)
    started = children()
    assert len(started) == 2
    os.kill(started[0], signal.SIGKILL)
    with pytest.raises(AutosegError, match="a process that loads training patches died"):
        for _ in batches:
            pass
    assert children() == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes as Linux does")
def test_closing_early_ends_the_workers(three_cases):
    way = multiprocessing.get_start_method(allow_none=True)
    with Batches(three_cases, SPEC, 0, 10_000, 1) as batches:
        running = iter(batches)
        next(running)
        assert len(children()) == 1
    assert children() == []
    assert multiprocessing.get_start_method(allow_none=True) == way


def gone(pid, patience_s=20.0):
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.2)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="lists processes as Linux does")
def test_workers_end_with_a_parent_that_was_killed(three_cases: StoredCases):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        if __name__ == "__main__":
            from test_batches import SPEC, Batches, StoredCases, children
            cases = StoredCases({str(three_cases.folder)!r}, {three_cases.ids!r})
            batches = iter(Batches(cases, SPEC, 0, 100000, 1))
            next(batches)
            print(children()[0], flush=True)
            for _ in batches:
                pass
        """
    )
    file = three_cases.folder / "train.py"
    file.write_text(script)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(file)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as parent:
        worker = int(parent.stdout.readline())
        assert not gone(worker, 0.5)
        parent.kill()
    assert gone(worker)


def test_a_thread_brings_the_same_batches(three_cases):
    expected = list(Batches(three_cases, FLAT, 0, 5))
    with Batches(three_cases, FLAT, 0, 5, augment_here=True) as batches:
        batches.ahead = 2
        assert same(list(batches), expected)
        assert same(list(batches), expected)  # and again from the start


def test_a_thread_fetches_ahead_in_order_and_ends_when_closed():
    fetched = []

    def numbers():
        for n in itertools.count():
            fetched.append((n, threading.current_thread().name))
            yield n

    things = Ahead(numbers(), 3)
    taken = list(itertools.islice(things, 4))
    things.close()
    assert taken == [0, 1, 2, 3]
    assert 4 <= len(fetched) <= 7
    assert threading.current_thread().name not in {name for _, name in fetched}
    before = len(fetched)
    assert list(things) == []
    assert len(fetched) == before


def test_an_error_is_raised_where_its_thing_is_asked_for():
    def numbers():
        yield 1
        raise AutosegError("case_7 is damaged")

    things = iter(Ahead(numbers(), 2))
    assert next(things) == 1
    with pytest.raises(AutosegError, match="case_7"):
        next(things)


class FakeEvent:
    """Stands for a card's event: counts who waited for it."""

    def __init__(self):
        self.waited = 0


class FakeStream:
    """Stands for a card's stream."""

    def record_event(self):
        return FakeEvent()

    def wait_event(self, event):
        event.waited += 1


def test_a_card_waits_for_the_copy_and_the_processor_does_not(three_cases, monkeypatch):
    moved, kept = [], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(
        torch.Tensor, "to",
        lambda self, device, non_blocking=False: moved.append(non_blocking) or self,
    )  # fmt: skip
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append(self))
    bringer = Bringer(torch.device("cuda"))
    item = packed(read_step(three_cases, SPEC, 0))
    there, copied = bringer.bring(item)
    assert moved == [True, True]
    assert copied.waited == 0
    arrived = bringer.arrived(there, copied)
    assert copied.waited == 1
    assert [t.numel() for t in kept] == [item["images"].numel(), item["labels"].numel()]
    assert arrived["shifts"] == item["shifts"]
