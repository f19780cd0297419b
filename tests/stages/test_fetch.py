"""Downloads against a server that breaks, has no ranges, changes its file, or lies."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autoseg.documents.spec import Archive
from autoseg.errors import AutosegError
from autoseg.stages import fetch as stage
from autoseg.stages.fetch import archive_name, fetch
from tests.stages.web import Web, serving

CONTENT = np.random.default_rng(7).bytes(300_000)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with serving() as found:
        found.files["/task.tar"] = CONTENT
        yield found


def archive(web: Web, *paths: str, content: bytes = CONTENT, checked: bool = True) -> Archive:
    checksum = {"sha256": hashlib.sha256(content).hexdigest(), "checksum_from": "the test"}
    urls = tuple(web.url(path) for path in paths or ("/task.tar",))
    return Archive(urls=urls, **(checksum if checked else {}))


def test_a_whole_file_is_fetched_once(web: Web, tmp_path: Path) -> None:
    path = fetch(archive(web), tmp_path)
    assert path == tmp_path / "task.tar"
    assert path.read_bytes() == CONTENT
    assert fetch(archive(web), tmp_path) == path
    assert web.asked == [("/task.tar", None)]
    assert not (tmp_path / "task.tar.part").exists()


@pytest.mark.parametrize("checked", [True, False])
def test_a_broken_transfer_goes_on_where_it_stopped(
    web: Web, tmp_path: Path, checked: bool
) -> None:
    web.break_after = [100_000, 50_000]
    path = fetch(archive(web, checked=checked), tmp_path, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in web.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_a_stopped_command_goes_on(web: Web, tmp_path: Path, monkeypatch) -> None:
    real, seen = stage._read, []

    def read(answer: object) -> bytes:
        if seen:
            raise KeyboardInterrupt
        seen.append(real(answer))
        return seen[0]

    monkeypatch.setattr(stage, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        fetch(archive(web), tmp_path)
    monkeypatch.setattr(stage, "_read", real)
    begun = len(seen[0])
    assert (tmp_path / "task.tar.part").stat().st_size == begun > 0
    if begun < len(CONTENT):
        assert fetch(archive(web), tmp_path).read_bytes() == CONTENT
        assert web.asked[-1] == ("/task.tar", f"bytes={begun}-")
    else:
        assert fetch(archive(web), tmp_path).read_bytes() == CONTENT
        assert len(web.asked) == 1


def test_a_server_without_ranges_sends_all_of_it_again(web: Web, tmp_path: Path) -> None:
    web.ranges, web.break_after = False, [100_000]
    assert fetch(archive(web), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert len(web.asked) == 2


@pytest.mark.parametrize("etag", ['"two"', ""])
def test_a_file_that_changed_meanwhile_is_fetched_anew(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etag: str
) -> None:
    web.break_after = [1000] + [0] * 20
    with pytest.raises(AutosegError, match="1,000 bytes so far"):
        fetch(archive(web), tmp_path, pause_s=0)
    other = bytes(reversed(CONTENT))[:200_000]
    web.files["/task.tar"], web.etag, web.break_after = other, etag, []
    assert fetch(archive(web, content=other), tmp_path, pause_s=0).read_bytes() == other


def test_two_halves_of_two_versions_are_found_out(web: Web, tmp_path: Path) -> None:
    web.etag, web.break_after = "", [1000] + [0] * 20
    with pytest.raises(AutosegError):
        fetch(archive(web), tmp_path, pause_s=0)
    other = bytes(reversed(CONTENT))
    web.files["/task.tar"], web.break_after = other, []
    asked = len(web.asked)
    assert fetch(archive(web, content=other), tmp_path, pause_s=0).read_bytes() == other
    assert [a for _, a in web.asked[asked:]] == ["bytes=1000-", None]


def test_without_checksum_and_etag_nothing_is_gone_on_with(web: Web, tmp_path: Path) -> None:
    web.etag, web.break_after = "", [1000]
    assert fetch(archive(web, checked=False), tmp_path, pause_s=0).read_bytes() == CONTENT
    assert [asked for _, asked in web.asked] == [None, None]


def test_a_wrong_checksum_is_refused(web: Web, tmp_path: Path) -> None:
    wrong = archive(web, content=b"something else")
    with pytest.raises(AutosegError, match=r"its sha256 is .*, not .* \(the test\)"):
        fetch(wrong, tmp_path, pause_s=0)
    assert not list(tmp_path.glob("task.tar*"))


def test_a_wrong_size_is_refused_before_it_is_fetched(web: Web, tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match="it has 300,000 bytes there, not 5"):
        fetch(Archive(urls=(web.url("/task.tar"),), size_bytes=5), tmp_path, pause_s=0)


def test_more_bytes_than_there_should_be_are_refused(web: Web, tmp_path: Path) -> None:
    web.length = False
    with pytest.raises(AutosegError, match="sends more than the 1,000 bytes"):
        fetch(Archive(urls=(web.url("/task.tar"),), size_bytes=1000), tmp_path, pause_s=0)


def test_the_second_address_is_tried_when_the_first_has_nothing(web: Web, tmp_path: Path) -> None:
    path = fetch(archive(web, "/gone.tar", "/task.tar"), tmp_path, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert [where for where, _ in web.asked] == ["/gone.tar", "/task.tar"]


@pytest.mark.parametrize("checked", [True, False])
def test_a_page_to_log_in_is_not_taken_for_the_archive(
    web: Web, tmp_path: Path, checked: bool
) -> None:
    web.moved["/task.tar"] = "/login"
    web.files["/login"], web.kind = b"<html>Who are you?</html>", "text/html; charset=utf-8"
    with pytest.raises(AutosegError, match=r"a page instead of the file, perhaps .*/login"):
        fetch(archive(web, checked=checked), tmp_path, pause_s=0)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    web.moved, web.kind = {}, "application/x-tar"
    assert fetch(archive(web, checked=checked), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("to", "words"), [("/task.tar", "infinite loop"), ("file:///etc/hostname", "not allowed")]
)
def test_addresses_that_lead_nowhere_are_told_in_one_line(
    web: Web, tmp_path: Path, to: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    web.moved["/task.tar"] = to
    with pytest.raises(AutosegError, match=words) as found:
        fetch(archive(web), tmp_path, pause_s=0)
    assert "\n" not in str(found.value)
    assert caplog.messages == []
    assert {path for path, _ in web.asked} == {"/task.tar"}


def test_an_empty_answer_is_no_archive(web: Web, tmp_path: Path) -> None:
    web.files["/task.tar"] = b""
    with pytest.raises(AutosegError, match="it is empty"):
        fetch(archive(web, checked=False), tmp_path, pause_s=0)
    assert not (tmp_path / "task.tar").exists()


def test_no_address_has_it(web: Web, tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"gone\.tar: the server answered 404.*;.*lost\.tar"):
        fetch(archive(web, "/gone.tar", "/lost.tar"), tmp_path, pause_s=0)


def test_a_busy_server_is_asked_again(web: Web, tmp_path: Path) -> None:
    web.errors = [503, 500]
    assert fetch(archive(web), tmp_path, pause_s=0).read_bytes() == CONTENT


def test_no_server_is_told_in_one_line(tmp_path: Path, web: Web) -> None:
    with pytest.raises(AutosegError, match="no connection") as told:
        fetch(Archive(urls=("http://127.0.0.1:9/x.zip",)), tmp_path, pause_s=0)
    assert "\n" not in str(told.value)


def test_a_full_disk_is_told_before_the_download(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(AutosegError, match="make room, or choose another folder with --to"):
        fetch(archive(web), tmp_path, pause_s=0)
    assert not (tmp_path / "task.tar").exists()


def test_a_file_that_a_person_put_there_is_verified_and_used(web: Web, tmp_path: Path) -> None:
    (tmp_path / "task.tar").write_bytes(CONTENT)
    assert fetch(archive(web), tmp_path).read_bytes() == CONTENT
    assert web.asked == []


def test_a_damaged_file_that_lies_there_is_fetched_again(web: Web, tmp_path: Path) -> None:
    fetch(archive(web), tmp_path)
    (tmp_path / "task.tar").write_bytes(b"cut short")
    assert fetch(archive(web), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://x.org/a/Task02_Heart.tar", "Task02_Heart.tar"),
        ("https://x.org/%2e%2e%2fevil.zip?x=1", "_evil.zip"),
        ("https://x.org/.hidden.zip", "hidden.zip"),
    ],
)
def test_the_name_of_a_file_is_harmless(url: str, name: str) -> None:
    assert archive_name(Archive(urls=(url,))) == name


def test_an_address_without_a_name_gets_one_of_its_own() -> None:
    one = archive_name(Archive(urls=("https://x.org/collection/1/download",)))
    other = archive_name(Archive(urls=("https://x.org/collection/2/download",)))
    assert one.startswith("download-")
    assert one != other
