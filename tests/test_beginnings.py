"""What a fold may begin with, and what it may not: weights of an encoder, a configuration before."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from autoseg.documents.networks.family import parse_network
from autoseg.nets.build import build

PLAN = (
    "autoseg plan -d 1 --name res --network unet_resnet34 --set width=32 --set 2d.patch_vox=[16,16] "
    "--set steps=2 --set train.lr=1e-9 --set train.weight_decay=0 --set train.warmup_share=0 "
    "--set train.ema_share=0 --set train.threads=1 --set train.precision=float32 "
    "--set train.layout=contiguous --set train.validation_batches=1 --set predict.mirror=false"
)
RESULTS = "results/Dataset001_Phantom"
PLANS = "preprocessed/Dataset001_Phantom/plans"


def test_an_encoder_begins_with_the_weights_of_a_file(shell, tiny: Path, tmp_path: Path) -> None:
    assert shell(PLAN).code == 0
    made = json.loads((tiny / PLANS / "res" / "plan.json").read_text())["configurations"]["2d"]
    torch.manual_seed(5)
    encoder = build(parse_network(made["network"], "the network")).encoder
    given = {name: t.clone() for name, t in encoder.state_dict().items()}
    wide = given["conv1.weight"].repeat(1, 3, 1, 1)  # a classifier's, of three channels
    save_file(
        {**given, "conv1.weight": wide, "fc.weight": torch.ones(10, 512)},
        tmp_path / "w.safetensors",
    )

    train = "autoseg train 1 2d 0 --plan res --workers 0"
    said = shell(f"{train} --encoder-weights {tmp_path / 'w.safetensors'}")
    assert said.code == 0, said.err
    assert "encoder: 100.0% of its numbers taken" in said.err
    fold = tiny / RESULTS / "res" / "2d" / "default" / "fold_0"
    learnt = load_file(fold / "weights.safetensors")
    kernel = given["layer4.2.conv2.weight"]
    assert torch.allclose(learnt["encoder.layer4.2.conv2.weight"], kernel, atol=1e-6)
    run = json.loads((fold / "run.json").read_text())
    assert run["encoder_weights"]["path"].endswith("w.safetensors")

    # the file is part of what the fold was made from, and is not needed once it is trained
    (tmp_path / "w.safetensors").unlink()
    assert shell(train).code == 0
    save_file({**given, "conv1.bias": torch.zeros(1)}, tmp_path / "w.safetensors")
    other = shell(f"{train} --encoder-weights {tmp_path / 'w.safetensors'}")
    assert other.code == 2
    assert "encoder weights" in other.err and "--redo" in other.err


def test_a_network_without_such_an_encoder_says_so(shell, tiny: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    said = shell(
        f"autoseg train 1 3d_fullres 0 --run w --encoder-weights {tmp_path / 'w.safetensors'}"
    )
    assert said.code == 2
    assert "has no encoder" in said.err
    assert shell("autoseg train 1 3d_fullres 0 --run w --encoder-weights nowhere.pth").code == 2
