"""How a prepared case is written: which floats it is kept in, how its labels are packed, its places.

The counterpart of `data.store`, which says what lies in the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from autoseg.data.bricks import IMAGE_BRICK, LABEL_BRICK, PAGE, bits_for, laid, packed_labels
from autoseg.data.store import SCHEMA, Image
from autoseg.documents.labels import IGNORE
from autoseg.files import write_json

PLACES_LEAST = 10_000
PLACES_SHARE = 0.01
PLACES_SEED = 1234
LARGEST_HALF = 65504.0
ROUNDING = 1e-3
"""Half floats are kept where rounding moves a channel's values by less than this share of their
standard deviation (root mean square). Of normalised values it moves about a third of that."""
PLANES = 16
"""So many planes of a channel are rounded to try it."""

OWN_KEYS = ("schema", "shape", "channels", "classes", "bricks", "labels")


def write_case(
    folder: Path,
    image: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]] | None,
    info: Mapping[str, Any],
) -> None:
    """Fill `folder`, empty and owned by the caller, with one prepared case.

    `image` is (C, Z, Y, X), `labels` (Z, Y, X) with class indices, -1 outside the crop mask and -2
    where nobody labelled; None for a case without labels. `info` goes into case.json beside our own
    keys (the spacing, the crop box, the shapes before cropping and resampling, the file's grid, …)
    and must hold neither NaN nor infinity. Raises ValueError for arrays or keys that do not fit.
    """
    if image.ndim != 4 or (labels is not None and labels.shape != image.shape[1:]):
        found = None if labels is None else labels.shape
        raise ValueError(f"an image (C, Z, Y, X) and its labels: {image.shape} and {found}")
    if clash := sorted(set(info) & set(OWN_KEYS)):
        raise ValueError(f"case.json keeps these keys to itself: {clash}")
    ranges: dict[str, list[int]] = {}
    places: NDArray[np.integer[Any]] = np.empty(0, np.int32)
    packing = None
    _save(folder / "image.npy", laid(narrowed(image), IMAGE_BRICK))
    if labels is not None:
        bits, least = bits_for(labels)
        kind = "int8" if labels.max(initial=0) <= np.iinfo(np.int8).max else "int16"
        packing = {"bits": bits, "least": least, "kind": kind}
        _save(folder / "label.npy", laid(packed_labels(labels, bits, least)[None], LABEL_BRICK))
        places, ranges = _places(labels)
    np.save(folder / "places.npy", places)
    document = {
        "schema": SCHEMA,
        "shape": list(image.shape[1:]),
        "channels": image.shape[0],
        "bricks": {"image": list(IMAGE_BRICK), "labels": list(LABEL_BRICK)},
        "labels": packing,
        "classes": ranges if labels is not None else None,
        **info,
    }
    write_json(folder / "case.json", document, durable=False)


def narrowed(image: NDArray[np.floating[Any]]) -> Image:
    """The image (C, Z, Y, X) in half floats, or in float32 where these would lose too much.

    A value of 6e-5 or more is rounded by at most 2^-11 of itself, a smaller one by at most 2^-25.
    Normalised values bear that; unnormalised ones may be too large for half floats, or lie far
    from 0 and close together.
    """
    for channel in image:
        if not channel.size:
            continue
        if not max(abs(float(channel.min())), abs(float(channel.max()))) <= LARGEST_HALF:
            return image.astype(np.float32, copy=False)
        some = channel[:: -(-len(channel) // PLANES)].astype(np.float32)
        lost = some.astype(np.float16).astype(np.float32) - some
        if not np.sqrt(np.mean(lost * lost)) <= ROUNDING * some.std():
            return image.astype(np.float32, copy=False)
    return image.astype(np.float16)


def _save(file: Path, array: NDArray[Any]) -> None:
    """As np.save does, but what it holds begins at a page, so that bricks fill pages."""
    header = npy.header_data_from_array_1_0(array)
    with file.open("wb") as handle:
        text = repr(header)
        start = npy.magic(1, 0) + (PAGE - 10).to_bytes(2, "little")
        handle.write(start + (text.ljust(PAGE - 11) + "\n").encode("latin1"))
        handle.write(array.reshape(-1).view(np.uint8).data)


def _places(
    labels: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.integer[Any]], dict[str, list[int]]]:
    """Sampled places of each foreground class (numbers of voxels), each class' [start, stop] there.

    Of n voxels, max(10 000, 1 %) are kept, all where there are fewer: nnU-Net's rule. Where nobody
    labelled some voxels, places of whatever is labelled, background too, come first, as class 0.
    """
    foreground = np.flatnonzero(labels > 0)
    classes = labels.reshape(-1)[foreground]
    wanted = [(index, foreground[classes == index]) for index in np.unique(classes).tolist()]
    if (labels == IGNORE).any() and (labels >= 0).any():
        wanted.insert(0, (0, np.flatnonzero(labels >= 0)))
    parts: list[NDArray[np.intp]] = []
    ranges: dict[str, list[int]] = {}
    start = 0
    for index, here in wanted:
        keep = min(here.size, max(PLACES_LEAST, int(PLACES_SHARE * here.size)))
        if keep < here.size:
            rng = np.random.default_rng((PLACES_SEED, index))
            here = here[np.sort(rng.choice(here.size, keep, replace=False, shuffle=False))]
        parts.append(here)
        ranges[str(index)] = [start, start + keep]
        start += keep
    kind = np.int32 if labels.size <= np.iinfo(np.int32).max else np.int64
    return np.concatenate([np.empty(0, np.intp), *parts]).astype(kind), ranges
