"""What does a checkpoint of nnU-Net hold? Its weights and a few plain facts, read without trusting it.

torch writes a zip: `data.pkl` describes all objects, `data/0`, `data/1`, … are the numbers of the
tensors. The description is read as data (`nnunet_pickle`), the numbers only of those tensors that
the network needs.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError
from autoseg.files import BoundedFile, explaining
from autoseg.interop.nnunet.pickle import Foreign, View, read_pickle

DESCRIPTION_LIMIT = 64 << 20
"""Bytes of `data.pkl`; a checkpoint of the largest networks has about one million."""
DIRECTORY_LIMIT = 64 << 20
"""Bytes of the zip's list of contents."""
MOST_RECORDS = 100_000
READ_AT_ONCE = 16 << 20
MOST_NUMBERS = 1 << 34
"""Of one tensor."""

KINDS = {
    "FloatStorage": "<f4", "HalfStorage": "<f2", "DoubleStorage": "<f8", "BFloat16Storage": "bf16",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
PREFIXES = ("module.", "_orig_mod.")
"""Put before every name by training on several cards, and by torch.compile."""

DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, LookupError, OverflowError,
    struct.error,
)  # fmt: skip
AGAIN = "copy the checkpoint again from where it was trained"


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before its numbers are read."""

    path: Path
    weights: dict[str, View]
    """By name in the network, without what training on cards or compiling put before it."""
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]
    """Axes of a patch; none: it was trained without mirroring."""
    epoch: int | None


def read_checkpoint(path: Path) -> Checkpoint:
    """The facts of a checkpoint file. Raises AutosegError if it is damaged or no such file."""
    with _opened(path) as archive:
        found = read_pickle(archive.description(), str(path))
    if not isinstance(found, dict) or not isinstance(found.get("network_weights"), dict):
        raise AutosegError(
            f"{path} holds no network_weights; give the checkpoint of an nnU-Net v2 training, as "
            "fold_0/checkpoint_final.pth"
        )
    weights = {}
    for name, value in found["network_weights"].items():
        if isinstance(value, Foreign) or not isinstance(name, str):
            what = value.name if isinstance(value, Foreign) else "no text"
            raise AutosegError(
                f"{path}: the weight {str(name)[:80]!r} is no tensor but made by {what[:80]!r}, which "
                "is not run; it is no plain checkpoint of nnU-Net"
            )
        if isinstance(value, View):
            weights[_bare(name)] = value
    arguments = found.get("init_args")
    chosen = arguments.get("configuration") if isinstance(arguments, dict) else None
    epoch = found.get("current_epoch")
    return Checkpoint(
        path,
        weights,
        configuration=chosen if isinstance(chosen, str) else "",
        trainer=found["trainer_name"] if isinstance(found.get("trainer_name"), str) else "",
        mirror_axes=_axes(found.get("inference_allowed_mirroring_axes"), path),
        epoch=epoch if type(epoch) is int else None,
    )


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _axes(said: Any, path: Path) -> tuple[int, ...]:
    if said is None:
        return ()
    if not isinstance(said, (tuple, list)) or any(
        type(axis) is not int or not 0 <= axis < 3 for axis in said
    ):
        raise AutosegError(
            f"{path}: inference_allowed_mirroring_axes holds something else than some of 0, 1 and 2"
        )
    return tuple(sorted(set(said)))


@contextmanager
def tensors_of(checkpoint: Checkpoint) -> Iterator["Tensors"]:
    """The numbers of a checkpoint's weights, to be read one by one while the block lasts."""
    with _opened(checkpoint.path) as archive:
        yield Tensors(checkpoint, archive)


class Tensors:
    """The weights of an opened checkpoint."""

    def __init__(self, checkpoint: Checkpoint, archive: "_Archive") -> None:
        self.checkpoint, self.archive = checkpoint, archive

    @property
    def length(self) -> int:
        """Bytes of the file: no weights that belong to it have more numbers."""
        return self.archive.length

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
        """One weight as an array of its own; None where the checkpoint has no such name.

        Floats of any width come as float32. Raises AutosegError for another shape than `shape`.
        """
        view = self.checkpoint.weights.get(name)
        if view is None:
            return None
        where = f"{self.checkpoint.path}: {name}"
        if view.shape != shape:
            raise AutosegError(
                f"{where} has the shape {view.shape}, the network of plans.json needs {shape}; the "
                "checkpoint belongs to other plans"
            )
        kind = KINDS.get(view.storage.kind.split(" ")[-1])
        last = view.offset + sum((n - 1) * s for n, s in zip(shape, view.strides, strict=False))
        sound = len(view.strides) == len(shape) and prod(shape) <= view.storage.count
        if (
            kind is None
            or not sound
            or not (min(shape, default=1) > 0 and last < view.storage.count)
        ):
            raise AutosegError(
                f"{where} reaches beyond its numbers, or is of an unknown kind; {AGAIN}"
            )
        numbers = self.archive.numbers(view.storage.key, kind, view.storage.count, where)
        steps = tuple(s * numbers.itemsize for s in view.strides)
        seen = np.lib.stride_tricks.as_strided(numbers[view.offset :], shape, steps)
        if numbers.dtype.kind == "f":
            return np.array(seen, np.float32, order="C")
        return np.array(seen, order="C")


class _Archive:
    """An opened file of torch; its records lie in one folder, which any name may have."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, length: int) -> None:
        self.path, self.archive, self.length = path, archive, length
        infos = archive.infolist()
        if len(infos) > MOST_RECORDS:
            raise AutosegError(f"{path} holds {len(infos)} records; it is no checkpoint of nnU-Net")
        self.records = {info.filename.partition("/")[2]: info for info in infos}
        if "data.pkl" not in self.records:
            raise AutosegError(
                f"{path} is a zip, but none that torch.save wrote: no data.pkl in it"
            )
        if "byteorder" in self.records and self._bytes("byteorder", 16) != b"little":
            raise AutosegError(
                f"{path} was written on a big-endian machine, which is not read here"
            )

    def description(self) -> bytes:
        return self._bytes("data.pkl", DESCRIPTION_LIMIT)

    def numbers(self, key: str, kind: str, count: int, where: str) -> NDArray[Any]:
        """The numbers of one storage, as floats of 32 bits or in their own integers."""
        wide = np.dtype("<u2" if kind == "bf16" else kind)
        name = f"data/{key}"
        if name not in self.records or count > MOST_NUMBERS:
            raise AutosegError(f"{where} has no numbers in the file, or absurdly many; {AGAIN}")
        raw = self._bytes(name, count * wide.itemsize)
        if len(raw) != count * wide.itemsize:
            raise AutosegError(
                f"{where} has {len(raw)} bytes, {count} numbers are expected; {AGAIN}"
            )
        found = np.frombuffer(raw, wide)
        if kind == "bf16":
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found

    def _bytes(self, name: str, limit: int) -> bytes:
        info = self.records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise AutosegError(
                f"{self.path}: {name} is compressed or encrypted; torch never does so"
            )
        if info.file_size > min(limit, self.length):
            raise AutosegError(f"{self.path}: {name} has {info.file_size} bytes, too many; {AGAIN}")
        with self.archive.open(info) as file:
            return b"".join(_pieces(file))


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(READ_AT_ONCE):
        yield piece


@contextmanager
def archive_in(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """A zip of a stranger, its list of contents read within bounds, and its length in bytes.

    Raises AutosegError where the file cannot be read, and one of DAMAGE for one that is no zip.
    """
    with explaining(path, "read"), open(path, "rb", buffering=0) as raw:
        length = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        with (
            BoundedFile(raw, length, DIRECTORY_LIMIT) as bounded,
            zipfile.ZipFile(bounded) as archive,
        ):
            yield archive, length


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    with explaining(path, "read"), open(path, "rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        raise AutosegError(
            f"{path} is a pickle of torch before 1.6, or none of torch at all, which is not read; "
            "save it again with torch.save of today"
        )
    if start != b"PK\x03\x04":
        found = "no file of torch" if start else "empty"
        raise AutosegError(f"{path} is no checkpoint: it is {found}; {AGAIN}")
    try:
        with archive_in(path) as (archive, length):
            yield _Archive(path, archive, length)
    except DAMAGE as error:
        raise AutosegError(
            f"{path} is truncated or damaged ({str(error)[:100]}); {AGAIN}"
        ) from error
