"""A simulated card whose memory ends: one computed plan that trains, for `train` and for `run`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from autoseg.costs import StepBytes, StepTimes, TrainedBytes
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Plan, read_plan
from autoseg.documents.run import RunSpec, lines
from autoseg.errors import OutOfMemory
from autoseg.flow.make import Job
from autoseg.flow.run import ledger_of
from autoseg.flow.shrink import within_run
from autoseg.nets import cost
from autoseg.rules.memory import GB
from autoseg.workspace import open_workspace
from tests.card import Memory, card, simulated

MIB = 2**20
BIG = (
    "--set width=4 --set 3d_fullres.patch_vox=[32,32,32] --set 3d_fullres.batch_size=6 "
    "--set 2d.patch_vox=[16,16] --set steps=2 --set train.threads=1 --set train.precision=float32 "
    "--set train.layout=contiguous --set train.validation_batches=1 --set predict.mirror=false"
)


def without_limit(count: Callable[..., int]) -> Callable[..., int]:
    """Counting on shapes, which a simulated card must not take for tensors of its own."""

    def counted(*args: Any, **given: Any) -> int:
        with _disable_current_modes():
            return count(*args, **given)

    return counted


def by_hand(_: object, network: NetworkSpec, patch_vox: tuple[int, ...], batch: int) -> float:
    """What `TrainedBytes` counts for the network of these tests, within a few percent."""
    each = 8.4 * MIB * prod(patch_vox) / 32**3
    return 1.2 * MIB + batch * each * (0.6 if network.recompute else 1.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting takes a second of each asking; one test is enough that asks in earnest."""
    monkeypatch.setattr(TrainedBytes, "__call__", by_hand)
    monkeypatch.setattr(StepBytes, "__call__", by_hand)


@contextmanager
def room(monkeypatch: pytest.MonkeyPatch, mib: int) -> Iterator[Memory]:
    """A card on which this process gets so many MiB, as others use the rest of it."""
    with monkeypatch.context() as here:
        here.setattr(cost, "training_bytes", without_limit(cost.training_bytes))
        taken = 2 * GB - mib * MIB
        with simulated(monkeypatch, card(2), limit=mib * MIB, taken=taken) as cards:
            assert cards.memory is not None
            yield cards.memory


def plan_of(root: Path, name: str) -> Plan:
    return read_plan(root / "preprocessed" / "Dataset001_Phantom" / "plans" / name / "plan.json")


@pytest.fixture
def big(shell, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny workspace with a plan whose step takes 52 MiB; no step is timed for plans."""
    monkeypatch.setattr(StepTimes, "__call__", lambda *_: inf)
    assert shell(f"autoseg plan -d 1 --name big {BIG}").code == 0
    return tiny


def trained(root: Path) -> list[str]:
    folds = (root / "results" / "Dataset001_Phantom").glob("*/*/*/fold_*/weights.safetensors")
    return sorted("/".join(p.parts[-5:-1]) for p in folds)


def test_one_computed_plan_fits_the_card_that_is_there(
    shell, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "autoseg train 1 3d_fullres 0 1 --plan big --workers 0"
    with room(monkeypatch, 40):
        said = shell(command)
        assert said.code == 2
        told = said.err.strip().splitlines()[-1]
        assert "out of memory with 6 patches of 32 x 32 x 32 voxels" in told
        assert "the card has 0.04 of its 2.00 GB free" in told
        assert "--auto-shrink" in told
        proposed = told.split("`")[1]
        assert proposed.startswith("autoseg plan -d Dataset001_Phantom --name big_s1")

    with room(monkeypatch, 40) as memory:
        said = shell(f"{command} --auto-shrink")
        assert said.code == 0, said.err
        assert memory.refused == 1  # the plan itself; the computed one trains at the first try
    assert trained(big) == ["big_s1/3d_fullres/default/fold_0", "big_s1/3d_fullres/default/fold_1"]
    before, after = plan_of(big, "big"), plan_of(big, "big_s1")
    assert 2 <= after.configurations["3d_fullres"].train.batch_size < 6
    assert after.configurations["3d_fullres"].patch_vox == (32, 32, 32)
    assert after.configurations["2d"].patch_vox == before.configurations["2d"].patch_vox
    assert shell(proposed).code == 0  # what was proposed is what was made
    assert plan_of(big, "big_s1") == after


@pytest.mark.slow
def test_a_plan_that_was_computed_before_is_taken_for_other_folds(
    shell, quick: None, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fold in "01":
        with room(monkeypatch, 40):
            line = f"autoseg train 1 3d_fullres {fold} --plan big --workers 0 --auto-shrink"
            assert shell(line).code == 0
    assert trained(big) == ["big_s1/3d_fullres/default/fold_0", "big_s1/3d_fullres/default/fold_1"]


def test_where_even_computed_plans_fail_there_are_two_and_an_explanation(
    shell, quick: None, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("autoseg.stages.train.advance", no_room)
    with simulated(monkeypatch, card(8)):
        said = shell("autoseg train 1 3d_fullres 0 --plan big --workers 0 --auto-shrink")
    assert said.code == 2
    told = said.err.strip().splitlines()[-1]
    assert "2 plans that were computed to fit did not fit either" in told
    plans = [plan_of(big, name) for name in ("big", "big_s1", "big_s2")]
    sizes = [p.configurations["3d_fullres"].train.batch_size for p in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[1] < sizes[0]


def fold(root: Path, number: str) -> Job:
    places = open_workspace(root).dataset("1")
    return Job(places, plan="big", configuration="3d_fullres", fold=number, workers=0)


def test_a_run_trains_all_folds_of_a_configuration_with_what_fits(
    quick: None, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[dict] = []

    def note(settings, told) -> None:
        noted.append({**settings, **told})

    with room(monkeypatch, 40) as memory:
        within_run(fold(big, "0"), {}, note, time_s=None, began=0.0)
        assert len(noted) == 1
        settings = {k: v for k, v in noted[0].items() if k in ("train.batch_size",)}
        within_run(fold(big, "1"), settings, note, time_s=None, began=0.0)
        within_run(fold(big, "0"), settings, note, time_s=None, began=0.0)  # trained: not again
        assert memory.refused == 1
    assert len(noted) == 1
    assert noted[0]["before"] == "6 patches of 32 x 32 x 32"
    specs = [RunSpec.read(fold(big, n).fold_places.run) for n in "01"]
    assert specs[0].configuration.train == specs[1].configuration.train
    assert noted[0]["after"].startswith(f"{specs[0].configuration.train.batch_size} patches of 32")


@pytest.mark.slow
def test_a_run_does_not_mix_networks_where_folds_are_trained(
    quick: None, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller batch is no other network; computing again or another patch would be."""
    nothing: list[object] = []
    within_run(fold(big, "0"), {}, lambda *a: nothing.append(a), time_s=None, began=0.0)
    with room(monkeypatch, 40):
        within_run(fold(big, "1"), {}, lambda *a: nothing.append(a), time_s=None, began=0.0)
    first, second = (RunSpec.read(fold(big, n).fold_places.run) for n in "01")
    assert second.configuration.network == first.configuration.network
    assert second.configuration.train.batch_size < first.configuration.train.batch_size
    with room(monkeypatch, 9), pytest.raises(OutOfMemory, match=r"fold 0, 1 .* it goes on"):
        within_run(fold(big, "2"), {}, lambda *a: nothing.append(a), time_s=None, began=0.0)
    assert len(nothing) == 1


@pytest.mark.slow
def test_run_notes_in_its_ledger_what_was_made_smaller(
    shell, quick: None, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with room(monkeypatch, 40):
        said = shell("autoseg run -d 1 --name big --configuration 3d_fullres --workers 0")
    assert said.code == 0, said.err
    ledger = ledger_of(fold(big, "0"))
    (entry,) = [e for e in lines(ledger.path) if e["event"] == "smaller"]
    assert (entry["configuration"], entry["fold"]) == ("3d_fullres", "0")
    assert entry["before"] == "6 patches of 32 x 32 x 32"
    assert ledger.smaller("3d_fullres")["train.batch_size"] < 6
    assert ledger.smaller("2d") == {}
    assert "GB free" in entry["why"]
    batches = {
        json.loads(p.read_text())["configuration"]["train"]["batch_size"]
        for p in (big / "results").glob("*/big/3d_fullres/default/fold_*/run.json")
    }
    assert batches == {ledger.smaller("3d_fullres")["train.batch_size"]}
