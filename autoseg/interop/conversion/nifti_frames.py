"""How is a 4D NIfTI file cut into one file a channel, bit for bit.

The frames lie one after the other, so each file is the header with fewer axes and a slice of the
bytes: place, scaling and stored type stay as they were. Memory: one frame and a block.
"""

import gzip
import struct
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from autoseg.errors import BadData, Problem
from autoseg.files import explaining, replacing
from autoseg.image.nifti import GZIP_MAGIC, nifti_version, unpacked_start
from autoseg.image.reading import case_of

LONGEST_HEADER = 540
MOST_FRAMES = 4096
MOST_HEADER = 64 << 20
LEVEL = 1
"""Of gzip: scans hardly get smaller at the higher ones, which take several times the time."""


@dataclass(frozen=True)
class Frames:
    """Where the volumes of a 4D file lie in its (unpacked) bytes."""

    path: Path
    shape: tuple[int, int, int]
    count: int
    offset: int
    frame_bytes: int
    order: str
    version: int


def frames_of(path: Path) -> Frames | None:
    """How a NIfTI file of several volumes is laid out; None for any other file.

    Raises BadData for more than one axis beyond the three of space.
    """
    with explaining(path, "read"), path.open("rb") as file:
        start = unpacked_start(file.read(1 << 16))
    version = nifti_version(start)
    if version is None or len(start) < (348 if version == 1 else LONGEST_HEADER):
        return None
    order = "<" if int.from_bytes(start[:4], "little") in (348, 540) else ">"
    dim = struct.unpack_from(f"{order}8{'h' if version == 1 else 'q'}", start, _at(version)[0])
    used = [int(n) for n in dim[1 : 1 + max(0, min(7, dim[0]))]]
    beyond = [n for n in used[3:] if n > 1]
    if not beyond:
        return None
    if len(beyond) > 1 or min(used) < 1 or beyond[0] > MOST_FRAMES:
        raise _bad(path, "the file has too many axes", " x ".join(str(n) for n in used))
    (bits,) = struct.unpack_from(f"{order}h", start, 72 if version == 1 else 14)
    kind = "f" if version == 1 else "q"
    (offset,) = struct.unpack_from(f"{order}{kind}", start, 108 if version == 1 else 168)
    shape = (used[0], used[1], used[2])
    if bits < 8 or bits % 8 or not 0 <= offset <= MOST_HEADER:
        raise _bad(path, "the header is damaged", f"{bits} bits a voxel, from byte {offset}")
    least = (348 if version == 1 else 540) + 4
    size = prod(shape) * (bits // 8)
    return Frames(path, shape, beyond[0], max(int(offset), least), size, order, version)


def _at(version: int) -> tuple[int, int]:
    """Where the sizes of the axes begin, and bytes a size."""
    return (40, 2) if version == 1 else (16, 8)


def split(frames: Frames, targets: Sequence[Path]) -> None:
    """Write frame n to `targets[n]`, each in one step. Raises BadData for a file that ends early."""
    if len(targets) != frames.count:
        raise ValueError(f"{len(targets)} files for {frames.count} frames")
    try:
        with closing(_opened(frames.path)) as file:
            header = _flat(_exactly(file, frames.offset, frames.path), frames)
            for target in targets:
                _write(file, header, frames, target)
            while file.read(1 << 20):
                pass  # to the end, where gzip's checksum stands
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _bad(frames.path, "the file cannot be read", f"it ends early ({error})") from error


def _write(file: Any, header: bytes, frames: Frames, target: Path) -> None:
    packed = target.name.lower().endswith(".gz")
    with replacing(target, durable=False) as half, half.open("wb") as raw:
        out = gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) if packed else raw
        out.write(header)
        left = frames.frame_bytes
        while left:
            block = _exactly(file, min(left, 1 << 22), frames.path)
            out.write(block)
            left -= len(block)
        if packed:
            out.close()


def _opened(path: Path) -> Any:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if packed else path.open("rb")


def _exactly(file: Any, count: int, path: Path) -> bytes:
    block: bytes = file.read(count)
    if len(block) < count:
        raise _bad(path, "the file cannot be read", "it ends before its last volume does")
    return block


def _flat(header: bytes, frames: Frames) -> bytes:
    """The header of one frame: three axes."""
    place, width = _at(frames.version)
    kind = "h" if width == 2 else "q"
    mended = bytearray(header)
    struct.pack_into(f"{frames.order}8{kind}", mended, place, 3, *frames.shape, 1, 1, 1, 1)
    return bytes(mended)


def _bad(path: Path, what: str, found: str) -> BadData:
    fix = "copy or export the file again; this one cannot be cut into channels"
    return BadData([Problem(case_of(path), what, f"{path}: {found}", fix)])
