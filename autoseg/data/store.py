"""What a prepared case is on disk, and how a part of it is read.

A case is a folder of plain arrays, so that a patch costs no decompression and small datasets can
live in memory: `image.npy` (C, Z, Y, X), `label.npy` (Z, Y, X), `places.npy` (N, 3) with places of
the foreground sorted by class, and `case.json`. The folder's name is the case's name. What an
earlier stage saw in a case lies elsewhere, since it belongs to a training: one `<case>.npy` a case.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.documents.labels import IGNORE, OUTSIDE
from autoseg.errors import AutosegError
from autoseg.files import read_json, write_json

SCHEMA = 1
PLACES_LEAST = 10_000
PLACES_SHARE = 0.01
PLACES_SEED = 1234
OPEN_CASES = 64
"""Memory maps held at once: four file handles each, far below a usual limit of 1024."""

OWN_KEYS = ("schema", "shape", "channels", "classes")

Labels = NDArray[np.int8] | NDArray[np.int16]


def write_case(
    folder: Path,
    image: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]] | None,
    info: Mapping[str, Any],
) -> None:
    """Fill `folder`, empty and owned by the caller, with one prepared case.

    `image` is (C, Z, Y, X), `labels` (Z, Y, X) with class indices, -1 outside the crop mask and -2
    where nobody labelled; None for a case without labels. `info` goes into case.json beside our own keys (the spacing, the
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
    """(Z, Y, X) class indices, -1 outside the crop mask, -2 where nobody labelled"""
    places: NDArray[np.int32]
    """(N, 3), sorted by class"""
    ranges: Mapping[int, tuple[int, int]]
    info: Mapping[str, Any]
    previous: Labels | None = None
    """(Z, Y, X) class indices of a cascade's earlier stage, none negative"""

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
        return tuple(sorted(index for index in self.ranges if index > 0))

    def places_of(self, index: int) -> NDArray[np.int32]:
        """(n, 3) stored voxel places of a foreground class; (0, 3) where the case has none.

        Of 0: of all that is labelled, in a case where nobody labelled some voxels; else (0, 3).
        """
        start, stop = self.ranges.get(index, (0, 0))
        return self.places[start:stop]


def open_case(folder: Path, *, in_memory: bool = False, previous: Path | None = None) -> StoredCase:
    """The prepared case in `folder`, memory-mapped unless `in_memory`.

    `previous` is the file of an earlier stage's label map. Raises AutosegError naming the case if a
    file is missing, truncated or does not fit the others.
    """
    name, blame = folder.name, partial(_damaged, folder.name)
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
    labels = folder / "label.npy"
    before = None
    if previous is not None:
        before = _array(previous, shape, "i", in_memory, partial(_damaged_previous, name))
    return StoredCase(
        name=name,
        image=_array(folder / "image.npy", full, "f", in_memory, blame),
        labels=None if classes is None else _array(labels, shape, "i", in_memory, blame),
        places=_array(folder / "places.npy", (count, 3), "i", in_memory, blame),
        ranges=ranges,
        info=info,
        previous=before,
    )


def _array(
    file: Path,
    shape: tuple[int, ...],
    kind: str,
    in_memory: bool,
    blame: Callable[[str], AutosegError],
) -> NDArray[Any]:
    mode = None if in_memory or prod(shape) == 0 else "r"
    try:
        array = np.load(file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (OSError, ValueError, EOFError) as error:
        raise blame(f"{file.name}: {error}") from error
    if array.shape != shape or array.dtype.kind != kind:
        found = f"{array.dtype} {array.shape}"
        raise blame(f"{file.name} holds {found}, case.json says {shape}")
    loaded: NDArray[Any] = array
    return loaded


def _damaged(name: str, found: str) -> AutosegError:
    return AutosegError(
        f"the prepared case {name} is damaged or incomplete ({found}); "
        "remove its folder and run preprocess again"
    )


def _damaged_previous(name: str, found: str) -> AutosegError:
    return AutosegError(
        f"the earlier stage's label map of {name} is damaged or belongs to other prepared cases "
        f"({found}); remove the file, and the same command makes it again"
    )


def read_patch(
    case: StoredCase, lower: Sequence[int], size: Sequence[int]
) -> tuple[NDArray[np.float32], Labels]:
    """The box [lower, lower + size) of image (C, *size) and labels (*size), not to be written to.

    A box inside the case is not copied: the arrays are views of the case's. Of another, what lies
    beyond the border is 0 in the image and -1 in the labels; so are the labels of a case without
    labels. `lower` may be negative. A 2D patch is a box of size (1, H, W).
    """
    box, into = _overlap(case, lower, size)
    image, labels = case.image[(slice(None), *box)], None
    if case.labels is not None:
        labels = case.labels[box]
    if image.shape[1:] != tuple(size):
        inside, image = image, np.zeros((case.channels, *size), np.float32)
        image[(slice(None), *into)] = inside
    if labels is None or labels.shape != tuple(size):
        here, kind = labels, np.int8 if labels is None else labels.dtype
        labels = np.full(tuple(size), OUTSIDE, kind)
        if here is not None:
            labels[into] = here
    for array in (image, labels):
        array.flags.writeable = False
    return image, labels


def read_previous(
    case: StoredCase, lower: Sequence[int], size: Sequence[int], classes: int
) -> Labels:
    """The box [lower, lower + size) of the earlier stage's label map, a copy, 0 beyond the border.

    Raises AutosegError naming the case if it holds anything but the classes 0 … `classes`.
    """
    if case.previous is None:
        raise ValueError(f"{case.name} was opened without the earlier stage's label map")
    box, into = _overlap(case, lower, size)
    found: Labels = np.zeros(tuple(size), case.previous.dtype)
    found[into] = case.previous[box]
    least, most = int(found.min(initial=0)), int(found.max(initial=0))
    if least < 0 or most > classes:
        values = f"class {least if least < 0 else most}, there are 0 … {classes}"
        raise _damaged_previous(case.name, f"it holds {values}")
    return found


def _overlap(
    case: StoredCase, lower: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a box meets the case: in the case's voxels, and in the box's."""
    inside, target = [], []
    for low, n, extent in zip(lower, size, case.shape, strict=True):
        first, last = max(low, 0), max(min(low + n, extent), max(low, 0))
        inside.append(slice(first, last))
        target.append(slice(first - low, last - low))
    return tuple(inside), tuple(target)


class StoredCases:
    """The prepared cases of a fold, by index: in memory where they fit, else memory-mapped.

    Cases are opened when they are first asked for; at most 64 are mapped at a time. Pickles as
    its arguments, so each loading process opens its own files. `previous` is the folder of a
    cascade's earlier label maps, `<case>.npy` (Z, Y, X) each. Raises AutosegError at once naming the
    cases or label maps that are not there.
    """

    def __init__(
        self,
        folder: Path,
        ids: Sequence[str],
        ram_bytes: int = 0,
        previous: Path | None = None,
    ) -> None:
        self.folder, self.ids, self.ram_bytes = Path(folder), tuple(ids), ram_bytes
        self.previous = None if previous is None else Path(previous)
        missing = [i for i in self.ids if not (self.folder / i / "case.json").is_file()]
        if missing:
            raise AutosegError(
                f"{len(missing)} prepared cases are missing in {self.folder}, first {missing[0]}; "
                "run preprocess again"
            )
        unseen = [i for i, file in zip(self.ids, self._previous_files()) if not file.is_file()]
        if unseen:
            raise AutosegError(
                f"the earlier stage's label maps of {len(unseen)} cases are missing in "
                f"{self.previous}, first {unseen[0]}; train the earlier stage, and the same command "
                "makes them"
            )
        self.in_memory = self.bytes_on_disk() <= ram_bytes
        self._opened: OrderedDict[int, StoredCase] = OrderedDict()

    def bytes_on_disk(self) -> int:
        """What the arrays of all cases take, in memory as on disk."""
        files = [f for i in self.ids for f in (self.folder / i).glob("*.npy")]
        return sum(f.stat().st_size for f in (*files, *self._previous_files()))

    def _previous_files(self) -> list[Path]:
        """The earlier stage's label maps in the order of `ids`; none without a cascade."""
        return [self.previous / f"{i}.npy" for i in self.ids] if self.previous else []

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> StoredCase:
        if index in self._opened:
            self._opened.move_to_end(index)
            return self._opened[index]
        name = self.ids[index]
        previous = None if self.previous is None else self.previous / f"{name}.npy"
        case = open_case(self.folder / name, in_memory=self.in_memory, previous=previous)
        self._opened[index] = case
        if not self.in_memory and len(self._opened) > OPEN_CASES:
            self._opened.popitem(last=False)
        return case

    @cached_property
    def holders(self) -> dict[int, tuple[int, ...]]:
        """Foreground class -> the indices of the cases that hold it, ascending; opens no array."""
        found: dict[int, list[int]] = {}
        for index, name in enumerate(self.ids):
            classes = read_json(self.folder / name / "case.json").get("classes") or {}
            for label in classes:
                if int(label) > 0:
                    found.setdefault(int(label), []).append(index)
        return {label: tuple(found[label]) for label in sorted(found)}

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredCases, (self.folder, self.ids, self.ram_bytes, self.previous)
