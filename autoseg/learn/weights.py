"""The weights of a trained network alone: what predict needs, as one safetensors file."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autoseg.errors import AutosegError
from autoseg.files import explaining, replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors, and plain values as JSON in the header, in one step.

    Raises AutosegError where the disk does not take them.
    """
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(path) as half:
        try:
            save_file(ready, half, metadata={"autoseg": json.dumps(dict(header))})
        except SafetensorError as error:  # it hides the operating system's error in its words
            full = f"os error {errno.ENOSPC}" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def save_weights(path: Path, net: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write the network's tensors in one step; `facts` (plain values) go into the header."""
    write_tensors(path, net.state_dict(), facts)


def load_weights(path: Path, net: nn.Module) -> None:
    """Fill `net` with the weights in a file.

    Raises AutosegError if the file is missing, damaged, or of another network.
    """
    wanted = net.state_dict()
    with explaining(path, "read"):
        path.stat()
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise AutosegError(
                f"{path} is damaged ({error}); copy the model again, or train with --redo"
            ) from error
    wrong = sorted(wanted.keys() ^ found.keys())
    wrong += [n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape]
    if wrong:
        raise AutosegError(f"{path} holds the weights of another network (first {wrong[0]})")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(found[name])
