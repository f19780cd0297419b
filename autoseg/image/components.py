"""Connected components of a mask: the largest, their sizes, the small ones dropped.

Voxels that touch by a corner belong together (26 neighbours; 8 where axis 0 has length one, which
is the same thing). Masks are (*plan axes).
"""

from collections.abc import Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray


def component_sizes_vox(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The voxel counts of the components in the order in which a scan meets them; may be empty."""
    return _counts(_labelled(mask))[1:]


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
    return np.asarray(keep[labelled])


def _labelled(mask: NDArray[np.bool_]) -> NDArray[np.unsignedinteger]:
    """Component numbers from 1, in scan order; 0 outside the mask."""
    # The empty border is for cc3d 4.1.1, which miscounts the room that it needs where an odd side
    # is full of single voxels ("maximum length exception" on [1, 0, 1]).
    bordered = np.pad(np.asarray(mask, dtype=bool), (0, 1))
    labelled = cc3d.connected_components(bordered, connectivity=26, binary_image=True)
    return labelled[:-1, :-1, :-1]


def _counts(labelled: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    return np.bincount(labelled.ravel(), minlength=1)
