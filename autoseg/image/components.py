"""Connected components of a mask: the largest, their sizes, the small ones dropped; its holes.

Voxels that touch by a corner belong together (26 neighbours; 8 where axis 0 has length one, which
is the same thing); a hole is what one cannot leave through faces. Masks are (*plan axes).
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

from autoseg.image.geometry import box_of

AT_ONCE = 1 << 18
"""Voxels that are counted or looked up in one step, which takes eight bytes for each."""


def component_sizes_vox(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The voxel counts of the components in the order in which a scan meets them; may be empty."""
    return _counts(_labelled(mask))[1:]


def component_sizes_by_class(classes: NDArray[np.integer], count: int) -> list[NDArray[np.int64]]:
    """The voxel counts of the components of each class 1 to `count` of a map (*S), in scan order.

    All in one pass: `component_sizes_vox` of each class would look at every voxel once a class.
    """
    inside = box_of(classes > 0)
    if inside is None:
        return [np.zeros(0, np.int64)] * count
    kept = np.maximum(classes[inside], 0)
    labelled = _labelled(kept.astype(np.uint16), whole=False)
    sizes = _counts(labelled)
    owners = np.zeros(sizes.size, kept.dtype)
    for slab in _slabs(labelled):
        owners[labelled[slab].ravel()] = kept[slab].ravel()
    owners[0] = 0
    return [sizes[owners == number] for number in range(1, count + 1)]


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask of the largest component alone, of equals the first; an empty mask stays empty."""
    labelled = _labelled(mask)
    sizes = _counts(labelled)[1:]
    if sizes.size == 0:
        return np.zeros(mask.shape, dtype=bool)
    return np.asarray(labelled == int(sizes.argmax()) + 1)


def drop_small(
    mask: NDArray[np.bool_], min_mm3: float, spacing_mm: Sequence[float]
) -> NDArray[np.bool_]:
    """The mask without the components whose volume is below `min_mm3`.

    `spacing_mm` is in the order of the mask's axes; of a slice, its thickness counts as well.
    """
    labelled = _labelled(mask)
    volumes_mm3 = _counts(labelled) * float(np.prod(spacing_mm))
    keep = volumes_mm3 >= min_mm3
    keep[0] = False
    return _chosen(labelled, keep)


def holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What lies outside the mask and cannot reach the border of the array through faces.

    In an axis of length one there is no way out, so the holes of a slice are those of its plane.
    """
    around = [(0, 0) if length == 1 else (1, 1) for length in mask.shape]
    if all(length == 1 for length in mask.shape):
        return np.zeros(mask.shape, dtype=bool)
    labelled = _labelled(np.pad(~np.asarray(mask, dtype=bool), around, constant_values=True), 6)
    inside = tuple(slice(before, before + n) for (before, _), n in zip(around, mask.shape))
    found = labelled[inside]
    # in a row of voxels the border has two ends that do not touch
    return np.asarray((found != labelled[0, 0, 0]) & (found != labelled[-1, -1, -1]) & (found != 0))


def touching(parts: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The components of `parts`, connected through faces, that share a face with `mask`."""
    labelled = _labelled(parts, 6)
    known = np.zeros(int(labelled.max(initial=0)) + 1, dtype=bool)
    for axis in range(mask.ndim):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(mask.ndim))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(mask.ndim))
        known[labelled[low][mask[high]]] = True
        known[labelled[high][mask[low]]] = True
    known[0] = False
    return _chosen(labelled, known)


def _labelled(
    mask: NDArray[np.bool_ | np.unsignedinteger],
    connectivity: Literal[6, 26] = 26,
    *,
    whole: bool = True,
) -> NDArray[np.unsignedinteger]:
    """Component numbers from 1, in scan order; 0 outside the mask.

    Unless the mask counts as a `whole`, voxels of different values never belong together.
    """
    # The empty border is for cc3d 4.1.1, which miscounts the room that it needs where an odd side
    # is full of single voxels ("maximum length exception" on [1, 0, 1]).
    bordered = np.pad(np.asarray(mask, dtype=bool) if whole else mask, (0, 1))
    labelled = cc3d.connected_components(bordered, connectivity=connectivity, binary_image=whole)
    return labelled[:-1, :-1, :-1]


def _counts(labelled: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """How often each number occurs."""
    total = np.zeros(int(labelled.max(initial=0)) + 1, np.int64)
    for slab in _slabs(labelled):
        total += np.bincount(labelled[slab].ravel(), minlength=total.size)
    return total


def _chosen(labelled: NDArray[np.unsignedinteger], chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels whose number is chosen."""
    mask = np.empty(labelled.shape, dtype=bool)
    for slab in _slabs(labelled):
        mask[slab] = chosen[labelled[slab]]
    return mask


def _slabs(array: NDArray[np.unsignedinteger]) -> Iterator[slice]:
    rows = max(1, AT_ONCE // max(array[:1].size, 1))
    for begin in range(0, len(array), rows):
        yield slice(begin, begin + rows)
