"""What a cascade is shown of its earlier stage: the label map on the network's grid, as channels.

The same for training and for prediction; how it is spoilt in training is in `spoiling`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.store import Labels
from autoseg.documents.plan import Preparation
from autoseg.image.resample import resampled_shape
from autoseg.image.resample_labels import resample_labels


def one_hot(labels: NDArray[np.integer[Any]], count: int) -> NDArray[np.float32]:
    """(count - 1, *S): a channel for each of the classes 1 … count - 1; background has none.

    `count` is the label set's own: how many classes a voxel may have, background included.
    """
    found = np.empty((count - 1, *labels.shape), np.float32)
    for index, channel in enumerate(found, 1):
        np.equal(labels, index, out=channel)
    return found


def prepare_previous(
    classes: NDArray[np.integer[Any]], info: Mapping[str, Any], preparation: Preparation
) -> Labels:
    """An earlier stage's class indices (Z, Y, X) on the prepared grid of the case.

    `classes` lies on the scan's whole grid in plan axes, before cropping; `info` is what `prepare`
    says of the case. Treated as `prepare` treats a label file. Raises ValueError for another grid.
    """
    if list(classes.shape) != list(info["arranged_shape"]):
        raise ValueError(f"{info['case']}: {classes.shape}, the scan has {info['arranged_shape']}")
    small = preparation.labels.count - 1 <= np.iinfo(np.int8).max
    cropped = classes[tuple(slice(a, b) for a, b in info["box"])]
    resampled = resample_labels(
        cropped.astype(np.int8) if small else cropped.astype(np.int16),
        resampled_shape(info["cropped_shape"], info["spacing_mm"], info["target_mm"]),
        spacing_mm=info["spacing_mm"],
        target_mm=info["target_mm"],
        order=preparation.label_order,
        order_z=preparation.label_order_z,
        separate_z_above=preparation.separate_z_above,
    )
    return (
        resampled.astype(np.int8, copy=False) if small else resampled.astype(np.int16, copy=False)
    )
