"""Packages taken apart and put together again, as a stranger might."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoseg.errors import AutosegError
from autoseg.stages.package import unpack

Contents = dict[str, bytes]
FIRST = "weights/3d_lowres/fold_0.safetensors"


def contents(path: Path) -> Contents:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def manifest_of(files: Contents, told: dict[str, Any] | None = None) -> bytes:
    named = told or {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
        if name != "manifest.json"
    }
    return json.dumps({"format": 1, "autoseg": "0.1.0", "files": named}).encode()


def zipped(path: Path, files: Contents, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def with_model(files: Contents, change: Callable[[dict[str, Any]], object]) -> Contents:
    """The package with another model.json, of which its manifest knows."""
    document = json.loads(files["model.json"])
    change(document)
    changed = files | {"model.json": json.dumps(document).encode()}
    return changed | {"manifest.json": manifest_of(changed)}


def with_weights(files: Contents, data: bytes) -> Contents:
    """The package with other bytes of one fold, of which model and manifest know."""

    def tell(document: dict[str, Any]) -> None:
        for member in (*document["members"], *document["stages"]):
            for weights in member["weights"]:
                if weights["file"] == FIRST:
                    weights |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    return with_model(files | {FIRST: data}, tell)


def refused(path: Path, into: Path) -> str:
    """Why a package is refused; nothing of it is left, and what stood there stands."""
    before = sorted(into.parent.rglob("*"))
    with pytest.raises(AutosegError) as caught:
        unpack(path, into)
    assert sorted(into.parent.rglob("*")) == before
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    assert said.isprintable()
    return said
