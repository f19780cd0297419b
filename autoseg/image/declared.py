"""Whether a file can hold what its header declares, judged before a voxel is unpacked.

One changed byte of a header can ask a decoder for minutes, for gigabytes, or for the process. A
header is therefore compared with the bytes that are there (a packing has a largest factor) and with
the memory of the machine. What decoders raise all the same becomes one Problem here.
"""

import os
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf, prod
from pathlib import Path
from typing import IO

from autoseg.errors import AutosegError, BadData, Problem

RAW, DEFLATE, LZW = 1.0, 1100.0, 4100.0
"""Bytes that one stored byte can become: 1032 in deflate, a table of 4096 entries in LZW. JPEG stays
below deflate: a block of 64 values needs a bit at least."""
UNBOUNDED = inf
DAMAGED = "copy or export the file again; this one is damaged"
PNG_CHUNKS_FROM = 8
DETACHED = re.compile(rb"(?im)^[ \t]*(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*([^\r\n]*)")


def damaged(path: Path, case: str, found: str) -> BadData:
    """The error for a file whose content cannot be what its header says."""
    return BadData([Problem(case, "the file cannot be read", f"{path}: {found}", DAMAGED)])


@contextmanager
def decoding(path: Path, case: str) -> Iterator[None]:
    """Whatever a decoder raises or warns of ends as BadData with one Problem.

    Decoders are other people's code and meet bytes that nobody foresaw: any exception is theirs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except AutosegError:
        raise
    except MemoryError as error:
        raise _too_large(path, case, "there was not enough memory to unpack it") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or "no reason given"
        raise damaged(path, case, f"{reason} ({type(error).__name__})") from error


def check_declared(
    path: Path, case: str, shape: Sequence[int], bytes_per_voxel: float, factor: float, stored: int
) -> None:
    """Raises BadData if `stored` bytes cannot hold an array of `shape`, or the machine cannot.

    `factor` is how many bytes one stored byte can become at most (RAW, DEFLATE, …).
    """
    count = prod(int(n) for n in shape)
    size = " x ".join(str(n) for n in shape)
    needed = count * bytes_per_voxel
    if count < 1:
        raise damaged(path, case, f"the header gives the size {size}")
    if needed > factor * stored:
        found = f"the header says {size} ({needed:.3g} bytes), the file holds {stored} bytes"
        raise damaged(path, case, found)
    # as stored and as float32, both at once
    wanted, memory = count * (max(bytes_per_voxel, 1) + 4), machine_bytes()
    if wanted > memory:
        found = (
            f"{size} voxels need {wanted / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f}"
        )
        raise _too_large(path, case, found)


def machine_bytes() -> int:
    """The memory of this machine that a process may use at all, in bytes; large where nothing tells."""
    try:
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ImportError, OSError, ValueError):
        return 1 << 50
    return whole if allowed == resource.RLIM_INFINITY else min(whole, allowed)


def check_png_chunks(path: Path, case: str) -> None:
    """Raises BadData for a png in which a chunk is said to be longer than the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = PNG_CHUNKS_FROM
        while at + 8 <= size:
            file.seek(at)
            length, name = struct.unpack(">I4s", file.read(8))
            if at + 12 + length > size:
                left = size - at - 8
                raise damaged(path, case, f"a part of {length} bytes begins, {left} bytes are left")
            if name == b"IEND":
                return
            at += 12 + length


def detached_file(path: Path, case: str, start: bytes) -> Path | None:
    """The one file in which the voxels of a MetaImage or Nrrd header lie, None for the header's own.

    `start` is the beginning of the header file. Raises BadData for a name that leads out of the
    folder: who sends a header could have any file of this machine read.
    """
    match = DETACHED.search(start)
    name = match[1].strip().decode("utf-8", "replace") if match else ""
    if not name or name.upper() == "LOCAL":
        return None
    if Path(name).is_absolute() or ".." in Path(name).parts:
        found = f"{path} names {name[:80]!r} as the file of its voxels"
        fix = "keep the header and its data in one folder, or save both as one .mha or .nrrd file"
        raise BadData([Problem(case, "a header leads out of its folder", found, fix)])
    return path.parent / name


def itk_factor(kind: str, start: bytes) -> float:
    """The largest factor of the packing that a Nrrd, MetaImage or Gipl header names."""
    if kind == "meta":
        packed = re.search(rb"(?im)^[ \t]*CompressedData[ \t]*=[ \t]*(?:True|T|1)", start)
        text = re.search(rb"(?im)^[ \t]*BinaryData[ \t]*=[ \t]*(?:False|F|0)", start)
        return DEFLATE if packed else 8.0 if text else RAW
    if kind == "nrrd":
        match = re.search(rb"(?im)^encoding:[ \t]*(\w+)", start)
        encoding = match[1].lower() if match else b"raw"
        known = {b"raw": RAW, b"gzip": DEFLATE, b"gz": DEFLATE, b"hex": RAW}
        # ascii: a number of eight bytes is two letters at least
        text_like = {b"ascii": 8.0, b"text": 8.0, b"txt": 8.0}
        return {**known, **text_like}.get(encoding, UNBOUNDED)
    return RAW if kind == "gipl" else DEFLATE


def _too_large(path: Path, case: str, found: str) -> BadData:
    what = "the image is too large for this machine"
    fix = "check the size in its header; crop it, or use a machine with more memory"
    return BadData([Problem(case, what, f"{path}: {found}", fix)])


# ---- tif

TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
              16: 8, 17: 8, 18: 8}  # fmt: skip
TIFF_LETTERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
TIFF_FACTORS = {1: RAW, 5: LZW, 6: DEFLATE, 7: DEFLATE, 8: DEFLATE, 32946: DEFLATE, 32773: 128.0}
WIDTH, HEIGHT, BITS, PACKING, STRIPS, SAMPLES, ROWS = 256, 257, 258, 259, 273, 277, 278
PLANAR, TILE_WIDTH, TILE_HEIGHT, TILES = 284, 322, 323, 324
JUDGED = {WIDTH, HEIGHT, BITS, PACKING, STRIPS, SAMPLES, ROWS, PLANAR, TILE_WIDTH, TILE_HEIGHT,
          TILES}  # fmt: skip


def check_tiff(path: Path, case: str) -> None:
    """Raises BadData for a tif whose pages cannot be what their tags say. Only tags are read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = start[2:4] in (b"+\0", b"\0+")
        try:
            at = struct.unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)[0]
            seen: set[int] = set()
            while at and at not in seen:
                seen.add(at)
                tags, at = _tags(file, order, big, at, size)
                _judge_page(path, case, tags, size)
        except (struct.error, _OutsideError) as error:
            reason = str(error) if isinstance(error, _OutsideError) else "the file is cut short"
            raise damaged(path, case, reason) from error
        if not seen:
            raise damaged(path, case, "it holds no picture")
        if at:
            raise damaged(path, case, "its list of pages runs in a circle")


class _OutsideError(Exception):
    """Something is said to lie where the file has no bytes."""


def _tags(
    file: IO[bytes], order: str, big: bool, at: int, size: int
) -> tuple[dict[int, tuple[int, list[int]]], int]:
    """Of one page: tag -> (how many values, the first of them), and where the next page begins."""
    count_letter, entry, inline = ("Q", 20, 8) if big else ("H", 12, 4)
    width = struct.calcsize(order + count_letter)
    if at + width > size:
        raise _OutsideError(f"a page is said to begin at byte {at} of {size}")
    file.seek(at)
    count = struct.unpack(order + count_letter, file.read(width))[0]
    if at + width + count * entry > size:
        raise _OutsideError(f"a page is said to have {count} tags")
    body = file.read(count * entry)
    letter = "Q" if big else "I"
    following = file.read(inline)
    found: dict[int, tuple[int, list[int]]] = {}
    for begin in range(0, len(body), entry):
        tag, kind = struct.unpack_from(order + "HH", body, begin)
        number = struct.unpack_from(order + letter, body, begin + 4)[0]
        needed = number * TIFF_SIZES.get(kind, 0)
        place = begin + entry - inline
        values = body[place : place + inline]
        if needed > inline:
            offset = struct.unpack_from(order + letter, values)[0]
            if offset + needed > size:
                raise _OutsideError(f"tag {tag} is said to have {number} values at byte {offset}")
            file.seek(offset)
            values = file.read(min(needed, 64))
        if tag in JUDGED:
            if kind not in TIFF_LETTERS or not number:
                raise _OutsideError(f"tag {tag} has the type {kind} and {number} values")
            step = TIFF_LETTERS[kind]
            shown = min(number, len(values) // TIFF_SIZES[kind])
            found[tag] = (number, list(struct.unpack_from(f"{order}{shown}{step}", values)))
    # some writers leave out the end of the list
    end = struct.unpack(order + letter, following)[0] if len(following) == inline else 0
    return found, end


def _judge_page(path: Path, case: str, tags: dict[int, tuple[int, list[int]]], size: int) -> None:
    def first(tag: int, default: int = 0) -> int:
        return tags[tag][1][0] if tag in tags else default

    width, height, samples = first(WIDTH), first(HEIGHT), first(SAMPLES, 1)
    bits, factor = first(BITS, 1), TIFF_FACTORS.get(first(PACKING, 1), UNBOUNDED)
    if not 1 <= bits <= 64:
        raise damaged(path, case, f"it says {bits} bits a value")
    # raw YCbCr colours may be stored at half of the size
    factor *= 2 if factor == RAW else 1
    check_declared(path, case, (height, width, samples), bits / 8, factor, size)
    planes = samples if first(PLANAR, 1) == 2 else 1
    if TILES in tags:
        wide, high = first(TILE_WIDTH), first(TILE_HEIGHT)
        check_declared(path, case, (high, wide, samples // planes), bits / 8, factor, size)
        parts, listed = -(-width // wide) * -(-height // high) * planes, tags[TILES][0]
    elif STRIPS in tags:
        rows = min(first(ROWS, height) or height, height)
        parts, listed = -(-height // rows) * planes, tags[STRIPS][0]
    else:
        raise damaged(path, case, "it does not say where its pixels lie")
    if listed < parts:
        raise damaged(path, case, f"it lists {listed} of the {parts} parts of a page")
