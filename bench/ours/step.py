"""A training step of nnU-Net's plain network by autoseg, on random numbers."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from autoseg.device import pick_device
from autoseg.documents.plan import Training
from autoseg.documents.presets.table import network_spec
from autoseg.learn.trial import trial_step
from autoseg.learn.variants import Variant, candidates, fastest, measure
from autoseg.nets.build import build
from autoseg.nets.cost import multiply_adds
from bench.clock import asked, measured, tell

given = asked()
patch, channels, classes = given["patch_vox"], given["channels"], given["classes"]
axes = len(patch)
strides = [(1,) * axes, *[(2,) * axes] * (len(given["features"]) - 1)]
spec = network_spec("plain", channels, classes, given["features"], strides,
                    [(3,) * axes] * len(strides))  # fmt: skip
device = pick_device(given["device"])  # as `autoseg train`: freed memory is kept
train = Training(steps=1, batch_size=given["batch"], supervision=spec.output_weights)


def step_of(variant: Variant):
    torch.manual_seed(0)
    net = build(spec).to(device)
    return trial_step(net, train, (channels, *patch), classes, variant)


if given["layout"] == "fastest":
    kept = Path(given["remembered"])
    if not kept.exists():
        found = candidates(device, given["precision"])
        chosen = fastest(measure(step_of, found, given["choose_s"], device))
        kept.write_text(json.dumps(asdict(chosen)))
    variant = Variant(**json.loads(kept.read_text()))
else:
    variant = Variant(given["precision"], given["layout"], None)
step = step_of(variant)


def steps(count: int) -> None:
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()


def feature_map_values() -> int:
    """How many numbers the convolutions' results of one step have together."""
    net, counts = build(spec), []
    for module in net.modules():
        if type(module).__name__.startswith("Conv"):
            module.register_forward_hook(lambda _, __, out: counts.append(out.numel()))
    with torch.no_grad():
        net(torch.zeros(1, channels, *patch))
    return given["batch"] * sum(counts)


with variant.pinned():
    steps(1)
    _, cost = measured(lambda: steps(given["steps"]))
cost |= {key: cost[key] / given["steps"] for key in ("wall_s", "cpu_s")}
tell(**cost, multiply_adds=given["batch"] * multiply_adds(spec, patch),
     values=feature_map_values(), parameters=sum(p.numel() for p in build(spec).parameters()),
     variant=f"{variant.precision}, {variant.layout}, threads: "
     f"{variant.threads or torch.get_num_threads()}")  # fmt: skip
