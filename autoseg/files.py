"""How JSON is written, a file or folder replaced in one step, a content hashed, a unit locked.

Everything here is ignorant of medicine and of plans. A file has its final name only when it is
complete: it is written beside, flushed to the disk and renamed.
"""

import ctypes
import errno
import hashlib
import io
import json
import math
import os
import platform
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from autoseg.errors import AutosegError, Busy

BLOCK = 1 << 20
LONGEST_NAME = 180
"""Bytes of a name: what is put before and behind it must fit into the 255 of file systems."""
HALF = ".autoseg-half-"
"""Begins the names of folders beside what is being written; a checked token follows."""
WRITER, ASIDE = ".writer", "old-"
"""In such a folder: the file whose lock says that its writer is alive; a folder that stepped aside."""


def explained(error: OSError, path: Path, doing: str) -> AutosegError:
    """An operating system error in words that say which file and what to do."""
    if error.errno is None and "written" in str(error):
        # numpy keeps the number to itself: "1000 requested and 384 written"
        return explained(OSError(errno.ENOSPC, str(error)), path, doing)
    advice = {
        errno.ENOSPC: "the disk is full; free some space and repeat the same command",
        errno.EDQUOT: "the disk quota is used up; free some space and repeat the same command",
        errno.EACCES: "permission denied; choose another --root or change the folder's rights",
        errno.EPERM: "permission denied; choose another --root or change the folder's rights",
        errno.EROFS: "the file system is read-only; choose another --root",
        errno.ENOENT: "it does not exist",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EEXIST: "a part of the path is a file, not a folder",
        errno.EISDIR: "it is a folder, not a file",
    }.get(error.errno or 0, error.strerror or str(error))
    return AutosegError(f"cannot {doing} {path}: {advice}")


@contextmanager
def explaining(path: Path, doing: str) -> Iterator[None]:
    """Turn operating system errors inside the block into explained ones about `path`."""
    try:
        yield
    except OSError as error:
        raise explained(error, path, doing) from error


def flush_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError:  # some network file systems cannot flush a folder; the rename still holds
            pass
        finally:
            os.close(handle)


def named(text: str, what: str) -> str:
    """`text`, if it may be the name of a file or folder of ours. Raises AutosegError.

    Ids of cases, plans, runs, folds, models and labels come from documents that strangers wrote and
    become parts of paths. A name has no separator, is not hidden, holds no control character, is
    UTF-8 and has at most LONGEST_NAME bytes. `what` says whose name it is, as in "the case id".
    """
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        fault = "holds bytes that are not UTF-8"
    elif not text or text != text.strip():
        fault = "is empty, or begins or ends with a space"
    elif "/" in text or "\\" in text:
        fault = "holds a slash, so it would be a path"
    elif text.startswith("."):
        fault = "begins with a dot"
    elif any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in text):
        fault = "holds a control character"
    elif len(text.encode()) > LONGEST_NAME:
        fault = f"is longer than {LONGEST_NAME} bytes"
    else:
        return text
    shown = text if len(text) <= 60 else text[:57] + "..."
    raise AutosegError(f"{what} {printable(shown)} {fault}; rename it (letters, digits, - and _)")


def printable(text: str) -> str:
    """`text` in quotes and on one line: control characters and bytes that are no UTF-8 are escaped."""
    plain = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return repr(plain).replace("\\\\x", "\\x")


def fresh_token() -> str:
    """The name of a folder for what is half written, which nobody else would give."""
    drawn = secrets.token_hex(6)
    return f"{HALF}{drawn}{_check(drawn)}"


def is_half(name: str) -> bool:
    """Whether this program gave the name, for a folder of what is half written."""
    token = name.removeprefix(HALF)
    return name.startswith(HALF) and len(token) == 20 and token[12:] == _check(token[:12])


def _check(drawn: str) -> str:
    return hashlib.sha256(f"half written by autoseg {drawn}".encode()).hexdigest()[:8]


def _claim(half: Path) -> tuple[Any, bool]:
    """(an open file in the folder `half`, whether it is locked now); FileExistsError if it is another's.

    The lock says that the writer is alive. It is the operating system's: it ends with its process and
    holds for other containers too, whose process numbers mean nothing here.
    """
    handle = open(half / WRITER, "x+", encoding="utf-8")  # noqa: SIM115
    try:
        locked = _lock_now(handle)
    except OSError:  # a file system without locks: nobody will judge, so nobody will sweep
        return handle, True
    return handle, locked and (half / WRITER).exists()


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder beside `path`, claimed by this process, for what is to take its place."""
    if ".." in path.parts:
        raise AutosegError(f"{path} leaves its folder; nothing is written there")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        half = path.with_name(fresh_token())
        half.mkdir()
        with suppress(FileExistsError, FileNotFoundError):
            handle, claimed = _claim(half)
            if claimed:
                break
            handle.close()
    try:
        yield half
    finally:
        shutil.rmtree(half, ignore_errors=True)
        handle.close()


@contextmanager
def replacing(path: Path, *, name: str | None = None, durable: bool = True) -> Iterator[Path]:
    """A path to write to; what is there takes the place of `path` if the block ends well.

    It lies in a folder of its own beside `path` and has its name (else `name`), since writers choose
    the format by suffixes. With `durable` the content reaches the disk before the rename.
    """
    with explaining(path, "write"), _beside(path) as folder:
        half = folder / (name or path.name)
        yield half
        # some writers make files that only their owner can read, whatever the umask
        half.chmod((folder / WRITER).stat().st_mode & 0o777)
        if durable:
            flush_file(half)
        os.replace(half, path)
        if durable:
            flush_folder(path.parent)


@contextmanager
def replacing_folder(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of `path` in one step if the block ends well."""
    with explaining(path, "write"), _beside(path) as folder:
        half = folder / path.name
        half.mkdir()
        yield half
        if durable:
            for file in half.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    flush_file(file)
        if path.exists():
            exchange(half, path)
        else:
            os.replace(half, path)
        if durable:
            flush_folder(path.parent)


def flush_file(path: Path) -> None:
    """Let what was written to a file reach the disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(new: Path, old: Path) -> None:
    """Let two folders change their places: in one step on Linux, else in two that `sweep` can finish."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            swap = ctypes.CDLL(None, use_errno=True).renameat2
            here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            if swap(here, os.fsencode(new), here, os.fsencode(old), both) == 0:
                return
    aside = new.with_name(ASIDE + old.name)
    os.replace(old, aside)
    os.replace(new, old)
    os.replace(aside, new)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in `folder`; what others have is not touched.

    A folder that was replaced is put back where its successor did not come to take its place.
    """
    if not folder.is_dir():
        return
    with explaining(folder, "list"):
        found = [entry for entry in folder.iterdir() if is_half(entry.name)]
    for half in found:
        if half.is_symlink() or not half.is_dir():
            continue
        try:
            with suppress(FileExistsError):
                # killed before it could claim it: now it is ours
                _claim(half)[0].close()
            with open(half / WRITER, "a+", encoding="utf-8") as handle:
                if _lock_now(handle):
                    for aside in half.glob(ASIDE + "*"):
                        lost = folder / aside.name.removeprefix(ASIDE)
                        if not lost.exists():
                            os.replace(aside, lost)
                    shutil.rmtree(half, ignore_errors=True)
        except OSError:  # gone, or not to be judged here
            continue


def finite(value: Any) -> Any:
    """`value` with mappings and sequences made plain; NaN and infinity are a ValueError."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot stand in a document: write None and say why beside it")
    return value


def to_json(value: Any) -> str:
    """Readable JSON: one key a line, short sequences of numbers on one line."""
    return _pretty(finite(value), 0) + "\n"


def _pretty(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not value or not isinstance(value, (dict, list)):
        return flat
    holds_mapping = isinstance(value, dict) or any(isinstance(v, dict) for v in value)
    if len(flat) + 2 * depth <= 96 and (not holds_mapping or len(flat) <= 60):
        return flat
    pad, end = "  " * (depth + 1), "  " * depth
    if isinstance(value, list):
        # long lists of numbers are most of what is written, and need no second look
        numbers = all(isinstance(v, (int, float)) for v in value)
        rows = flat[1:-1].split(", ") if numbers else [_pretty(v, depth + 1) for v in value]
        opening, closing = "[", "]"
    else:
        rows = [
            f"{json.dumps(k, ensure_ascii=False)}: {_pretty(v, depth + 1)}"
            for k, v in value.items()
        ]
        opening, closing = "{", "}"
    return opening + "\n" + ",\n".join(pad + r for r in rows) + "\n" + end + closing


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as JSON in one step. Raises ValueError for NaN or infinity."""
    text = to_json(value)
    with replacing(path, durable=durable) as half:
        half.write_text(text, encoding="utf-8")


def write_changed(path: Path, value: Any) -> None:
    """As `write_json`, unless the file holds the document already; a damaged one does not."""
    with suppress(AutosegError):
        if path.exists() and read_json(path) == value:
            return
    write_json(path, value)


def read_json(path: Path) -> Any:
    """The decoded document. Raises AutosegError if it is missing or damaged, saying where."""
    with explaining(path, "read"):
        raw = path.read_bytes()
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also numbers and depths beyond all reason
        raise AutosegError(f"{path} is not valid JSON: {error}; restore or rewrite it") from error


def is_blank(path: Path) -> bool:
    """Whether a file holds nothing or zeros alone, as a power cut leaves one that was just made."""
    with explaining(path, "read"), open(path, "rb") as handle:
        return not any(block.strip(b"\0") for block in iter(lambda: handle.read(BLOCK), b""))


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with explaining(path, "read"), open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a document's canonical JSON, in hex: equal values, equal hashes."""
    text = json.dumps(finite(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


class BoundedFile(io.BufferedReader):
    """A file of a stranger that is never read in pieces of more than `most` bytes.

    For readers that ask for as much as the contents say (the directory of a zip). Raises ValueError.
    """

    def __init__(self, raw: io.FileIO, length: int, most: int) -> None:
        super().__init__(raw)
        self.length, self.most = length, most

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = self.length - self.tell()
        if size > self.most:
            raise ValueError("its list of contents is absurdly long")
        return super().read(size)


class Lock:
    """The right to write one unit; it ends with its process, however that ends.

    A context manager. Raises Busy, naming `what` and the process that holds it. The lock is the
    operating system's (flock, or msvcrt on Windows), the file beside it only says who holds it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self.handle: Any = None

    def __enter__(self) -> "Lock":
        with explaining(self.path, "lock"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.handle = open(self.path, "a+", encoding="utf-8")
        if not _lock_now(self.handle):
            self.handle.seek(0)
            holder = self.handle.read().strip() or "another process"
            self.handle.close()
            self.handle = None
            raise Busy(f"{self.what} is being written by {holder}; wait for it or stop it first")
        self.handle.seek(0)
        self.handle.truncate()
        self.handle.write(f"process {os.getpid()} on {platform.node()}\n")
        self.handle.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.handle is not None:
            self.handle.close()
            self.handle = None


def _lock_now(handle: Any, *, shared: bool = False) -> bool:
    """Take the operating system's lock on an open file without waiting; False if it is taken.

    A shared one is enough to ask, and can be had on a file that is open for reading alone.
    """
    try:
        if os.name == "posix":
            import fcntl

            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock at `path`; never creates the file."""
    if not path.exists():
        return False
    with explaining(path, "read"), open(path, encoding="utf-8") as handle:
        return not _lock_now(handle, shared=True)
