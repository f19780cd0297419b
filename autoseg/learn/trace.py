"""Profiles of work with networks: its parts by the clock, and the operators of torch inside it.

`kernels` is for a few calls after warm-up, since torch's own profiler slows what it watches.
"""

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from autoseg.device import card_facts, is_card, synchronise
from autoseg.files import replacing
from autoseg.learn.remembered import processor
from autoseg.learn.state import Run
from autoseg.timing import Recording

log = logging.getLogger(__name__)

TOP = 40
"""So many operators are listed."""
WARM_UP, STEPS, KERNEL_STEPS = 5, 20, 3
"""Steps before the profile, in its table, and after those with torch's operators."""


def waiting_for(device: torch.device) -> Callable[[], None] | None:
    """What waits until a card has done all that it was told; None for the processor."""
    return partial(synchronise, device) if is_card(device) else None


def device_facts(device: torch.device) -> dict[str, Any]:
    """On what something was measured, for the head of a profile."""
    name = card_facts(device).name if is_card(device) else processor()
    facts = {"device": str(device), "name": name, "torch": torch.__version__}
    return facts | {"threads": torch.get_num_threads(), "python": platform.python_version()}


class Kernels:
    """Torch's operators between `start` and `stop`; `write` says which took the time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self.running = False

    def start(self) -> None:
        self._profile.start()
        self.running = True

    def stop(self) -> None:
        """Stop watching, once; the card is waited for."""
        if not self.running:
            return
        self.running = False
        synchronise(self.device)
        self._profile.stop()

    def text(self) -> str:
        """The operators with the most time of their own, on the processor and on a card."""
        found = self._profile.key_averages()
        tables = [("processor", "self_cpu_time_total")]
        if self.device.type == "cuda":
            tables.insert(0, ("card", "self_device_time_total"))
        return "\n".join(
            f"operators by their own time on the {where}\n"
            + found.table(sort_by=key, row_limit=TOP, max_name_column_width=60)
            for where, key in tables
        )

    def write(self, folder: Path) -> None:
        """Write kernels.txt, and kernels.json for a viewer of timelines."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "kernels.txt", durable=False) as half:
            half.write_text(self.text(), encoding="utf-8")
        with replacing(folder / "kernels.json", durable=False) as half:
            self._profile.export_chrome_trace(str(half))


@contextmanager
def kernels(folder: Path, device: torch.device) -> Iterator[None]:
    """Write which operators of torch the block spent its time on: kernels.txt and kernels.json."""
    watched = Kernels(device)
    watched.start()
    try:
        yield
    finally:
        watched.stop()
    watched.write(folder)


class StepsProfile:
    """The profile of a running training, as its loop goes: `after_step` is told of each step.

    After WARM_UP steps, STEPS are recorded with `once` after them (a validation, saving), then
    KERNEL_STEPS with torch's operators; then all is in `folder` and the run goes on unwatched.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        once: Callable[[], object],
        facts: dict[str, Any],
    ) -> None:
        self.folder, self.device, self.once, self.facts = folder, device, once, facts
        self.recording = Recording(waiting_for(device))
        self.done = False
        self._kernels = Kernels(device)
        self._seen = 0

    def beside(
        self, on_step: Callable[[Run, torch.Tensor], bool]
    ) -> Callable[[Run, torch.Tensor], bool]:
        """`on_step` of a training loop, with this profile after it."""

        def both(run: Run, loss: torch.Tensor) -> bool:
            goes_on = on_step(run, loss)
            self.after_step()
            return goes_on

        return both

    def after_step(self) -> None:
        """Begin, end and write what is due after one more step."""
        if self.done:
            return
        self._seen += 1
        if self._seen == WARM_UP:
            self.recording.start()
        elif self._seen == WARM_UP + STEPS:
            self._end_recording()
            self._kernels.start()
        elif self._seen == WARM_UP + STEPS + KERNEL_STEPS:
            self.close()

    def _end_recording(self) -> None:
        self.once()
        self.recording.stop()

    def close(self) -> None:
        """Write what there is; where the run ended before, of fewer steps. Says the table once."""
        if self.done:
            return
        self.done = True
        watched = self._kernels.running
        self._kernels.stop()
        self.recording.stop()
        if not self.recording.elapsed_s:
            log.warning("nothing to profile: fewer than %d steps were left", WARM_UP + 1)
            return
        self.recording.write(self.folder, device_facts(self.device) | self.facts)
        if watched:
            self._kernels.write(self.folder)
        else:
            log.info("no kernels.txt: that takes a run of %d steps", WARM_UP + STEPS + KERNEL_STEPS)
        log.info("where the time went (also in %s):\n%s", self.folder, self.recording.text())
