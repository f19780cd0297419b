"""What a prepared case is on disk, and how a part of it is read.

A case is a folder of plain arrays, so that a patch costs no decompression and small datasets can
live in memory: `image.npy` (C, Z*Y*X), `label.npy` (1, Z*Y*X'), both in bricks (`data.bricks`),
`places.npy` (N) with places of the foreground sorted by class, and `case.json`. The image is kept
in half floats where that loses nothing that matters, labels in as few bits as they need. The
folder's name is the case's name. What an earlier stage saw in a case lies elsewhere, since it
belongs to a training: one `<case>.npy` a case.
"""

import mmap
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.bricks import PAGE, Shape, cut, spans, unpacked_labels
from autoseg.documents.labels import OUTSIDE
from autoseg.errors import AutosegError
from autoseg.files import read_json
from autoseg.pool import free_bytes

SCHEMA = 2
"""1 had float32 images and whole labels, row by row, and places of three numbers; it is read too."""
OPEN_CASES = 64
"""Memory maps held at once: four file handles each, far below a usual limit of 1024."""
HANDLES_A_CASE = 4
Labels = NDArray[np.int8] | NDArray[np.int16]
Image = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True)
class Packing:
    """How the labels of a case are written: see `bricks.packed_labels`."""

    bits: int
    least: int
    kind: type[np.integer[Any]]

    @property
    def each(self) -> int:
        """Neighbouring voxels in one number."""
        return max(8 // self.bits, 1)


@dataclass(frozen=True, eq=False)
class StoredCase:
    """One prepared case, its arrays memory-mapped or in memory."""

    name: str
    shape: Shape
    """(Z, Y, X)"""
    stored: Image
    """(C, Z*Y*X) in bricks"""
    packed: NDArray[Any] | None
    """(1, Z*Y*X') labels in bricks"""
    bricks: tuple[Shape, Shape]
    """Of the image, and of the packed labels."""
    packing: Packing | None
    places: NDArray[np.integer[Any]]
    """(N) numbers of voxels, or (N, 3), sorted by class"""
    ranges: Mapping[int, tuple[int, int]]
    info: Mapping[str, Any]
    previous: Labels | None = None
    """(Z, Y, X) class indices of a cascade's earlier stage, none negative"""
    advise: bool = False
    """Whether the system is told which pages will be read: worth it where not all stay in memory."""

    @property
    def channels(self) -> int:
        return int(self.stored.shape[0])

    @property
    def kind(self) -> type[np.floating[Any]]:
        """Of which numbers the image is: half floats or float32."""
        return self.stored.dtype.type

    @property
    def label_kind(self) -> type[np.integer[Any]]:
        """Of which numbers labels are."""
        if self.packed is None or self.packing is None:
            return np.int8
        return self.packed.dtype.type if self.packed.dtype.kind == "i" else self.packing.kind

    @property
    def image(self) -> Image:
        """(C, Z, Y, X), a copy of the whole image."""
        whole = np.empty((self.channels, *self.shape), self.stored.dtype)
        cut(self.stored, self.shape, self.bricks[0], (0, 0, 0), whole)
        return whole

    @property
    def labels(self) -> Labels | None:
        """(Z, Y, X) class indices, -1 outside the crop mask, -2 where nobody labelled: a copy."""
        if self.packed is None:
            return None
        return _labels(self, [slice(0, n) for n in self.shape])

    @property
    def classes_present(self) -> tuple[int, ...]:
        """The foreground classes that the case holds, ascending."""
        return tuple(sorted(index for index in self.ranges if index > 0))

    def count_of(self, index: int) -> int:
        """How many places of a class are stored: see `places_of`."""
        start, stop = self.ranges.get(index, (0, 0))
        return stop - start

    def place_of(self, index: int, number: int) -> tuple[int, int, int]:
        """The voxel of one of the stored places of a class."""
        z, y, x = self._voxels(self.places[self.ranges[index][0] + number][None])[0].tolist()
        return z, y, x

    def places_of(self, index: int) -> NDArray[np.int32]:
        """(n, 3) stored voxel places of a foreground class; (0, 3) where the case has none.

        Of 0: of all that is labelled, in a case where nobody labelled some voxels; else (0, 3).
        """
        start, stop = self.ranges.get(index, (0, 0))
        return self._voxels(self.places[start:stop])

    def _voxels(self, places: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        if places.ndim == 2:
            return places.astype(np.int32)
        return np.stack(np.unravel_index(places, self.shape), axis=1).astype(np.int32)


def open_case(
    folder: Path, *, in_memory: bool = False, previous: Path | None = None, advise: bool = False
) -> StoredCase:
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
        z, y, x = (int(n) for n in info["shape"])
        channels, classes, schema = int(info["channels"]), info["classes"], int(info["schema"])
        ranges = {int(c): (int(a), int(b)) for c, (a, b) in (classes or {}).items()}
        count = max((stop for _, stop in ranges.values()), default=0)
        image_brick, label_brick, packing = _layout(info, (z, y, x))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(name, f"case.json lacks or garbles {error}") from error
    if schema > SCHEMA:
        raise _damaged(name, f"written by a newer autoseg, schema {schema}")
    voxels, old = z * y * x, schema == 1
    files = partial(_array, in_memory=in_memory, blame=blame, random=advise)
    labels = before = None
    if previous is not None:
        blamed = partial(_damaged_previous, name)
        before = _array(previous, (z, y, x), "i", in_memory=in_memory, blame=blamed)
    if packing is not None:
        packed = z * y * -(-x // packing.each)
        labels = files(folder / "label.npy", (z, y, x) if old else (1, packed), "iu")
    image = files(folder / "image.npy", (channels, z, y, x) if old else (channels, voxels), "f")
    return StoredCase(
        name=name,
        shape=(z, y, x),
        stored=image.reshape(channels, voxels),
        packed=None if labels is None else labels.reshape(1, -1),
        bricks=(image_brick, label_brick),
        packing=packing,
        places=files(folder / "places.npy", (count, 3) if old else (count,), "i"),
        ranges=ranges,
        info=info,
        previous=before,
        advise=advise and not in_memory,
    )


def _layout(info: Mapping[str, Any], shape: Shape) -> tuple[Shape, Shape, Packing | None]:
    """The bricks of image and labels and how labels are packed, as case.json says."""
    if int(info["schema"]) == 1:
        # row by row: one brick
        whole = Packing(16, 0, np.int16)
        return shape, shape, None if info["classes"] is None else whole
    z, y, x = (int(n) for n in info["bricks"]["image"])
    lz, ly, lx = (int(n) for n in info["bricks"]["labels"])
    packing = None
    if info["classes"] is not None:
        written = info["labels"]
        kinds: dict[str, type[np.integer[Any]]] = {"int8": np.int8, "int16": np.int16}
        kind = kinds[written["kind"]]
        packing = Packing(int(written["bits"]), int(written["least"]), kind)
    return (z, y, x), (lz, ly, lx), packing


def _array(
    file: Path,
    shape: tuple[int, ...],
    kinds: str,
    *,
    in_memory: bool,
    blame: Callable[[str], AutosegError],
    random: bool = False,
) -> NDArray[Any]:
    mode = None if in_memory or prod(shape) == 0 else "r"
    try:
        array = np.load(file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (OSError, ValueError, EOFError) as error:
        raise blame(f"{file.name}: {error}") from error
    if array.shape != shape or array.dtype.kind not in kinds:
        found = f"{array.dtype} {array.shape}"
        raise blame(f"{file.name} holds {found}, case.json says {shape}")
    if random and isinstance(array, np.memmap) and hasattr(mmap, "MADV_RANDOM"):
        array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
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
    case: StoredCase, lower: Sequence[int], size: Sequence[int], into: Image | None = None
) -> tuple[Image, Labels]:
    """The box [lower, lower + size) of image (C, *size), of the case's kind, and labels (*size).

    The image is written to `into` where that is given, of any kind of floats. What lies beyond the
    border is 0 in the image and -1 in the labels; so are the labels of a case without labels.
    `lower` may be negative. A 2D patch is a box of size (1, H, W).
    """
    box, target = _overlap(case, lower, size)
    image: Image = np.empty((case.channels, *size), case.kind) if into is None else into
    whole = all(part.stop - part.start == n for part, n in zip(target, size, strict=True))
    meets = all(part.start < part.stop for part in box)
    if not whole:
        image[...] = 0
    if meets:
        if case.advise:
            _announce(case, box)
        inside = image[(slice(None), *target)]
        cut(case.stored, case.shape, case.bricks[0], [part.start for part in box], inside)
    if whole and case.packed is not None:
        return image, _labels(case, box)
    labels: Labels = np.full(tuple(size), OUTSIDE, case.label_kind)
    if meets and case.packed is not None:
        labels[target] = _labels(case, box)
    return image, labels


def _labels(case: StoredCase, box: Sequence[slice]) -> Labels:
    """The labels of a box that lies within the case."""
    assert case.packed is not None and case.packing is not None
    each, (z, y, x) = case.packing.each, case.shape
    first, last = box[2].start // each, -(-box[2].stop // each)
    packed = np.empty(
        (1, *(part.stop - part.start for part in box[:2]), last - first), case.packed.dtype
    )
    lower = [box[0].start, box[1].start, first]
    cut(case.packed, (z, y, -(-x // each)), case.bricks[1], lower, packed)
    if case.packed.dtype.kind == "i":
        written: Labels = packed[0]
        return written
    start, count = box[2].start - first * each, box[2].stop - box[2].start
    return unpacked_labels(
        packed[0], case.packing.bits, case.packing.least, case.packing.kind, start, count
    )


def _announce(case: StoredCase, box: Sequence[slice]) -> None:
    """Let the system fetch the pages of a box at once instead of one after the other."""
    stored = case.stored
    if not isinstance(stored, np.memmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    lower, upper = [part.start for part in box], [part.stop for part in box]
    base, item = stored.offset % mmap.ALLOCATIONGRANULARITY, stored.itemsize
    for channel in range(case.channels):
        begin = base + channel * stored.shape[1] * item
        for first, last in spans(case.shape, case.bricks[0], lower, upper):
            page = (begin + first * item) // PAGE * PAGE
            stored._mmap.madvise(  # type: ignore[attr-defined]
                mmap.MADV_WILLNEED, page, begin + last * item - page
            )


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


def _most_open() -> int:
    """How many cases may be mapped at once: fewer where the system allows few open files."""
    if sys.platform == "win32":
        return OPEN_CASES
    import resource

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return OPEN_CASES
    return max(1, min(OPEN_CASES, allowed // (2 * HANDLES_A_CASE)))


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
        size = self.bytes_on_disk()
        self.in_memory = size <= ram_bytes
        # where the system can keep all files, it reads them whole: it is best at that
        self.advise = size > free_bytes()
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
        case = open_case(
            self.folder / name, in_memory=self.in_memory, previous=previous,
            advise=self.advise,
        )  # fmt: skip
        self._opened[index] = case
        if not self.in_memory and len(self._opened) > _most_open():
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
