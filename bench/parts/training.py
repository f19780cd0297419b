"""What a step of training is made of: augmentation, loading, the step itself; and all on a card."""

import os
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from bench.pairs import FASTEST, HALF, OURS, RIVAL, Row
from bench.parts.arrays import counted, text
from bench.parts.commands import pair
from bench.parts.models import prepared_by_nnunet, prepared_by_us
from bench.places import ROOT
from bench.sides import rival_is_there, side

HERE = ROOT / "training"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""Without it some virtual machines' processors announce what ends the process."""
FEATURES = (32, 64, 128, 256)
VOXELS_1, CHANNELS_64 = "voxels, one channel", "channels of 64³"


def augmented(
    name: str,
    patch: Sequence[int],
    channels: int,
    samples: int,
    *,
    targets: Mapping[str, float] | None = None,
    pairs: int = 2,
    pair_s: float = 16,
    size: Mapping[str, float] | None = None,
) -> Row:
    """Samples from an array in memory about half as large again as the patch."""
    flat = len(patch) == 2
    arguments = {
        "patch_vox": list(patch), "shape": [4] * flat + [n * 3 // 2 for n in patch],
        "channels": channels, "seed": 1, "samples": samples,
        "rotation_degrees": [180.0] if flat else [30.0] * 3,
    }  # fmt: skip
    sides = pair(
        side("ours", "augmentation", arguments, environment=ONE_THREAD),
        side("theirs", "augmentation", arguments, environment=ONE_THREAD),
    )
    return Row(
        name, f"augmentation, {text(patch)}, {counted(channels, 'channel')}", sides,
        {OURS: "bench/ours/augmentation.py", RIVAL: "bench/theirs/augmentation.py"},
        {OURS: targets} if targets else {}, pairs=pairs, pair_s=pair_s, size=size or {},
        note=f"a sample, mean of {samples} in each run, one thread",
    )  # fmt: skip


def augmentation(quick: bool) -> list[Row]:
    patch = (40, 56, 40)
    if quick:
        return [augmented("small", patch, 1, 20)]
    return [
        augmented("small", patch, 1, 300, pairs=3, size={VOXELS_1: prod(patch)}),
        augmented("cube64", [64] * 3, 1, 120, size={VOXELS_1: 64**3, CHANNELS_64: 1}),
        augmented("cube64_4", [64] * 3, 4, 100, size={CHANNELS_64: 4}),
        augmented("large", [128] * 3, 4, 60, targets={"wall_s": 1 / 4}, pairs=3, pair_s=65),
        augmented("flat", [512, 512], 3, 150, pairs=3),
    ]


def loading(quick: bool) -> list[Row]:
    count = 30 if quick else 200
    ours: dict[str, Any] = {"preprocessed": prepared_by_us(), "batch": 7, "batches": count}
    theirs = {**ours, "preprocessed": prepared_by_nnunet() if rival_is_there() else ""}
    return [
        Row(
            "hippocampus", "loading, a batch of 7 × 40×56×40 of data set 4",
            pair(side("ours", "loading", ours, environment=ONE_THREAD),
                 side("theirs", "loading", theirs, environment=ONE_THREAD)),
            {OURS: "bench/ours/loading.py", RIVAL: "bench/theirs/loading.py"},
            pairs=4, note=f"mean of {count} batches, no augmentation, one thread",
        )
    ]  # fmt: skip


def stepped(
    name: str, patch: Sequence[int], features: Sequence[int], steps: int, *,
    wanted: bool = False, pairs: int = 1, pair_s: float = 60,
) -> Row:  # fmt: skip
    """A step of the same plain network: nnU-Net's trainer, ours as his, our fastest, and bf16."""
    shared = {
        "patch_vox": list(patch), "channels": 1, "classes": 3, "features": list(features),
        "batch": 2, "steps": steps, "device": "cpu", "choose_s": 12, "precision": "float32",
    }  # fmt: skip
    HERE.mkdir(parents=True, exist_ok=True)
    fastest = {
        **shared, "layout": "fastest", "precision": "auto", "remembered": str(HERE / f"{name}_{os.getpid()}.json"),
    }  # fmt: skip
    half = {**shared, "layout": "channels_last", "precision": "bfloat16"}
    # nnU-Net runs between ours in the same layout and our fastest: both are its neighbours
    sides = pair(
        side("ours", "step", {**shared, "layout": "contiguous"}), side("theirs", "step", shared)
    )
    sides[FASTEST] = side("ours", "step", fastest)
    if wanted:
        sides[HALF] = side("ours", "step", half, environment=BFLOAT16, may_fail=True)
    targets = {OURS: {"wall_s": 1 / 1.1}, FASTEST: {"wall_s": 1 / 1.6}}
    return Row(
        name, f"training step, {text(patch)}, batch 2, {'-'.join(map(str, features))}", sides,
        {OURS: "bench/ours/step.py", RIVAL: "bench/theirs/step.py"}, targets if wanted else {},
        size={"voxels": 2 * prod(patch)}, pairs=pairs, pair_s=pair_s,
        note="forward, loss with deep supervision, backward, clipping, SGD; mean of "
        f"{steps} steps. autoseg: float32, contiguous, as nnU-Net's; fastest: what autoseg chooses "
        "by measuring, once; bf16: with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16",
    )  # fmt: skip


def step(quick: bool) -> list[Row]:
    if quick:
        return [stepped("small", (24, 32, 24), (16, 32, 64), 3)]
    return [
        stepped("patch24", (24, 32, 24), FEATURES, 6, pair_s=45),
        stepped("patch32", (32, 40, 32), FEATURES, 4, pair_s=50),
        stepped("hippocampus", (40, 56, 40), FEATURES, 3, wanted=True, pairs=5),
    ]


def card(quick: bool) -> list[Row]:
    """On a card alone; the caller asks whether there is one."""
    arguments = {
        "patch_vox": [128] * 3, "shape": [160, 192, 160], "channels": 4, "batch": 2,
        "features": [32, 64, 128, 256, 320, 320], "warm_up": 10, "steps": 20 if quick else 100,
        "device": "cuda", "cases": 8, "workers": 12, "precision": "float16",
    }  # fmt: skip
    ours = side("ours", "epoch", {**arguments, "workers": 8, "precision": "bfloat16"})
    return [
        Row(
            "epoch", "card: steps of 128³ with 4 channels, loading and augmentation included",
            pair(ours, side("theirs", "epoch", arguments)),
            {OURS: "bench/ours/epoch.py", RIVAL: "bench/theirs/epoch.py"},
            {OURS: {"wall_s": 1 / 2}}, pairs=2, pair_s=120, note=f"{arguments['steps']} steps after 10",
        )
    ]  # fmt: skip
