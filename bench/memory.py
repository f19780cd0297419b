"""Predicted memory beside the memory of real steps, for every network; writes bench/results/memory.json.

    python -m bench.memory                        # every preset on the CPU, small and middle sizes
    python -m bench.memory plain swin_unetr       # some of them
    python -m bench.memory --device cuda          # on a card; needs but torch, numpy, pydantic, safetensors

Each network trains two steps in a process of its own, and the torch profiler's allocations and
frees are added up during the second. What a convolution allocates for itself and frees before it
ends, which is no tensor of the network, is its workspace, and is taken off and told apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from autoseg.documents.networks.family import NetworkSpec, parse_network
from autoseg.documents.plan import Training
from autoseg.documents.presets.table import PRESETS, network_spec
from autoseg.learn.loop import advance
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.state import Average, Run
from autoseg.learn.variants import Variant
from autoseg.nets.build import build
from autoseg.nets.cost import Precision, Rules, training_bytes
from bench.places import REPOSITORY, keep

BETWEEN = "between two steps"
CONVOLUTIONS = {"aten::_convolution", "aten::convolution_backward"}
COPIES = {"aten::contiguous", "aten::clone", "aten::_to_copy"}
"""What is allocated inside of a convolution under these is a tensor, not workspace."""

SIZES = {"cpu": {2: ((32, 32), (96, 128)), 3: ((16, 16, 16), (32, 48, 32))},
         "cuda": {2: ((256, 256), (512, 512)), 3: ((64, 64, 64), (128, 128, 128))}}  # fmt: skip
PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "bfloat16", "float16")}
WIDTHS = {"cpu": (8, 16, 32, 64), "cuda": (32, 64, 128, 256, 320, 320)}


def small_spec(preset: str, dimensions: int, features: Sequence[int]) -> NetworkSpec:
    """A preset with cubic steps of two and kernels of three, one image channel, three classes."""
    levels = len(features[: PRESETS[preset].most_levels])
    strides = [(1,) * dimensions, *[(2,) * dimensions] * (levels - 1)]
    kernels = [(3,) * dimensions] * levels
    return network_spec(preset, 1, 3, features[:levels], strides, kernels)


def recipe(spec: NetworkSpec, batch: int, **rest: Any) -> Training:
    return Training(steps=2, batch_size=batch, supervision=spec.output_weights, **rest)


def predicted(
    spec: NetworkSpec, patch_vox: Sequence[int], train: Training, precision: Precision, rules: Rules
) -> int:
    """The bytes of tensors that a step of this recipe should take at most."""
    return training_bytes(
        spec,
        patch_vox,
        train.batch_size,
        precision=precision,
        loss=deeply(dice_ce(train), train.supervision),
        optimiser=partial(optimiser, train),
        average=train.ema_share > 0,
        rules=rules,
    )


def measured(
    spec: NetworkSpec,
    patch_vox: Sequence[int],
    train: Training,
    precision: Precision = "float32",
    device: str = "cpu",
) -> dict[str, int]:
    """The most bytes alive in the second of two real steps of this process: of `tensors`, of `all`.

    On a card also what its allocator says, and what the process takes of it in whole.
    """
    library = woken(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as kept:
        two_steps(spec, patch_vox, train, precision, device)
    results = kept.profiler.kineto_results  # type: ignore[union-attr]
    found = _peaks(results.experimental_event_tree(), torch.device(device))
    if device == "cuda":
        free, whole = torch.cuda.mem_get_info()
        found |= {
            "allocated": torch.cuda.max_memory_allocated() - library,
            "reserved": torch.cuda.max_memory_reserved(),
            "context": whole - free - torch.cuda.memory_reserved(),
        }
    return found


def woken(device: str) -> int:
    """The bytes that the card's library of matrix products holds from its first use on.

    It has some for each thread, and autograd goes back in one of its own.
    """
    if device == "cpu":
        return 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        a = torch.ones(64, 64, device=device, dtype=dtype, requires_grad=True)
        (a @ a).sum().backward()
    del a
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def two_steps(
    spec: NetworkSpec, patch_vox: Sequence[int], train: Training, precision: Precision, device: str
) -> None:
    net = build(spec).to(device)
    run = Run(net, optimiser(train, net))
    if train.ema_share > 0:
        run.average = Average(net, 0.9)
    if precision == "float16" and device == "cuda":
        run.scaler = torch.amp.GradScaler("cuda")
    image = torch.randn(train.batch_size, spec.in_channels, *patch_vox)
    labels = torch.randint(0, spec.classes, (train.batch_size, *patch_vox))

    def on_step(so_far: Run, _: Tensor) -> bool:
        if device == "cuda" and so_far.step == 1:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        with record_function(BETWEEN):
            return True

    advance(
        run, [(image, labels)] * 2, loss=deeply(dice_ce(train), train.supervision),
        lr_at=lambda _: 1e-3, stop=2, seed=0, variant=Variant(precision), clip_norm=train.clip_norm,
        on_step=on_step,
    )  # fmt: skip


@dataclass
class Change:
    """An allocation or, with negative `nbytes`, a free; `until` is the end of its convolution."""

    at: int
    address: int
    nbytes: int
    until: int | None


def _changes(
    events: Sequence[Any], device: torch.device, until: int | None = None
) -> Iterator[Change]:
    """All allocations of a device in a profile's tree of events."""
    for event in events:
        if event.tag == _EventType.Allocation:
            found = event.extra_fields
            if found.device.type == device.type:
                yield Change(event.start_time_ns, found.ptr, found.alloc_size, until)
            continue
        inside = until
        if event.name in CONVOLUTIONS:
            inside = event.end_time_ns
        elif event.name in COPIES:
            inside = None
        yield from _changes(event.children, device, inside)


def _marks(events: Sequence[Any]) -> Iterator[int]:
    for event in events:
        if event.name == BETWEEN:
            yield event.start_time_ns
        yield from _marks(event.children)


def _peaks(events: Sequence[Any], device: torch.device) -> dict[str, int]:
    """The most bytes alive between the two marks: of all, and of all but workspace."""
    changes = sorted(_changes(events, device), key=lambda c: c.at)
    start, end = sorted(_marks(events))
    freed: dict[int, int] = {}
    workspace = [False] * len(changes)
    for i in reversed(range(len(changes))):
        change = changes[i]
        if change.nbytes < 0:
            freed[change.address] = i
        elif change.address in freed:
            last = freed.pop(change.address)
            if change.until is not None and changes[last].at <= change.until:
                workspace[i] = workspace[last] = True
    live = {"tensors": 0, "all": 0}
    peaks = dict(live)
    for change, apart in zip(changes, workspace, strict=True):
        live["all"] += change.nbytes
        live["tensors"] += 0 if apart else change.nbytes
        if start < change.at < end:
            peaks = {key: max(peaks[key], live[key]) for key in peaks}
    return peaks


def job(
    preset: str, patch_vox: Sequence[int], features: Sequence[int], **rest: Any
) -> dict[str, Any]:
    """What a process of its own is told: a network, a patch, and what else is not as usual."""
    spec = small_spec(preset, len(patch_vox), features)
    return {"network": spec.dump(), "patch": list(patch_vox), **rest}


def alone(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of jobs that one process of their own does, one after another."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--jobs"],
        input=json.dumps(list(jobs)), capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def row(work: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted and measured bytes of one job, in this process."""
    spec = parse_network(work["network"], "the job")
    patch, device = tuple(work["patch"]), work.get("device", "cpu")
    precision: Precision = work.get("precision", "float32")
    train = recipe(spec, work.get("batch", 2), **work.get("train", {}))
    found = measured(spec, patch, train, precision, device)
    said = predicted(spec, patch, train, precision, device)
    return {
        "network": spec.preset, "patch": list(patch), "precision": precision, "predicted": said,
        **found, "error": round(said / found["tensors"] - 1, 4),
    }  # fmt: skip


def table(presets: Sequence[str], device: str) -> list[dict[str, Any]]:
    """One row for each network, size and, on a card, precision; one process for each network."""
    rows = []
    for preset in presets:
        works = [
            job(preset, patch, WIDTHS[device], device=device, precision=precision)
            for patches in SIZES[device].values()
            for patch in patches
            for precision in PRECISIONS[device]
        ]
        for found in alone(works):
            rows.append(found)
            print(_line(found), flush=True)
    return rows


def _line(found: Mapping[str, Any]) -> str:
    mb = {key: found[key] / 2**20 for key in ("predicted", "tensors", "all")}
    return (
        f"{found['network']:22} {'x'.join(map(str, found['patch'])):12} {found['precision']:9} "
        f"predicted {mb['predicted']:9.2f} MiB, measured {mb['tensors']:9.2f} "
        f"(with workspace {mb['all']:9.2f}), error {100 * found['error']:+6.2f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--jobs", action="store_true", help="do the jobs on standard input")
    asked = parser.parse_args()
    if asked.jobs:
        print(json.dumps([row(work) for work in json.load(sys.stdin)]))
        return
    rows = table(asked.presets, asked.device)
    errors = [abs(r["error"]) for r in rows]
    print(f"median error {statistics.median(errors):.2%}, worst {max(errors):.2%}")
    keep("memory" if asked.device == "cpu" else "memory_card", rows, "python -m bench.memory")


if __name__ == "__main__":
    main()
