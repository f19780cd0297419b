"""Where do DICOM files lie, and what does one say: a folder, a zip or a single file, read carefully.

Nothing of an archive is ever unpacked to disk, so names inside it can do no harm; what a file may
take in memory is checked before it is read. pydicom and its companions are an extra: they are
imported when they are needed, and an error says how to get them.
"""

import importlib
import io
import lzma
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from autoseg.errors import AutosegError, Problem
from autoseg.files import explaining
from autoseg.pool import free_bytes

PACKAGES = "pydicom highdicom pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
DAMAGE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
    EOFError,
    AssertionError,
    MemoryError,
    OSError,
    struct.error,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
)
"""What pydicom and the decoders raise on damaged files, beside two errors of pydicom's own."""

START = 132 + 8
PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
"""Where pixels stand: integers, floats or doubles."""

DEFLATED = "1.2.840.10008.1.2.1.99"
PLAIN = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
    (True, False): "1.2.840.10008.1.2.2",
}
"""(implicit types, little endian) -> the transfer syntax of pixels that are not packed."""

LARGEST_RATIO = 500
SMALL = 64 << 20
"""An archive member up to this size may be packed as tightly as it likes."""

MOST_ELEMENTS = 20_000
"""At the top of one file; more are no header, but zeros or noise taken for one."""


class Damaged(Exception):
    """A DICOM file that cannot be used; the message says why in a few words."""


def need(name: str) -> Any:
    """The optional module of this name. Raises AutosegError with the command that installs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise AutosegError(
            f"DICOM needs the package {name.split('.')[0]}, which is not installed ({error}); "
            f"run: pip install {PACKAGES}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom takes odd values as they are inside this block, and keeps its warnings to itself."""
    config = need("pydicom.config")
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def damage() -> Iterator[None]:
    """Turn what pydicom raises on damaged files into Damaged, with its first line."""
    own = need("pydicom.errors")
    try:
        with quiet():
            yield
    except (*DAMAGE, own.BytesLengthException, own.InvalidDicomError) as error:
        if isinstance(error, RuntimeError) and "missing dependencies" in str(error):
            raise AutosegError(
                f"a package that unpacks these DICOM images is missing; run: pip install {PACKAGES}"
            ) from error
        raise Damaged(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """What an error says in one line: its first, and what follows where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return (f"{first} {lines[1]}" if first.endswith(":") and lines[1:] else first)[:200]


@dataclass(frozen=True)
class Item:
    """One file of a source: its path below the folder, or its name in the archive."""

    name: str
    size: int


class Source:
    """An open folder, zip archive or single file of DICOM; made by `opened`.

    `astray` holds the links that `items` found to lead to no file.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile | None) -> None:
        self.path = path
        self.archive = archive
        self.astray: list[str] = []
        self.members: dict[str, zipfile.ZipInfo] = {}
        if archive is not None:
            self.members = {i.filename: i for i in archive.infolist() if not i.is_dir()}

    def items(self) -> list[Item]:
        """Every file, sorted by name; hidden ones are passed over, links followed once."""
        if self.archive is not None:
            found = [Item(name, info.file_size) for name, info in self.members.items()]
        elif self.path.is_file():
            found = [Item(self.path.name, self.path.stat().st_size)]
        else:
            found = list(self._walked())
        kept = (item for item in found if not _hidden(item.name))
        return sorted(kept, key=lambda item: item.name)

    def _walked(self) -> Iterator[Item]:
        self.astray.clear()
        seen: set[str] = set()
        for folder, below, names in os.walk(self.path, followlinks=True):
            below.sort()
            place = os.path.realpath(folder)
            if place in seen:  # a link that leads back would be followed for ever
                below.clear()
                continue
            seen.add(place)
            for name in names:
                path = Path(folder) / name
                relative = path.relative_to(self.path).as_posix()
                if path.is_file():
                    yield Item(relative, path.stat().st_size)
                elif path.is_symlink() and not _hidden(relative):
                    self.astray.append(relative)

    def start(self, name: str) -> bytes:
        """The first bytes of a file, enough to tell DICOM from others."""
        if self.archive is None:
            with open(self._at(name), "rb") as file:
                return file.read(START)
        with self.archive.open(self.members[name]) as member:
            return member.read(START)

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """The file as a seekable stream. Raises Damaged where it would not fit into memory."""
        if self.archive is None:
            with open(self._at(name), "rb") as file:
                yield file
            return
        info = self.members[name]
        packed = max(info.compress_size, 1)
        if info.flag_bits & 1:
            raise Damaged("the archive is encrypted; unpack it first")
        if info.file_size > SMALL and info.file_size / packed > LARGEST_RATIO:
            raise Damaged(f"{info.file_size} bytes are packed in {packed}: not a real image")
        if info.file_size > free_bytes() // 2:
            raise Damaged(f"it unpacks to {info.file_size / 2**30:.1f} GiB, more than fits here")
        with self.archive.open(info) as member:
            content = member.read(info.file_size + 1)
        yield io.BytesIO(content)

    def _at(self, name: str) -> Path:
        return self.path if self.path.is_file() else self.path / name


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """The folder, zip or file at `path`. Raises AutosegError if it cannot be opened."""
    if path.is_dir():
        yield Source(path, None)
        return
    with explaining(path, "read"), open(path, "rb") as file:
        start = file.read(4)
        if start[:2] != b"PK":
            yield Source(path, None)
            return
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as error:
            raise AutosegError(f"{path} is no readable zip: {error}; copy it again") from error
        with archive:
            yield Source(path, archive)


def is_dicom(start: bytes) -> bool:
    """Whether a file that begins so is DICOM, with or without the usual preamble."""
    if start[128:132] == b"DICM":
        return True
    order = "<" if start[:1] in (b"\x02", b"\x08") else ">"
    if len(start) < 8:
        return False
    group, element = struct.unpack(order + "HH", start[:4])
    if group not in (2, 8) or element > 0x70:
        return False
    (length,) = struct.unpack(order + "I", start[4:8])
    return bool(start[4:6].isalpha() and start[4:6].isupper()) or length <= 1024


def holds_dicom(path: Path) -> bool:
    """Whether a file is DICOM, or a folder or zip holds a DICOM file; pydicom is not needed.

    So does a zip that nothing can be read of, as an encrypted one: `find` says why.
    """
    if not path.exists():
        return False
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(START)
        if start[:2] != b"PK":
            return is_dicom(start)
    locked = False
    with opened(path) as source:
        for item in source.items():
            try:
                if is_dicom(source.start(item.name)):
                    return True
            except DAMAGE as error:
                locked = locked or isinstance(error, RuntimeError)
    return locked


def read_header(stream: BinaryIO) -> Any:
    """The dataset of a stream without its pixels. Raises Damaged."""
    reader = need("pydicom.filereader")
    with damage():
        return reader.read_partial(_inflated(stream), _stop(before=True), force=True)


def read_whole(stream: BinaryIO) -> Any:
    """The dataset of a stream up to its pixels, which are still packed. Raises Damaged."""
    reader = need("pydicom.filereader")
    with damage():
        dataset = reader.read_partial(_inflated(stream), _stop(before=False), force=True)
        packed = "PixelData" in dataset and dataset["PixelData"].is_undefined_length
        if not dataset.file_meta.get("TransferSyntaxUID") and not packed:
            # a file without a header of its own is plain, as it was just found to be
            implicit, little = dataset.original_encoding
            plain = PLAIN[bool(implicit), bool(little)]
            dataset.file_meta.TransferSyntaxUID = need("pydicom.uid").UID(plain)
        return dataset


def _stop(*, before: bool) -> Callable[[int, str | None, int], bool]:
    """For pydicom: whether to stop at an element, `before` the pixels or right after them.

    It raises ValueError at senselessly many elements, which a file of zeros seems to hold.
    """
    count = 0
    there = False

    def stop(tag: int, _vr: str | None, _length: int) -> bool:
        nonlocal count, there
        count += 1
        if count > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} elements: it is no real image")
        if there:
            return True
        there = tag in PIXELS
        return there and before

    return stop


def _inflated(stream: BinaryIO) -> BinaryIO:
    """The stream, unpacked within bounds if it is in the deflated transfer syntax.

    pydicom inflates without a limit, so a few megabytes could fill the memory.
    """
    reader, writer = need("pydicom.filereader"), need("pydicom.filewriter")
    preamble = stream.read(132)
    if preamble[128:] != b"DICM":
        stream.seek(0)
        return stream
    if stream.read(2) == b"\0\0":  # what pydicom takes for commands, without an end
        raise ValueError("zeros follow its preamble: it is damaged")
    stream.seek(132)
    meta = reader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2)
    if str(meta.get("TransferSyntaxUID", "")) != DEFLATED:
        stream.seek(0)
        return stream
    limit = free_bytes() // 4
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    content = unpacker.decompress(stream.read(), limit)
    if unpacker.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {limit / 2**30:.1f} GiB")
    if not unpacker.eof:
        raise ValueError("it is cut off")
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    plain = io.BytesIO()
    plain.write(preamble)
    dataset = need("pydicom.dataset")
    writer.write_file_meta_info(plain, dataset.FileMetaDataset(meta), enforce_standard=False)
    plain.write(content)
    plain.seek(0)
    return plain


def damaged_file(name: str, reason: str, fix: str = "") -> Problem:
    """The Problem of a DICOM file that cannot be used."""
    otherwise = "export the series again; take the file out only if it is none of its slices"
    return Problem(name, "a DICOM file cannot be used", reason, fix or otherwise)


def _hidden(name: str) -> bool:
    parts = name.split("/")
    dotted = any(part.startswith(".") and part.strip(".") for part in parts)
    return dotted or "__MACOSX" in parts
