"""A fold whose patch grows: each step sees the batch of its stage, and a kill changes nothing."""

import json
from pathlib import Path

import pytest
import torch

from autoseg.data.batches import Batches, BatchSpec
from autoseg.data.store import StoredCases
from autoseg.documents.run import RunSpec, lines
from autoseg.learn.watch import Watch

STAGES = [
    {"until": 0.3, "patch_vox": [8, 8, 8], "batch_size": 6},
    {"until": 0.6, "patch_vox": [8, 16, 16], "batch_size": 3},
]
FOLD = "results/Dataset001_Phantom/default/3d_fullres/{run}/fold_0"
RECIPE = "--set network.dropout=0.2 --set train.ema_share=0.3"
GROWING = f"--set 'train.patch_schedule={json.dumps(STAGES)}'"
SHAPES = [(6, 1, 8, 8, 8), (3, 1, 8, 16, 16), (2, 1, 16, 16, 16)]


def history(fold: Path) -> list[dict]:
    """Loss, Dice and learning rate of every step: all but the seconds that it took."""
    found = lines(fold / "history.jsonl")
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in found]


def test_each_step_sees_the_batch_of_its_stage(shell, tiny: Path, monkeypatch) -> None:
    """The batches that the network is trained on are those of (seed, step, stage)."""
    seen: list[torch.Tensor] = []

    class Noted(Batches):
        def __iter__(self):
            for batch in super().__iter__():
                seen.append(batch[0].clone())
                yield batch

    monkeypatch.setattr("autoseg.stages.train.Batches", Noted)
    said = shell(f"autoseg train 1 3d_fullres 0 --run g --workers 0 --steps 10 {GROWING}")
    assert said.code == 0, said.err
    assert [tuple(image.shape) for image in seen] == [
        SHAPES[i] for i in (0, 0, 0, 1, 1, 1, 2, 2, 2, 2)
    ]

    fold = tiny / FOLD.format(run="g")
    changes = [
        (e["step"], e["patch_vox"]) for e in lines(fold / "journal.jsonl") if e["event"] == "patch"
    ]
    assert changes == [(0, [8, 8, 8]), (3, [8, 16, 16]), (6, [16, 16, 16])]
    spec = RunSpec.read(fold / "run.json")
    configuration = spec.configuration
    prepared = tiny / "preprocessed/Dataset001_Phantom/prepared" / configuration.preparation.key
    cases = StoredCases(prepared, spec.train_cases)
    batch = BatchSpec.of(configuration)
    with Batches(cases, batch, 6, 10) as full:
        for found, (image, _) in zip(seen[6:], full, strict=True):
            assert torch.equal(found, image)


def test_a_plan_that_grows_is_trained(shell, tiny: Path, tiny_plan: str) -> None:
    plan = f"autoseg plan -d 1 --name g {tiny_plan} --set train.patch_schedule=efficiency"
    assert shell(plan).code == 0
    said = shell("autoseg train 1 3d_fullres 0 --plan g --workers 0")
    assert said.code == 0, said.err
    fold = tiny / "results/Dataset001_Phantom/g/3d_fullres/default/fold_0"
    steps = [e["step"] for e in lines(fold / "journal.jsonl") if e["event"] == "patch"]
    assert len(steps) >= 3
    off = shell("autoseg train 1 3d_fullres 0 --plan g --run p --set train.patch_schedule=[]")
    assert off.code == 0, off.err
    fold = tiny / "results/Dataset001_Phantom/g/3d_fullres/p/fold_0"
    assert [e for e in lines(fold / "journal.jsonl") if e["event"] == "patch"] == []


class Killed(BaseException):
    """In the place of a kill: nothing of the process goes on, no state is saved."""


def test_stopped_in_every_stage_and_continued_ends_in_the_same_weights(
    shell, tiny: Path, monkeypatch
) -> None:
    line = f"autoseg train 1 3d_fullres 0 {RECIPE} {GROWING} --steps 12 --workers 0"
    assert shell(f"{line} --run a").code == 0
    whole, after_step = tiny / FOLD.format(run="a"), Watch.after_step
    fold = tiny / FOLD.format(run="g")
    for at in (2, 5, 9):

        def killed(self, run, loss, at=at):
            if run.step == at:
                raise Killed
            return after_step(self, run, loss)

        monkeypatch.setattr(Watch, "after_step", killed)
        with pytest.raises(Killed):
            shell(f"{line} --run g --set train.save_every_s=0.001")
        saved = [e["step"] for e in lines(fold / "journal.jsonl") if e["event"] == "saved"]
        assert 0 < saved[-1] < at
    monkeypatch.setattr(Watch, "after_step", after_step)
    assert shell(f"{line} --run g --set train.save_every_s=0.001").code == 0
    weights = [f / "weights.safetensors" for f in (fold, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert history(fold) == history(whole)
