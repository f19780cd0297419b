"""What can be wrong with an image, a label map or the pair: generators of `Problem`.

Each check knows one rule and says it in the same words for every case, so that a report can group
the cases. Lengths are mm. Nothing here reads files or stops anything; the caller collects.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoseg.errors import AutosegError, Problem, raise_fatal
from autoseg.image.geometry import (
    arrange_tuple,
    arranged_affine,
    corner_gap_mm,
    direction_cosines,
    spacing_of,
)
from autoseg.image.matrices import slabs
from autoseg.image.volume import Grid, Volume

PLACE_TOLERANCE_VOX = 0.1
SHEAR_TOLERANCE = 1e-3
# Below this determinant of the direction cosines the three axes lie in one plane.
FLAT_DETERMINANT = 1e-3
THINNEST_MM, THICKEST_MM, FARTHEST_MM = 1e-7, 1e4, 1e9
SHOWN = 3


def check_affine(case: str, affine: ArrayLike) -> Iterator[Problem]:
    """Fatal for spacing that is zero, NaN or in one plane; a warning for axes that are not square."""
    matrix = np.asarray(affine, dtype=np.float64)
    spacing_mm = spacing_of(matrix)
    if not np.all(np.isfinite([*matrix.flat, *spacing_mm])) or min(spacing_mm) <= 0:
        yield Problem(
            case,
            "the voxel spacing is zero or not a number",
            f"spacing {_mm(spacing_mm)}",
            "export the series again, or write the true spacing into the header",
        )
        return
    far = float(np.abs(matrix[:3, 3]).max())
    if min(spacing_mm) < THINNEST_MM or max(spacing_mm) > THICKEST_MM or far > FARTHEST_MM:
        yield Problem(
            case,
            "the voxel spacing or position cannot be that of a scan",
            f"spacing {_mm(spacing_mm)}, first voxel up to {far:.3g} mm away",
            "export the series again, or write the true spacing into the header",
        )
        return
    cosines = direction_cosines(matrix)
    if abs(np.linalg.det(cosines)) < FLAT_DETERMINANT:
        yield Problem(
            case,
            "the directions of the image axes lie in one plane",
            f"determinant {abs(np.linalg.det(cosines)):.2g} (1 for square axes)",
            "export the series again: its orientation is damaged",
        )
        return
    off = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if off > SHEAR_TOLERANCE:
        yield Problem(
            case,
            "the image axes are not at right angles",
            f"up to {np.degrees(np.arcsin(min(off, 1.0))):.1f} degrees off (gantry tilt or shear)",
            "nothing if results are only viewed; volumes and distances treat voxels as boxes, so "
            "resample to a straight grid if they matter",
            fatal=False,
        )


def placing(
    case: str, affine: ArrayLike | None, spacing_mm: Sequence[float] | None
) -> NDArray[np.float64]:
    """The 4x4 affine (RAS+ mm) of a volume in memory, of which one of the two is given.

    `spacing_mm` (x, y, z) is for axes that run to the right, front and top. Raises AutosegError for
    both, neither, or such as cannot be.
    """
    if (affine is None) == (spacing_mm is None):
        raise AutosegError(
            f"{case}: an array does not say where it lies: give its affine, or spacing_mm"
            if affine is None
            else f"{case}: give affine or spacing_mm, not both"
        )
    if spacing_mm is not None:
        sides = _numbers(case, "spacing_mm", spacing_mm)
        if sides.shape != (3,) or not (np.isfinite(sides) & (sides > 0)).all():
            raise AutosegError(
                f"{case}: spacing_mm is {spacing_mm}; give three lengths over 0: x, y and z"
            )
        return np.diag([*sides, 1.0])
    place = _numbers(case, "the affine", affine)
    if place.shape != (4, 4):
        raise AutosegError(f"{case}: the affine must be 4 x 4, found {place.shape}")
    raise_fatal(check_affine(case, place))
    return place


def _numbers(case: str, name: str, given: ArrayLike | None) -> NDArray[np.float64]:
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise AutosegError(f"{case}: {name} must be numbers, found {str(given)[:80]}") from None


def check_channels(case: str, found: int, expected: int) -> Iterator[Problem]:
    """Fatal where a case has another number of channels than the dataset declares."""
    if found != expected:
        yield Problem(
            case,
            "the number of channels is not the declared one",
            f"{found} found, {expected} declared",
            "add or remove image files of this case, or correct channel_names",
        )


def check_finite(case: str, image: NDArray[np.floating]) -> Iterator[Problem]:
    """Fatal for NaN or infinite values in an image (C, *S)."""
    # One pass without a mask: a sum is finite only if all its terms are.
    if image.size == 0 or np.isfinite(image.sum(dtype=np.float64)):
        return
    bad = int(image.size - np.count_nonzero(np.isfinite(image)))
    if bad:
        yield Problem(
            case,
            "the image holds values that are not numbers",
            f"{bad} voxels are NaN or infinite ({100 * bad / image.size:.2g} %)",
            "replace them by the background value, or repeat the step that made them",
        )


def check_constant(case: str, image: NDArray[np.floating]) -> Iterator[Problem]:
    """Fatal for each channel of an image (C, *S) in which all voxels are equal."""
    for number, channel in enumerate(image):
        if channel.size and channel.min() == channel.max():
            yield Problem(
                case,
                "a channel is the same everywhere",
                f"channel {number} is {channel.flat[0]:g} in every voxel",
                "export this channel again, or take the case out",
            )


def check_same_grid(
    case: str, image: Grid, other: Grid, axes: str, name: str = "label"
) -> Iterator[Problem]:
    """Fatal if two grids, both brought to `axes`, differ in size or lie in different places.

    The places are compared by the outer corners, in mm, and may differ by a tenth of the smallest
    voxel side. Files that do not know their place (png, tif) are compared by size alone.
    """
    place = other if other.placed else image
    how_image, how_other = image.arrangement(axes), place.arrangement(axes)
    shape = arrange_tuple(image.shape, how_image)
    other_shape = arrange_tuple(other.shape, how_other)
    if shape != other_shape:
        yield Problem(
            case,
            f"image and {name} differ in size",
            f"image {_size(shape)}, {name} {_size(other_shape)} voxels",
            f"export both from the same series, or resample the {name} to the image",
        )
        return
    if not (image.placed and other.placed):
        return
    gap_mm = corner_gap_mm(
        shape,
        arranged_affine(image.affine, image.shape, how_image),
        arranged_affine(other.affine, other.shape, how_other),
    )
    if gap_mm > PLACE_TOLERANCE_VOX * min(image.spacing_mm):
        yield Problem(
            case,
            f"image and {name} are not in the same place",
            f"corners up to {gap_mm:.2f} mm apart (voxels of {_mm(image.spacing_mm)})",
            f"if the {name} fits when laid over the image, copy the image's header to it; "
            "otherwise it was drawn on another series",
        )


def check_pair(case: str, image: Volume, label: Volume) -> Iterator[Problem]:
    """As `check_same_grid`, for an image and a label map that were read."""
    yield from check_same_grid(case, image.grid, label.grid, image.axes)


def check_label_values(
    case: str, labels: NDArray[np.integer], declared: Iterable[int]
) -> Iterator[Problem]:
    """Fatal for values in a label map that the dataset does not declare."""
    known = set(declared)
    found = _values_of(labels)
    strange = [value for value in found if value not in known]
    if strange:
        shown = ", ".join(str(value) for value in strange[:SHOWN])
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        yield Problem(
            case,
            "the label map holds values that are not declared",
            f"{shown}{more} (declared: {', '.join(str(v) for v in sorted(known))})",
            "declare them under labels in dataset.json, or correct the drawing",
        )


def check_label_not_empty(
    case: str, labels: NDArray[np.integer], background: int = 0, ignore: int | None = None
) -> Iterator[Problem]:
    """A warning for a label map with nothing but background and voxels that nobody labelled."""
    ignored = 0 if ignore is None else int(np.count_nonzero(labels == ignore))
    empty = int(np.count_nonzero(labels == background))
    if ignored + empty < labels.size:
        return
    found = [str(background)] * (empty > 0) + [f"{ignore} (ignored)"] * (ignored > 0)
    yield Problem(
        case,
        "the label map is empty",
        f"every voxel is {' or '.join(found)}",
        "nothing if the structure is truly absent; otherwise draw it or take the case out"
        if empty
        else "label some of it or take the case out: there is nothing to learn from",
        fatal=False,
    )


def check_label_integers(
    case: str, labels: NDArray[np.floating], tolerance: float = 1e-3
) -> Iterator[Problem]:
    """Fatal for label values that are not whole numbers, further off than `tolerance`."""
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(labels - np.rint(labels)) <= tolerance)
    if wrong.any():
        values = np.unique(labels[wrong])[:SHOWN]
        yield Problem(
            case,
            "the label map holds values that are not whole numbers",
            f"{', '.join(f'{value:g}' for value in values)} "
            f"in {np.count_nonzero(wrong)} voxels in all",
            "export the drawing again with nearest-neighbour interpolation",
        )


def _values_of(labels: NDArray[np.integer]) -> list[int]:
    """The sorted distinct values; by marking where they span little, since sorting is slow."""
    if labels.size == 0:
        return []
    low, high = int(labels.min()), int(labels.max())
    if high - low > 2**16:
        return [int(value) for value in np.unique(labels)]
    seen = np.zeros(high - low + 1, dtype=bool)
    for part in slabs(0, len(labels), labels[0].size):
        seen[labels[part].astype(np.int64) - low] = True
    return [int(value) + low for value in np.flatnonzero(seen)]


def _mm(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)
