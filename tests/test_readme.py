"""The README and the pages of docs/: their commands parse, their links lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoseg import api
from autoseg.cli import _options

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)", re.DOTALL)
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
TABLE = re.compile(r"^\| `([a-z_]+)` \| \S", re.MULTILINE)
MAKE_TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)
OWN_PAGES = ("README.md", "CHANGELOG.md", "docs/**/*.md")

REPOSITORY = Path(__file__).parents[1]


def pages() -> list[Path]:
    return sorted(p for pattern in OWN_PAGES for p in REPOSITORY.glob(pattern))


def title(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def commands(text: str) -> Iterator[list[str]]:
    """The words after `autoseg` of every command line that is shown, in blocks of their own."""
    for language, body in BLOCK.findall(text):
        if language == "sh":
            for line in body.splitlines():
                if line.startswith("autoseg "):
                    yield shlex.split(line)[1:]


def spoken(text: str) -> Iterator[list[str]]:
    """The words after `autoseg` of commands within a sentence."""
    for span in SPAN.findall(BLOCK.sub("", text)):
        if span.startswith("autoseg ") and "VERB" not in span and "=VALUE" not in span:
            yield shlex.split(span)[1:]


def anchor(heading: str) -> str:
    """The anchor that a Markdown heading gets: lower case, blanks as hyphens, no punctuation."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")


def test_readme_is_short(repository: Path) -> None:
    assert len((repository / "README.md").read_text("utf-8").splitlines()) < 150


def test_readme_installs_with_two_commands_that_the_makefile_has(repository: Path) -> None:
    first = BLOCK.search((repository / "README.md").read_text("utf-8"))
    assert first is not None
    assert first[2].split("\n") == ["make demo", "make test", ""]
    targets = MAKE_TARGET.findall((repository / "Makefile").read_text("utf-8"))
    assert {"demo", "test"} <= set(targets)


def test_readme_lists_every_verb_in_the_order_of_the_help(repository: Path) -> None:
    assert TABLE.findall((repository / "README.md").read_text("utf-8")) == list(api.VERBS)


def test_readme_shows_the_three_commands(repository: Path) -> None:
    shown = list(commands((repository / "README.md").read_text("utf-8")))
    assert [words[0] for words in shown[:3]] == ["plan_and_preprocess", "train", "predict"]
    verb, options = _options(shown[1])
    assert (verb, options["configuration"], options["fold"]) == ("train", "3d_fullres", ("0",))


@pytest.mark.parametrize("page", pages(), ids=title)
def test_shown_commands_parse(page: Path) -> None:
    text = page.read_text("utf-8")
    for words in commands(text):
        verb, options = _options([w for w in words if w != "…"])
        assert verb == words[0]
        assert options
    for words in spoken(text):
        if words == ["--help"]:
            continue
        # a sentence may name a verb without all that it needs, but nothing that there is not
        assert words[0] in api.VERBS, words
        known = set(api.VERBS[words[0]].__annotations__) | {"d", "c", "f", "i", "o", "r"}
        options_named = {w.lstrip("-").replace("-", "_") for w in words if w.startswith("-")}
        assert options_named <= known, words


def test_enough_commands_are_looked_at() -> None:
    texts = [page.read_text("utf-8") for page in pages()]
    assert sum(len(list(commands(text))) for text in texts) >= 15
    assert sum(len(list(spoken(text))) for text in texts) >= 10


@pytest.mark.parametrize("page", pages(), ids=title)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text("utf-8"))):
        if link.startswith("https://"):
            continue
        assert not link.startswith(("http:", "/")), link
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{title(page)} links to {link}"
        assert target.is_relative_to(REPOSITORY)
        if place:
            headings = {anchor(h) for h in HEADING.findall(target.read_text("utf-8"))}
            assert place in headings, f"{title(page)} links to {link}"


def test_every_decision_is_listed(repository: Path) -> None:
    folder = repository / "docs" / "decisions"
    listed = set(LINK.findall((folder / "README.md").read_text("utf-8")))
    assert listed == {p.name for p in folder.glob("[0-9]*.md")}
    numbers = sorted(int(name[:4]) for name in listed)
    assert numbers == list(range(1, len(numbers) + 1))


def test_python_examples_compile(repository: Path) -> None:
    examples = [
        body
        for page in pages()
        for language, body in BLOCK.findall(page.read_text("utf-8"))
        if language == "python"
    ]
    assert len(examples) >= 2
    for body in examples:
        assert compile(body, "example", "exec").co_names
