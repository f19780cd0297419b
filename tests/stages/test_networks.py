"""`autoseg networks`: what every network costs on a grid, as the planner reckons it."""

import json
from pathlib import Path

import pytest

from autoseg.costs import StepBytes, parameter_count
from autoseg.documents.networks.family import parse_network


def test_costs_on_a_patch(shell) -> None:
    said = shell("autoseg networks --patch 32,32 --network plain mednext_s --batch 3 --json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    plain, mednext = told["networks"]
    assert (plain["name"], mednext["name"]) == ("plain", "mednext_s")
    assert plain["patch_vox"] == [32, 32] and told["grid"]["batch"] == 3
    # nnU-Net's own count for four levels of 32 to 256 channels, one channel in, three classes out
    assert plain["parameters"] == 1_928_489
    assert plain["training_bytes"] > plain["prediction_bytes"] > 4 * plain["parameters"]
    assert plain["seconds"] is None


def test_costs_on_the_grid_of_a_plan_are_those_of_its_network(shell, tiny: Path) -> None:
    said = shell("autoseg networks -d 1 --network plain --measure plain --json --workers 1")
    assert said.code == 0, said.err
    told = json.loads(said.out)["networks"][0]
    plans = tiny / "preprocessed" / "Dataset001_Phantom" / "plans"
    made = json.loads((plans / "default" / "plan.json").read_text())["configurations"]["3d_fullres"]
    network = parse_network(made["network"], "the plan's network")
    assert told["parameters"] == parameter_count(network)
    patch, batch = tuple(made["patch_vox"]), made["train"]["batch_size"]
    assert told["patch_vox"] == list(patch)
    assert told["training_bytes"] == StepBytes()(network, patch, batch)
    assert 0 < told["seconds"] < 60


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--patch 32,32 --network plainn", "did you mean 'plain'?"),
        ("--patch 32", "give 2 or 3 numbers"),
        ("--patch 32,big", "give whole numbers"),
        ("--patch 32,32 --batch 0", "must be at least 1"),
        ("--network plain", "say for which grid"),
    ],
)
def test_what_cannot_be_listed_is_told(shell, line: str, told: str) -> None:
    said = shell(f"autoseg networks {line}")
    assert said.code == 2
    assert told in said.err


def test_a_patch_that_is_too_small_has_no_numbers_but_a_reason(shell) -> None:
    said = shell("autoseg networks --patch 5,5 --network plain")
    assert said.code == 0
    assert "no axis can be halved" in said.out
