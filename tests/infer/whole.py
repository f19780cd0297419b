"""What prediction streams, as whole arrays: for tests that compare whole arrays."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.documents.plan import Prediction
from autoseg.infer.air import Skipped
from autoseg.infer.meaning import CERTAIN, highest
from autoseg.infer.restore import SLAB_BYTES, Box, restored, rows_at_once
from autoseg.infer.volume import Image, Speaker, logit_slabs


def predict_logits(
    nets: Sequence[Speaker],
    image: Image,
    patch_vox: Sequence[int],
    outputs: int,
    prediction: Prediction,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    divisor: Sequence[int] = (1, 1, 1),
    *,
    apart: bool = False,
    skipped: Skipped | None = None,
) -> NDArray[np.float32]:
    """The mean logits (K, Z, Y, X) of all `nets`, or (F, K, Z, Y, X): `logit_slabs` joined."""
    lead = (len(nets), outputs) if apart else (outputs,)
    whole = np.empty((*lead, *image.shape[1:]), np.float32)
    for rows, slab in logit_slabs(
        nets, image, patch_vox, outputs, prediction, mirror_axes, device, divisor, apart=apart,
        skipped=skipped,
    ):  # fmt: skip
        whole[..., rows, :, :] = slab.numpy()
    return whole


def restore_labels(
    logits: NDArray[np.float32],
    box: Box,
    full_shape: Sequence[int],
    spacing_mm: Sequence[float],
    full_spacing_mm: Sequence[float],
    separate_z_above: float = 3.0,
    slab_bytes: int = SLAB_BYTES,
) -> NDArray[np.int16]:
    """Class indices (*full_shape) from logits (K, *prepared); background outside of `box`.

    `box` holds (start, stop) of each axis of the crop on the full grid; `spacing_mm` is that of the
    logits. Of equal logits the lower class wins.
    """
    labels = np.empty(tuple(full_shape), np.int16)
    source = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
    for rows, chunk in restored(
        [(slice(0, logits.shape[1]), source)],
        logits.shape[1:],
        box,
        full_shape,
        spacing_mm,
        full_spacing_mm,
        rows=rows_at_once(len(logits), full_shape, slab_bytes),
        outside=(0.0, *[-CERTAIN] * (len(logits) - 1)),
        separate_z_above=separate_z_above,
    ):
        labels[rows] = highest(chunk).numpy()
    return labels
