"""Predicted bytes of a step beside what a card's allocator took, and the overheads that follow.

What the planner needs to know is how large a card must be: `reserved` (tensors, workspaces and gaps
in torch's allocator) and `context` (CUDA's own, its libraries', and other programs').
"""

import gc
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean
from typing import Any

from bench.card.parts import Asked, Row

NETWORKS = (
    "plain", "resenc_m", "resenc_l", "swin_unetr", "unetr", "primus_s", "umamba_bot", "segmamba",
    "mednext_s", "segresnet", "attention_unet", "transunet", "deeplab", "dense_unet",
)  # fmt: skip
SIZES = ((64, 64, 64), (128, 128, 128))
WIDTHS = (32, 64, 128, 256, 320, 320)
DRY_NETWORKS, DRY_SIZES, DRY_WIDTHS = ("plain",), ((16, 16, 16), (24, 16, 16)), (4, 8)
GIB = 2**30
SHARES = tuple(share / 100 for share in range(31))


def rows(asked: Asked) -> Iterator[Row]:
    """Sixteen bits first: they decide plans. The smaller size first: a small card ends at the other."""
    import torch

    from autoseg.device import card_facts, pick_device

    device = pick_device(asked.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    sixteen = "float32" if asked.dry else card_facts(device).precision
    precisions = ("float32",) if asked.dry else (sixteen, "float32")
    sizes, networks = (DRY_SIZES, DRY_NETWORKS) if asked.dry else (SIZES, NETWORKS)
    jobs = [
        (name, size, precision) for size in sizes for precision in precisions for name in networks
    ]
    jobs = [job for job in jobs if key(*job) not in asked.done]
    workers = max(1, min(12, (os.cpu_count() or 2) - 2))
    pool = None if asked.dry else ProcessPoolExecutor(workers, get_context("spawn"))
    try:
        expected = [None if pool is None else pool.submit(predicted, *job) for job in jobs]
        for job, future in zip(jobs, expected, strict=True):
            found = measured(*job, device.type, asked.dry)
            yield {"key": key(*job), **found, "predicted": _value(future, job, asked.dry)}
            if device.type == "cuda":
                torch.cuda.empty_cache()
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def key(name: str, size: Sequence[int], precision: str) -> str:
    return f"{name} {'x'.join(map(str, size))} {precision}"


def _value(future: "Future[int] | None", job: tuple[Any, ...], dry: bool) -> int:
    return predicted(*job, dry=dry) if future is None else future.result()


def predicted(name: str, size: Sequence[int], precision: Any, dry: bool = False) -> int:
    """The bytes of tensors of a step as the planner counts them."""
    from bench import memory

    spec = memory.small_spec(name, len(size), DRY_WIDTHS if dry else WIDTHS)
    return memory.predicted(spec, size, memory.recipe(spec, 2), precision, "cpu" if dry else "cuda")


def measured(name: str, size: Sequence[int], precision: Any, device: str, dry: bool) -> Row:
    """What the second step took: `allocated`, `reserved` and `context`; or that there was no room."""
    import torch

    from bench import memory

    spec = memory.small_spec(name, len(size), DRY_WIDTHS if dry else WIDTHS)
    train = memory.recipe(spec, 2)
    if device == "cpu":
        found = memory.measured(spec, size, train, precision, device)
        return {"allocated": found["all"], "reserved": found["all"], "context": 0}
    gc.collect()  # cycles hold the network before
    library = memory.woken(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        memory.two_steps(spec, size, train, precision, device)
    except torch.OutOfMemoryError as error:
        return {"refused": str(error).splitlines()[0]}
    torch.cuda.synchronize(device)
    free, whole = torch.cuda.mem_get_info(device)
    return {
        "allocated": torch.cuda.max_memory_allocated(device) - library,
        "reserved": torch.cuda.max_memory_reserved(device),
        "context": whole - free - torch.cuda.memory_reserved(device),
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """How far predictions are off, and the overheads as `autoseg.rules.memory` has them.

    `Overhead(**summary["overheads"]["card"])` is a line of OVERHEADS there.
    """
    known = [row for row in rows if "reserved" in row]
    if not known:
        return {}
    off = [row["allocated"] / row["predicted"] - 1 for row in known]
    share, fixed = overheads(known)
    source = f"measured in {len(known)} steps: reserved bytes and CUDA's context; see bench/card"
    return {
        "steps": len(known),
        "allocated_above_predicted": {"mean": mean(off), "most": max(off), "least": min(off)},
        "overheads": {"card": {"share": share, "fixed_gb": fixed, "source": source}},
    }


def overheads(rows: Sequence[Row]) -> tuple[float, float]:
    """(share, fixed GiB): the rule with the least memory to spare under which all these steps fit.

    A step of p bytes is planned for a card of (p + fixed) / (1 - share); it needs what was reserved
    and the context. For each share the least fixed part follows; the pair is taken whose cards are
    smallest on average.
    """
    needs = [(row["predicted"], row["reserved"] + row["context"]) for row in rows]
    best = None
    for share in SHARES:
        fixed = max(0.0, *((1 - share) * need - said for said, need in needs))
        spare = mean((said + fixed) / (1 - share) / need for said, need in needs)
        if best is None or spare < best[0] - 1e-9:
            best = spare, share, fixed
    assert best is not None
    return best[1], round(best[2] / GIB + 0.005, 2)
