"""Archives of strangers: whole ones come out as they went in, hostile and broken ones not at all."""

import io
import random
import shutil
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from autoseg.errors import AutosegError
from autoseg.files import fresh_token
from autoseg.interop.conversion import archives
from autoseg.interop.conversion.archives import unpack

FILES = {"Task/imagesTr/a.nii": b"one", "Task/labelsTr/a.nii": b"two" * 1000, "Task/x.json": b"{}"}


def zipped(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes] = FILES, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda p: zipped(p / "x.zip"),
        lambda p: tarred(p / "x.tar"),
        lambda p: tarred(p / "x.tar.gz", mode="w:gz"),
        lambda p: tarred(p / "download", mode="w:xz"),
        lambda p: tarred(p / "x.tar.bz2", mode="w:bz2"),
    ],
    ids=["zip", "tar", "gz", "xz without a name", "bz2"],
)
def test_what_went_in_comes_out(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    into = unpack(path, tmp_path / "out")
    assert content_of(into) == FILES
    (into / "mine.txt").write_text("stays", encoding="utf-8")
    assert unpack(path, into) == into
    assert (into / "mine.txt").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../evil.txt", "outside of its folder"),
        ("a/../../evil.txt", "outside of its folder"),
        ("/etc/evil.txt", "outside of its folder"),
        ("..\\evil.txt", "outside of its folder"),
        ("C:\\evil.txt", "outside of its folder"),
        ("a\nb.txt", "a name that is none"),
    ],
)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_names_that_lead_elsewhere_are_refused(
    name: str, told: str, make: Callable[..., Path], tmp_path: Path
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = make(inner / "x", {**FILES, name: b"evil"})
    with pytest.raises(AutosegError, match=told):
        unpack(path, inner / "out")
    assert sorted(p.name for p in inner.iterdir()) == ["x"]
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("Task/link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(AutosegError, match="holds a link or device, 'Task/link'"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(AutosegError, match="holds a link or device"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a", b"1")
        archive.writestr("./a", b"2")
    with pytest.raises(AutosegError, match="twice"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match="inside of a file"):
        unpack(zipped(tmp_path / "x.zip", {"a": b"1", "a/b": b"2"}), tmp_path / "out")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    bomb = zipped(tmp_path / "x.zip", {"a": bytes(8 << 20)})
    assert bomb.stat().st_size * archives.MOST_SWELLING < 8 << 20
    with pytest.raises(AutosegError, match="swells to more than"):
        unpack(bomb, tmp_path / "out")
    with pytest.raises(AutosegError, match="swells to more than"):
        unpack(tarred(tmp_path / "x.tgz", {"a": bytes(8 << 20)}, "w:gz"), tmp_path / "out")


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(AutosegError, match="make room, or choose another folder with --to"):
        unpack(zipped(tmp_path / "x.zip"), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"]


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["zip", "tar", "gz", "xz"])
def test_a_cut_archive_leaves_nothing(kind: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    files = {f"Task/{n}": bytes(range(256)) * 40 for n in range(4)}
    zipped(path, files) if kind == "zip" else tarred(
        path, files, "w" if kind == "tar" else f"w:{kind}"
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    if kind == "tar" and keep == 0.9:
        # tar pads its end with zeros, so this cut takes nothing of the files
        assert len(content_of(unpack(path, tmp_path / "out"))) == 4
        return
    with pytest.raises(AutosegError, match=r"damaged|neither a zip nor a tar"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("start", "kind"), [(b"Rar!\x1a\x07\x01\x00", "RAR"), (b"7z\xbc\xaf\x27\x1c\x00\x04", "7-Zip")]
)
def test_other_archives_are_named(start: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(start + bytes(600))
    with pytest.raises(AutosegError, match=f"a {kind} archive, .* give the folder"):
        unpack(tmp_path / "a.bin", tmp_path / "out")


def test_what_a_killed_process_unpacked_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / fresh_token() / "out" / "big.bin"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(100))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    assert unpack(tmp_path / "a.zip", tmp_path / "out").is_dir()
    assert not left.parent.parent.exists()


def test_an_error_page_in_the_place_of_an_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_text("<html>log in first</html>", encoding="utf-8")
    with pytest.raises(AutosegError, match="neither a zip nor a tar; it begins with b'<html>"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar", "gz", "xz"])
def test_changed_bytes_are_told_or_harmless_and_never_a_traceback(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x.{kind}"
    mode = "w" if kind == "tar" else f"w:{kind}"
    whole = (zipped(path) if kind == "zip" else tarred(path, mode=mode)).read_bytes()
    refused = 0
    for seed in range(60):
        rng = random.Random(seed)
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            shutil.rmtree(unpack(path, tmp_path / "out"))
        except AutosegError as error:
            refused += 1
            assert str(path) in str(error)
            assert not (tmp_path / "out").exists()
    assert refused > 3
    assert {p.name for p in tmp_path.iterdir()} <= {path.name, ".out.json"}
