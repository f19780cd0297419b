"""Pictures: png, jpg, bmp and tif, which hold pixels but no place and no spacing.

A photograph is turned as its EXIF orientation says, as viewers and labelling tools show it. A
picture of W x H pixels is the grid (W, H, 1) with spacing 1 and the identity affine. Grey
pictures give one channel, coloured ones three; a palette is looked up for an image and left alone
for a label map, where its numbers are the labels. Transparency is dropped, with a warning where it
hid something. A tif of several equal pages is a volume. A file that cannot be used raises BadData.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError

from autoseg.errors import BadData, Problem
from autoseg.image.declared import (
    DEFLATE,
    RAW,
    TIFF_FACTORS,
    UNBOUNDED,
    check_declared,
    check_png_chunks,
    check_tiff,
)
from autoseg.image.itk import read_itk, read_itk_header
from autoseg.image.volume import Grid, Header

# Channels and stored type of each Pillow mode once transparency and palettes are resolved.
MODES = {
    "1": (1, "uint8"),
    "L": (1, "uint8"),
    "LA": (1, "uint8"),
    "I": (1, "int32"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
    "I;16L": (1, "uint16"),
    "F": (1, "float32"),
}
COLOUR = (3, "uint8")
ORIENTATION = 274
ALPHA = {"LA": "L", "RGBA": "RGB", "PA": "RGB", "La": "L", "RGBa": "RGB"}


def read_raster_header(path: Path, case: str, kind: str) -> Header:
    """The header of a picture; the pixels are not unpacked."""
    _judge_file(path, case, kind)
    if kind == "tiff":
        return _tiff_header(path, case)
    if _is_deep_colour(path, case, kind):
        deep = read_itk_header(path, case, "png")
        channels = deep.channels - _has_alpha("S", deep.channels)
        width, height, _ = deep.grid.shape
        with Image.open(path) as picture:
            size = _shown_size((width, height), _orientation(picture))
        return Header(_grid((*size, 1)), channels, deep.dtype)
    with _explained(path, case), Image.open(path) as picture:
        _judge_picture(picture, path, case, kind)
        channels, dtype = MODES.get(picture.mode, COLOUR)
        size = _shown_size(picture.size, _orientation(picture))
        return Header(_grid((*size, 1)), channels, dtype)


def read_raster(
    path: Path, case: str, kind: str, *, labels: bool = False
) -> tuple[NDArray[Any], Header]:
    """The pixels (C, i, j, k) in their stored type, and the header; axis i runs along a row."""
    _judge_file(path, case, kind)
    if kind == "tiff":
        return _read_tiff(path, case, labels)
    if _is_deep_colour(path, case, kind):
        deep = read_itk(path, case, "png")[0].transpose(3, 2, 1, 0)
        with Image.open(path) as picture:
            deep = turned(deep, _orientation(picture))
        return _with_header(*_opaque(deep, "S", path, case))
    with _explained(path, case), Image.open(path) as picture:
        _judge_picture(picture, path, case, kind)
        orientation = _orientation(picture)
        pixels, problems = _pixels(picture, path, case, labels)
    return _with_header(turned(pixels[None], orientation), problems)


def write_raster(path: Path, array: NDArray[Any]) -> None:
    """Write integers (C, i, j, k), with one or three channels, as the suffix of `path` says."""
    stored = array.transpose(3, 2, 1, 0)
    if path.suffix.lower() in (".tif", ".tiff"):
        colour = stored.shape[-1] == 3
        pages = stored if colour else stored[..., 0]
        tifffile.imwrite(
            path,
            # one page is written as a picture: other programs take no stack of one
            np.ascontiguousarray(pages[0] if len(pages) == 1 else pages),
            photometric="rgb" if colour else "minisblack",
        )
        return
    page = stored[0] if stored.shape[-1] == 3 else stored[0, ..., 0]
    Image.fromarray(np.ascontiguousarray(page)).save(path)


def _orientation(picture: Image.Image) -> int:
    """How a picture is to be shown, as its EXIF says: 1 (as stored) to 8; 1 where that is damaged."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # a camera's notes, whose damage harms no pixel
        return 1


def turned(pages: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pages (k, H, W, C) as viewers show them, by the EXIF orientation (CIPA DC-008, tag 274)."""
    if orientation >= 5:
        pages = pages.transpose(0, 2, 1, 3)
    if orientation in (3, 4, 7, 8):
        pages = pages[:, ::-1]
    return pages[:, :, ::-1] if orientation in (2, 3, 6, 7) else pages


def _shown_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if 5 <= orientation <= 8 else size


def _pixels(
    picture: Image.Image, path: Path, case: str, labels: bool
) -> tuple[NDArray[Any], tuple[Problem, ...]]:
    """The pixels (H, W, C) of one page."""
    problems: tuple[Problem, ...] = ()
    if picture.mode in ALPHA:
        alpha = np.asarray(picture.getchannel("A" if "A" in picture.mode else "a"))
        if alpha.min() != alpha.max():
            problems = (_transparent(path, case),)
        picture = picture.convert(ALPHA[picture.mode])
    if picture.mode in (*MODES, "RGB") or (picture.mode == "P" and labels):
        pixels = np.asarray(picture)
    else:
        pixels = np.asarray(picture.convert("RGB"))
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return (pixels if pixels.ndim == 3 else pixels[..., None]), problems


def _transparent(path: Path, case: str) -> Problem:
    return Problem(
        case,
        "transparency is dropped",
        f"{path} has pixels of different opacity",
        "flatten the picture if what the transparency hides must not be seen",
        fatal=False,
    )


def _with_header(
    pages: NDArray[Any], problems: tuple[Problem, ...] = ()
) -> tuple[NDArray[Any], Header]:
    """Pages (k, j, i, C) as (C, i, j, k) and their header."""
    array = pages.transpose(3, 2, 1, 0)
    header = Header(_grid(array.shape[1:]), array.shape[0], array.dtype.name, problems)
    return array, header


def _judge_file(path: Path, case: str, kind: str) -> None:
    """Raises BadData for a file whose parts cannot be what they are said to be."""
    if kind == "tiff":
        check_tiff(path, case)
    elif kind == "png":
        check_png_chunks(path, case)


def _judge_picture(picture: Image.Image, path: Path, case: str, kind: str) -> None:
    """Raises BadData for a picture with more pixels than its file can hold."""
    factor = DEFLATE
    if kind == "bmp":
        factor = RAW if picture.info.get("compression", 0) in (0, 3) else UNBOUNDED
    channels, dtype = MODES.get(picture.mode, COLOUR)
    # palettes and masks may take a bit a pixel, and greys are stored in colours
    bits = {"1": 1, "L": 1, "P": 1, "PA": 2, "LA": 2}.get(picture.mode, 0)
    size = bits / 8 if bits else channels * np.dtype(dtype).itemsize
    if picture.mode == "RGB":
        size = 2 if kind == "bmp" else 3 / 8 if kind == "png" else 3
    check_declared(path, case, picture.size, size, factor, path.stat().st_size)


def _judge_series(series: Any, path: Path, case: str) -> None:
    """Raises BadData where a tif's own description promises more pages than there are."""
    factor = TIFF_FACTORS.get(int(series.keyframe.compression), UNBOUNDED)
    bits = int(np.max(series.keyframe.bitspersample))
    # colours of a raw YCbCr page may be stored at half of the size
    factor = 2 * factor if factor == RAW else factor
    check_declared(path, case, series.shape, bits / 8, factor, path.stat().st_size)


def _tiff_header(path: Path, case: str) -> Header:
    with _explained(path, case), tifffile.TiffFile(path) as file:
        series = file.series[0]
        _judge_series(series, path, case)
        shape = _tiff_layout(series.axes, series.shape, path, case)
        indexed = series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE
        channels = 3 if indexed else shape[3] - _has_alpha(series.axes, shape[3])
        dtype = "uint8" if indexed or series.dtype == bool else series.dtype.name
        size = _shown_size((shape[2], shape[1]), _tiff_orientation(series))
        return Header(_grid((*size, shape[0])), channels, dtype)


def _tiff_orientation(series: Any) -> int:
    tag = series.keyframe.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and isinstance(tag.value, int) else 1


def _read_tiff(path: Path, case: str, labels: bool) -> tuple[NDArray[Any], Header]:
    with _explained(path, case), tifffile.TiffFile(path) as file:
        series = file.series[0]
        _judge_series(series, path, case)
        shape = _tiff_layout(series.axes, series.shape, path, case)
        indexed = series.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE
        # Packing that tifffile cannot undo alone (LZW, JPEG), and palettes, are Pillow's.
        alone = series.keyframe.compression in (1, 8, 32946) and not (indexed and not labels)
        if alone:
            pages = turned(_tiff_pages(series, shape), _tiff_orientation(series))
            return _with_header(*_opaque(pages, series.axes, path, case))
    with _explained(path, case), Image.open(path) as picture:
        read = [_pixels(page, path, case, labels) for page in ImageSequence.Iterator(picture)]
    return _with_header(np.stack([pixels for pixels, _ in read]), read[0][1])


def _tiff_pages(series: Any, shape: tuple[int, int, int, int]) -> NDArray[Any]:
    array = np.asarray(series.asarray())
    if array.dtype == bool:
        array = array.astype(np.uint8)
    axes: str = series.axes
    colour = next((axes.index(letter) for letter in "SC" if letter in axes), None)
    return (array if colour is None else np.moveaxis(array, colour, -1)).reshape(shape)


def _has_alpha(axes: str, samples: int) -> bool:
    """True where the last of the samples in a pixel is its opacity: grey or colour and one more."""
    return "S" in axes and samples in (2, 4)


def _opaque(
    pages: NDArray[Any], axes: str, path: Path, case: str
) -> tuple[NDArray[Any], tuple[Problem, ...]]:
    """Pages (k, j, i, C) without their opacity, and a warning if it was not the same all over."""
    if not _has_alpha(axes, pages.shape[3]):
        return pages, ()
    same = pages[..., -1].min() == pages[..., -1].max()
    return pages[..., :-1], () if same else (_transparent(path, case),)


def _tiff_layout(
    axes: str, shape: tuple[int, ...], path: Path, case: str
) -> tuple[int, int, int, int]:
    """(pages, height, width, channels) of a tif series; anything richer is refused."""
    named = dict(zip(axes, shape))
    colours = named.get("S", 1) * named.get("C", 1)
    height, width = named.get("Y", 0), named.get("X", 0)
    # A list, not the dict: a stack of stacks has the unnamed axis "Q" twice.
    deep = [(name, n) for name, n in zip(axes, shape) if name not in "SCYX" and n > 1]
    if not height or not width or len(deep) > 1 or any(name == "T" for name, _ in deep):
        raise BadData(
            [
                Problem(
                    case,
                    "the file holds several volumes (4D) where one is expected",
                    f"{path}: axes {axes}, size {' x '.join(str(n) for n in shape)}",
                    "save one picture or one stack of slices per file",
                )
            ]
        )
    return (deep[0][1] if deep else 1, height, width, colours)


def _is_deep_colour(path: Path, case: str, kind: str) -> bool:
    """True for a png with 16 bits a colour, which Pillow would cut to 8: left to SimpleITK."""
    if kind != "png":
        return False
    with path.open("rb") as file:
        depth, colour_type = (*file.read(26)[24:], 0, 0)[:2]
    if (depth, colour_type) == (16, 4):
        what, found = "16-bit grey with transparency cannot be read", f"{path}: png colour type 4"
        raise BadData([Problem(case, what, found, "save the picture without transparency")])
    return depth == 16 and colour_type in (2, 6)


def _grid(shape: tuple[int, ...]) -> Grid:
    return Grid.of(shape, np.eye(4), placed=False)


@contextmanager
def _explained(path: Path, case: str) -> Iterator[None]:
    """Turns what the decoders raise into BadData, and lets large slides pass without a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError as error:
        raise BadData(
            [
                Problem(
                    case,
                    "the picture is too large to open at once",
                    f"{path}: {error}",
                    "cut it into tiles",
                )
            ]
        ) from error
    except (
        UnidentifiedImageError,
        tifffile.TiffFileError,
        OSError,
        SyntaxError,
        ValueError,
        IndexError,
    ) as error:
        raise BadData(
            [
                Problem(
                    case,
                    "the file cannot be read",
                    f"{path}: {error}",
                    "copy or export the file again; this one is damaged",
                )
            ]
        ) from error
