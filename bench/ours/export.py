"""Logits on the prepared grid to a label map on the scan's grid, by autoseg.

Prediction hands logits on a few rows after another, and never holds all of them; so here they come
from a file, and reading it counts. With `stream` the same rows come again and again from memory.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.documents.labels import LabelSet
from autoseg.infer.restore import classes_on
from bench.clock import asked, measured, tell
from bench.inputs import logits

ROWS, STREAMED = 8, 16

given = asked()
full, prepared, count = given["full"], given["prepared"], given["labels"]
labels = LabelSet(names=tuple(f"label {i}" for i in range(count)), values=tuple(range(count)))
depth = min(STREAMED, prepared[0]) if given["stream"] else prepared[0]
source = logits((depth, *prepared[1:]), count)
slab_bytes = source[:, :ROWS].nbytes
file = Path(given["save"]).with_suffix(".logits")
if not given["stream"]:
    with open(file, "wb") as writing:
        for start in range(0, depth, ROWS):
            np.ascontiguousarray(source[:, start : start + ROWS]).tofile(writing)
    source = source[:, :0].copy()


def slabs() -> Iterator[tuple[slice, torch.Tensor]]:
    """The logits a few rows after another."""
    for first in range(0, prepared[0], ROWS):
        stop = min(first + ROWS, prepared[0])
        if given["stream"]:
            start = first % depth
            slab = source[:, start : start + stop - first]
        else:
            shape = (count, stop - first, *prepared[1:])
            read = np.fromfile(
                file, np.float32, int(np.prod(shape)), offset=first * slab_bytes // ROWS
            )
            slab = read.reshape(shape)
        yield slice(first, stop), torch.from_numpy(slab)


def work() -> NDArray[np.int16]:
    return classes_on(
        slabs(), prepared, [(0, n) for n in full], full, given["prepared_mm"], given["full_mm"],
        labels=labels,
    )  # fmt: skip


found, cost = measured(work)
file.unlink(missing_ok=True)
np.save(given["save"], found)
tell(**cost)
