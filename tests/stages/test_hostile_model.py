"""Hostile, damaged and impossible packages: each is refused with a reason, and leaves nothing."""

import json
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from autoseg.stages.package import export
from tests.stages.repacked import (
    FIRST,
    contents,
    manifest_of,
    refused,
    with_model,
    with_weights,
    zipped,
)
from tests.stages.tiny_model import tiny_model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the tiny model. Not to be changed."""
    root = tmp_path_factory.mktemp("made")
    return export(tiny_model(root), root, root / "hippo", card="# hippo\n")


# ---- hostile documents


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize("name", ["manifest.json", "model.json"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff\xfe", "no UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (nested(100_000), "nested more than 64"),
        (nested(70), "nested more than 64"),
        (b'{"a": "' + b'\\"' * 1_000_000, "not valid JSON"),
        (b'{"a": "\\u001b[2J"}', "control characters"),
        (b'{"a": "\x1b[2J"}', "control characters"),
        (b'{"a": "\\ud800"}', "control characters"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "more than the 4194304"),
        (b"{}", "number; it is no package"),
        (b'{"format": 2, "schema": 2}', "knows up to 1; install a newer autoseg"),
        (b'{"format": true, "schema": true}', "number; it is no package"),
        (b'{"format": 1, "schema": 1}', "cannot work: .* is missing"),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_hostile_document_is_refused(
    packed: Path, tmp_path: Path, name: str, text: bytes, words: str
) -> None:
    files = contents(packed) | {name: text}
    if name == "model.json":
        files["manifest.json"] = manifest_of(files)
    bad = zipped(tmp_path / "bad.autoseg", files)
    began = time.process_time()
    assert re.search(words, refused(bad, tmp_path / "m"))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("gone", ["manifest.json", "model.json", "card.md", FIRST])
def test_a_missing_file_is_named(packed: Path, tmp_path: Path, gone: str) -> None:
    files = contents(packed)
    del files[gone]
    bad = zipped(tmp_path / "bad.autoseg", files)
    assert re.search(f"{gone}'? is missing", refused(bad, tmp_path / "m"))
    if gone in ("card.md", FIRST):
        # nor does it help to leave it out of the manifest
        files["manifest.json"] = manifest_of(files)
        assert f"{gone} is missing" in refused(zipped(bad, files), tmp_path / "m")


def test_a_manifest_that_lies_is_refused(packed: Path, tmp_path: Path) -> None:
    files = contents(packed)
    named = json.loads(files["manifest.json"])["files"]
    changed = {**named, "card.md": {**named["card.md"], "sha256": "0" * 64}}
    bad = tmp_path / "bad.autoseg"
    files["manifest.json"] = manifest_of(files, changed)
    assert "card.md is damaged (its sha256" in refused(zipped(bad, files), tmp_path / "m")
    changed = {**named, "card.md": {**named["card.md"], "size": 3}}
    files["manifest.json"] = manifest_of(files, changed)
    assert "card.md has 8 bytes, its manifest says 3" in refused(zipped(bad, files), tmp_path / "m")
    changed = {**named, FIRST: {**named[FIRST], "sha256": "0" * 64}}
    files["manifest.json"] = manifest_of(files, changed)
    assert "another size or sha256" in refused(zipped(bad, files), tmp_path / "m")


def configurations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [m["configuration"] for m in (*document["members"], *document["stages"])]


def everywhere(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """A change at dotted places (`__` for the dots) of every configuration."""

    def change(document: dict[str, Any]) -> None:
        for here in configurations(document):
            for dotted, value in changes.items():
                place: Any = here
                *steps, last = dotted.split("__")
                for step in steps:
                    place = place[int(step) if step.isdigit() else step]
                place[last] = value

    return change


HUGE = 10**9
ABSURD = [
    (everywhere(network__encoder__0__width=HUGE), "absurdly large"),
    (everywhere(network__encoder__1__width=HUGE), "number 1e.09"),
    (everywhere(network__encoder__0__depth=HUGE), "number 1e.09"),
    (everywhere(network__encoder__0__width=60000), "weights would take|bytes where its network"),
    (everywhere(network__encoder__0__kernel=[9999, 9999, 9999]), "would take|cannot be built"),
    (everywhere(network__encoder__0__depth=60000), "so large that it cannot be built"),
    (everywhere(network__encoder__1__width=9), "weights of another network"),
    (everywhere(network__encoder__0__part__unit="no such unit"), "the network .* is refused"),
    (everywhere(patch_vox=[2**20] * 3), "GiB for one batch of tiles"),
    (everywhere(predict__tile_batch=HUGE), "GiB for one batch of tiles"),
    (everywhere(predict__whole_up_to=1e9), "GiB for one batch of tiles"),
    (everywhere(predict__tile_step=1e-9), "tile_step of 1e-09"),
    (everywhere(preparation__spacing_mm=[1e-6, 1e-6, 1e-6]), "would enlarge scans"),
    (everywhere(surprise=1), "unknown key .*surprise"),
    (everywhere(patch_vox=[8, 16, 15]), "not a multiple"),
    (lambda d: d.update(members=[]), "members"),
    (lambda d: d["stages"][0].update(name="other"), "refines 3d_lowres, which is not there"),
    (lambda d: d.update(stages=[d["members"][0] | {"name": "3d_lowres"}]), "refines itself"),
    (lambda d: d["members"][1]["weights"][0].update(file="../x.safetensors"), "leaves the folder"),
    (lambda d: d["members"][1]["weights"][0].update(file="/x.safetensors"), "leaves the folder"),
    (lambda d: d.update(postprocessing=[{"kind": "crf", "radius_mm": 1e9, "smooth_mm": 1,
                                         "bilateral_mm": 1}]), "a CRF of"),
    (lambda d: d.update(spacing_ranges_mm=[]), "three spacing ranges"),
    (lambda d: d.update(labels={"names": ["b", "x"], "values": [0, 1]}), "other labels"),
    (lambda d: d.update(name=float("nan")), "name"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), ABSURD, ids=range(len(ABSURD)))
def test_a_model_that_cannot_be_is_refused_soon(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    bad = zipped(tmp_path / "bad.autoseg", with_model(contents(packed), change))
    began = time.process_time()
    assert re.search(words, refused(bad, tmp_path / "m"))
    assert time.process_time() - began < 20


# ---- hostile weights


def header_and_rest(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def reassembled(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def retold(change: Callable[[dict[str, Any], str], object]) -> Callable[[bytes], bytes]:
    """The file with a change to its header: called with it and the name of the first tensor."""

    def make(data: bytes) -> bytes:
        header, rest = header_and_rest(data)
        change(header, next(n for n in header if n != "__metadata__"))
        return reassembled(header, rest)

    return make


def poisoned(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<f", float("nan"))


def pickled(data: bytes) -> bytes:
    return b"\x80\x04\x95" + b"\xff" * (len(data) - 3)


def other_network(data: bytes) -> bytes:
    """A sound file of as many bytes for other names."""
    header, rest = header_and_rest(data)
    return reassembled(
        {n + ("x" if n != "__metadata__" else ""): v for n, v in header.items()}, rest
    )


WEIGHTS = [
    (pickled, "pickle, which could run code"),
    (lambda data: b"PK\x03\x04" + b"\xff" * (len(data) - 4), "pickle, which could run code"),
    (lambda data: bytes(len(data)), "no safetensors file"),
    (poisoned, "holds NaN or infinity"),
    (lambda data: data[:-4] + struct.pack("<f", float("inf")), "holds NaN or infinity"),
    (other_network, "weights of another network: it lacks"),
    (lambda data: save({"a": torch.zeros(10)}), "weights of another network"),
    (lambda data: data + bytes(100), "its header tells of"),
    (lambda data: data[:-100], "its header tells of"),
    (retold(lambda h, n: h[n].update(shape=[1, *h[n]["shape"]])), "in the network F32"),
    (retold(lambda h, n: h[n].update(dtype="I32")), "is I32"),
    (retold(lambda h, n: h[n].update(dtype="OBJECT")), "impossible size"),
    (retold(lambda h, n: h[n].update(shape=[2**61])), "overlaps another|another size"),
    (retold(lambda h, n: h[n].update(shape=[-1])), "impossible size"),
    (retold(lambda h, n: h[n].update(data_offsets=[0])), "described wrongly"),
    (retold(lambda h, n: h[n].update(data_offsets=[8, 12])), "overlaps another"),
    (retold(lambda h, n: h.update(__metadata__=[1])), "metadata"),
    (lambda data: reassembled(nested(5000), header_and_rest(data)[1]), "no safetensors file"),
    (lambda data: reassembled(b"[]", header_and_rest(data)[1]), "its header is no object"),
]


@pytest.mark.parametrize(("change", "words"), WEIGHTS, ids=range(len(WEIGHTS)))
def test_hostile_weights_are_refused(
    packed: Path, tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    files = contents(packed)
    changed = change(files[FIRST])
    assert changed != files[FIRST]
    bad = zipped(tmp_path / "bad.autoseg", with_weights(files, changed))
    said = refused(bad, tmp_path / "m")
    assert re.search(words, said)
    assert FIRST in said
