"""Probabilities on disk, a case a file: written and read a few rows at a time.

`<case>.npy` holds float16 (outputs, *plan axes) on the scan's own grid, `<case>.json` that grid,
its axes and what the outputs mean; the latter is written last, so a file without it is half done.
Half precision is enough to average: two classes closer than 0.0005 are not told apart anyway.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from autoseg.documents.labels import LabelSet
from autoseg.errors import AutosegError
from autoseg.files import explaining, read_json, replacing, write_json
from autoseg.image.geometry import arrange, restore
from autoseg.image.volume import Grid
from autoseg.infer.meaning import Slab
from autoseg.infer.restore import rows_at_once

SCHEMA = 1
ENDING = ".npy"
SAME_MM = 1e-3
"""Two grids are one where no entry of their affines differs by more."""


@dataclass(frozen=True)
class Probabilities:
    """A file of probabilities that is complete."""

    array: npt.NDArray[np.float16]
    """(outputs, *axes), memory-mapped."""
    axes: str
    grid: Grid
    labels: LabelSet
    spacing_mm: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]


class ProbabilityFile:
    """A file of probabilities while it is written."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], start: int) -> None:
        self.file, self.shape, self.start = file, shape, start

    @classmethod
    @contextmanager
    def writing(
        cls, path: Path, shape: Sequence[int], info: Mapping[str, Any], labels: LabelSet
    ) -> Iterator["ProbabilityFile"]:
        """The file at `path` (CASE.npy); it appears when the block ends without an error.

        `shape` and `info` are those of the scan in plan axes. Not a memory map: the pages of one
        would count as this process' memory.
        """
        whole = (labels.outputs, *shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        described_by(path).unlink(missing_ok=True)
        header = {"descr": "<f2", "fortran_order": False, "shape": whole}
        with replacing(path, durable=False) as half, half.open("wb") as file:
            np.lib.format.write_array_header_2_0(file, header)
            start = file.tell()
            os.truncate(half, start + 2 * int(np.prod(whole)))
            yield cls(file, whole, start)
            file.flush()
        write_json(
            described_by(path),
            {"schema": SCHEMA, "grid": info["grid"], "axes": info["axes"],
             "spacing_mm": list(info["spacing_mm"]), "labels": labels.dump()},
            durable=False,
        )  # fmt: skip

    def write(self, rows: slice, found: npt.NDArray[np.floating[Any]]) -> None:
        """Put probabilities (outputs, rows, Y, X) into their place."""
        row = int(np.prod(self.shape[2:]))
        for output, values in enumerate(found.astype("<f2")):
            self.file.seek(self.start + 2 * row * (output * self.shape[1] + rows.start))
            self.file.write(np.ascontiguousarray(values).tobytes())


def described_by(path: Path) -> Path:
    """Where it is written what a file of probabilities means."""
    return path.with_name(path.name.removesuffix(ENDING) + ".json")


def open_probabilities(path: Path) -> Probabilities:
    """The probabilities in a file. Raises AutosegError if it is incomplete or damaged."""
    about = read_json(described_by(path))
    try:
        labels = LabelSet.parse(about["labels"], str(described_by(path)))
        grid, axes = Grid.from_dict(about["grid"]), str(about["axes"])
        spacing_mm = tuple(float(mm) for mm in about["spacing_mm"])
        with explaining(path, "read"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (KeyError, TypeError, ValueError, EOFError) as error:
        raise AutosegError(
            f"{path} is no complete file of probabilities ({error}); predict that case again with "
            "--save-probabilities"
        ) from error
    if array.ndim != 4 or array.dtype != np.float16 or len(array) != labels.outputs:
        raise AutosegError(
            f"{path} holds {array.dtype} {array.shape}, expected float16 of {labels.outputs} "
            "outputs; predict that case again with --save-probabilities"
        )
    return Probabilities(array, axes, grid, labels, spacing_mm)


def probability_files(folder: Path) -> dict[str, Path]:
    """Case id -> file, for the complete files of a folder or of `probabilities` in it.

    Raises AutosegError if there is none.
    """
    inner = folder / "probabilities"
    where = inner if inner.is_dir() else folder
    with explaining(where, "list"):
        files = sorted(p for p in where.iterdir() if p.suffix == ENDING)
    found = {p.stem: p for p in files if described_by(p).exists() and not p.name.startswith(".")}
    if not found:
        raise AutosegError(
            f"{folder} holds no probabilities; make them with `autoseg predict --save-probabilities`"
        )
    return found


def in_axes_of(one: Probabilities, first: Probabilities) -> npt.NDArray[np.float16]:
    """A view of probabilities in the axes of the first. Raises AutosegError for another grid."""
    if one.labels != first.labels:
        raise AutosegError("the folders were predicted by models with different labels")
    gap = np.abs(np.subtract(one.grid.affine, first.grid.affine)).max()
    if one.grid.shape != first.grid.shape or gap > SAME_MM:
        raise AutosegError(
            f"one folder has a grid of {one.grid.shape} voxels, another of {first.grid.shape}"
            if one.grid.shape != first.grid.shape
            else "the folders hold different places of the grid"
        )
    if one.axes == first.axes:
        return one.array
    stored = restore(one.array, one.grid.arrangement(one.axes))
    return arrange(stored, first.grid.arrangement(first.axes))


def mean_chunks(views: Sequence[npt.NDArray[np.float16]], labels: LabelSet) -> Iterator[Slab]:
    """The mean of arrays (outputs, *axes) on one grid, a few rows of axis 0 after another."""
    shape = views[0].shape[1:]
    count = rows_at_once(labels.outputs, shape)
    for start in range(0, shape[0], count):
        rows = slice(start, min(start + count, shape[0]))
        mean = np.zeros((labels.outputs, rows.stop - rows.start, *shape[1:]), np.float32)
        for view in views:
            mean += view[:, rows]
        yield rows, torch.from_numpy(mean).div_(len(views))
