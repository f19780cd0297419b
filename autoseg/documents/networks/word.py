"""A word of a network's vocabulary, as it stands in a document: its name and its settings."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_serializer, model_validator

from autoseg.documents.document import Document

Setting = bool | int | float | str | tuple[int, ...] | tuple[float, ...]


class Word(Document):
    """`"dense"`, or with settings `{"word": "dense", "growth": 16}`.

    What a word's settings are is said where the word is defined, in `autoseg.nets`.
    """

    word: str
    settings: tuple[tuple[str, Setting], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"word": value}
        if isinstance(value, Mapping) and "word" in value and "settings" not in value:
            rest = {key: x for key, x in value.items() if key != "word"}
            return {"word": value["word"], "settings": tuple(sorted(rest.items()))}
        return value

    @model_serializer
    def _fold(self) -> str | dict[str, Any]:
        if not self.settings:
            return self.word
        plain = {key: list(x) if isinstance(x, tuple) else x for key, x in self.settings}
        return {"word": self.word, **plain}

    @property
    def options(self) -> dict[str, Setting]:
        """The settings by name."""
        return dict(self.settings)


def word(name: str, **settings: Setting) -> Word:
    """A word with settings, for those who write sentences in Python."""
    return Word(word=name, settings=tuple(sorted(settings.items())))
