"""The tensors of networks that were never made, held against those of networks that were."""

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from autoseg.documents.networks.family import parse_network
from autoseg.documents.presets.table import PRESETS, network_spec
from autoseg.errors import PlanError
from autoseg.nets import shapes
from autoseg.nets.build import build
from autoseg.nets.shapes import KINDS, tensor_forms


def spec_of(name: str) -> Any:
    return network_spec(name, 2, 3, (8, 16, 32, 32), [(1, 1, 1)] + [(2, 2, 2)] * 3, [(3, 3, 3)] * 4)


@pytest.mark.parametrize("name", ["plain", "hyperdense", "unetpp", "swin_unetr", "segnet"])
def test_the_tensors_are_those_of_the_network(name: str) -> None:
    truth = build(spec_of(name)).state_dict()
    assert tensor_forms(spec_of(name)) == {
        n: (KINDS[t.dtype], tuple(t.shape)) for n, t in truth.items()
    }


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("width", 10**9, "a number 1e.09 where networks have at most 65536"),
        ("width", 60_000, "its weights would take .* GiB"),
        ("depth", 10**7, "a number 1e.07"),
    ],
)
def test_a_network_beyond_reason_is_refused_at_once(key: str, value: int, words: str) -> None:
    document = spec_of("plain").dump()
    for level in document["encoder"]:
        level[key] = value
    began = time.process_time()
    with pytest.raises(PlanError, match=words):
        tensor_forms(parse_network(document, "it"))
    assert time.process_time() - began < 5


def test_building_is_stopped_after_a_while() -> None:
    document = spec_of("plain").dump()
    document["encoder"][0]["depth"] = 60_000
    began = time.monotonic()
    with pytest.raises(PlanError, match="cannot be built in reasonable time"):
        tensor_forms(parse_network(document, "it"), seconds=0.2)
    assert time.monotonic() - began < 5


def test_stopping_leaves_gradients_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever building is stopped, also within a `no_grad` that cannot undo itself."""
    torch.set_grad_enabled(True)
    for calls in range(0, 400, 7):
        monkeypatch.setattr(shapes, "MOST_CALLS", calls)
        with pytest.raises(PlanError, match="so large"):
            tensor_forms(spec_of("swin_unetr"))
        assert torch.is_grad_enabled()


def test_a_network_that_does_not_fit_together_is_explained() -> None:
    document = spec_of("plain").dump()
    document["encoder"][1]["part"]["unit"] = {"word": "dense", "no_such": 3}
    with pytest.raises(PlanError):
        tensor_forms(parse_network(document, "it"))


def whole_numbers(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every whole number in a document, once a key."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield place
    elif isinstance(value, dict):
        for key, inside in value.items():
            yield from whole_numbers(inside, (*place, key))
    elif isinstance(value, list) and value:
        yield from whole_numbers(value[0], (*place, 0))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({spec_of(name).family for name in PRESETS}))
def test_no_number_of_any_family_hangs_or_surprises(family: str) -> None:
    name = next(n for n in PRESETS if spec_of(n).family == family)
    document = spec_of(name).dump()
    places = list(whole_numbers(document))
    assert places
    for place in places:
        hostile = copy.deepcopy(document)
        here = hostile
        for step in place[:-1]:
            here = here[step]
        here[place[-1]] = 65_535
        began = time.monotonic()
        try:
            assert tensor_forms(parse_network(hostile, "it"), seconds=1.0)
        except PlanError as error:
            assert str(error)
        assert time.monotonic() - began < 10, place
