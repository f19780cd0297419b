"""The state of a run that is being trained, and its file: all that is needed to go on bit for bit.

Tensors lie in a safetensors file, plain numbers as JSON in its header; nothing is unpickled.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from autoseg.documents.plan import Training
from autoseg.errors import AutosegError
from autoseg.files import explaining
from autoseg.learn.optimisers import align
from autoseg.learn.weights import write_tensors

SCHEMA = 1


class Average:
    """The moving average of a network's weights; `net` is a network of its own that holds it.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the first weights are soon
    forgotten (Tan & Le 2019's EfficientNet recipe). Buffers, such as running means, are copied.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - decay)
        for mine, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1


def decay_over(steps: float) -> float:
    """The decay of an average that reaches back over about so many steps, at least 10."""
    return 1 - 1 / max(10.0, steps)


@dataclass
class Run:
    """A network under training; `step` counts the batches seen."""

    net: nn.Module
    optimiser: Optimizer
    step: int = 0
    average: Average | None = None
    scaler: torch.amp.GradScaler | None = None
    """The scale of float16 losses on a card; None for other precisions."""

    @property
    def speaker(self) -> nn.Module:
        """The network to validate and predict with: the averaged one where there is one."""
        return self.net if self.average is None else self.average.net


def state_of(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by name, plain numbers) of a run; the tensors are its own, the numbers are as now."""
    optimiser = run.optimiser.state_dict()
    tensors = dict(_named("net", run.net.state_dict()))
    plain: dict[str, Any] = {}
    for index, values in optimiser["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                plain[f"{index}.{key}"] = value
    numbers: dict[str, Any] = {
        "schema": SCHEMA,
        "step": run.step,
        "groups": optimiser["param_groups"],
        "optimiser": plain,
    }
    if run.average is not None:
        tensors |= _named("average", run.average.net.state_dict())
        numbers["average_updates"] = run.average.updates
    if run.scaler is not None:
        numbers["scaler"] = run.scaler.state_dict()
    return tensors, numbers


def save_state(path: Path, run: Run) -> None:
    """Write the run in one step: a kill at any moment leaves the old file or the new one."""
    write_tensors(path, *state_of(run))


def state_bytes(train: Training, parameters: int) -> int:
    """About how many bytes the state of a network of so many parameters has, all in float32."""
    moments = 2 if train.optimiser == "adamw" else 1 if train.momentum > 0 else 0
    return 4 * parameters * (1 + moments + (train.ema_share > 0))


def load_state(path: Path, run: Run) -> None:
    """Bring `run`, freshly built from the same plan, to the state in the file.

    Raises AutosegError where the file is missing, damaged or of another network or recipe.
    """
    tensors, numbers = _read(path)
    if run.average is not None and "average_updates" not in numbers:
        raise _foreign(path, "no averaged weights")
    with torch.no_grad():
        _fill(path, "net", run.net, tensors)
        if run.average is not None:
            _fill(path, "average", run.average.net, tensors)
            run.average.updates = numbers["average_updates"]
    _fill_optimiser(path, run.optimiser, tensors, numbers)
    if run.scaler is not None and "scaler" in numbers:
        run.scaler.load_state_dict(numbers["scaler"])
    run.step = numbers["step"]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and the numbers in its header."""
    with explaining(path, "read"):
        path.stat()
        try:
            with safe_open(path, framework="pt") as file:
                numbers = json.loads((file.metadata() or {}).get("autoseg", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, json.JSONDecodeError) as error:
            raise AutosegError(
                f"{path} is damaged ({error}); train this fold again with --redo"
            ) from error
    if numbers.get("schema") != SCHEMA:
        raise _foreign(path, f"schema {numbers.get('schema')}, this autoseg reads {SCHEMA}")
    return tensors, numbers


def _named(kind: str, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((f"{kind}.{name}", tensor) for name, tensor in state.items())


def _fill(path: Path, kind: str, net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy into the tensors that are there, which keeps their memory layout."""
    wanted = dict(_named(kind, net.state_dict()))
    found = {name: t for name, t in tensors.items() if name.startswith(kind + ".")}
    wrong = sorted(wanted.keys() ^ found.keys())
    wrong += [n for n in wanted.keys() & found.keys() if wanted[n].shape != found[n].shape]
    if wrong:
        raise _foreign(path, f"other weights, first {wrong[0]}")
    for name, tensor in wanted.items():
        tensor.copy_(found[name])


def _fill_optimiser(
    path: Path, optimiser: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    groups = numbers["groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimiser.param_groups]:
        raise _foreign(path, "another optimiser")
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    for group, saved in zip(optimiser.param_groups, groups, strict=True):
        if group.keys() != saved.keys():
            raise _foreign(path, "another optimiser")
        group.update({key: _tuples(value) for key, value in saved.items() if key != "params"})
    optimiser.state.clear()
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            optimiser.state[weights[int(index)]][key] = tensor
    for name, plain in numbers["optimiser"].items():
        index, key = name.split(".", 1)
        optimiser.state[weights[int(index)]][key] = plain
    align(optimiser)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _foreign(path: Path, what: str) -> AutosegError:
    return AutosegError(
        f"{path} does not fit this plan: {what}; train under another name or repeat with --redo"
    )
