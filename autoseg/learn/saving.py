"""How does a run's state reach the disk while its steps go on? A copy is taken, a thread writes it.

The training waits for the copy alone: on a card it is begun behind the steps that were given to it
and ends beside the next ones, on cores it is one pass through the memory of the state.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.learn.weights import write_tensors
from autoseg.timing import part

log = logging.getLogger(__name__)


class Copies:
    """Copies of tensors in this machine's memory, in buffers that are used again.

    They take as many bytes as the largest set of tensors that was copied; for a card pinned, which
    torch rounds up to powers of two a tensor. One set at a time: the next one overwrites it.
    """

    def __init__(self) -> None:
        self._buffers: dict[object, list[Tensor]] = defaultdict(list)

    def take(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """(the copies, what waits until they are there); the tensors may change at once.

        On a card the copies are part of its stream: what it is given later comes after them.
        """
        used: dict[object, int] = defaultdict(int)
        copies = {}
        for name, tensor in tensors.items():
            key = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type)
            if used[key] == len(self._buffers[key]):
                self._buffers[key].append(_buffer(tensor))
            copies[name] = self._buffers[key][used[key]]
            used[key] += 1
            # the same strides: another layout would need memory of the card for the copy
            copies[name].copy_(tensor.detach(), non_blocking=True)
        devices = {t.device for t in tensors.values() if t.device.type == "cuda"}
        events = [torch.cuda.current_stream(device).record_event() for device in devices]

        def wait() -> None:
            for event in events:
                event.synchronize()

        return copies, wait


def _buffer(tensor: Tensor) -> Tensor:
    """Memory of this machine for one tensor, in its layout; pinned for a card's."""
    if tensor.device.type == "cuda":
        try:
            return torch.empty_like(tensor, device="cpu", pin_memory=True, requires_grad=False)
        except RuntimeError as error:
            # a limit of locked memory; without it the training waits for the copy
            log.info("no pinned memory for a copy of the state (%s)", str(error).splitlines()[0])
    return torch.empty_like(tensor, device="cpu", requires_grad=False)


class Writer:
    """Writes files of tensors by a thread, one at a time.

    What the thread meets (a full disk) is raised where the training next looks after it: by
    `check`, `wait` or `write`. `close` is for the end, however it came.
    """

    def __init__(self) -> None:
        self._copies = Copies()
        self._thread: threading.Thread | None = None
        self._path: Path | None = None
        self._error: Exception | None = None

    def writes(self, path: Path) -> bool:
        """Whether this file is being written."""
        return path == self._path and self._thread is not None and self._thread.is_alive()

    def write(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        header: Mapping[str, Any],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the tensors and begin to write them; `then` is called once the file is in place.

        Waits for what is being written before: there is one copy, not a queue of them. `header`
        must not change afterwards. Raises AutosegError where the last file could not be written.
        """
        self.wait()
        with part("copying"):
            copies, arrived = self._copies.take(tensors)

        def run() -> None:
            try:
                with part("writing"):
                    arrived()
                    write_tensors(path, copies, header)
                    then()
            except Exception as error:
                self._error = error

        self._path = path
        self._thread = threading.Thread(target=run, name="saving", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread met, once; never waits."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Return when nothing is being written. Raises what the thread met."""
        if self._thread is not None:
            with part("waiting for the disk"):
                self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Wait, and tell in the log what nobody was told: another error ends the training."""
        try:
            self.wait()
        except Exception as error:
            log.warning("%s", error)
