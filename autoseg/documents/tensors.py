"""What a safetensors file says of itself: names, shapes and kinds, read without trusting it.

The format (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the
header, then the numbers of every tensor, one after the other without gaps.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import numpy as np

from autoseg.files import BLOCK

HEADER_LIMIT = 4 << 20
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
NAMELIKE = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
BFLOAT_EXPONENT = 0x7F80
"""All ones in a bfloat16 that is not finite."""
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
"""How Python's pickles begin, and torch's files, which are zips of pickles."""


class NotTensors(Exception):
    """The bytes are no sound safetensors file, or not the expected tensors; the text says why."""


@dataclass(frozen=True)
class Form:
    """The kind and shape of one tensor, as in `F32`, (32, 1, 3, 3, 3)."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return BYTES[self.kind] * prod(self.shape)

    def __str__(self) -> str:
        return f"{self.kind} {'x'.join(map(str, self.shape)) or 'of one number'}"


@dataclass(frozen=True)
class Header:
    """The tensors in the order of their numbers, what else the header says, and its own bytes."""

    tensors: Mapping[str, Form]
    metadata: Mapping[str, str]
    raw: bytes


def read_header(file: IO[bytes], size: int) -> Header:
    """The header of a file of `size` bytes, which is left where the numbers begin.

    Raises NotTensors if it is damaged, or does not describe exactly the bytes that follow.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(HEADER_LIMIT, size - 8):
        if start.startswith(PICKLES):
            raise NotTensors("it is a pickle, which could run code, and no safetensors file")
        raise NotTensors("it is no safetensors file")
    raw = b"".join(_exactly(file, length))
    try:
        said = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        kind = "it is a pickle, which could run code" if start.startswith(PICKLES) else str(error)
        raise NotTensors(f"it is no safetensors file ({kind})") from error
    if not isinstance(said, dict):
        raise NotTensors("it is no safetensors file (its header is no object)")
    metadata = said.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise NotTensors("its metadata is no object")
    places = sorted((_place(name, x) for name, x in said.items()), key=lambda p: (p[1], p[2]))
    end = 0
    for name, begin, finish, form in places:
        if begin != end or finish - begin != form.size:
            raise NotTensors(f"tensor {name!r} of {form} overlaps another, or has another size")
        end = finish
    if 8 + length + end != size:
        raise NotTensors(f"it has {size} bytes, its header tells of {8 + length + end}")
    return Header({name: form for name, _, _, form in places}, metadata, start + raw)


def _place(name: str, said: Any) -> tuple[str, int, int, Form]:
    """Name, first and last byte, form. Raises NotTensors."""
    try:
        begin, end = said["data_offsets"]
        form = Form(said["dtype"], tuple(said["shape"]))
        whole = [begin, end, *form.shape]
    except (TypeError, LookupError, ValueError) as error:
        raise NotTensors(f"tensor {name!r} is described wrongly") from error
    if form.kind not in BYTES or any(type(n) is not int or not 0 <= n < 2**62 for n in whole):
        raise NotTensors(f"tensor {name!r} is of kind {form.kind!r} or of an impossible size")
    return name, begin, end, form


def differing(found: Mapping[str, Form], wanted: Mapping[str, Form]) -> str:
    """The first difference from the tensors that a network has; empty if there is none."""
    for name, form in wanted.items():
        if name not in found:
            return f"it lacks {name!r} ({form})"
        if found[name] != form:
            return f"{name!r} is {found[name]}, in the network {form}"
    extra = sorted(found.keys() - wanted.keys())
    return f"it holds {extra[0]!r}, which is not in the network" if extra else ""


def private_fact(metadata: Mapping[str, Any]) -> str:
    """The first fact of a header that is more than a number or a short name; empty if none is."""
    facts: dict[str, Any] = dict(metadata)
    try:
        inside = json.loads(facts.get("autoseg", "{}"))
    except (TypeError, ValueError, RecursionError):
        inside = None
    if isinstance(inside, dict):
        facts.pop("autoseg", None)
        facts |= inside
    for key, value in facts.items():
        wordy = isinstance(value, str) and not NAMELIKE.fullmatch(value)
        if wordy or isinstance(value, (dict, list)) or not NAMELIKE.fullmatch(key):
            return f"{key!r}: {value!r}"
    return ""


def pieces(file: IO[bytes], size: int, wanted: Mapping[str, Form]) -> Iterator[bytes]:
    """All bytes of a file of `size`, of a mebibyte at most, checked on the way.

    Raises NotTensors at the first that is wrong: another header than `wanted`, an end too early,
    NaN or infinity among the weights.
    """
    header = read_header(file, size)
    fault = differing(header.tensors, wanted)
    if fault:
        raise NotTensors(f"it holds the weights of another network: {fault}")
    yield header.raw
    for name, form in header.tensors.items():
        for piece in _exactly(file, form.size):
            if not _finite(piece, form.kind):
                raise NotTensors(f"{name!r} holds NaN or infinity")
            yield piece


def _exactly(file: IO[bytes], size: int) -> Iterator[bytes]:
    """`size` bytes in pieces of whole numbers. Raises NotTensors where the file ends before."""
    while size:
        piece = file.read(min(BLOCK, size))
        while len(piece) < min(BLOCK, size):
            more = file.read(min(BLOCK, size) - len(piece))
            if not more:
                raise NotTensors("it ends too early")
            piece += more
        size -= len(piece)
        yield piece


def _finite(piece: bytes, kind: str) -> bool:
    if kind in FLOATS:
        return bool(np.isfinite(np.frombuffer(piece, FLOATS[kind])).all())
    if kind == "BF16":
        bits = np.frombuffer(piece, "<u2") & BFLOAT_EXPONENT
        return bool((bits != BFLOAT_EXPONENT).all())
    return True
