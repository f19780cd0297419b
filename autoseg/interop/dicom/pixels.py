"""What are the voxels of a series: frames decoded, rescaled one by one and laid on the grid.

Values come out as float32 in the unit that the file names (Hounsfield units in CT). MONOCHROME1
is turned over, but for measurements; pixels that the scanner marks as padding, where they stand
out, take the lowest real value of the scan.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import BadData, Problem, raise_fatal
from autoseg.image.checks import check_finite, check_same_grid
from autoseg.image.geometry import arrange
from autoseg.image.volume import Grid, Volume
from autoseg.interop.dicom.choosing import Scan
from autoseg.interop.dicom.frames import MEASURED, Frame, Instance
from autoseg.interop.dicom.packed import size_of
from autoseg.interop.dicom.placing import check_places, grid_of, stacks
from autoseg.interop.dicom.series import Series
from autoseg.interop.dicom.source import (
    DAMAGE,
    Damaged,
    Source,
    damage,
    damaged_file,
    need,
    opened,
    read_header,
    read_whole,
)
from autoseg.pool import free_bytes

RLE = "1.2.840.10008.1.2.5"
STANDS_OUT = 0.02
"""Of the range of real values: padding nearer to it than this is left as it is."""

AGAIN = (
    "export or copy the series again, uncompressed where it is packed in a way that is not known here; "
    "without this file it would have a gap"
)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

BYTES_A_VOXEL = 9
"""float32, its copy in the plan's axes, and the mask of padding."""


@dataclass(frozen=True)
class Slices:
    """The slices of a series, one a place and in order; what was odd about them."""

    frames: tuple[Frame, ...]
    problems: tuple[Problem, ...]

    @property
    def grid(self) -> Grid:
        """The voxel grid of the slices."""
        return grid_of(self.frames)


def read_scan(
    scan: Scan, axes: str, *, accept_uneven: bool = False
) -> tuple[Volume, list[Problem]]:
    """The channels of a scan as one float32 volume (C, *axes), and the warnings.

    Raises BadData where a series cannot be read or the channels differ in size or place. With
    `accept_uneven` slices with gaps are taken as evenly spaced, and a warning says so.
    """
    parts = []
    problems: list[Problem] = []
    for series in scan.channels:
        volume, found = read_series(series, axes, scan.case, accept_uneven=accept_uneven)
        parts.append(volume)
        problems += found
    first = parts[0]
    for other in parts[1:]:
        raise_fatal(check_same_grid(scan.case, first.grid, other.grid, axes, "channel series"))
    array = first.array if len(parts) == 1 else np.concatenate([p.array for p in parts])
    return Volume(array, axes, first.grid), problems


def read_series(
    series: Series, axes: str, case: str, *, accept_uneven: bool = False
) -> tuple[Volume, list[Problem]]:
    """The series as a float32 volume (C, *axes), and the warnings. Raises BadData."""
    with opened(series.source) as source:
        slices = slices_of(series, case, source, accept_uneven=accept_uneven)
        _check_memory(case, slices.frames)
        voxels, found = _voxels(case, source, slices.frames)
    problems = [*slices.problems, *found]
    raise_fatal(check_finite(case, voxels))
    grid = slices.grid
    arranged = arrange(voxels.transpose(0, 3, 2, 1), grid.arrangement(axes))
    return Volume(np.ascontiguousarray(arranged), axes, grid), problems


def slices_of(
    series: Series, case: str, source: Source | None = None, *, accept_uneven: bool = False
) -> Slices:
    """The slices of a series, copies left out and their places checked. Raises BadData."""
    if source is None:
        with opened(series.source) as source:
            return slices_of(series, case, source, accept_uneven=accept_uneven)
    raise_fatal(_mosaic(case, series))
    if series.kind == "picture":
        raise_fatal(_film(case, series))
        return Slices(series.frames, ())
    problems = list(_astray(case, series, fatal=not accept_uneven))
    raise_fatal(problems)
    kept = []
    copies = 0
    for pile in stacks(series.frames):
        kept.append(pile[0])
        if len(pile) > 1:
            copies += len(pile) - 1
            _check_copies(case, source, pile)
    if copies:
        found = f"{copies} slices repeat another in the same place"
        fix = "nothing: the first of each is used"
        problems.append(Problem(case, "slices are there twice", found, fix, fatal=False))
    problems += check_places(case, kept, accept_uneven=accept_uneven)
    raise_fatal(problems)
    return Slices(tuple(kept), tuple(problems))


def _film(case: str, series: Series) -> Iterator[Problem]:
    """Fatal for several frames of which none says where it lies, as in a film of ultrasound."""
    count, first = len(series.frames), series.frames[0].instance
    if count > 1:
        found = f"{count} frames in {first.name}"
        if first.frames < count:
            found = f"{count} slices, {first.name} the first, without ImagePositionPatient"
        fix = "export the frames that matter as single images, or all of them with their positions"
        yield Problem(case, "frames do not say where they lie", found, fix)


def _astray(case: str, series: Series, *, fatal: bool) -> Iterator[Problem]:
    """For slices of a volume that do not say where they lie, and so cannot be put in order."""
    if series.astray:
        count, of = len(series.astray), len(series.astray) + len(series.frames)
        left = "" if fatal else "; left out"
        found = f"{count} of {of}, as {series.astray[0].instance.name}{left}"
        fix = "export the whole series again, or leave them out (--accept-uneven)"
        yield Problem(case, "slices of a series do not say where they lie", found, fix, fatal)


def _mosaic(case: str, series: Series) -> Iterator[Problem]:
    """Fatal for volumes that are stored as one image each, slice beside slice."""
    if series.frames[0].instance.mosaic:
        found = f"{series.described}: all slices of a volume lie side by side in one image"
        fix = "convert the series to NIfTI (dcm2niix does), or export it unmosaiced or enhanced"
        yield Problem(case, "the series is stored as mosaics", found, fix)


def colours_of(instance: Instance) -> int:
    """How many channels the voxels of an image have."""
    return 3 if instance.samples == 3 or instance.photometric == "PALETTE COLOR" else 1


def _check_copies(case: str, source: Source, pile: Sequence[Frame]) -> None:
    """Raise BadData if slices in one place, which nothing tells apart, differ in their pixels."""
    _check_memory(case, pile)
    slices, _ = _voxels(case, source, pile)
    if all(np.array_equal(slices[:, 0], slices[:, n]) for n in range(1, len(pile))):
        return
    names = " and ".join(frame.instance.name for frame in pile[:2])
    place = ", ".join(f"{mm:g}" for mm in pile[0].position or ())
    raise BadData(
        [
            Problem(
                case,
                "two different slices lie in one place",
                f"{names} at ({place}) mm, and no entry tells them apart",
                "export one acquisition at a time, or sort its files into folders of their own",
            )
        ]
    )


def _check_memory(case: str, frames: Sequence[Frame]) -> None:
    """Raise BadData, before anything is decoded, if the scan cannot fit into memory."""
    of = frames[0].instance
    needed = of.rows * of.columns * colours_of(of) * len(frames) * BYTES_A_VOXEL
    needed += max(frame.instance.size for frame in frames)
    if needed <= free_bytes():
        return
    found = (
        f"{len(frames)} x {of.rows} x {of.columns} voxels need {needed / 2**30:.1f} GiB, "
        f"{free_bytes() / 2**30:.1f} GiB are free"
    )
    fix = "use a machine with more memory, or check whether the file is what it says"
    raise BadData([Problem(case, "the scan does not fit into memory", found, fix)])


def _voxels(
    case: str, source: Source, frames: Sequence[Frame]
) -> tuple[NDArray[np.float32], list[Problem]]:
    """The voxels (C, slice, row, column) of frames in their order, and warnings. Raises BadData."""
    of = frames[0].instance
    colours = colours_of(of)
    array = np.empty((colours, len(frames), of.rows, of.columns), np.float32)
    padded = np.zeros(array.shape[1:], bool) if of.padding is not None else None
    by_file: dict[str, list[int]] = defaultdict(list)
    for at, frame in enumerate(frames):
        by_file[frame.instance.name].append(at)
    for name, places in by_file.items():
        try:
            chosen = [frames[at] for at in places]
            for at, (values, holes) in zip(places, _decoded(source, name, chosen)):
                array[:, at] = values
                if padded is not None and holes is not None:
                    padded[at] = holes
        except (Damaged, *DAMAGE) as error:
            reason = f"{name}: {str(error) or type(error).__name__}"
            raise BadData([damaged_file(case, reason, AGAIN)]) from error
    problems: list[Problem] = []
    if padded is not None and padded.any() and colours == 1:
        problems += _without_padding(case, array[0], padded)
    if of.photometric == "MONOCHROME1" and of.modality not in MEASURED:
        found = "MONOCHROME1, as on film: bright is low"
        fix = "nothing: the values were turned over, so that bright is high"
        problems.append(Problem(case, "the image is stored as a negative", found, fix, fatal=False))
    return array, problems


def _without_padding(
    case: str, voxels: NDArray[np.float32], padded: NDArray[np.bool_]
) -> Iterator[Problem]:
    """Give padding that stands out the lowest real value, in place, and tell it."""
    real = voxels[~padded]
    if not real.size:
        return
    low, high = float(real.min()), float(real.max())
    margin = STANDS_OUT * (high - low)
    outside = padded & ((voxels < low - margin) | (voxels > high))
    count = int(np.count_nonzero(outside))
    if not count:
        return
    voxels[outside] = low
    yield Problem(
        case,
        "the scanner filled a part of the image with padding",
        f"{count} voxels, set to {low:g}, the lowest real value",
        "nothing",
        fatal=False,
    )


def _decoded(
    source: Source, name: str, frames: Sequence[Frame]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_] | None]]:
    """The rescaled values (C, row, column) of frames of one file, and where they are padding."""
    of = frames[0].instance
    expected = of.rows * of.columns * of.samples * of.frames * of.bits // 8
    whole = not of.compressed and of.photometric != "YBR_FULL_422"
    with source.stream(name) as stream:
        dataset = read_whole(stream)
        with damage():
            there = len(dataset.get("PixelData") or ())
            if whole and "PixelData" in dataset and there < expected:
                raise ValueError(f"{there} of {expected} bytes of pixels are there: it is cut off")
            if not any(kind in dataset for kind in PIXELS):
                # what ends within its pixels is read as if it had none
                raise ValueError("it is cut off before the end of its pixels, or holds none")
            # a byte may fill up an odd length, and old scanners fill up blocks with zeros
            excess = (dataset.get("PixelData") or b"")[expected + expected % 2 :] if whole else b""
            if excess.strip(b"\0"):
                raise ValueError(f"{there} bytes of pixels, {expected} by its Rows and Columns")
            for frame, stored in zip(frames, unpacked(dataset, frames)):
                yield _values(dataset, stored, frame)


def unpacked(dataset: Any, frames: Sequence[Frame]) -> Iterator[NDArray[Any]]:
    """The stored pixels (row, column[, sample]) of frames of a dataset, one by one.

    Raises ValueError, before anything is unpacked, where a packed frame says that it is of another
    size than its header: a decoder would ask for the memory that a few bytes name.
    """
    if not frames:
        return
    of = frames[0].instance
    if of.compressed:
        table = "ExtendedOffsetTable"
        where = (
            (dataset[table].value, dataset[f"{table}Lengths"].value) if table in dataset else None
        )
        for packed in need("pydicom.encaps").generate_frames(
            dataset.PixelData, number_of_frames=of.frames, extended_offsets=where
        ):
            size = size_of(packed)
            if size is not None and size != (of.rows, of.columns):
                raise ValueError(
                    f"its packed pixels are {size[0]} x {size[1]}, its header says {of.rows} x "
                    f"{of.columns}"
                )
    # the Rust decoder of RLE panics on damaged frames, which nothing but itself can catch
    plugin = "pydicom" if dataset.file_meta.get("TransferSyntaxUID") == RLE else ""
    chosen = [frame.index for frame in frames]
    yield from need("pydicom.pixels").iter_pixels(dataset, indices=chosen, decoding_plugin=plugin)


def _values(
    dataset: Any, stored: NDArray[Any], frame: Frame
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    of = frame.instance
    if stored.shape[:2] != (of.rows, of.columns):
        raise Damaged(f"it holds {stored.shape[:2]} pixels, not {(of.rows, of.columns)}")
    pixels = need("pydicom.pixels")
    if of.photometric == "PALETTE COLOR":
        coloured = pixels.apply_color_lut(stored, dataset)[..., :3]
        return np.moveaxis(coloured.astype(np.float64), -1, 0), None
    if of.samples > 1:
        return np.moveaxis(stored.astype(np.float64), -1, 0), None
    stored = _significant(dataset, stored)
    holes = None
    if of.padding is not None:
        holes = (stored >= of.padding[0]) & (stored <= of.padding[1])
    if of.photometric == "MONOCHROME1" and of.modality not in MEASURED:
        stored = _turned_over(dataset, stored)
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(pixels.apply_modality_lut(stored, dataset), np.float64)[None], holes
    if frame.slope == 0:
        raise Damaged("RescaleSlope is 0: every value would be the same")
    return (stored.astype(np.float64) * frame.slope + frame.intercept)[None], holes


def _significant(dataset: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """Integers without what lies in the bits above those in use (overlays of old scanners)."""
    used = dataset.get("BitsStored")
    if stored.dtype.kind not in "iu" or not used:
        return stored
    spare = stored.dtype.itemsize * 8 - int(used)
    return stored if spare <= 0 else (stored << spare) >> spare


def _turned_over(dataset: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """The negative of stored values, over the range that their bits can hold."""
    if stored.dtype.kind == "f":
        return np.asarray(stored.max() + stored.min() - stored)
    bits = int(dataset.get("BitsStored") or stored.dtype.itemsize * 8)
    whole = stored.astype(np.int64)
    return -1 - whole if stored.dtype.kind == "i" else (1 << bits) - 1 - whole


def header_of(instance: Instance, source: Source) -> Any:
    """The full header of an image file, as pydicom has it. Raises BadData."""
    try:
        with source.stream(instance.name) as stream:
            return read_header(stream)
    except (Damaged, *DAMAGE) as error:
        raise BadData([damaged_file(instance.name, str(error))]) from error
