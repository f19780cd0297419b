"""The model that both programs predict with: nnU-Net's plain network, trained for some steps.

`preset` hippocampus: on prepared cases of data set 4, by the plan that is there. `preset` ct: random
weights of a small plain network for scans of any grid. Writes model.autoseg, and weights.npz with
the names of nnU-Net's tensors.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autoseg import __version__
from autoseg.data.batches import Batches, BatchSpec
from autoseg.data.store import StoredCases
from autoseg.documents.labels import LabelSet
from autoseg.documents.model import Member, ModelSpec, Weights
from autoseg.documents.plan import (
    Augmentation,
    ChannelScale,
    Configuration,
    Prediction,
    Preparation,
    Sampling,
    Training,
    read_plan,
)
from autoseg.documents.presets.table import network_spec
from autoseg.files import sha256_file
from autoseg.learn.loop import advance
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.state import Run
from autoseg.learn.variants import Variant
from autoseg.learn.weights import save_weights
from autoseg.nets.build import build
from autoseg.stages.package import export
from bench.clock import asked, measured, tell


def trained(given: dict[str, object]) -> tuple[Configuration, nn.Module]:
    """The network of the plan after `steps` steps with small batches.

    So few steps teach it something only where every sample shows structures, as they are.
    """
    data = Path(str(given["preprocessed"]))
    c = read_plan(data / "plans" / "default" / "plan.json").configuration("3d_fullres")
    lr = 3e-3
    train = c.train.model_copy(
        update={"batch_size": 2, "optimiser": "adamw", "lr": lr, "weight_decay": 0.01}
    )
    none = {name: 0.0 for name in type(c.augmentation).model_fields if name.endswith("_p")}
    shown = c.model_copy(
        update={
            "train": train,
            "augmentation": c.augmentation.model_copy(update={**none, "mirror_axes": ()}),
            "sampling": c.sampling.model_copy(update={"foreground_share": 1.0}),
        }
    )
    prepared = data / "prepared" / c.preparation.key
    ids = sorted(p.parent.name for p in prepared.glob("*/case.json"))[40:]
    torch.manual_seed(0)
    net, steps = build(c.network), int(str(given["steps"]))
    loss = deeply(dice_ce(train), train.supervision)
    with Batches(StoredCases(prepared, ids), BatchSpec.of(shown), 0, steps) as batches:
        advance(
            Run(net, optimiser(train, net)), batches, loss=loss, seed=0, clip_norm=12.0,
            lr_at=lambda step: lr * (1 - step / steps), stop=steps,
            variant=Variant("float32", "channels_last"),
        )  # fmt: skip
    return c, net


def random_network(given: dict[str, object]) -> tuple[Configuration, nn.Module]:
    """A small plain network with random weights for CT at the spacing that is asked for."""
    widths = (8, 16, 32, 64)
    spec = network_spec("plain", 1, 3, widths, [(1, 1, 1), *[(2, 2, 2)] * 3], [(3, 3, 3)] * 4)
    labels = LabelSet(names=("background", "anterior", "posterior"), values=(0, 1, 2))
    scale = ChannelScale(scheme="ct", **given["intensities"])  # type: ignore[arg-type]
    c = Configuration(
        preparation=Preparation(
            axes="stored", spacing_mm=given["spacing_mm"], channels=(scale,), labels=labels
        ),
        patch_vox=given["patch_vox"], median_shape_vox=(200, 200, 200), network=spec,
        sampling=Sampling(foreground_share=0.33, class_weights=(0.5, 0.5)),
        augmentation=Augmentation(rotation_degrees=(30, 30, 30), mirror_axes=(0, 1, 2)),
        train=Training(steps=1, batch_size=2, supervision=spec.output_weights),
        predict=Prediction(mirror=False),
    )  # fmt: skip
    torch.manual_seed(3)
    return c, build(spec)


def their_name(name: str, levels: int) -> str:
    """nnU-Net's name of one of our plain network's tensors."""
    kind = {"0": "conv", "1": "norm"}
    if found := re.fullmatch(r"encode\.0\.0\.(\d)\.([01])\.(\w+)", name):
        return f"encoder.stages.0.0.convs.{found[1]}.{kind[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"encode\.(\d)\.0\.([01])\.(\w+)", name):
        return f"encoder.stages.{found[1]}.0.convs.0.{kind[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"encode\.(\d)\.1\.(\d)\.([01])\.(\w+)", name):
        unit = int(found[2]) + 1
        return f"encoder.stages.{found[1]}.0.convs.{unit}.{kind[found[3]]}.{found[4]}"
    found = re.fullmatch(r"(decode|head)\.(\d)\.?(.*)", name)
    assert found is not None, name
    level, rest = levels - 2 - int(found[2]), found[3]
    if found[1] == "head":
        return f"decoder.seg_layers.{level}.{rest}"
    if rest.startswith("up."):
        return f"decoder.transpconvs.{level}.{rest[3:]}"
    _, unit, part, leaf = rest.split(".")
    return f"decoder.stages.{level}.convs.{unit}.{kind[part]}.{leaf}"


given = asked()
folder = Path(given["folder"])
folder.mkdir(parents=True, exist_ok=True)
make = trained if given["preset"] == "hippocampus" else random_network
(configuration, net), cost = measured(lambda: make(given))
save_weights(folder / "weights.safetensors", net, {})
weights = Weights(
    fold="0", file="weights.safetensors", sha256=sha256_file(folder / "weights.safetensors"),
    size=(folder / "weights.safetensors").stat().st_size,
)  # fmt: skip
labels = configuration.preparation.labels
spec = ModelSpec(
    name="bench", dataset="Dataset999_Bench", dimensions=3, channels=("MRI",), labels=labels,
    members=(Member(name="3d_fullres", plan="bench", run="bench", configuration=configuration,
                    weights=(weights,)),),
    intensity_ranges=(None,), spacing_ranges_mm=((0.1, 10.0),) * 3, version=__version__,
)  # fmt: skip
export(spec, folder, folder / "model.autoseg", card="A model for benchmarks.\n", overwrite=True)
levels = len(configuration.network.widths)
tensors = {their_name(name, levels): p.detach().numpy() for name, p in net.named_parameters()}
np.savez(folder / "weights.npz", **tensors)
scale = configuration.preparation.channels[0]
tell(**cost, features=list(configuration.network.widths), patch_vox=list(configuration.patch_vox),
     spacing_mm=list(configuration.preparation.spacing_mm), scheme=scale.scheme,
     strides=[list(level.stride) for level in configuration.network.levels],
     kernels=[list(level.kernel) for level in configuration.network.levels],
     axes=configuration.preparation.axes)  # fmt: skip
