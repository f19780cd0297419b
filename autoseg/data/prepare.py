"""One scan brought to the network's grid and scale, for training and for prediction alike.

The order is nnU-Net's: arrange, crop to what is not zero, normalise, then resample.
"""

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from autoseg.documents.dataset import Case
from autoseg.documents.labels import IGNORE, OUTSIDE
from autoseg.documents.plan import Preparation
from autoseg.errors import AutosegError, BadData, Problem, raise_fatal
from autoseg.image.declared import machine_bytes
from autoseg.image.geometry import Box, nonzero_box, nonzero_limits
from autoseg.image.intensity import normalise
from autoseg.image.reading import read_header, read_image, read_labels
from autoseg.image.resample import Resampling, resample_image, resampled_shape
from autoseg.image.resample_labels import resample_labels
from autoseg.image.volume import Volume

BYTES_PER_VOXEL = 4

Classes = npt.NDArray[np.int16]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """One scan on the network's grid, and how to get back."""

    image: npt.NDArray[np.float32]
    """(C, *axes), normalised and resampled."""
    labels: npt.NDArray[np.int16] | None
    """(*axes) class indices, -1 outside the nonzero region, -2 where nobody labelled."""
    info: dict[str, Any]
    """Grid of the file, box of the crop, shapes and spacings on the way; plain JSON values."""


def target_spacing(preparation: Preparation, own_mm: Sequence[float]) -> tuple[float, ...]:
    """The spacing that a case of its own spacing is brought to, in plan axes."""
    return tuple(
        own if wanted is None else wanted
        for wanted, own in zip(preparation.spacing_mm, own_mm, strict=True)
    )


def prepare(case: Case, preparation: Preparation) -> Prepared:
    """Bring one scan (and its labels, if it has any) to the network's grid and scale.

    Raises BadData if the files cannot be used.
    """
    volume, problems = read_image(case.images, preparation.axes)
    raise_fatal(dataclasses.replace(p, case=case.id) for p in problems)
    labels = None
    if case.label is not None:
        labels, problems = read_labels(case.label, preparation.axes, volume.grid)
        raise_fatal(dataclasses.replace(p, case=case.id) for p in problems)
    return prepare_volume(case.id, volume, preparation, labels)


def prepare_volume(
    name: str,
    volume: Volume,
    preparation: Preparation,
    labels: Volume | None = None,
    *,
    resample: Resampling = resample_image,
) -> Prepared:
    """The same for an image in memory, in the axes of the preparation. Raises BadData.

    The volume's array is written over where no copy is needed.
    """
    image = np.ascontiguousarray(volume.array, dtype=np.float32)
    channels = preparation.channels
    if len(image) != len(channels):
        found = f"{len(image)} channels, the model was made for {len(channels)}"
        fix = "give the same channels in the same order as in training"
        raise BadData([Problem(name, "an image has the wrong number of channels", found, fix)])
    classes = None if labels is None else preparation.labels.to_classes(labels.array[0])
    arranged_shape = image.shape[1:]
    ranges = [[float(channel.min()), float(channel.max())] for channel in image]
    image, classes, box, mask = _cropped(image, classes, preparation)
    cropped_shape = image.shape[1:]
    image = normalise(
        image,
        [c.scheme for c in channels],
        [c.model_dump() for c in channels],
        mask if any(c.use_mask for c in channels) else None,
    )
    target_mm = target_spacing(preparation, volume.spacing_mm)
    shape = resampled_shape(cropped_shape, volume.spacing_mm, target_mm)
    spacings: dict[str, Any] = {
        "spacing_mm": volume.spacing_mm,
        "target_mm": target_mm,
        "separate_z_above": preparation.separate_z_above,
    }
    _check_size(name, shape, len(image), volume.spacing_mm, target_mm)
    order, order_z = preparation.image_order, preparation.image_order_z
    image = resample(image, shape, order=order, order_z=order_z, **spacings)
    if classes is not None:
        order, order_z = preparation.label_order, preparation.label_order_z
        unlabelled = None if preparation.labels.ignore is None else IGNORE
        classes = resample_labels(
            classes, shape, order=order, order_z=order_z, unlabelled=unlabelled, **spacings
        ).astype(np.int16, copy=False)
    limits = [part.indices(size)[:2] for part, size in zip(box, arranged_shape, strict=True)]
    info = {
        "case": name,
        "grid": volume.grid.to_dict(),
        "axes": preparation.axes,
        "arranged_shape": list(arranged_shape),
        "box": [[int(a), int(b)] for a, b in limits],
        "cropped_shape": list(cropped_shape),
        "spacing_mm": list(volume.spacing_mm),
        "target_mm": list(target_mm),
        "intensity_ranges": ranges,
    }
    return Prepared(image, classes, info)


def _check_size(
    name: str,
    shape: Sequence[int],
    channels: int,
    own_mm: Sequence[float],
    target_mm: Sequence[float],
) -> None:
    """Raises BadData for a scan that this machine cannot hold on the network's grid."""
    needed, memory = BYTES_PER_VOXEL * (channels + 1) * prod(shape), machine_bytes()
    if needed <= memory:
        return
    size, own, wanted = (" x ".join(f"{n:.4g}" for n in of) for of in (shape, own_mm, target_mm))
    found = (
        f"its voxels are {own} mm in the header; at the network's {wanted} mm it is {size} voxels, "
        f"{needed / 2**30:.0f} GiB of {memory / 2**30:.0f}"
    )
    fix = "check the spacing in its header (micrometres taken for mm?), or crop it"
    raise BadData([Problem(name, "the scan is too large on the network's grid", found, fix)])


def _cropped(
    image: npt.NDArray[np.float32], classes: Classes | None, preparation: Preparation
) -> tuple[npt.NDArray[np.float32], Classes | None, Box, npt.NDArray[np.bool_] | None]:
    """Image and class indices within the nonzero box, the box, and the mask where one was made."""
    if preparation.crop != "nonzero":
        return image, classes, (slice(None), slice(None), slice(None)), None
    if classes is None and not any(c.use_mask for c in preparation.channels):
        box = nonzero_limits(image)
        return np.ascontiguousarray(image[(slice(None), *box)]), None, box, None
    box, mask = nonzero_box(image)
    if classes is not None:
        classes = _marked_outside(classes[box], mask)
    return np.ascontiguousarray(image[(slice(None), *box)]), classes, box, mask


def _marked_outside(classes: Classes, mask: npt.NDArray[np.bool_]) -> Classes:
    """Class indices with OUTSIDE where the image is zero and labelled as background.

    What nobody labelled stays so: whether it is background is not known.
    """
    marked = classes.copy()
    marked[~mask & (classes == 0)] = OUTSIDE
    return marked


def bytes_needed(case: Case, preparation: Preparation) -> int:
    """Memory that preparing a case takes, from its header alone; 0 if that cannot be read."""
    try:
        header = read_header(case.images[0])
    except (AutosegError, BadData):
        return 0
    before = prod(header.grid.shape)
    own = header.grid.spacing_mm
    finest = [s for s in preparation.spacing_mm if s is not None]
    growth = prod(own) / prod(finest) if len(finest) == 3 else 1.0
    after = int(before * max(growth, 1e-3))
    channels = len(preparation.channels)
    return BYTES_PER_VOXEL * (channels * (2 * before + 3 * after) + 2 * before + 3 * after)
