"""How does one case of others become the files of one case of ours.

A file that is right as it is gets copied byte for byte (or linked), after it was read once from
end to end; only what nobody could use as it is gets written anew: DICOM, stacks of pictures, 4D
files, GIF, transparent pictures, label values that mean something else.
"""

import gzip
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from autoseg.documents.conversion import Link, Range, Source, SourceCase
from autoseg.documents.dataset import suffix_of
from autoseg.errors import BadData, Problem, raise_fatal
from autoseg.files import explaining, replacing
from autoseg.image.checks import check_label_values, check_same_grid
from autoseg.image.reading import read_header, read_image, read_labels, write_image, write_labels
from autoseg.image.tif_spacing import spacing_files, write_spacing
from autoseg.image.volume import Grid
from autoseg.interop.conversion.layout_files import number_key
from autoseg.interop.conversion.nifti_frames import frames_of, split
from autoseg.interop.dicom.pixels import read_series
from autoseg.interop.dicom.series import Series, find

IMAGE_ENDINGS = {".nhdr": ".nrrd", ".mhd": ".mha", ".gipl": ".nii.gz", ".gif": ".png"}
"""What images become that would lose their other half, or that the pipeline does not read."""
LOSSY = (".jpg", ".jpeg", ".gif", ".gipl", ".nhdr", ".mhd")
"""Label maps are never kept in these."""
AXES = "stored"


@dataclass(frozen=True)
class Terms:
    """What holds for every case. No `allowed`: any value may stand in a label map."""

    channels: int
    ranges: tuple[Range, ...]
    allowed: tuple[int, ...]
    ignore: int | None
    label_ending: str
    spacing_mm: tuple[float, float, float] | None
    link: Link
    paint_over: bool
    pack: bool
    """`.nii` files are compressed."""


@dataclass(frozen=True)
class Work:
    """One case, and the folder of the dataset."""

    case: SourceCase
    folder: Path
    terms: Terms

    def __str__(self) -> str:
        return self.case.id


@dataclass(frozen=True)
class Made:
    """The files of a case, relative to the dataset's folder, and what was odd about it."""

    files: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass
class _Seen:
    """What is known of a case's images once they are written."""

    paths: list[Path]
    grid: Grid | None
    series: Series | None
    problems: list[Problem]


def image_ending(path: Path, *, pack: bool) -> str:
    """The ending that an image file has in our dataset."""
    own = ".gif" if path.name.lower().endswith(".gif") else suffix_of(path.name).lower()
    return ".nii.gz" if pack and own == ".nii" else IMAGE_ENDINGS.get(own, own)


def make_case(work: Work) -> Made:
    """Write the files of one case. Raises BadData."""
    case, part = work.case, "Ts" if work.case.test else "Tr"
    images = work.folder / f"images{part}"
    images.mkdir(parents=True, exist_ok=True)
    seen = _Seen([], None, None, [])
    for source in case.images:
        _image(work, source, images, seen)
    if seen.grid is None:
        raise ValueError(f"{case.id} has no image")
    written = list(seen.paths)
    if case.label is not None:
        target = work.folder / f"labels{part}" / f"{case.id}{work.terms.label_ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        _label(work, case.label, target, seen)
        written.append(target)
    return Made(
        tuple(path.relative_to(work.folder).as_posix() for path in written),
        tuple(replace(p, case=case.id, fatal=False) for p in seen.problems),
    )


def _image(work: Work, source: Source, folder: Path, seen: _Seen) -> None:
    """One source of an image as files CASE_0000, …, numbered on from those that are there."""
    if source.reads == "dicom":
        seen.series = series_of(source.files, work.case.id)
        # masks belong to slices, so a gap between slices does not part them: it is only told
        volume, problems = read_series(seen.series, AXES, work.case.id, accept_uneven=True)
        seen.problems += problems
        _write_channels(work, volume.array, volume.grid, folder, seen)
    elif source.reads == "slices":
        _stack(work, source, folder, seen)
    else:
        (path,) = source.files
        frames = frames_of(path)
        if frames is None:
            _file(work, path, folder, seen)
            return
        ending = image_ending(path, pack=work.terms.pack)
        targets = [_next(work, folder, seen, n, ending) for n in range(frames.count)]
        split(frames, targets)
        for target in targets:
            _same(work, read_header(target).grid, seen, path.name)
            seen.paths.append(target)


def _file(work: Work, path: Path, folder: Path, seen: _Seen) -> None:
    """An image file as it is, read once; written anew only where its kind is none of ours."""
    target = _next(work, folder, seen, 0, image_ending(path, pack=work.terms.pack))
    if path.name.lower().endswith(".gif"):
        array = gif(path, grey=work.terms.channels == 1)
        grid = Grid.of((array.shape[3], array.shape[2], 1), np.eye(4), placed=False)
        write_image(target, array, AXES, grid)
    else:
        volume, problems = read_image([path], AXES)
        seen.problems += problems
        array, grid = volume.array, volume.grid
        if suffix_of(path.name).lower() in IMAGE_ENDINGS or _has_alpha(path):
            write_image(target, narrow(array), AXES, grid)
        else:
            bring(path, target, work.terms.link)
            if spacing_files([path]):
                write_spacing(target, grid, labels=False)
    _same(work, grid, seen, path.name)
    seen.paths.append(target)


def _stack(work: Work, source: Source, folder: Path, seen: _Seen) -> None:
    """Pictures, one a slice, as one NIfTI file a channel."""
    if work.terms.spacing_mm is None:
        raise ValueError("a stack of pictures needs spacing_mm")
    pages = []
    for path in sorted(source.files, key=number_key):
        if path.name.lower().endswith(".gif"):
            pages.append(gif(path, grey=work.terms.channels == 1))
            continue
        volume, problems = read_image([path], AXES)
        seen.problems += problems
        pages.append(volume.array)
    odd = next((n for n, page in enumerate(pages) if page.shape != pages[0].shape), None)
    if odd is not None:
        found = f"{_size(pages[odd])}, the first {_size(pages[0])}"
        raise _bad(work.case.id, "the slices of a stack differ in size", found)
    array = np.concatenate(pages, axis=1)
    _write_channels(work, array, stacked_grid(array.shape[1:], work.terms.spacing_mm), folder, seen)


def stacked_grid(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> Grid:
    """The grid of a stack (slices, rows, columns): columns run to the left, rows to the back,
    slices upwards, as radiological pictures are mostly shown."""
    k, j, i = shape
    affine = np.diag([-spacing_mm[2], -spacing_mm[1], spacing_mm[0], 1.0])
    return Grid.of((i, j, k), affine)


def _write_channels(work: Work, array: NDArray[Any], grid: Grid, folder: Path, seen: _Seen) -> None:
    _same(work, grid, seen, "image")
    for channel in array:
        target = _next(work, folder, seen, 0, ".nii.gz")
        write_image(target, narrow(channel)[None], AXES, grid)
        seen.paths.append(target)


def _next(work: Work, folder: Path, seen: _Seen, ahead: int, ending: str) -> Path:
    return folder / f"{work.case.id}_{len(seen.paths) + ahead:04d}{ending}"


def _same(work: Work, grid: Grid, seen: _Seen, name: str) -> None:
    """Keep the first grid; another size raises BadData, another place is a warning."""
    if seen.grid is None:
        seen.grid = grid
        return
    differences = list(check_same_grid(work.case.id, seen.grid, grid, AXES, f"channel {name}"))
    raise_fatal(p for p in differences if "size" in p.what)
    seen.problems += differences


def _label(work: Work, source: Source, target: Path, seen: _Seen) -> None:
    """The label map of a case, checked; copied where nothing of it changes."""
    terms, case = work.terms, work.case
    assert seen.grid is not None
    array, grid, problems = label_array(source, seen.grid, seen.series, case.id, terms)
    differences = list(check_same_grid(case.id, seen.grid, grid, AXES))
    raise_fatal(p for p in differences if "size" in p.what)
    seen.problems += [*problems, *differences]
    if terms.allowed:
        fix = (
            "declare them (labels), say what they become (values, as 0=0,255=1), or correct the "
            "drawing"
        )
        strange = check_label_values(case.id, array, terms.allowed)
        raise_fatal(replace(problem, fix=fix) for problem in strange)
    if case.field_of_view is not None and terms.ignore is not None:
        view, *_ = label_array(
            case.field_of_view, seen.grid, seen.series, case.id, replace(terms, ranges=())
        )
        if view.shape != array.shape:
            raise _bad(case.id, "field of view and label differ in size", _size(view[None]))
        array = np.where(view == 0, np.int32(terms.ignore), array)
    path = source.files[0]
    as_it_is = source.reads == "file" and not terms.ranges and case.field_of_view is None
    if as_it_is and _keeps(path, terms.label_ending):
        bring(path, target, terms.link)
        if spacing_files([path]):
            write_spacing(target, grid, labels=True)
    else:
        write_labels(target, array, AXES, grid)


def _keeps(path: Path, ending: str) -> bool:
    """Whether a label file may stay as it is under an ending."""
    own = suffix_of(path.name).lower()
    same = own == ending or (own, ending) == (".nii", ".nii.gz")
    return same and own not in LOSSY and not _has_alpha(path)


def label_array(
    source: Source, grid: Grid, series: Series | None, case: str, terms: Terms
) -> tuple[NDArray[np.int32], Grid, list[Problem]]:
    """The label map (k, j, i) in our values, its grid, and what was odd. Raises BadData."""
    if source.reads == "slices":
        return _slices(source, grid, series, case, terms), grid, []
    found, problems = [], []
    own = grid
    for path in source.files:
        values, own, more = _mask(path, grid)
        problems += more
        found.append(mapped(values, terms.ranges, case, path.name))
    odd = next((f for f in found if f.shape != found[0].shape), None)
    if odd is not None:
        found_sizes = f"{_size(odd[None])} and {_size(found[0][None])}"
        raise _bad(case, "masks of one case differ in size", found_sizes)
    if source.reads == "structures":
        return _painted(source, found, case, terms), own, problems
    joined = found[0]
    for other in found[1:]:
        joined = np.maximum(joined, other)
    return joined, own, problems


def _painted(
    source: Source, masks: Sequence[NDArray[np.int32]], case: str, terms: Terms
) -> NDArray[np.int32]:
    """One label map of a mask a structure. Raises BadData where they overlap, unless that is wished."""
    painted = np.zeros(masks[0].shape, np.int32)
    for path, mask, value in zip(source.files, masks, source.values, strict=True):
        inside = mask > 0
        both = inside & (painted > 0) & (painted != value)
        if both.any() and not terms.paint_over:
            found = f"{path.name} covers {np.count_nonzero(both)} voxels of another structure"
            fix = "choose --paint-over, by which later labels lie over earlier ones, or mend them"
            raise BadData([Problem(case, "structures overlap", found, fix)])
        painted[inside] = value
    return painted


def _slices(
    source: Source, grid: Grid, series: Series | None, case: str, terms: Terms
) -> NDArray[np.int32]:
    """Masks of single slices, the n-th of which belongs to the n-th file of the image."""
    i, j, k = grid.shape
    files = sorted(source.files, key=number_key)
    if len(files) != k:
        found = f"{len(files)} masks for {k} slices"
        raise _bad(case, "masks and slices differ in number", found)
    order = list(range(k))
    if series is not None:
        names = [Path(frame.instance.name) for frame in series.frames]
        order = sorted(range(k), key=lambda n: number_key(names[n]))
    page_grid = Grid.of((i, j, 1), np.eye(4), placed=False)
    array = np.zeros((k, j, i), np.int32)
    for path, at in zip(files, order, strict=True):
        page = mapped(_mask(path, page_grid)[0], terms.ranges, case, path.name)
        if page.shape != (1, j, i):
            found = f"{path.name} has {_size(page[None])} pixels, the slice {j} x {i}"
            raise _bad(case, "mask and slice differ in size", found)
        array[at] = page[0]
    return array


def _mask(path: Path, grid: Grid) -> tuple[NDArray[np.int32], Grid, list[Problem]]:
    """The values (k, j, i) of a label file as they are stored, its grid, and what was odd."""
    if path.name.lower().endswith(".gif"):
        array = gif(path, grey=True)[0].astype(np.int32)
        return array, Grid.of((array.shape[2], array.shape[1], 1), np.eye(4), placed=False), []
    volume, problems = read_labels(path, AXES, grid)
    raise_fatal(problems)
    return volume.array[0], volume.grid, problems


def mapped(
    values: NDArray[np.int32], ranges: Sequence[Range], case: str, name: str
) -> NDArray[np.int32]:
    """The source's values as ours. Raises BadData for a value that no range holds."""
    if not ranges:
        return values
    ours = np.zeros_like(values)
    known = np.zeros(values.shape, bool)
    for low, high, value in ranges:
        inside = (values >= low) & (values <= high)
        ours[inside] = value
        known |= inside
    if not known.all():
        strange = ", ".join(str(v) for v in np.unique(values[~known])[:5])
        what = "a label map holds values that the conversion does not know"
        fix = "say what they mean (values), or look whether this file is what it is taken for"
        raise BadData([Problem(case, what, f"{name}: {strange}", fix)])
    return ours


def series_of(files: Iterable[Path], case: str) -> Series:
    """The one DICOM series that files of one folder make. Raises BadData."""
    paths = list(files)
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    found = find(folder)
    raise_fatal(found.problems)
    names = {path.relative_to(folder).as_posix() for path in paths}
    fitting = [s for s in found.series if any(f.instance.name in names for f in s.frames)]
    if len(fitting) != 1:
        told = "; ".join(series.described for series in fitting[:4]) or "none"
        raise _bad(case, f"{len(fitting)} DICOM series where one is expected", told)
    return fitting[0]


def gif(path: Path, *, grey: bool) -> NDArray[np.uint8]:
    """The first page of a GIF as (1 or 3, 1, rows, columns). Raises BadData."""
    try:
        with explaining(path, "read"), path.open("rb") as file, Image.open(file) as picture:
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        raise _bad(path.stem, "the file cannot be read", f"{path}: {error}") from error
    return np.moveaxis(np.atleast_3d(pixels), -1, 0)[:, None]


def _has_alpha(path: Path) -> bool:
    """Whether a PNG or TIFF has an opacity, which is dropped."""
    if suffix_of(path.name).lower() not in (".png", ".tif", ".tiff"):
        return False
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            return picture.mode in ("LA", "RGBA", "PA", "La", "RGBa")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
        return False  # kinds that Pillow does not know are read by others, and stay as they are


def narrow(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the smallest of uint8, int16, uint16 that holds it exactly, else as it is."""
    for kind in (np.uint8, np.int16, np.uint16):
        limits = np.iinfo(kind)
        if array.size and array.min() >= limits.min and array.max() <= limits.max:
            whole = array.astype(kind)
            if np.array_equal(whole, array):
                return whole
    return array


def bring(source: Path, target: Path, link: Link) -> None:
    """The file under its new name: linked if that is wished and possible, packed or copied."""
    if suffix_of(source.name).lower() == ".nii" and target.name.endswith(".gz"):
        with (
            replacing(target, durable=False) as half,
            explaining(source, "read"),
            source.open("rb") as file,
            gzip.open(half, "wb", 1) as out,
        ):
            shutil.copyfileobj(file, out, 1 << 20)
        return
    with replacing(target, durable=False) as half, explaining(source, "read"):
        half.unlink(missing_ok=True)
        if link == "soft":
            half.symlink_to(source.resolve())
            return
        if link == "hard":
            try:
                os.link(source.resolve(), half)
                return
            except OSError:
                pass  # another disk, or a file system without links: it is copied
        shutil.copyfile(source, half)


def _size(array: NDArray[Any]) -> str:
    return " x ".join(str(n) for n in array.shape[1:])


def _bad(case: str, what: str, found: str) -> BadData:
    return BadData([Problem(case, what, found, "export the case again, or take it out")])
