"""Hostile, damaged and impossible packages: each is refused with a reason, and leaves nothing."""

import re
import stat
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoseg.errors import AutosegError
from autoseg.stages.package import export, unpack
from tests.stages.repacked import contents, manifest_of, refused, zipped
from tests.stages.tiny_model import tiny_model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the tiny model. Not to be changed."""
    root = tmp_path_factory.mktemp("made")
    return export(tiny_model(root), root, root / "hippo", card="# hippo\n")


# ---- hostile zips


NAMES = [
    ("/etc/passwd.json", "absolute path"),
    ("C:/x.json", "absolute path"),
    ("../evil.json", r"leaves the package with \.\."),
    ("weights/../../evil.json", r"leaves the package with \.\."),
    ("weights\\evil.json", "backslash"),
    ("weights/", "a folder"),
    ("data.pkl", "pickle or program"),
    ("weights/3d_lowres/fold_0.pth", "pickle or program"),
    ("net.pt", "pickle or program"),
    ("setup.py", "pickle or program"),
    ("run.sh", "none of .json, .md, .safetensors"),
    ("README", "none of .json"),
    ("CON.json", "Windows"),
    ("weights/aux/x.json", "Windows"),
    ("weights/x./y.json", "Windows"),
    (".hidden.json", "not every system"),
    ("weights//x.json", "not every system"),
    ("./x.json", "not every system"),
    ("a\nb.json", "not every system"),
    ("x\u202egpj.json", "not every system"),
    ("a" * 250 + ".json", "not every system"),
    ("notes.md", "additional"),
    ("weights/more.safetensors", "additional"),
    ("Card.md", "2 files called card.md"),
]


@pytest.mark.parametrize(
    ("name", "words"), NAMES, ids=[words[:12] + ascii(n)[:16] for n, words in NAMES]
)
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_a_file_that_does_not_belong_there_is_refused(
    packed: Path, tmp_path: Path, name: str, words: str, named: bool
) -> None:
    files = contents(packed) | {name: b"{}"}
    if named:
        files["manifest.json"] = manifest_of(files)
    into = tmp_path / "models" / "m"
    into.parent.mkdir()
    bad = zipped(tmp_path / "bad.autoseg", files)
    assert re.search(words, refused(bad, into))


def test_a_name_that_ends_with_nul_is_refused(packed: Path, tmp_path: Path) -> None:
    bad = zipped(tmp_path / "bad.autoseg", contents(packed) | {"evil.json_.md": b"{}"})
    bad.write_bytes(bad.read_bytes().replace(b"evil.json_.md", b"evil.json\0.md"))
    assert "not every system" in refused(bad, tmp_path / "m")


def test_a_name_that_is_there_twice_is_refused(packed: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.autoseg"
    bad.write_bytes(packed.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("model.json", b"{}")
    assert "2 files called model.json" in refused(bad, tmp_path / "m")


@pytest.mark.parametrize(
    ("mode", "words"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "no plain file")]
)
def test_a_link_is_refused(packed: Path, tmp_path: Path, mode: int, words: str) -> None:
    info = zipfile.ZipInfo("weights/link.json")
    info.external_attr = (mode | 0o777) << 16
    bad = tmp_path / "bad.autoseg"
    bad.write_bytes(packed.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(info, b"/etc/passwd")
    assert words in refused(bad, tmp_path / "m")


def test_an_encrypted_file_is_refused(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    bad = tmp_path / "bad.autoseg"
    bad.write_bytes(data)
    assert "encrypted" in refused(bad, tmp_path / "m")


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_bomb_is_refused_without_swelling(packed: Path, tmp_path: Path, kind: int) -> None:
    files = contents(packed) | {"card.md": b" " * 10_000_000}
    files["manifest.json"] = manifest_of(files)
    bad = zipped(tmp_path / "bad.autoseg", files, kind)
    assert bad.stat().st_size < 1_000_000
    del files
    tracemalloc.start()
    try:
        said = refused(bad, tmp_path / "m")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "compressed" in said
    assert peak < 2_000_000


def test_files_that_overlap_are_refused(packed: Path, tmp_path: Path) -> None:
    """Many entries of the directory that point at the same bytes: a bomb without compression."""
    name, data = b"card.md", b"#" * 100_000
    local = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, len(data), len(data), len(name), 0
    )
    body = local + name + data
    directory = b""
    for number in range(100):
        called = f"n{number}.md".encode()
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, len(data), len(data), len(called),
            0, 0, 0, 0, 0, 0,
        ) + called  # fmt: skip
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 100, 100, len(directory), len(body), 0)
    bad = tmp_path / "bad.autoseg"
    bad.write_bytes(body + directory + end)
    assert "overlap" in refused(bad, tmp_path / "m")


def test_a_directory_without_end_is_refused_unread(packed: Path, tmp_path: Path) -> None:
    bad = zipped(tmp_path / "bad.autoseg", {f"{i:0240d}.md": b"" for i in range(4_000)})
    tracemalloc.start()
    try:
        said = refused(bad, tmp_path / "m")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "absurdly long" in said
    assert peak < 2_000_000
    few = zipped(tmp_path / "few.autoseg", {f"{i}.md": b"" for i in range(600)})
    assert "600 files" in refused(few, tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: b"\x80\x04" + data, "no zip file"),
        (lambda data: b"<html>404</html>", "no zip file"),
        (lambda data: data[: len(data) // 2], "truncated or damaged.*again"),
        (lambda data: data[:-1], "truncated or damaged"),
        (lambda data: data[:200], "truncated or damaged"),
    ],
)
def test_what_is_no_package_is_refused(
    packed: Path, tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    bad = tmp_path / "bad.autoseg"
    bad.write_bytes(change(packed.read_bytes()))
    assert re.search(words, refused(bad, tmp_path / "m"))


def test_a_missing_package_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"cannot read .*nowhere.autoseg: it does not exist"):
        unpack(tmp_path / "nowhere.autoseg", tmp_path / "m")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), tail=st.booleans())
def test_a_changed_byte_is_found_or_changes_nothing(
    packed: Path, scratch: Path, place: float, value: int, tail: bool
) -> None:
    data = bytearray(packed.read_bytes())
    # the list of contents, at the end, is where most can go wrong
    first = data.index(b"PK\x01\x02") if tail else 0
    data[first + int(place * (len(data) - first))] ^= value
    bad = scratch / "bad.autoseg"
    bad.write_bytes(data)
    try:
        found = unpack(bad, scratch / "m")
    except AutosegError as error:
        assert "\n" not in str(error)
        assert not list(scratch.glob(".half*"))
    else:
        assert found.members[0].weights[0].size == 90576
        for name, wanted in contents(packed).items():
            assert (scratch / "m" / name).read_bytes() == wanted
