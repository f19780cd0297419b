"""How is an archive of a stranger unpacked without harm: zip and tar, plain or compressed.

All names and sizes are looked at before anything is written: no absolute name, none that leads out
of the folder, no link, no device, no name twice, no more bytes than the disk has or than a real
archive would swell to. The folder appears in one step, or not at all.
"""

import contextlib
import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from autoseg.errors import AutosegError
from autoseg.files import BLOCK, explaining, replacing_folder, sha256_json, sweep, write_json

MOST_ENTRIES = 2_000_000
LONGEST_NAME = 1000
SMALL = 1 << 30
MOST_SWELLING = 200
"""How many times larger than itself the content of an archive may be, where it is over SMALL."""
RESERVE_BYTES = 64 << 20
OTHERS = {b"Rar!": "RAR", b"7z\xbc\xaf\x27\x1c": "7-Zip"}
"""What other archives begin with."""
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    ValueError,
    LookupError,
    RuntimeError,
    OverflowError,
)
"""What the readers raise on damaged files."""


@dataclass(frozen=True)
class _Entry:
    """A file of an archive: its harmless name, its size, and what opens it."""

    name: str
    size: int
    member: Any


def unpack(path: Path, into: Path) -> Path:
    """The folder `into` with the content of an archive; nothing is done if it is there already.

    Raises AutosegError for an archive that is damaged, hostile or too large for the disk.
    """
    mark = into.with_name(f".{into.name}.json")
    with explaining(path, "read"):
        stat_ = path.stat()
    made_from = sha256_json([path.name, stat_.st_size, stat_.st_mtime_ns])
    if into.is_dir() and mark.exists() and made_from in mark.read_text(encoding="utf-8"):
        return into
    into.parent.mkdir(parents=True, exist_ok=True)
    sweep(into.parent)
    with _explained(path), _opened(path) as archive:
        entries = _entries(archive, path, into.parent)
        with replacing_folder(into) as half:
            _write(archive, entries, half, path)
    write_json(mark, {"made_from": made_from})
    return into


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise AutosegError(
            f"{path} cannot be unpacked ({error or type(error).__name__}): it is cut short or "
            "damaged; remove it and fetch it again"
        ) from error
    except OSError as error:
        # gzip and bzip2 report damage as errors of the system without a number, zip as wrong places
        if error.errno not in (None, errno.EINVAL):
            raise
        raise AutosegError(
            f"{path} cannot be unpacked ({error}): it is damaged; remove it and fetch it again"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield archive
        return
    with explaining(path, "read"), path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile("its list of files at the end is missing")
    other = next((kind for magic, kind in OTHERS.items() if start.startswith(magic)), None)
    if other is not None:
        raise AutosegError(
            f"{path} is a {other} archive, which is not unpacked here; unpack it with a program of "
            "its own, and give the folder"
        )
    with contextlib.ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(path, "r:*"))
        except tarfile.ReadError as error:
            raise AutosegError(
                f"{path} is neither a zip nor a tar; it begins with {start!r}. It may be a page that "
                "tells of an error, or cut short: look into it, remove it and fetch it again"
            ) from error
        yield tar


def _entries(archive: zipfile.ZipFile | tarfile.TarFile, path: Path, into: Path) -> list[_Entry]:
    """The files of an archive. Raises AutosegError for what could do harm."""
    entries: list[_Entry] = []
    names: set[str] = set()
    total = 0
    limit = max(SMALL, MOST_SWELLING * path.stat().st_size)
    listed = (
        _zipped(archive, path) if isinstance(archive, zipfile.ZipFile) else _tarred(archive, path)
    )
    for name, size, member, is_folder in listed:
        safe = _safe(name, path)
        if safe in names and not is_folder:
            raise _hostile(path, f"holds {name!r} twice")
        names.add(safe)
        if is_folder or not safe:
            continue
        total += size
        entries.append(_Entry(safe, size, member))
        if len(entries) > MOST_ENTRIES:
            raise _hostile(path, f"holds more than {MOST_ENTRIES:,} files")
        if size < 0 or total > limit:
            raise _hostile(path, f"swells to more than {limit / 1e9:.1f} GB")
    files = {entry.name for entry in entries}
    for entry in entries:
        parents = {str(parent) for parent in PurePosixPath(entry.name).parents}
        if parents & files:
            raise _hostile(path, f"holds {entry.name!r} inside of a file")
    _room(path, into, total)
    return entries


def _zipped(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, int, Any, bool]]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _hostile(path, f"holds a link or device, {info.filename!r}")
        if info.flag_bits & 1:
            raise AutosegError(
                f"{path} is locked by a password; unpack it by hand and convert that"
            )
        yield info.filename, info.file_size, info, info.is_dir()


def _tarred(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, int, Any, bool]]:
    for info in archive:
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise _hostile(path, f"holds a link or device, {info.name!r}")
        yield info.name, info.size, info, info.isdir()


def _safe(name: str, path: Path) -> str:
    """The name with / and without `.`; empty for the top folder. Raises AutosegError."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    drive = bool(parts) and len(parts[0]) == 2 and parts[0][1] == ":"
    if plain.startswith("/") or drive or ".." in parts:
        raise _hostile(path, f"wants to write outside of its folder, {name!r}")
    if len(plain) > LONGEST_NAME or any(ord(c) < 32 for c in plain):
        raise _hostile(path, f"holds a name that is none, {name[:60]!r}")
    return "/".join(parts)


def _room(path: Path, into: Path, total: int) -> None:
    free = shutil.disk_usage(into).free
    if total + RESERVE_BYTES > free:
        raise AutosegError(
            f"{path.name} unpacks to {total / 1e9:.2f} GB, and {into} has {free / 1e9:.2f} GB free; "
            "make room, or choose another folder with --to"
        )


def _write(
    archive: zipfile.ZipFile | tarfile.TarFile, entries: list[_Entry], into: Path, path: Path
) -> None:
    bar = tqdm(
        desc=f"unpack {path.name}", total=sum(e.size for e in entries), unit="B", unit_scale=True,
        disable=None,
    )  # fmt: skip
    as_old = path.stat().st_mtime_ns
    with bar:
        for entry in entries:
            target = into / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _content(archive, entry) as source, target.open("xb") as file:
                left = entry.size
                while left:
                    block = _block(source, min(left, BLOCK), entry.name)
                    file.write(block)
                    left -= len(block)
                    bar.update(len(block))
                if _block(source, 1, ""):
                    raise _hostile(path, f"holds more of {entry.name!r} than it says")
            # unpacked again, the files are the same ones to a conversion that stands
            os.utime(target, ns=(as_old, as_old))


def _block(source: IO[bytes], count: int, name: str) -> bytes:
    """The next bytes of a file; none at the end only where no `name` is given. Raises EOFError."""
    try:
        block = source.read(count)
    except OSError as error:
        # not a fault of what is written, which the folder would be blamed for
        raise EOFError(f"{name}: {error}") from error
    if name and not block:
        raise EOFError(f"{name} ends early")
    return block


def _content(archive: zipfile.ZipFile | tarfile.TarFile, entry: _Entry) -> IO[bytes]:
    """What reads a file of the archive. Raises EOFError."""
    if isinstance(archive, zipfile.ZipFile):
        try:
            return archive.open(entry.member)
        except OSError as error:
            raise EOFError(f"{entry.name}: {error}") from error
    found = archive.extractfile(entry.member)
    if found is None:
        raise EOFError(f"{entry.name} has no content")
    return found


def _hostile(path: Path, what: str) -> AutosegError:
    return AutosegError(f"{path} {what}: it is not unpacked; get it from another place")
