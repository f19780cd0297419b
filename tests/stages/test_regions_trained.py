"""Networks that learn regions, and classes from a few labelled slices: a fold of each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoseg import __version__
from autoseg.documents.dataset import read_dataset
from autoseg.documents.plan import Plan
from autoseg.documents.run import RunSpec, lines
from autoseg.learn.weights import load_weights
from autoseg.nets.build import build
from autoseg.rules.planner import make_plan
from autoseg.rules.world import Ask
from autoseg.stage import Stamp
from autoseg.stages.fingerprint import fingerprint
from autoseg.stages.preprocess import preprocess
from autoseg.stages.train import train
from autoseg.workspace import Fold, open_workspace
from tests.rules.made import CORES

Phantoms = Callable[..., Path]
PINS = {
    "width": 8, "patch_vox": [16, 16, 16], "batch_size": 2, "steps": 120, "train.threads": 1,
    "train.precision": "float32", "train.layout": "contiguous", "train.validate_every": 60,
    "train.validation_batches": 6, "train.ema_share": 0.0, "train.schedule": "constant",
}  # fmt: skip


def trained(root: Path, phantoms: Phantoms, look: str) -> tuple[Plan, Fold]:
    """A plan, and its only 3D fold of five cases trained for some seconds."""
    phantoms(root, look, cases=6, test_cases=0)
    places = open_workspace(root).places("Dataset001_Phantom")
    measured = fingerprint(places)
    pins = {key if "." in key or key in ("width", "steps") else f"3d_fullres.{key}": value
            for key, value in PINS.items()}  # fmt: skip
    made = make_plan(measured, Ask(device=CORES, pins=pins))
    configuration = made.configurations["3d_fullres"]
    dataset, _ = read_dataset(places.raw)
    assert preprocess(places, dataset, measured, configuration.preparation) == 6
    cases = [case.id for case in dataset.cases]
    spec = RunSpec(
        dataset=made.dataset, plan=made.name, configuration_name="3d_fullres", run="r", fold="0",
        dimensions=3, channels=made.channels, labels=made.labels, configuration=configuration,
        overrides={}, train_cases=tuple(cases[1:]), validation_cases=(cases[0],),
        intensity_ranges=(None,), spacing_ranges_mm=((3.0, 3.0),) * 3, version=__version__,
    )  # fmt: skip
    fold = places.fold(made.name, "3d_fullres", "r", "0")
    assert train(places, fold, spec, Stamp("train", 1, {}, {}), device="cpu", workers=0)
    return made, fold


@pytest.mark.slow
@pytest.mark.parametrize(("look", "outputs"), [("regions", 2), ("scribbles", 3)])
def test_a_fold_learns(look: str, outputs: int, tmp_path: Path, phantoms: Phantoms) -> None:
    made, fold = trained(tmp_path, phantoms, look)
    network = made.configurations["3d_fullres"].network
    assert network.classes == outputs
    net = build(network)
    load_weights(fold.weights, net)
    said = net(torch.zeros(1, 1, 16, 16, 16))
    assert said[0].shape[1] == outputs
    history = list(lines(fold.history))
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    scores = [entry["dice"] for entry in history if "dice" in entry]
    assert scores[-1] > 0.3  # the organ is found, the lesion hardly
