"""On which device does a network learn and speak?"""

import torch

from autoseg.errors import AutosegError
from autoseg.pool import keep_freed_memory


def pick_device(wanted: str | None) -> torch.device:
    """The device asked for, else the first card, else the CPU. Raises AutosegError."""
    keep_freed_memory()
    if wanted in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(wanted))
    except RuntimeError:
        raise AutosegError(f"--device {wanted!r} is unknown; use cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise AutosegError(f"--device {wanted}: autoseg computes on cpu and cuda alone")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AutosegError(f"--device {wanted}: this torch sees no card; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise AutosegError(
            f"--device {wanted}: there are {torch.cuda.device_count()} cards, from cuda:0 on"
        )
    return device
