"""Steps of training on a card with loading and augmentation, by autoseg."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from autoseg.data.batches import Batches, BatchSpec
from autoseg.data.store import StoredCases
from autoseg.data.writing import write_case
from autoseg.documents.plan import Augmentation, Sampling, Training
from autoseg.documents.presets.table import network_spec
from autoseg.learn.loop import advance
from autoseg.learn.losses import deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.state import Run
from autoseg.learn.variants import Variant
from autoseg.nets.build import build
from bench.clock import asked, measured, tell
from bench.inputs import image, label_map

given = asked()
patch, shape, levels = tuple(given["patch_vox"]), given["shape"], len(given["features"])
device = torch.device(given["device"])
spec = network_spec("plain", given["channels"], 4, given["features"],
                    [(1, 1, 1), *[(2, 2, 2)] * (levels - 1)], [(3, 3, 3)] * levels)  # fmt: skip
train = Training(steps=1000, batch_size=given["batch"], supervision=spec.output_weights)
batch = BatchSpec(
    patch, given["batch"], Sampling(foreground_share=0.33, class_weights=(1 / 3,) * 3),
    Augmentation(rotation_degrees=(30, 30, 30), mirror_axes=(0, 1, 2)), seed=1,
)  # fmt: skip
torch.manual_seed(0)
net = build(spec).to(device)
run = Run(net, optimiser(train, net))
variant = Variant(given["precision"], "channels_last")
if given["precision"] == "float16":
    run.scaler = torch.amp.GradScaler(device.type)
with TemporaryDirectory() as folder:
    for number in range(given["cases"]):
        case = Path(folder) / f"case{number}"
        case.mkdir()
        array = np.stack([image(shape, 10 * number + c) for c in range(given["channels"])])
        write_case(case, array, label_map(shape, 4, number), {})
    cases = StoredCases(Path(folder), [f"case{n}" for n in range(given["cases"])])
    stop = given["warm_up"] + given["steps"]
    with Batches(cases, batch, 0, stop, given["workers"], device) as batches:
        source = iter(batches)

        def steps(until: int) -> None:
            advance(
                run, source, loss=deeply(dice_ce(train), train.supervision), lr_at=lambda _: 0.01,
                stop=until, seed=0, variant=variant, clip_norm=12.0,
            )  # fmt: skip
            if device.type == "cuda":
                torch.cuda.synchronize()

        steps(given["warm_up"])
        _, cost = measured(lambda: steps(stop))
card = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
tell(**cost, card_bytes=card)
