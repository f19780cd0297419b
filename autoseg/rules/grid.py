"""On which grid, and on which intensity scale, does the network see the images?

Target spacing, order of the axes, the size that a typical case has then, normalisation. The
numbers are nnU-Net's (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z); `docs` tell where
autoseg goes its own way. Shapes and spacings are those after the crop to the nonzero box, in one
axis order for all cases.
"""

from collections.abc import Sequence

import numpy as np

from autoseg.rules.decision import Decision, Size, Spacing, lengths, sizes

ANISOTROPY = 3.0
COARSE_PERCENTILE = 10.0
MASK_BELOW_RELATIVE_SIZE = 0.75

SCHEMES = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}


def target_spacing(spacings_mm: Sequence[Spacing], shapes_vox: Sequence[Size]) -> Decision[Spacing]:
    """The spacing to which every case is resampled: the median, finer along a very coarse axis.

    An axis is very coarse if its median spacing is more than 3 times that of the others and its
    median size less than a third of theirs. The median would then force interpolation onto cases
    that have better slices, so the 10th percentile of that axis is taken, never below the others.
    """
    spacings = np.vstack([np.asarray(s, dtype=np.float64) for s in spacings_mm])
    target = np.percentile(spacings, 50, 0)
    size = np.percentile(np.vstack(shapes_vox), 50, 0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != coarse]
    others_mm, others_vox = max(target[others]), min(size[others])
    n = len(spacings)
    median = f"the median spacing of {n} case{'s' if n > 1 else ''} is {lengths(target.tolist())}"
    if not (target[coarse] > ANISOTROPY * others_mm and size[coarse] * ANISOTROPY < others_vox):
        return Decision(
            tuple(float(s) for s in target),
            f"{median}, and no axis is both over 3 "
            "times as coarse and under a third as long as the others.",
        )
    finer = np.percentile(spacings[:, coarse], COARSE_PERCENTILE)
    if finer < others_mm:
        finer = max(others_mm, finer) + 1e-5
    why = (
        f"{median}; axis {coarse} is {target[coarse] / others_mm:.1f} times as coarse as the "
        f"others and has {size[coarse]:g} of their {others_vox:g} voxels, so its 10th "
        f"percentile, {finer:.4g} mm, spares the finer cases an interpolation across slices."
    )
    target[coarse] = finer
    return Decision(tuple(float(s) for s in target), why)


def coarsest_first(spacing_mm: Spacing) -> Decision[Size]:
    """The order of the axes: the coarsest one first, the others as they were."""
    coarse = int(np.argmax(spacing_mm))
    order = (coarse, *(axis for axis in range(len(spacing_mm)) if axis != coarse))
    if len(set(spacing_mm)) == 1:
        return Decision(
            order,
            f"all axes have the same spacing, {spacing_mm[0]:.4g} mm, so they keep their order.",
        )
    return Decision(
        order,
        f"axis {coarse} is the coarsest of {lengths(spacing_mm)} and comes "
        "first, so that slices are cut along it.",
    )


def inverse_order(order: Size) -> Size:
    """The order that undoes `order`."""
    return tuple(order.index(axis) for axis in range(len(order)))


def resampled_shape(shape_vox: Size, spacing_mm: Spacing, target_mm: Spacing) -> Size:
    """The size of a case after resampling, rounded half to even."""
    return tuple(
        round(old / new * n) for n, old, new in zip(shape_vox, spacing_mm, target_mm, strict=True)
    )


def median_shape(
    shapes_vox: Sequence[Size], spacings_mm: Sequence[Spacing], target_mm: Spacing
) -> Decision[tuple[float, ...]]:
    """The median size, axis by axis, of the cases after resampling; halves are possible."""
    resampled = [
        resampled_shape(shape, spacing, target_mm)
        for shape, spacing in zip(shapes_vox, spacings_mm, strict=True)
    ]
    median = tuple(float(n) for n in np.median(resampled, 0))
    smallest, largest = np.min(resampled, 0), np.max(resampled, 0)
    return Decision(
        median,
        f"at {lengths(target_mm)} the cases measure {sizes(smallest)} to {sizes(largest)} voxels.",
    )


def normalisation(channel_name: str, *, blanks_count: bool = False) -> Decision[str]:
    """How the intensities of a channel are scaled, which only its name can tell.

    One of ct, zscore, rescale_to_0_1, rgb_to_0_1, none. Case does not count; nor do surrounding
    blanks, unless `blanks_count`, with which "CT " is z-scored as in nnU-Net.
    """
    name = channel_name if blanks_count else channel_name.strip()
    scheme = SCHEMES.get(name.casefold())
    if scheme is None:
        return Decision(
            "zscore",
            f"the channel name {channel_name!r} stands for no fixed "
            "intensity scale, so each case is brought to mean 0 and deviation 1.",
        )
    if scheme == "ct":
        return Decision(
            "ct",
            "Hounsfield units mean the same in every case, so one clip and one "
            "scale, taken from the foreground of all cases, serve them all.",
        )
    return Decision(scheme, f"the channel name {channel_name!r} asks for it.")


def uses_mask(scheme: str, median_relative_size: float) -> Decision[bool]:
    """Whether mean and deviation come from the inside of the nonzero mask only.

    `median_relative_size` is the median over cases of voxels after the crop / voxels before.
    """
    share = f"{median_relative_size:.0%} of a typical case remain after the crop"
    if scheme != "zscore":
        return Decision(False, f"the scheme {scheme} takes no statistics from the single case.")
    if median_relative_size < MASK_BELOW_RELATIVE_SIZE:
        return Decision(
            True,
            f"only {share}, so the zeros around the object would spoil its mean and deviation.",
        )
    return Decision(False, f"{share}, which is not below 75%: there is little outside to exclude.")
