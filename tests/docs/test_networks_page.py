"""docs/networks.md names every word with its settings, every family with its fields, every preset."""

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.networks.network import Network
from autoseg.documents.networks.sentence import Sentence
from autoseg.documents.presets.table import PRESETS
from autoseg.nets.joins import JOINS
from autoseg.nets.resize.words import DOWNS, UPS
from autoseg.nets.units.words import UNITS
from autoseg.nets.wraps.words import WRAPS

VOCABULARIES = {"Units": UNITS, "Wraps": WRAPS, "Joins": JOINS, "Down": DOWNS, "Up": UPS}
FAMILIES = get_args(get_args(NetworkSpec)[0])


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "networks.md").read_text(encoding="utf-8")


def rows(page: str, heading: str) -> dict[str, str]:
    """First cell -> the rest, of the table below a heading."""
    section = re.split(rf"^#+ {heading}\n", page, flags=re.MULTILINE)[1]
    section = re.split(r"^#", section, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("heading", VOCABULARIES)
def test_every_word_stands_there_with_its_settings(page: str, heading: str) -> None:
    words, told = VOCABULARIES[heading], rows(page, heading)
    assert list(told) == list(words)
    for name, made in words.items():
        parameters = inspect.signature(made).parameters.values()
        settings = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        assert re.findall(r"`([a-z_]+)`", told[name].split(" | ")[0]) == settings


def test_every_preset_stands_there(page: str) -> None:
    assert rows(page, "The presets") == {name: preset.about for name, preset in PRESETS.items()}


def test_every_family_stands_there_with_its_own_fields(page: str) -> None:
    told = rows(page, "Families")
    assert list(told) == [kind.model_fields["family"].default for kind in FAMILIES]
    for kind in FAMILIES:
        shared = Sentence if issubclass(kind, Sentence) else Network
        own = [name for name in kind.model_fields if name not in {*shared.model_fields, "family"}]
        cell = told[kind.model_fields["family"].default].split(" | ")[-1]
        assert re.findall(r"`([a-z_]+)`", cell) == own
