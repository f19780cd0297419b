"""What a prepared case is on disk, and how a part of it is read.

A case is a folder of plain arrays, so that a patch costs no decompression and small datasets can
live in memory: `image.npy` (C, Z, Y, X), `label.npy` (Z, Y, X), `places.npy` (N, 3) with places of
the foreground sorted by class, and `case.json`. The folder's name is the case's name.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.documents.labels import OUTSIDE
from autoseg.errors import AutosegError
from autoseg.files import read_json, write_json

SCHEMA = 1
PLACES_LEAST = 10_000
PLACES_SHARE = 0.01
PLACES_SEED = 1234
OPEN_CASES = 64
"""Memory maps held at once: three file handles each, far below a usual limit of 1024."""

OWN_KEYS = ("schema", "shape", "channels", "classes")

Labels = NDArray[np.int8] | NDArray[np.int16]


def write_case(
    folder: Path,
    image: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]] | None,
    info: Mapping[str, Any],
) -> None:
    """Fill `folder`, empty and owned by the caller, with one prepared case.

    `image` is (C, Z, Y, X), `labels` (Z, Y, X) with class indices, -1 outside the crop mask; None
    for a case without labels. `info` goes into case.json beside our own keys (the spacing, the
    crop box, the shapes before cropping and resampling, the file's grid, …) and must hold neither
    NaN nor infinity. Raises ValueError for arrays or keys that do not fit.
    """
    if image.ndim != 4 or (labels is not None and labels.shape != image.shape[1:]):
        found = None if labels is None else labels.shape
        raise ValueError(f"an image (C, Z, Y, X) and its labels: {image.shape} and {found}")
    if clash := sorted(set(info) & set(OWN_KEYS)):
        raise ValueError(f"case.json keeps these keys to itself: {clash}")
    ranges: dict[str, list[int]] = {}
    places = np.empty((0, 3), np.int32)
    np.save(folder / "image.npy", np.ascontiguousarray(image, np.float32))
    if labels is not None:
        kind = np.int8 if labels.max(initial=0) <= np.iinfo(np.int8).max else np.int16
        np.save(folder / "label.npy", np.ascontiguousarray(labels, kind))
        places, ranges = _places(labels)
    np.save(folder / "places.npy", places)
    document = {
        "schema": SCHEMA,
        "shape": list(image.shape[1:]),
        "channels": image.shape[0],
        "classes": ranges if labels is not None else None,
        **info,
    }
    write_json(folder / "case.json", document, durable=False)


def _places(
    labels: NDArray[np.integer[Any]],
) -> tuple[NDArray[np.int32], dict[str, list[int]]]:
    """Sampled places of each foreground class, and each class' [start, stop] among them.

    Of n voxels, max(10 000, 1 %) are kept, all where there are fewer: nnU-Net's rule.
    """
    foreground = np.flatnonzero(labels > 0)
    classes = labels.reshape(-1)[foreground]
    parts: list[NDArray[np.intp]] = []
    ranges: dict[str, list[int]] = {}
    start = 0
    for index in np.unique(classes).tolist():
        here = foreground[classes == index]
        keep = min(here.size, max(PLACES_LEAST, int(PLACES_SHARE * here.size)))
        if keep < here.size:
            rng = np.random.default_rng((PLACES_SEED, index))
            here = here[np.sort(rng.choice(here.size, keep, replace=False, shuffle=False))]
        parts.append(here)
        ranges[str(index)] = [start, start + keep]
        start += keep
    if not parts:
        return np.empty((0, 3), np.int32), ranges
    places = np.stack(np.unravel_index(np.concatenate(parts), labels.shape), axis=1)
    return places.astype(np.int32), ranges


@dataclass(frozen=True, eq=False)
class StoredCase:
    """One prepared case, its arrays memory-mapped or in memory."""

    name: str
    image: NDArray[np.float32]
    """(C, Z, Y, X)"""
    labels: Labels | None
    """(Z, Y, X) class indices, -1 outside the crop mask"""
    places: NDArray[np.int32]
    """(N, 3), sorted by class"""
    ranges: Mapping[int, tuple[int, int]]
    info: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, Y, X)"""
        z, y, x = self.image.shape[1:]
        return z, y, x

    @property
    def channels(self) -> int:
        return int(self.image.shape[0])

    @property
    def classes_present(self) -> tuple[int, ...]:
        """The foreground classes that the case holds, ascending."""
        return tuple(sorted(self.ranges))

    def places_of(self, index: int) -> NDArray[np.int32]:
        """(n, 3) stored voxel places of a foreground class; (0, 3) where the case has none."""
        start, stop = self.ranges.get(index, (0, 0))
        return self.places[start:stop]


def open_case(folder: Path, *, in_memory: bool = False) -> StoredCase:
    """The prepared case in `folder`, memory-mapped unless `in_memory`.

    Raises AutosegError naming the case if a file is missing, truncated or does not fit the others.
    """
    name = folder.name
    try:
        info = read_json(folder / "case.json")
    except AutosegError as error:
        raise _damaged(name, str(error)) from error
    try:
        shape = tuple(int(n) for n in info["shape"])
        full = (int(info["channels"]), *shape)
        classes = info["classes"]
        ranges = {int(c): (int(a), int(b)) for c, (a, b) in (classes or {}).items()}
        count = max((stop for _, stop in ranges.values()), default=0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(name, f"case.json lacks or garbles {error}") from error
    labels = None if classes is None else _array(folder, "label.npy", shape, "i", in_memory)
    return StoredCase(
        name=name,
        image=_array(folder, "image.npy", full, "f", in_memory),
        labels=labels,
        places=_array(folder, "places.npy", (count, 3), "i", in_memory),
        ranges=ranges,
        info=info,
    )


def _array(
    folder: Path, file: str, shape: tuple[int, ...], kind: str, in_memory: bool
) -> NDArray[Any]:
    mode = None if in_memory or prod(shape) == 0 else "r"
    try:
        array = np.load(folder / file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder.name, f"{file}: {error}") from error
    if array.shape != shape or array.dtype.kind != kind:
        raise _damaged(
            folder.name, f"{file} holds {array.dtype} {array.shape}, case.json says {shape}"
        )
    loaded: NDArray[Any] = array
    return loaded


def _damaged(name: str, found: str) -> AutosegError:
    return AutosegError(
        f"the prepared case {name} is damaged or incomplete ({found}); "
        "remove its folder and run preprocess again"
    )


def read_patch(
    case: StoredCase, lower: Sequence[int], size: Sequence[int]
) -> tuple[NDArray[np.float32], Labels]:
    """The box [lower, lower + size) of image (C, *size) and labels (*size), as writable copies.

    What lies beyond the border is 0 in the image and -1 in the labels; so are the labels of a case
    without labels. `lower` may be negative. A 2D patch is a box of size (1, H, W).
    """
    inside, target = [], []
    for low, n, extent in zip(lower, size, case.shape, strict=True):
        first, last = max(low, 0), max(min(low + n, extent), max(low, 0))
        inside.append(slice(first, last))
        target.append(slice(first - low, last - low))
    box, into = tuple(inside), tuple(target)
    kind = np.int8 if case.labels is None else case.labels.dtype
    whole = all(s.stop - s.start == n for s, n in zip(target, size, strict=True))
    make = np.empty if whole else np.zeros
    image = make((case.channels, *size), np.float32)
    image[(slice(None), *into)] = case.image[(slice(None), *box)]
    labels: Labels = np.full(tuple(size), OUTSIDE, kind)
    if case.labels is not None:
        labels[into] = case.labels[box]
    return image, labels


class StoredCases:
    """The prepared cases of a fold, by index: in memory where they fit, else memory-mapped.

    Cases are opened when they are first asked for; at most 64 are mapped at a time. Pickles as
    its arguments, so each loading process opens its own files. Raises AutosegError at once naming
    the cases that are not there.
    """

    def __init__(self, folder: Path, ids: Sequence[str], ram_bytes: int = 0) -> None:
        self.folder, self.ids, self.ram_bytes = Path(folder), tuple(ids), ram_bytes
        missing = [i for i in self.ids if not (self.folder / i / "case.json").is_file()]
        if missing:
            raise AutosegError(
                f"{len(missing)} prepared cases are missing in {self.folder}, first {missing[0]}; "
                "run preprocess again"
            )
        self.in_memory = self.bytes_on_disk() <= ram_bytes
        self._opened: OrderedDict[int, StoredCase] = OrderedDict()

    def bytes_on_disk(self) -> int:
        """What the arrays of all cases take, in memory as on disk."""
        return sum(f.stat().st_size for i in self.ids for f in (self.folder / i).glob("*.npy"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> StoredCase:
        if index in self._opened:
            self._opened.move_to_end(index)
            return self._opened[index]
        case = open_case(self.folder / self.ids[index], in_memory=self.in_memory)
        self._opened[index] = case
        if not self.in_memory and len(self._opened) > OPEN_CASES:
            self._opened.popitem(last=False)
        return case

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredCases, (self.folder, self.ids, self.ram_bytes)
