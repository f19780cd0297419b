"""What does a held-out case cost besides the network? Restoring, writing, reading and scoring it.

`python -m bench.held_out [VOXELS…]` prints CPU seconds of one thread, and seconds a megavoxel: the
figures behind `autoseg.models.reserve`. The label map is a large organ with lesions, or many
structures side by side; the prediction is the reference, moved by two voxels.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.documents.labels import LabelSet
from autoseg.image.metrics import measure_labels
from autoseg.image.reading import read_labels, write_labels
from autoseg.image.volume import Grid
from autoseg.infer.restore import classes_on

SHAPES = ((40, 320, 320), (200, 512, 512))
SPACING_MM = (1.5, 0.77, 0.77)
FINER = 1.3
"""Voxels of the prepared grid are so many times as wide."""

Labels = NDArray[np.int16]


def axes(shape: Sequence[int]) -> tuple[NDArray[np.float64], ...]:
    """From -1 to 1 along each axis, to be broadcast."""
    lines = (np.linspace(-1, 1, n) for n in shape)
    return tuple(line.reshape(-1, *[1] * (2 - axis)) for axis, line in enumerate(lines))


def organ(shape: Sequence[int]) -> tuple[Labels, LabelSet]:
    """A large organ with a dozen lesions."""
    z, y, x = axes(shape)
    found = np.zeros(tuple(shape), np.int16)
    found[(z / 0.7) ** 2 + ((y + 0.1) / 0.43) ** 2 + ((x + 0.2) / 0.5) ** 2 < 1] = 1
    rng = np.random.default_rng(0)
    for _ in range(12):
        at, r = rng.uniform(-0.35, 0.2, 3), rng.uniform(0.03, 0.08)
        found[(z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2 < r * r] = 2
    return found, LabelSet(names=("background", "organ", "lesion"), values=(0, 1, 2))


def side_by_side(shape: Sequence[int], count: int = 24) -> tuple[Labels, LabelSet]:
    """Many structures, each a column of its own."""
    z, y, x = axes(shape)
    found = np.zeros(tuple(shape), np.int16)
    for index in range(count):
        at = -0.8 + 1.6 * (index // 5) / 4, -0.8 + 1.6 * (index % 5) / 4
        found[(abs(z) < 0.8) & ((y - at[0]) ** 2 + (x - at[1]) ** 2 < 0.02)] = index + 1
    names = ("background", *(f"structure {i + 1}" for i in range(count)))
    return found, LabelSet(names=names, values=tuple(range(count + 1)))


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds, the least of two."""
    took = []
    for _ in range(2):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return min(took)


def restoring(reference: Labels, labels: LabelSet) -> Callable[[], object]:
    """Logits of the reference on a coarser grid, brought back."""
    shape = reference.shape
    small = tuple(round(n / FINER) for n in shape)
    ends = zip(small, shape, strict=True)
    index = np.ix_(*(np.minimum((np.arange(n) * FINER).astype(int), s - 1) for n, s in ends))
    coarse = torch.from_numpy(reference[index].astype(np.int64))
    logits = torch.nn.functional.one_hot(coarse, labels.outputs).permute(3, 0, 1, 2).float() * 6
    mm = tuple(s * FINER for s in SPACING_MM)

    def work() -> object:
        slabs = (
            (slice(i, min(i + 8, small[0])), logits[:, i : i + 8]) for i in range(0, small[0], 8)
        )
        box = [(0, n) for n in shape]
        return classes_on(slabs, small, box, shape, mm, SPACING_MM, labels=labels)

    return work


def measured(shape: Sequence[int], made: tuple[Labels, LabelSet]) -> dict[str, float]:
    """CPU seconds of each part for one case."""
    reference, labels = made
    predicted = np.roll(reference, 2, 1)
    grid = Grid.of(tuple(shape[::-1]), np.diag([*SPACING_MM[::-1], 1.0]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.nii.gz"
        found = {
            "restore": cpu_s(restoring(reference, labels)),
            "write": cpu_s(lambda: write_labels(file, reference, "stored", grid)),
            "read": cpu_s(lambda: read_labels(file, "stored")),
        }
    names = labels.structures
    found["score"] = cpu_s(lambda: measure_labels(predicted, reference, names, SPACING_MM))
    return found


def main(shapes: Sequence[Sequence[int]]) -> None:
    """Print a table, one row a case."""
    torch.set_num_threads(1)
    for shape in shapes:
        for make in (organ, side_by_side):
            made = make(shape)
            mega = float(np.prod(shape)) / 1e6
            parts = measured(shape, made)
            told = ", ".join(f"{k} {s:.2f} s ({s / mega:.4f} s/Mvox)" for k, s in parts.items())
            print(
                f"{'x'.join(map(str, shape))}, {made[1].outputs} outputs, {make.__name__}: {told}"
            )


if __name__ == "__main__":
    main([tuple(map(int, a.split("x"))) for a in sys.argv[1:]] or SHAPES)
