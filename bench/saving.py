"""Measure for how long saving a state of 300 MB keeps the training thread: at once, and by a thread.

    python -m bench.saving            # both in turn, several times over
    python -m bench.saving --write    # and keep the figures in bench/results/saving.json

Both write the same file where the benchmarks work and flush it to the disk. The first copy, which
takes new memory, is told apart from the later ones. Wall seconds: the disk is what is waited for.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from autoseg.device import pick_device
from autoseg.learn.saving import Writer
from autoseg.learn.weights import write_tensors
from bench.places import ROOT, keep

SHAPE, COUNT = (320, 320, 3, 3, 3), 28
"""Convolutions of the widest level of a plain network, and as many as make 310 MB."""


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--times", type=int, default=7)
    given = parser.parse_args()
    pick_device("cpu")  # as `autoseg train`: freed memory is kept
    tensors = {f"{i}": torch.randn(SHAPE) for i in range(COUNT)}
    ROOT.mkdir(parents=True, exist_ok=True)
    path, writer = ROOT / "state.safetensors", Writer()
    first = seconds(lambda: writer.write(path, tensors, {}))
    writer.wait()
    pairs = []
    for _ in range(given.times):
        at_once = seconds(lambda: write_tensors(path, tensors, {}))
        stall = seconds(lambda: writer.write(path, tensors, {}))
        pairs.append((at_once, stall, stall + seconds(writer.wait)))
    path.unlink()
    old, new, all_of_it = (statistics.median(of) for of in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b, _ in pairs)
    size = sum(t.nbytes for t in tensors.values())
    print(
        f"a state of {size / 1e6:.0f} MB keeps the training for {old:.3g} s at once, {new:.3g} s by a "
        f"thread (the first time {first:.3g} s): 1/{ratio:.3g}; it is on disk after {all_of_it:.3g} s"
    )
    if given.write:
        row = {"bytes": size, "at_once_s": old, "by_a_thread_s": new, "first_s": first,
               "on_disk_s": all_of_it, "ratio": ratio, "times": given.times}  # fmt: skip
        keep("saving", [row], "python -m bench.saving --write")


if __name__ == "__main__":
    main()
