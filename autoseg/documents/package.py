"""The package file: a model as one zip, written so that equal models give equal bytes.

A stranger's package is read without trusting it: every name, size, flag and hash is checked before
anything is written, and nothing in it is ever run or unpickled. Entries are stored, never deflated:
weights hardly shrink, and what is not compressed cannot swell.
"""

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NoReturn, TypeVar

from pydantic import Field, NonNegativeInt

from autoseg.documents.document import Document, Frozen
from autoseg.errors import AutosegError, PlanError
from autoseg.files import BLOCK, BoundedFile, explaining, replacing

FORMAT: Literal[1] = 1
ENDING = ".autoseg"
MANIFEST, MODEL, CARD = "manifest.json", "model.json", "card.md"
ENDINGS = (".json", ".md", ".safetensors")
RUNS_CODE = (".pkl", ".pickle", ".pth", ".pt", ".ckpt", ".bin", ".joblib", ".npy", ".npz", ".py")

MOST_FILES = 512
TEXT_LIMIT = 4 << 20
"""Bytes of a JSON or Markdown file; the largest plans have a tenth of it."""
DIRECTORY_LIMIT = 1 << 20
"""Bytes of the zip's list of contents."""
DEPTH_LIMIT = 64
"""Brackets of JSON inside one another."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever its ending."""
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ESCAPED_CONTROL = re.compile(
    r"\\([bfnrt]|u(00[0189][0-9a-f]|007f|d[89a-f]..|202[a-e]|206[6-9]))", re.IGNORECASE
)
"""The same behind the escapes of JSON; surrogates too, which our own writer never makes."""
BRACKETS = re.compile(r"[\[\]{}]")

D = TypeVar("D", bound=Document)

ENCRYPTED = 0x2041
"""The flags of a zip entry that say that it, or its name, is encrypted."""
LINK, PLAIN = stat.S_IFLNK, stat.S_IFREG
SUSPICIOUS = "do not use it; ask its maker for the file that `autoseg export` wrote"
AGAIN = "copy or download it again"

DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, LookupError, OverflowError,
    struct.error,
)  # fmt: skip
"""What Python's zip reader stumbles over in a damaged file."""


class Entry(Document):
    """One file of a package."""

    size: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Document):
    """What a package holds: every file but the manifest itself, by its name."""

    format_number: Literal[1] = Field(FORMAT, alias="format")
    autoseg: str
    """The version that wrote it."""
    files: Frozen[str, Entry]


def refuse(path: Path, found: str, fix: str = SUSPICIOUS) -> NoReturn:
    """Raise the one explained line with which a package is refused."""
    raise AutosegError(f"package {path} is refused: {found}; {fix}")


def entry_of(content: bytes) -> Entry:
    """How the manifest tells of some bytes."""
    return Entry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


# ---- writing

Pour = Callable[[str, Callable[[bytes], Any]], None]
"""Called with the name of a file and a function that takes its bytes, piece by piece."""


def write_package(path: Path, manifest: Manifest, head: bytes, pour: Pour) -> None:
    """Write the package in one step; `head` is the manifest's text, `pour` gives all other files.

    Raises AutosegError, leaving what stood there, if a file is not what the manifest says.
    """
    with replacing(path) as half, zipfile.ZipFile(half, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted([MANIFEST, *manifest.files]):
            if name == MANIFEST:
                with archive.open(_info(name, len(head)), "w") as file:
                    file.write(head)
                continue
            wanted, hashed, size = manifest.files[name], hashlib.sha256(), 0

            with archive.open(_info(name, wanted.size), "w") as file:

                def take(piece: bytes, file: IO[bytes] = file, hashed: Any = hashed) -> None:
                    nonlocal size
                    size += len(piece)
                    hashed.update(piece)
                    file.write(piece)

                pour(name, take)
            if (size, hashed.hexdigest()) != (wanted.size, wanted.sha256):
                raise AutosegError(
                    f"{name} changed since the model was put together ({size} bytes, sha256 "
                    f"{hashed.hexdigest()[:12]}, expected {wanted.size} and {wanted.sha256[:12]}); "
                    "export again, and if that does not help train the fold with --redo"
                )


def _info(name: str, size: int) -> zipfile.ZipInfo:
    """An entry without a date, an owner or a system: nothing that would differ elsewhere."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = (PLAIN | 0o644) << 16
    info.file_size = size
    return info


# ---- reading


class Package:
    """An opened package whose names, sizes and flags were found good; contents come checked.

    Every fault is an AutosegError of one line, and a package is refused as soon as one is found.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, length: int) -> None:
        self.path, self.archive = path, archive
        self.entries = self._sound_entries(length)
        self.head = self._text(self.entries[MANIFEST])
        self.manifest = self._sound_manifest()

    def pour(self, name: str, pieces: Callable[[IO[bytes]], Iterator[bytes]]) -> Iterator[bytes]:
        """The pieces that `pieces` reads of a file, which are held against the manifest.

        Raises AutosegError after the last if its hash is another.
        """
        hashed = hashlib.sha256()
        with self._reading(name), self.archive.open(name) as file:
            for piece in pieces(file):
                hashed.update(piece)
                yield piece
            if file.read(1):
                refuse(self.path, f"{name} is longer than its manifest says")
        if hashed.hexdigest() != self.manifest.files[name].sha256:
            refuse(self.path, f"{name} is damaged (its sha256 is not the manifest's)", AGAIN)

    def text(self, name: str) -> bytes:
        """A whole JSON or Markdown file, in UTF-8. Raises AutosegError if it is no plain text."""
        whole = b"".join(self.pour(name, in_blocks))
        fault = text_fault(whole, name)
        if fault:
            refuse(self.path, f"{name} {fault}")
        return whole

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            refuse(self.path, f"{name} is damaged ({error})", AGAIN)

    def _text(self, info: zipfile.ZipInfo) -> bytes:
        with self._reading(info.filename), self.archive.open(info) as file:
            return b"".join(in_blocks(file))

    def _sound_entries(self, length: int) -> dict[str, zipfile.ZipInfo]:
        """The entries by name, after everything that can be seen without reading them."""
        infos = self.archive.infolist()
        if len(infos) > MOST_FILES:
            refuse(self.path, f"it holds {len(infos)} files, more than {MOST_FILES}")
        for info in infos:
            fault = _name_fault(info) or _entry_fault(info)
            if fault:
                refuse(self.path, f"it holds {_shown(info.orig_filename)}, {fault}")
        for name, times in Counter(info.filename.lower() for info in infos).items():
            if times > 1:
                refuse(self.path, f"it holds {times} files called {name} but for upper case")
        if sum(info.file_size for info in infos) > length:
            refuse(self.path, "its files overlap, so that it would swell when it is unpacked")
        found = {info.filename: info for info in infos}
        for name in (MANIFEST, MODEL):
            if name not in found:
                refuse(self.path, f"{name} is missing", "it is no package of autoseg, or only a "
                       "part of one")  # fmt: skip
        return found

    def _sound_manifest(self) -> Manifest:
        found = plain_json(self.head, f"{MANIFEST}", self.path)
        known_number(found, "format", FORMAT, MANIFEST, self.path)
        manifest = parsed(Manifest, found, MANIFEST, self.path)
        there = self.entries.keys() - {MANIFEST}
        if there != manifest.files.keys():
            odd = sorted(there - manifest.files.keys())
            if odd:
                refuse(self.path, f"it holds {odd[0]}, an additional file that its manifest does "
                       "not name")  # fmt: skip
            gone = min(manifest.files.keys() - there)
            refuse(self.path, f"{_shown(gone)} is missing", AGAIN)
        for name, entry in manifest.files.items():
            held = self.entries[name].file_size
            if held != entry.size:
                refuse(self.path, f"{name} has {held} bytes, its manifest says {entry.size}")
        return manifest


@contextmanager
def opened(path: Path) -> Iterator[Package]:
    """The package in a file. Raises AutosegError if it is none, damaged, or not to be trusted."""
    with explaining(path, "read"), open(path, "rb", buffering=0) as raw:
        length = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        start = raw.read(4)
        raw.seek(0)
        if start != b"PK\x03\x04":
            found = "it is no zip file" if start else "it is empty"
            refuse(path, found, "give the file that `autoseg export` wrote")
        with (
            BoundedFile(raw, length, DIRECTORY_LIMIT) as careful,
            _archive(careful, path) as archive,
        ):
            yield Package(path, archive, length)


def _archive(file: IO[bytes], path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        refuse(path, f"it is truncated or damaged ({error})", AGAIN)
    except DAMAGE as error:
        refuse(path, f"its list of contents is damaged ({error})", AGAIN)


def in_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The pieces of a file, of a mebibyte at most."""
    while piece := file.read(BLOCK):
        yield piece


def _name_fault(info: zipfile.ZipInfo) -> str:
    """Why a file must not be called so; empty if it may."""
    name = info.orig_filename
    path = PurePosixPath(name)
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if "\\" in name:
        return "a name with a backslash"
    if ".." in path.parts:
        return "a path that leaves the package with .."
    if name.endswith("/"):
        return "a folder of its own"
    if path.suffix.lower() in RUNS_CODE:
        return "a pickle or program, which could run code when it is opened"
    if name != info.filename or not NAME.fullmatch(name) or name != str(path) or len(name) > 200:
        return "a name that not every system can write"
    if any(DEVICES.fullmatch(part) or part.endswith(".") for part in path.parts):
        return "a name that means something else on Windows"
    if path.suffix not in ENDINGS:
        return f"which is none of {', '.join(ENDINGS)}"
    return ""


def _entry_fault(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == LINK:
        return "a symbolic link"
    if kind not in (0, PLAIN) or info.external_attr & 0x10:
        return "which is no plain file"
    if info.flag_bits & ENCRYPTED:
        return "which is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        ratio = info.file_size / max(info.compress_size, 1)
        return f"which is compressed ({ratio:.0f} times); a package is not, and may be a zip bomb"
    if PurePosixPath(info.filename).suffix != ".safetensors" and info.file_size > TEXT_LIMIT:
        return f"of {info.file_size} bytes, more than the {TEXT_LIMIT} of the largest model"
    return ""


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:79] + "…")


# ---- JSON of strangers


def text_fault(text: bytes, name: str) -> str:
    """What is wrong with a Markdown or JSON text, to stand behind its name; empty if it is plain.

    JSON must hold no control characters behind its escapes either: they would move the cursor of
    the terminal that shows a name.
    """
    if len(text) > TEXT_LIMIT:
        return f"has {len(text)} bytes, more than the {TEXT_LIMIT} of the largest model"
    try:
        said = text.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is no UTF-8 text ({error.reason})"
    found = CONTROL.search(said.replace("\n", "").replace("\t", ""))
    if name.endswith(".json"):
        found = found or ESCAPED_CONTROL.search(said.replace("\\\\", ""))
    return f"holds control characters ({found.group()!a})" if found else ""


def plain_json(text: bytes, name: str, path: Path) -> dict[str, Any]:
    """The object in a JSON text of a stranger. Raises AutosegError."""
    fault = text_fault(text, name)
    if fault:
        refuse(path, f"{name} {fault}")
    said = text.decode("utf-8")
    if _depth(said) > DEPTH_LIMIT:
        refuse(path, f"{name} is nested more than {DEPTH_LIMIT} deep")
    try:
        found = json.loads(said)
    except (ValueError, RecursionError) as error:
        refuse(path, f"{name} is not valid JSON ({error})", AGAIN)
    if not isinstance(found, dict):
        refuse(path, f"{name} holds no JSON object")
    return found


def _depth(text: str) -> int:
    """How many brackets of a JSON text stand inside one another, found without recursion."""
    # every second piece between quotes is outside of a string, once no quote is escaped
    outside = text.replace("\\\\", "").replace('\\"', "").split('"')[::2]
    depth = deepest = 0
    for piece in outside:
        for bracket in BRACKETS.finditer(piece):
            depth += 1 if bracket.group() in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def known_number(found: Mapping[str, Any], key: str, newest: int, name: str, path: Path) -> None:
    """Refuse a document whose number is missing, or of a newer autoseg."""
    number = found.get(key)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        refuse(path, f"{name} has no {key} number; it is no package of autoseg", AGAIN)
    if number > newest:
        refuse(path, f"{name} has {key} {number}, this autoseg knows up to {newest}",
               "install a newer autoseg")  # fmt: skip


def parsed(kind: type[D], found: Mapping[str, Any], name: str, path: Path) -> D:
    """The document in a decoded object. Raises AutosegError with the first fault, on one line."""
    try:
        return kind.parse(found, name)
    except PlanError as error:
        faults = str(error).split("\n")[1:]
        more = f" (and {len(faults) - 1} faults more)" if len(faults) > 1 else ""
        refuse(path, f"{name} cannot work: {faults[0].strip()}{more}", "install a newer autoseg, "
               "or ask its maker to export it again")  # fmt: skip
