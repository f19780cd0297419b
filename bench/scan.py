"""Measure the selective scan: seconds against length, and beside other ways to compute it.

    python -m bench.scan length            # forward + backward at L, 2L, 4L, …: the ratios t(2L) / t(L)
    python -m bench.scan rivals            # the same values by doubling, by steps, by mambapy
    python -m bench.scan length --write    # and keep the rows in bench/results/scan_length.json

All sizes, or all rivals, run in turn, several times over; what is told is the median of each and the median
of the ratios inside a turn. Seconds are of the process's own CPU time, so that what else runs on the
machine does not count; one thread. mambapy is measured where it is installed.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from autoseg.nets.scan import scan_bytes, selective_scan
from bench.places import keep

WIDTH, STATE = 128, 16
LENGTHS = (8192, 16384, 32768, 65536, 131072)
RIVAL_LENGTH = 2048
Scan = Callable[..., Tensor]


def inputs(length: int, width: int = WIDTH, state: int = STATE) -> list[Tensor]:
    """x, delta, A, B, C, D with the steps of a fresh block."""
    tensors = [
        torch.randn(1, length, width),
        F.softplus(torch.randn(1, length, width) - 4),
        -torch.arange(1.0, state + 1).repeat(width, 1),
        torch.randn(1, length, state),
        torch.randn(1, length, state),
        torch.ones(width),
    ]
    return [z.requires_grad_() for z in tensors]


def timed(scan: Scan, given: list[Tensor]) -> tuple[float, float]:
    """CPU seconds of forward and of backward."""
    for z in given:
        z.grad = None
    start = time.process_time()
    y = scan(*given)
    between = time.process_time()
    y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    return between - start, time.process_time() - between


def peak_bytes(scan: Scan, given: list[Tensor]) -> int:
    """The most that forward and backward hold beside the inputs, as torch's profiler sees it."""
    for z in given:
        z.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        y = scan(*given)
        y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
    held = peak = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def by_steps(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence as it is written."""
    h, ys = x.new_zeros(x.shape[0], *A.shape), []
    for t in range(x.shape[1]):
        fed = (delta[:, t] * x[:, t])[..., None] * B[:, t, None]
        h = torch.exp(delta[:, t, :, None] * A) * h + fed
        ys.append((h * C[:, t, None]).sum(-1))
    return torch.stack(ys, 1) + D * x


def by_doubling(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """All states at once, joined over 1, 2, 4, … tokens, in plain autograd."""
    a = torch.exp(delta[..., None] * A)
    h = (delta * x)[..., None] * B[:, :, None]
    shift = 1
    while shift < x.shape[1]:
        h = torch.cat([h[:, :shift], h[:, shift:] + a[:, shift:] * h[:, :-shift]], 1)
        a = torch.cat([a[:, :shift], a[:, shift:] * a[:, :-shift]], 1)
        shift *= 2
    return (h @ C[..., None]).squeeze(-1) + D * x


def by_mambapy(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mambapy's parallel scan."""
    from mambapy.pscan import pscan

    h = pscan(torch.exp(delta[..., None] * A), (delta * x)[..., None] * B[:, :, None])
    y: Tensor = (h @ C[..., None]).squeeze(-1) + D * x
    return y


def length(times: int, write: bool) -> None:
    """Time and memory against length."""
    given = {n: inputs(n) for n in LENGTHS}
    timed(selective_scan, given[LENGTHS[0]])
    runs = {n: [] for n in LENGTHS}
    for _ in range(times):
        for n in LENGTHS:
            runs[n].append(timed(selective_scan, given[n]))
    print("| tokens | forward s | backward s | ns a token, channel and state | t(2L) / t(L) | "
          "peak MiB | formula MiB |\n|---|---|---|---|---|---|---|")  # fmt: skip
    rows, before = [], {b: a for a, b in pairwise(LENGTHS)}
    for n in LENGTHS:
        forward, backward = (statistics.median(run[i] for run in runs[n]) for i in (0, 1))
        ratio = None
        if n in before:
            pairs = zip(runs[n], runs[before[n]], strict=True)
            ratio = round(statistics.median(sum(a) / sum(b) for a, b in pairs), 2)
        said = scan_bytes(1, n, WIDTH, STATE)
        # the output, what came back to it, and the gradients lie beside the work
        beside = 4 * (2 * n * WIDTH + 2 * n * (WIDTH + STATE) + WIDTH * (STATE + 1))
        row = {
            "tokens": n, "forward_s": round(forward, 3), "backward_s": round(backward, 3),
            "ns": round(1e9 * (forward + backward) / (n * WIDTH * STATE), 2), "ratio": ratio,
            "peak_mib": round(peak_bytes(selective_scan, given[n]) / 2**20, 1),
            "formula_mib": round((said.kept + said.backward + beside) / 2**20, 1),
        }  # fmt: skip
        rows.append(row)
        print("| " + " | ".join(str(x) if x is not None else "" for x in row.values()) + " |")
    if write:
        keep("scan_length", rows, "python -m bench.scan length --write")


def rivals(times: int, write: bool) -> None:
    """The same values computed in other ways, each in turn."""
    scans: dict[str, Scan] = {"ours": selective_scan, "doubling": by_doubling, "steps": by_steps}
    if importlib.util.find_spec("mambapy"):
        scans["mambapy"] = by_mambapy
    given = inputs(RIVAL_LENGTH)
    want = selective_scan(*given)
    for name, scan in scans.items():
        if (scan(*given) - want).abs().max() > 1e-4 * want.abs().max():
            raise SystemExit(f"{name} computes something else")
    runs = {name: [] for name in scans}
    for _ in range(times):
        for name, scan in scans.items():
            runs[name].append(timed(scan, given))
    print("| scan | forward s | backward s | times ours | peak MiB |\n|---|---|---|---|---|")
    rows = []
    for name, scan in scans.items():
        pairs = zip(runs[name], runs["ours"], strict=True)
        row = {
            "scan": name,
            "forward_s": round(statistics.median(run[0] for run in runs[name]), 3),
            "backward_s": round(statistics.median(run[1] for run in runs[name]), 3),
            "ratio": round(statistics.median(sum(a) / sum(b) for a, b in pairs), 1),
            "peak_mib": round(peak_bytes(scan, given) / 2**20, 1),
        }
        rows.append(row)
        print("| " + " | ".join(map(str, row.values())) + " |")
    if write:
        keep("scan_rivals", rows, "python -m bench.scan rivals --write")


PARTS = {"length": length, "rivals": rivals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--times", type=int, default=3, help="turns")
    parser.add_argument("--write", action="store_true", help="keep the rows in bench/results")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in asked.parts:
        PARTS[part](asked.times, asked.write)


if __name__ == "__main__":
    main()
