"""Memory that loading processes and the training share, so that arrays need not go through a pipe.

An anonymous file of the system's memory (Linux), which needs nothing of /dev/shm and is gone with
the last process that has it open, however that ended. Each worker owns a few slots of it; a byte
a slot says whether it is in use. An item is pickled into a slot with its arrays beside it.
"""

import mmap
import os
import pickle
import time
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLOTS = 2
"""For each worker: one that is used while the next is filled."""
PAGE = mmap.ALLOCATIONGRANULARITY
SLOT_BYTES = 1 << 36
"""The distance of slots: the file has holes, only what is written takes memory."""
ABORT, PAUSE, FIRST = 0, 1, 16
"""Bytes of the first page: two flags, then one for each slot."""
WAIT_S = 0.002
ALIGNED = 64

Message = tuple[int, tuple[int, ...]]
"""A slot, and where in it the pickle and each array end. Short enough for a pipe to take it whole."""


class Ring:
    """The slots of `workers` processes. Travels to a process that is being spawned.

    Raises OSError where the system has no such memory.
    """

    def __init__(self, workers: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("no anonymous files on this system")
        if workers * SLOTS > PAGE - FIRST:
            raise OSError(f"{workers} workers are too many")
        self.file = os.memfd_create("autoseg patches", os.MFD_CLOEXEC)
        os.ftruncate(self.file, PAGE + workers * SLOTS * SLOT_BYTES)
        self._open()

    def _open(self) -> None:
        self.flags = mmap.mmap(self.file, PAGE)
        self._mapped: dict[int, NDArray[np.uint8]] = {}

    def __getstate__(self) -> Any:
        return DupFd(self.file)

    def __setstate__(self, file: Any) -> None:
        self.file = file.detach()
        self._open()

    def memory(self, slot: int, size: int) -> NDArray[np.uint8]:
        """The first `size` bytes of a slot, or more."""
        known = self._mapped.get(slot)
        if known is None or len(known) < size:
            size = -(-size // PAGE) * PAGE
            mapped = mmap.mmap(self.file, size, offset=PAGE + slot * SLOT_BYTES)
            known = self._mapped[slot] = np.frombuffer(mapped, np.uint8)
        return known

    def put(self, item: Any, slot: int) -> Message | None:
        """Copy an item into a slot once it is free; None if the work was ended meanwhile.

        Raises OSError, and takes no slot, where there is no memory for it.
        """
        arrays: list[pickle.PickleBuffer] = []
        head = pickle.dumps(item, protocol=5, buffer_callback=arrays.append)
        raw: list[Any] = [head, *(array.raw() for array in arrays)]
        parts: list[NDArray[np.uint8]] = [np.frombuffer(part, np.uint8) for part in raw]
        ends, start = [], 0
        for part in parts:
            start = -(-start // ALIGNED) * ALIGNED + len(part)
            ends.append(start)
        while self.flags[FIRST + slot]:
            if self.flags[ABORT]:
                return None
            time.sleep(WAIT_S)
        if slot not in self._mapped or len(self._mapped[slot]) < ends[-1]:
            # to write where there is no memory would end the process without a word
            os.posix_fallocate(self.file, PAGE + slot * SLOT_BYTES, ends[-1])
        memory = self.memory(slot, ends[-1])
        for part, end in zip(parts, ends, strict=True):
            memory[end - len(part) : end] = part
        self.flags[FIRST + slot] = 1
        return slot, (len(head), *ends)

    def take(self, message: Message) -> Any:
        """The item of a message; its arrays lie in the slot and last until `free`."""
        slot, (head, *ends) = message
        memory = self.memory(slot, ends[-1])
        starts = [-(-end // ALIGNED) * ALIGNED for end in ends[:-1]]
        arrays = [memory[a:z] for a, z in zip(starts, ends[1:], strict=True)]
        return pickle.loads(memory[ends[0] - head : ends[0]].data, buffers=arrays)

    def free(self, slot: int) -> None:
        """Let the worker write to the slot again."""
        self.flags[FIRST + slot] = 0

    def flag(self, place: int) -> "Flag":
        """A flag that all processes see."""
        return Flag(self, place)

    def close(self) -> None:
        """Close the file; what is mapped stays until nobody uses it."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class Flag:
    """What `multiprocessing.Event` does for batchgenerators, without a lock.

    A process that is killed while it looks at an Event takes its lock along, and all who look later
    wait for ever.
    """

    def __init__(self, ring: Ring, place: int) -> None:
        self.ring, self.place = ring, place

    def is_set(self) -> bool:
        return bool(self.ring.flags[self.place])

    def set(self) -> None:
        self.ring.flags[self.place] = 1

    def clear(self) -> None:
        self.ring.flags[self.place] = 0
