"""The earlier stage's label map as a cascade sees it while it is trained: spoilt a little.

A network that learned from the earlier stage's best answers would copy them. So some structures
are shown too large, too small, smoothed, or without a piece, as nnU-Net does it.
"""

from collections.abc import Callable, Sequence

import cc3d
import numpy as np
from numpy.typing import NDArray

from autoseg.data.sampling import PREVIOUS, generator
from autoseg.data.store import Labels
from autoseg.documents.plan import Previous

Mask = NDArray[np.bool_]


def spoilt(
    labels: Labels,
    classes: int,
    settings: Previous,
    seed: int,
    step: int,
    sample: int,
    *,
    planar: bool = False,
) -> Labels:
    """The label map (Z, Y, X) or (Y, X) as a training step shows it, a function of its arguments.

    First some of the classes 1 … `classes`, in random order, are eroded, dilated, opened or closed
    with a ball: what they gain they take from any other class, what they lose becomes background.
    Then some lose a random connected piece (voxels touch by corners) of no more than a share of
    the class. With `planar`, balls are discs within the slices of axis 0: slices that are apart are
    turned and coarsened one by one too. Meant for a patch that is rotated later, since a rotated
    ball is a ball; scaling it by 0.7 to 1.4 scales the radius.

    All numbers are drawn whether they are used or not, as in `augment_draw.draw`.
    """
    rng = generator(seed, PREVIOUS, step, sample)
    bent = rng.random() < settings.morphology_p
    order = rng.permutation(classes)
    bends = rng.random(classes) < settings.morphology_class_p
    ways = rng.integers(len(WAYS), size=classes)
    low, high = settings.morphology_radius_vox
    radii = rng.integers(low, high + 1, size=classes)
    torn = rng.random() < settings.drop_p
    tears = rng.random(classes) < settings.drop_class_p
    places = rng.random(classes)
    found = labels.copy()
    for i in order[bends[order]].tolist() if bent else []:
        _bend(found, i + 1, WAYS[ways[i]], int(radii[i]), range(planar, labels.ndim))
    for i in np.flatnonzero(tears).tolist() if torn else []:
        _drop(found, i + 1, settings.drop_share, float(places[i]))
    return found


def dilated(mask: Mask, radius_vox: int, axes: Sequence[int]) -> Mask:
    """The voxels within `radius_vox` of the mask, measured along `axes` alone.

    By squared distances, axis after axis, in the smallest integers that hold them: for the radii
    that are drawn this takes a tenth of the time of scipy's distance transform.
    """
    reach = radius_vox * radius_vox
    kind = np.min_scalar_type(2 * reach + 1).type
    squared = np.where(mask, kind(0), kind(reach + 1))
    for axis in axes:
        nearest = squared.copy()
        # the axis that is worked on first: slices along it are then plain
        lines, out = np.moveaxis(squared, axis, 0), np.moveaxis(nearest, axis, 0)
        for steps in range(1, min(radius_vox, len(lines) - 1) + 1):
            further = lines + kind(steps * steps)
            np.minimum(out[:-steps], further[steps:], out=out[:-steps])
            np.minimum(out[steps:], further[:-steps], out=out[steps:])
        squared = nearest
    return np.asarray(squared <= reach)


def eroded(mask: Mask, radius_vox: int, axes: Sequence[int]) -> Mask:
    """The voxels further than `radius_vox` from all that is not in the mask.

    Nothing is eroded from the border of the array: what lies beyond is not known.
    """
    return ~dilated(~mask, radius_vox, axes)


def opened(mask: Mask, radius_vox: int, axes: Sequence[int]) -> Mask:
    """The mask without what is too thin for the ball."""
    return dilated(eroded(mask, radius_vox, axes), radius_vox, axes)


def closed(mask: Mask, radius_vox: int, axes: Sequence[int]) -> Mask:
    """The mask with the gaps that are too narrow for the ball."""
    return eroded(dilated(mask, radius_vox, axes), radius_vox, axes)


WAYS: tuple[Callable[[Mask, int, Sequence[int]], Mask], ...] = (eroded, dilated, opened, closed)


def _bend(
    labels: Labels, index: int, way: Callable[..., Mask], radius_vox: int, axes: Sequence[int]
) -> None:
    mask = labels == index
    box = _box(mask, radius_vox + 1)
    if box is None:
        return
    here, before = labels[box], mask[box]
    after = way(before, radius_vox, axes)
    here[before & ~after] = 0
    here[after] = index


def _drop(labels: Labels, index: int, share: float, place: float) -> None:
    """Make one of the small pieces of a class background; `place` in [0, 1) says which."""
    mask = labels == index
    box = _box(mask, 0)
    if box is None:
        return
    whole = mask[box] if mask.ndim == 3 else mask[box][None]
    # the empty border keeps cc3d 4.1.1 from miscounting on odd sides, as in image/components.py
    pieces = cc3d.connected_components(np.pad(whole, (0, 1)), connectivity=26, binary_image=True)
    sizes = np.bincount(pieces.ravel())[1:]
    small = np.flatnonzero(sizes <= share * sizes.sum())
    if small.size:
        lost = pieces[:-1, :-1, :-1] == 1 + small[int(place * small.size)]
        labels[box][lost.reshape(mask[box].shape)] = 0


def _box(mask: Mask, margin_vox: int) -> tuple[slice, ...] | None:
    """The box of the mask and a margin, within the array; None for an empty mask."""
    box = []
    for axis, length in enumerate(mask.shape):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        if not hit.size:
            return None
        box.append(
            slice(max(int(hit[0]) - margin_vox, 0), min(int(hit[-1]) + margin_vox + 1, length))
        )
    return tuple(box)
