"""What follows after out-of-memory: ever smaller plans, each of them one that the planner takes."""

from math import prod

import pytest

from autoseg.documents.plan import Configuration
from autoseg.documents.settings import patched
from autoseg.rules.card import SMALLEST_BATCH, SMALLEST_VOX
from autoseg.rules.planner import make_plan
from autoseg.rules.shrink import next_smaller
from autoseg.rules.world import Ask
from tests.rules.made import CARD, bytes_of, fingerprint


def cost(configuration: Configuration) -> float:
    return bytes_of(configuration.network, configuration.patch_vox, configuration.train.batch_size)


@pytest.mark.parametrize("name", ["3d_fullres", "2d"])
@pytest.mark.parametrize("network", ["plain", "mednext_s"])
def test_each_proposal_is_smaller_and_is_taken(name: str, network: str) -> None:
    data = fingerprint(shape=(120, 100, 110), spacing_mm=(1.0, 1.0, 1.0))
    pins = {f"{name}.batch_size": 4}
    found = make_plan(data, Ask(device=CARD, network=network, pins=pins)).configurations[name]
    said = []
    while (step := next_smaller(found)) is not None:
        said.append(step.why)
        pins |= {f"{name}.{key}": value for key, value in step.value.items()}
        ask = Ask(device=CARD, network=network, pins=pins)
        smaller = make_plan(data, ask).configurations[name]
        assert cost(smaller) < cost(found)
        assert (smaller.train.batch_size, smaller.network.recompute, list(smaller.patch_vox)) == (
            step.value["train.batch_size"],
            step.value["network.recompute"],
            step.value["patch_vox"],
        )
        found = smaller
    assert found.network.recompute
    assert found.train.batch_size == SMALLEST_BATCH
    assert prod(found.patch_vox) >= min(
        SMALLEST_VOX[found.dimensions], prod(found.median_shape_vox[-found.dimensions :])
    )
    assert "a batch of 3 in the place of 4" in said[0]
    assert "computes again" in said[2]
    assert "a patch of" in said[-1]


def test_a_proposal_holds_as_settings_of_a_run() -> None:
    plan = make_plan(fingerprint(), Ask(device=CARD, pins={"network.recompute": True}))
    found = patched_to(plan.configurations["3d_fullres"], {"train.batch_size": 2})
    step = next_smaller(found)
    assert step is not None
    shorter = patched_to(found, step.value)
    assert prod(shorter.patch_vox) < prod(found.patch_vox)
    assert shorter.network == found.network


def test_nothing_is_proposed_below_the_smallest() -> None:
    data = fingerprint(shape=(32, 32, 32), spacing_mm=(1.0, 1.0, 1.0))
    plan = make_plan(data, Ask(device=CARD, pins={"network.recompute": True, "batch_size": 2}))
    assert next_smaller(plan.configurations["3d_fullres"]) is None


def patched_to(configuration: Configuration, changes: dict) -> Configuration:
    return Configuration.parse(patched(configuration.dump(), changes), "the run")
