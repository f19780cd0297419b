"""Archives of a public dataset → files on this disk, each verified.

An archive is a unit of its own. What was fetched of it stays as `NAME.part` when the connection
breaks or the command is stopped, and the next try goes on there, if the server still has the same
bytes (ETag, date or size say so) and can. Nothing is believed before its size and checksum fit.
"""

import hashlib
import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autoseg import __version__
from autoseg.documents.spec import Archive
from autoseg.errors import AutosegError
from autoseg.files import BLOCK, Lock, explaining, read_json, sha256_json, write_json

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0
TRIES = 4
"""How often one address is tried while it gives more bytes, or none yet."""
PAUSE_S = 1.0
RESERVE_BYTES = 64 << 20
PAGES = ("text/html", "application/xhtml+xml")
LASTING = {400, 401, 403, 404, 405, 410, 451}
"""Answers of a server that another try does not change."""


@dataclass(frozen=True)
class _Origin:
    """What tells whether a server still has the bytes that were begun."""

    url: str
    etag: str = ""
    modified: str = ""
    size: int | None = None

    @property
    def condition(self) -> str:
        """What goes into If-Range: a strong ETag, else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Broken(Exception):
    """A transfer that did not end well; another try may."""


class _Refused(Exception):
    """An address that will not give the file."""


def archive_name(archive: Archive) -> str:
    """The name of the file on this disk: that of the address, without anything odd."""
    path = urllib.parse.urlsplit(archive.urls[0]).path
    last = urllib.parse.unquote(path.rstrip("/").rpartition("/")[2])
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in last).lstrip(".")
    if "." not in kept:
        # an address without a file name: tell it from others by its hash
        kept = f"{kept or 'archive'}-{sha256_json(list(archive.urls))[:8]}"
    return kept[:120]


def fetch(archive: Archive, folder: Path, *, pause_s: float = PAUSE_S) -> Path:
    """The verified file of an archive in `folder`; nothing is done where it is there.

    Raises AutosegError naming each address and why it failed; what was fetched so far stays.
    """
    path = folder / archive_name(archive)
    with Lock(folder / f".{path.name}.lock", f"the download {path.name}"):
        if _verified(path, archive):
            return path
        if path.exists():
            wrong = _accept(path, archive)
            if wrong is None:
                return path
            log.warning("%s is fetched again: %s", path.name, wrong)
            path.unlink()
        failures: list[str] = []
        for url in archive.urls:
            if failures:
                log.warning("%s; the next address is tried", failures[-1])
            try:
                _fetch_from(url, archive, path, pause_s)
                return path
            except _Refused as error:
                failures.append(f"{url}: {' '.join(str(error).split())}")
        told = "; ".join(failures)
        raise AutosegError(f"cannot fetch {path.name}: {told}; the same command tries again")


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified.json")


def _verified(path: Path, archive: Archive) -> bool:
    """Whether the file is there, was verified against this checksum, and did not change since."""
    record = _record(path)
    if not path.exists() or not record.exists():
        return False
    return bool(read_json(record) == _evidence(path, archive))


def _evidence(path: Path, archive: Archive) -> dict[str, Any]:
    stat = path.stat()
    checked = {"size": archive.size_bytes, "sha256": archive.sha256, "md5": archive.md5}
    return {"size": stat.st_size, "time": stat.st_mtime_ns, "checked": checked}


def _accept(path: Path, archive: Archive) -> str | None:
    """Verify a complete file and remember it; else what is wrong with it."""
    size = path.stat().st_size
    if not size:
        return "it is empty"
    if archive.size_bytes is not None and size != archive.size_bytes:
        return f"it has {size:,} bytes, not {archive.size_bytes:,}"
    for kind, wanted in (("sha256", archive.sha256), ("md5", archive.md5)):
        if wanted is not None:
            found = _digest(path, kind, size)
            if found != wanted:
                return f"its {kind} is {found}, not {wanted} ({archive.checksum_from})"
    if archive.sha256 is None and archive.md5 is None:
        name = path.name.removesuffix(".part")
        log.warning("no checksum of %s is known; only its transfer was checked", name)
    write_json(_record(path), _evidence(path, archive))
    return None


def _digest(path: Path, kind: str, size: int) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    name = path.name.removesuffix(".part")
    bar = tqdm(desc=f"verify {name}", total=size, unit="B", unit_scale=True, disable=None)
    with explaining(path, "read"), path.open("rb") as file, bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _fetch_from(url: str, archive: Archive, path: Path, pause_s: float) -> None:
    """The file from one address, gone on with after breaks. Raises _Refused."""
    part = path.with_name(f"{path.name}.part")
    idle, again = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            resumed = _transfer(url, archive, path, part)
        except _Broken as error:
            after = part.stat().st_size if part.exists() else 0
            idle = 0 if after > before else idle + 1
            if idle >= TRIES:
                raise _Refused(f"{error}, {after:,} bytes so far") from error
            time.sleep(pause_s * 2**idle)
            continue
        wrong = _accept(part, archive)
        if wrong is None:
            _record(part).unlink(missing_ok=True)
            with explaining(path, "write"):
                os.replace(part, path)
            write_json(_record(path), _evidence(path, archive))
            _origin_path(path).unlink(missing_ok=True)
            return
        part.unlink()
        _origin_path(path).unlink(missing_ok=True)
        if not resumed or again:
            raise _Refused(wrong)
        # two halves of two versions do not fit; the whole of one does
        again = True


def _origin_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.origin.json")


def _begun(path: Path, part: Path) -> _Origin | None:
    """Where the bytes of `part` came from; None where there are none or nobody knows."""
    record = _origin_path(path)
    if not part.exists() or not part.stat().st_size or not record.exists():
        return None
    try:
        return _Origin(**read_json(record))
    except (AutosegError, TypeError):
        return None


def _transfer(url: str, archive: Archive, path: Path, part: Path) -> bool:
    """Fetch what is missing of `part`; whether it was gone on with. Raises _Broken, _Refused."""
    begun = _begun(path, part)
    known = bool(archive.sha256 or archive.md5)
    start = 0
    if begun is not None and (known or (begun.url == url and begun.condition)):
        start = part.stat().st_size
        if begun.size is not None and start == begun.size:
            return True
    headers = {"User-Agent": f"autoseg/{__version__}", "Accept-Encoding": "identity"}
    if start and begun is not None:
        headers["Range"] = f"bytes={start}-"
        if begun.url == url and begun.condition:
            headers["If-Range"] = begun.condition
    try:
        answer = _open(url, headers)
    except urllib.error.HTTPError as error:
        with error:
            return _answered(error, begun, part, start)
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        raise _Broken(f"no connection ({getattr(error, 'reason', error)})") from error
    with answer:
        _check_kind(answer, path)
        found = _Origin(
            url, answer.headers.get("ETag") or "", answer.headers.get("Last-Modified") or "",
            _whole_size(answer, start),
        )  # fmt: skip
        going_on = answer.status == 206 and _continues(answer, start, begun, found)
        if answer.status == 206 and not going_on:
            part.unlink(missing_ok=True)
            raise _Broken("the server has another file than before; it is fetched anew")
        _check_size(found, archive)
        _room(path.parent, found.size, start if going_on else 0)
        write_json(_origin_path(path), asdict(found), durable=False)
        _receive(answer, part, start if going_on else 0, found, archive)
    return going_on


def _open(url: str, headers: Mapping[str, str]) -> Any:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _Refused("it is no address of the web")
    request = urllib.request.Request(url, headers=dict(headers))
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def _answered(error: urllib.error.HTTPError, begun: _Origin | None, part: Path, start: int) -> bool:
    """What to do with an answer that is none of the good ones. Raises _Broken, _Refused."""
    if error.code == 416 and start:
        whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if whole.isdecimal() and int(whole) == start and begun is not None:
            return True
        part.unlink(missing_ok=True)
        raise _Broken("the server has a shorter file than before; it is fetched anew") from error
    if error.code in LASTING or 300 <= error.code < 400:
        raise _Refused(f"the server answered {error.code} {error.reason}") from error
    raise _Broken(f"the server answered {error.code} {error.reason}") from error


def _whole_size(answer: Any, start: int) -> int | None:
    """The size of the whole file in bytes, where the server says it."""
    if answer.status == 206:
        whole = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
        if whole.isdecimal():
            return int(whole)
    length = answer.headers.get("Content-Length") or ""
    if not length.isdecimal():
        return None
    return int(length) + (start if answer.status == 206 else 0)


def _continues(answer: Any, start: int, begun: _Origin | None, found: _Origin) -> bool:
    """Whether a partial answer begins where we stopped, in the file that was begun."""
    place = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
    if begun is None or place != str(start):
        return False
    same_size = begun.size is None or found.size is None or begun.size == found.size
    same_etag = begun.url != found.url or begun.etag == found.etag
    return same_size and same_etag


def _check_kind(answer: Any, path: Path) -> None:
    """Raises _Refused for a page where a file should be."""
    kind = (answer.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if kind in PAGES and path.suffix.lower() not in (".html", ".htm"):
        raise _Refused(
            f"the server gives a page instead of the file, perhaps to log in ({answer.url})"
        )


def _check_size(found: _Origin, archive: Archive) -> None:
    if None not in (found.size, archive.size_bytes) and found.size != archive.size_bytes:
        raise _Refused(f"it has {found.size:,} bytes there, not {archive.size_bytes:,}")


def _room(folder: Path, size: int | None, have: int) -> None:
    """Raises AutosegError where the rest of a file does not fit on the disk."""
    free = shutil.disk_usage(folder).free
    missing = (size or 0) - have
    if missing + RESERVE_BYTES > free:
        raise AutosegError(
            f"the download needs {missing / 1e9:.2f} GB more, and {folder} has {free / 1e9:.2f} GB "
            "free; make room, or choose another folder with --to"
        )


def _receive(answer: Any, part: Path, start: int, found: _Origin, archive: Archive) -> None:
    """Write the bytes of an answer behind the first `start` of `part`. Raises _Broken, _Refused."""
    limit = archive.size_bytes or found.size
    at = start
    bar = tqdm(
        desc=part.name.removesuffix(".part"), initial=start, total=limit, unit="B",
        unit_scale=True, disable=None,
    )  # fmt: skip
    with explaining(part, "write"), part.open("r+b" if start else "wb") as file, bar:
        file.seek(start)
        file.truncate()
        while block := _read(answer):
            at += len(block)
            if limit is not None and at > limit:
                raise _Refused(f"it sends more than the {limit:,} bytes that it should have")
            file.write(block)
            bar.update(len(block))
    if found.size is not None and at < found.size:
        raise _Broken(f"the connection broke at {at:,} of {found.size:,} bytes")


def _read(answer: Any) -> bytes:
    try:
        block: bytes = answer.read1(BLOCK)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Broken(f"the connection broke ({error})") from error
    return block
