"""Probabilities and the scan itself → label maps that follow its edges: conditional random fields."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from autoseg.documents.labels import LabelSet
from autoseg.documents.postprocessing import DenseCRF
from autoseg.image.reading import read_image
from autoseg.infer.crf import refined
from autoseg.infer.meaning import Slab, painted
from autoseg.models.probabilities import in_axes_of, mean_chunks, open_probabilities


def refined_by(
    fields: Sequence[DenseCRF],
    chunks: Iterable[Slab],
    image: npt.NDArray[np.float32],
    spacing_mm: Sequence[float],
    labels: LabelSet,
) -> Iterator[Slab]:
    """Probabilities (K, rows, Y, X) after conditional random fields, some rows after another.

    `image` (C, *axes) is standardised, in the axes of the probabilities.
    """
    shown = torch.from_numpy(image)
    for step in fields:
        chunks = refined(chunks, shown, spacing_mm, step, regional=bool(labels.regions))
    yield from chunks


def standardised(image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Each channel of (C, Z, Y, X) with mean 0 and deviation 1 over what is not zero."""
    out = np.empty(image.shape, np.float32)
    for new, channel in zip(out, image, strict=True):
        inside = channel[channel != 0]
        some = inside.size > 0
        mean, std = (float(inside.mean()), float(inside.std())) if some else (0.0, 1.0)
        new[...] = (channel - mean) / max(std, 1e-6)
    return out


@dataclass(frozen=True)
class Refine:
    """What a conditional random field makes of the probabilities that were kept of each case."""

    probabilities: Mapping[str, Sequence[Path]]
    """Case id -> a file of each configuration; they are averaged."""
    images: Mapping[str, Sequence[Path]]

    def __call__(self, case: str, step: DenseCRF) -> npt.NDArray[np.int16]:
        """Class indices (*plan axes)."""
        opened = [open_probabilities(path) for path in self.probabilities[case]]
        first = opened[0]
        image = standardised(read_image(self.images[case], first.axes)[0].array)
        views = [in_axes_of(one, first) for one in opened]
        chunks = mean_chunks(views, first.labels)
        found = np.zeros(first.shape, np.int16)
        for rows, p in refined_by([step], chunks, image, first.spacing_mm, first.labels):
            found[rows] = painted(p, first.labels, of="probabilities").numpy()
        return found
