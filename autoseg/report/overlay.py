"""Pictures of label maps over scans: the reference and the prediction as outlines, side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoseg.files import replacing
from autoseg.image.reading import read_header, read_image, read_labels

AXIAL = "SPL"
"""Axial slices as radiologists look at them: up is anterior, left is the patient's right."""
COLOURS = ("#e4572e", "#17bebb", "#ffc914", "#76b041", "#7d5ba6", "#f58fb0", "#4f86c6", "#8d6e63")


@dataclass(frozen=True)
class DemoResult:
    """What `autoseg demo` made."""

    dataset: Path
    dice: dict[str, float | None] | None
    """Test Dice of each structure; None if only the dataset was made."""
    overlay: Path | None

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        yield f"phantom (synthetic ellipsoids, no anatomy) in {self.dataset}"
        if self.dice is not None:
            scores = ", ".join(
                f"{name} {'undefined' if d is None else f'{d:.4f}'}"
                for name, d in self.dice.items()
            )
            yield f"Dice on its test scans: {scores}"
            yield f"overlay: {self.overlay}"


def _window(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The scan between 0 and 1: (Y, X) of the first channel, or (Y, X, 3) of three colours."""
    low, high = np.percentile(image, [0.5, 99.5])
    scaled: npt.NDArray[np.float32] = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    return scaled.transpose(1, 2, 0) if len(image) == 3 else scaled[0]


def _fullest(labels: npt.NDArray[Any]) -> int:
    """The slice of axis 0 that shows most labels, and most of them."""
    kinds = [len(np.unique(s)) * 10**9 + np.count_nonzero(s) for s in labels]
    return int(np.argmax(kinds))


def draw_overlay(
    scans: Sequence[tuple[str, Sequence[Path], Path | None, Path]],
    names: Sequence[str],
    values: Sequence[int],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Draw one row a scan: the scan, the reference's outlines, the prediction's.

    `scans` holds (case, image files, reference or None, prediction); the slice is the one with most
    of the reference. `names` and `values` are those of the foreground labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(9.6, 3.2 * len(scans) + 0.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(len(scans), 3, squeeze=False)
    for row, (case, images, reference, predicted) in zip(cells, scans, strict=True):
        axes = AXIAL if read_header(images[0]).grid.placed else "stored"
        volume, _ = read_image(images, axes)
        found = read_labels(predicted, axes, volume.grid)[0].array[0]
        truth = read_labels(reference, axes, volume.grid)[0].array[0] if reference else None
        index = _fullest(found if truth is None else truth)
        shown = _window(volume.array[:, index])
        spacing = volume.spacing_mm
        for cell, labels, name in zip(
            row, (None, truth, found), (case, "reference", "prediction"), strict=True
        ):
            cell.imshow(shown, cmap="gray", aspect=spacing[1] / spacing[2], interpolation="nearest")
            cell.set_title(name, fontsize=9)
            cell.set_axis_off()
            if labels is None:
                continue
            for number, value in enumerate(values):
                mask = labels[index] == value
                if mask.any():
                    colour = COLOURS[number % len(COLOURS)]
                    cell.contour(mask, [0.5], colors=[colour], linewidths=1.4)
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(names)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=9
    )
    if title:
        figure.suptitle(title, fontsize=10)
    with replacing(path, durable=False) as half:
        figure.savefig(half)
