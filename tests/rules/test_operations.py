"""Multiply-adds worked out on paper, against those counted while the network runs."""

import pytest

from autoseg.documents.presets.table import network_spec
from autoseg.nets.cost import multiply_adds
from autoseg.rules.operations import plain_operations

SHAPES = [
    (1, 2, (8, 16, 32), [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)], (8, 32, 16)),
    (4, 5, (4, 8, 16, 16), [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 1, 2)], [(3, 3, 3)] * 4, (16, 16, 24)),
    (3, 2, (6, 12, 24), [(1, 1), (2, 2), (2, 2)], [(3, 3)] * 3, (32, 48)),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_plain_network_is_counted_as_it_runs(shape) -> None:
    *said, patch = shape
    spec = network_spec("plain", *said)
    assert plain_operations(spec, patch) == multiply_adds(spec, patch)
    first = spec.levels[0].model_copy(update={"depth": 4})
    deeper = spec.model_copy(update={"encoder": (first, *spec.encoder[1:])})
    assert plain_operations(deeper, patch) == multiply_adds(deeper, patch)


@pytest.mark.parametrize("name", ["resenc_m", "attention_unet", "unetpp", "umamba_bot"])
def test_other_networks_are_left_to_be_counted(name: str) -> None:
    *said, patch = SHAPES[1]
    assert plain_operations(network_spec(name, *said), patch) is None
