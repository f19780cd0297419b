"""How JSON is written, a file or folder replaced in one step, a content hashed, a unit locked.

Everything here is ignorant of medicine and of plans. A file has its final name only when it is
complete: it is written beside, flushed to the disk and renamed.
"""

import errno
import hashlib
import io
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from autoseg.errors import AutosegError, Busy

BLOCK = 1 << 20


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


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` if the block ends well.

    The temporary name keeps the suffixes (`.nii.gz`), since writers choose the format by them.
    With `durable` the content reaches the disk before the rename.
    """
    half = path.with_name(f".half-{os.getpid()}-{path.name}")
    with explaining(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield half
            if durable:
                with open(half, "rb+") as handle:
                    os.fsync(handle.fileno())
            os.replace(half, path)
            if durable:
                flush_folder(path.parent)
        finally:
            half.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it takes `path`’s place if the block ends well."""
    half = path.with_name(f".half-{os.getpid()}-{path.name}")
    with explaining(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        try:
            yield half
            if path.exists():
                # a folder cannot be replaced in one step: the old one steps aside first
                old = path.with_name(f".old-{os.getpid()}-{path.name}")
                os.replace(path, old)
                os.replace(half, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(half, path)
        finally:
            shutil.rmtree(half, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in `folder`."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith((".half-", ".old-")) and not alive(entry.name.split("-")[1]):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()


def alive(pid: str) -> bool:
    """Whether a process of this number runs on this machine; one that ended unmourned does not."""
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # in a container nobody may collect the dead: they stay, as zombies, in state Z
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] not in "ZX"


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


def read_json(path: Path) -> Any:
    """The decoded document. Raises AutosegError if it is missing or damaged, saying where."""
    with explaining(path, "read"):
        raw = path.read_bytes()
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # also numbers and depths beyond all reason
        raise AutosegError(f"{path} is not valid JSON: {error}; restore or rewrite it") from error


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


def _lock_now(handle: Any) -> bool:
    """Take the operating system's lock on an open file without waiting; False if it is taken."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    with explaining(path, "read"), open(path, "a+", encoding="utf-8") as handle:
        return not _lock_now(handle)
