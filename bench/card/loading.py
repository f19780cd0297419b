"""Feeding a card: batches a second that reach it augmented, and how long its steps wait for them."""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.card.parts import Asked, Row
from bench.inputs import image, label_map

PATCH, SHAPE, CHANNELS, CASES, FEATURES = (
    (128, 128, 128),
    (160, 192, 160),
    4,
    6,
    (32, 64, 128, 256, 320, 320),
)
DRY = ((16, 16, 16), (24, 24, 24), 1, 2, (4, 8))
BATCH = 2


def rows(asked: Asked) -> Iterator[Row]:
    import torch

    from autoseg.data.batches import Batches, BatchSpec
    from autoseg.data.store import StoredCases
    from autoseg.data.writing import write_case
    from autoseg.device import pick_device, synchronise
    from autoseg.documents.plan import Augmentation, Sampling

    patch, shape, channels, count, features = (
        DRY if asked.dry else (PATCH, SHAPE, CHANNELS, CASES, FEATURES)
    )
    device = pick_device(asked.device)
    spec = BatchSpec(
        patch, BATCH, Sampling(foreground_share=0.33, class_weights=(1 / 3,) * 3),
        Augmentation(rotation_degrees=(30, 30, 30), mirror_axes=(0, 1, 2)), seed=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            case = Path(folder) / f"case{number}"
            case.mkdir()
            array = np.stack([image(shape, 10 * number + c) for c in range(channels)])
            write_case(case, array, label_map(shape, 4, number), {})
        cases = StoredCases(Path(folder), [f"case{n}" for n in range(count)])
        workers = (0,) if asked.dry else tuple(w for w in (2, 8) if w < (os.cpu_count() or 2))
        for number in workers:
            for consumer in ("nothing", "a step"):
                row: Row = {"key": f"{number} workers, {consumer}", "workers": number}
                if row["key"] in asked.done:
                    continue
                step = None if consumer == "nothing" else _step(features, patch, channels, device)
                steps = 2 if asked.dry else 40
                with Batches(cases, spec, 0, steps + 2, number, device) as batches:
                    source = iter(batches)
                    _take(source, step, 2)
                    synchronise(device)
                    start = time.perf_counter()
                    _take(source, step, steps)
                    synchronise(device)
                    seconds = time.perf_counter() - start
                row |= {
                    "seconds_a_batch": seconds / steps,
                    "samples_a_second": BATCH * steps / seconds,
                }
                if step is not None:
                    row["seconds_a_step_alone"] = _alone(step, patch, channels, device)
                yield row
                del step
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def _step(features: Sequence[int], patch: Sequence[int], channels: int, device: Any) -> Any:
    """One step of training of a plain network on a batch, in the card's precision."""
    import torch

    from autoseg.device import card_facts, is_card
    from autoseg.documents.plan import Training
    from autoseg.documents.presets.table import network_spec
    from autoseg.learn.loop import advance
    from autoseg.learn.losses import deeply, dice_ce
    from autoseg.learn.optimisers import optimiser
    from autoseg.learn.state import Run
    from autoseg.learn.variants import Variant
    from autoseg.nets.build import build

    axes, levels = len(patch), len(features)
    strides = [(1,) * axes, *[(2,) * axes] * (levels - 1)]
    spec = network_spec("plain", channels, 4, features, strides, [(3,) * axes] * levels)
    train = Training(steps=1000, batch_size=BATCH, supervision=spec.output_weights)
    torch.manual_seed(0)
    net = build(spec).to(device)
    run = Run(net, optimiser(train, net))
    precision = card_facts(device).precision if is_card(device) else "float32"
    if precision == "float16":
        run.scaler = torch.amp.GradScaler(device.type)
    loss, variant = deeply(dice_ce(train), train.supervision), Variant(precision, "channels_last")

    def step(batch: Any) -> None:
        advance(
            run, [batch], loss=loss, lr_at=lambda _: 1e-4, stop=run.step + 1, seed=0,
            variant=variant, clip_norm=12.0,
        )  # fmt: skip

    return step


def _take(source: Iterator[Any], step: Any, count: int) -> None:
    for _ in range(count):
        batch = next(source)
        if step is not None:
            step(batch)


def _alone(step: Any, patch: Sequence[int], channels: int, device: Any, count: int = 8) -> float:
    """Seconds of a step on a batch that is there already."""
    import torch

    from autoseg.device import synchronise

    batch = (
        torch.randn(BATCH, channels, *patch, device=device),
        torch.randint(0, 4, (BATCH, *patch), device=device),
    )
    step(batch)
    synchronise(device)
    start = time.perf_counter()
    for _ in range(count):
        step(batch)
    synchronise(device)
    return (time.perf_counter() - start) / count


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The share of a fed step's time that the card waits."""
    return {
        f"waiting with {row['workers']} workers": 1
        - row["seconds_a_step_alone"] / row["seconds_a_batch"]
        for row in rows
        if "seconds_a_step_alone" in row
    }
