"""A typed, frozen JSON document: how every document of autoseg is parsed, told apart and written.

Parsing tells all faults at once, in the words of the document's keys, with the nearest right key
for a misspelt one. Mappings inside a document cannot be changed either.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, ValidationError

from autoseg.errors import PlanError
from autoseg.files import read_json, write_json

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(dict[K, V]):
    """A dict that refuses to be changed; equal to, and written like, a plain one."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a document cannot be changed: dump it, change the copy, parse it again")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenMap, (dict(self),))


Frozen = Annotated[
    Mapping[K, V],
    AfterValidator(FrozenMap),
    PlainSerializer(lambda m: dict(m), when_used="json"),
]


class Document(BaseModel):
    """A frozen document or a part of one. Unknown keys, NaN and infinity are faults."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )

    @classmethod
    def parse(cls, value: Mapping[str, Any], what: str) -> Self:
        """The document in a decoded JSON object. Raises PlanError listing every fault."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            faults = "\n".join(f"  {line}" for line in _faults(cls, error))
            raise PlanError(f"{what} cannot work:\n{faults}") from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """The document in a JSON file. Raises AutosegError if missing, damaged or faulty."""
        value = read_json(path)
        if not isinstance(value, dict):
            raise PlanError(f"{path} holds no JSON object; restore or rewrite it")
        return cls.parse(value, str(path))

    def dump(self) -> dict[str, Any]:
        """Plain JSON values: `type(self).parse(self.dump(), …)` gives an equal document."""
        return self.model_dump(mode="json", by_alias=True)

    def write(self, path: Path) -> None:
        write_json(path, self.dump())


def _faults(cls: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        path, _ = _walk(cls, fault["loc"])
        where = ".".join(path)
        if fault["type"] == "extra_forbidden":
            _, holders = _walk(cls, fault["loc"][:-1])
            near = difflib.get_close_matches(path[-1], _keys(holders), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"unknown key {where!r}{hint}"
        elif fault["type"] == "missing":
            yield f"{where!r} is missing"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            if message.endswith("ctx"):
                message = message[:-3]
            found = "" if fault["type"] == "value_error" else f", found {_short(fault['input'])}"
            yield f"{where + ': ' if where else ''}{message}{found}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _walk(cls: type[BaseModel], location: tuple[Any, ...]) -> tuple[list[str], list[Any]]:
    """The keys of a place in the JSON, and the documents that may stand there.

    Where one of several documents stands, told apart by a field, the location names that field's
    value, which is no key.
    """
    path: list[str] = []
    here: list[Any] = [cls]
    for step in location:
        tagged = [kind for kind in here if len(here) > 1 and step in _tags(kind)]
        if tagged:
            here = tagged
            continue
        path.append(str(step))
        fields = [
            field
            for kind in here
            for name, field in kind.model_fields.items()
            if step in (name, field.alias)
        ]
        if fields:
            here = _documents(fields[0].annotation)
    return path, here


def _tags(kind: Any) -> list[Any]:
    return [field.default for field in kind.model_fields.values()]


def _keys(kinds: list[Any]) -> list[str]:
    return [f.alias or name for kind in kinds for name, f in kind.model_fields.items()]


def _documents(annotation: Any) -> list[Any]:
    """The document types inside tuples, optionals, unions and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _documents(part)]
