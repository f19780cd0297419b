"""From words in a document to functions: how a vocabulary is looked up and its settings given."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import nn

from autoseg.documents.networks.sentence import DecoderLevel, Part
from autoseg.documents.networks.word import Word
from autoseg.errors import PlanError, nearest
from autoseg.nets.kit import Kit
from autoseg.nets.units.words import UNITS
from autoseg.nets.wraps.words import WRAPS

W = TypeVar("W", bound=Callable[..., Any])


def meaning(vocabulary: Mapping[str, W], kind: str, said: Word) -> W:
    """The function of a word, with its settings given.

    Raises PlanError naming the nearest word, or the settings that the word has.
    """
    if said.word not in vocabulary:
        near = nearest(said.word, list(vocabulary))
        raise PlanError(f"the network has a {kind} {said.word!r}, which there is not{near}")
    found = vocabulary[said.word]
    parameters = inspect.signature(found).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in said.options:
        if name not in known:
            raise PlanError(
                f"the {kind} {said.word!r} has no setting {name!r}{nearest(name, known)}"
            )
    return partial(found, **said.options) if said.settings else found  # type: ignore[return-value]


def spoken(part: Part) -> Callable[[Kit, int, int], nn.Module]:
    """The unit of `part` inside its wraps, the first of them innermost."""
    unit = meaning(UNITS, "unit", part.unit)
    for said in part.wraps:
        unit = meaning(WRAPS, "wrap", said)(unit)
    return unit


def stage(kit: Kit, level: DecoderLevel, cin: int, cout: int, depth: int) -> nn.Module:
    """`depth` units of a level, then one of each part that it ends with; nothing for no unit."""
    unit = spoken(level.part)
    first = [unit(kit, cin if i == 0 else cout, cout) for i in range(depth)]
    return nn.Sequential(*first, *(spoken(part)(kit, cout, cout) for part in level.then))
