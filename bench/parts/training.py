"""What a step of training is made of: augmentation, loading, the step itself; and all on a card."""

from pathlib import Path
from typing import Any

from bench.pairs import OURS, RIVAL, Row
from bench.parts.arrays import text
from bench.parts.commands import pair
from bench.parts.models import prepared_by_nnunet, prepared_by_us
from bench.sides import rival_is_there, side

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
BFLOAT16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""Without it some virtual machines' processors announce what ends the process."""
FEATURES = [32, 64, 128, 256]


def augmented(
    name: str,
    patch: list[int],
    channels: int,
    samples: int,
    wanted: dict[str, float],
    shape: list[int] | None = None,
) -> Row:
    """Samples from an array in memory about half as large again as the patch."""
    flat = len(patch) == 2
    shape = shape or ([4] if flat else []) + [n * 3 // 2 for n in patch]
    arguments = {
        "patch_vox": patch, "shape": shape, "channels": channels, "seed": 1, "samples": samples,
        "rotation_degrees": [180.0] if flat else [30.0] * 3,
    }  # fmt: skip
    sides = pair(
        side("ours", "augmentation", arguments, environment=ONE_THREAD),
        side("theirs", "augmentation", arguments, environment=ONE_THREAD),
    )
    voxels = channels
    for n in patch:
        voxels *= n
    return Row(
        name, f"augmentation, {text(patch)}, {channels} channel{'s' if channels > 1 else ''}", sides,
        {OURS: "bench/ours/augmentation.py", RIVAL: "bench/theirs/augmentation.py"},
        {OURS: wanted} if wanted else {}, size={"voxels × channels": voxels, "channels": channels},
        note=f"a sample, mean of {samples} in each run, one thread",
    )  # fmt: skip


def augmentation(quick: bool) -> list[Row]:
    if quick:
        return [augmented("small", [40, 56, 40], 1, 20, {})]
    return [
        augmented("small", [40, 56, 40], 1, 100, {}),
        augmented("cube64", [64] * 3, 1, 40, {}),
        augmented("cube64_4", [64] * 3, 4, 30, {}),
        augmented("large", [128] * 3, 4, 20, {"wall_s": 1 / 4}),
        augmented("flat", [512, 512], 3, 40, {}),
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
            note=f"mean of {count} batches, no augmentation, one thread",
        )
    ]  # fmt: skip


def stepped(name: str, patch: list[int], features: list[int], steps: int, wanted: bool) -> Row:
    """A step of the same plain network: nnU-Net's trainer, ours as his, our fastest, and bf16."""
    shared = {
        "patch_vox": patch, "channels": 1, "classes": 3, "features": features, "batch": 2,
        "steps": steps, "device": "cpu", "choose_s": 12, "precision": "float32",
    }  # fmt: skip
    fastest = {**shared, "layout": "fastest", "precision": "auto"}
    half = {**shared, "layout": "channels_last", "precision": "bfloat16"}
    sides = {
        OURS: side("ours", "step", {**shared, "layout": "contiguous"}),
        "autoseg, fastest": side("ours", "step", fastest),
        "autoseg, bf16": side("ours", "step", half, environment=BFLOAT16, may_fail=True),
    }
    if rival_is_there():
        sides[RIVAL] = side("theirs", "step", shared)
    voxels = 2
    for n in patch:
        voxels *= n
    targets = {OURS: {"wall_s": 1 / 1.1}, "autoseg, fastest": {"wall_s": 1 / 1.6}}
    return Row(
        name, f"training step, {text(patch)}, batch 2, {'-'.join(map(str, features))}", sides,
        {OURS: "bench/ours/step.py", RIVAL: "bench/theirs/step.py"}, targets if wanted else {},
        size={"voxels": voxels}, times=None if wanted else 1,
        note="forward, loss with deep supervision, backward, clipping, SGD; mean of "
        f"{steps} steps. autoseg: float32, contiguous, as nnU-Net's; fastest: what autoseg chooses "
        "by measuring; bf16: with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16",
    )  # fmt: skip


def step(quick: bool) -> list[Row]:
    if quick:
        return [stepped("small", [24, 32, 24], [16, 32, 64], 3, wanted=False)]
    return [
        stepped("patch24", [24, 32, 24], FEATURES, 6, wanted=False),
        stepped("patch32", [32, 40, 32], FEATURES, 4, wanted=False),
        stepped("hippocampus", [40, 56, 40], FEATURES, 3, wanted=True),
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
            {OURS: {"wall_s": 1 / 2}}, note=f"{arguments['steps']} steps after 10",
        )
    ]  # fmt: skip


def scripts() -> list[Path]:
    """Every script of either side."""
    here = Path(__file__).resolve().parent.parent
    return sorted([*here.glob("ours/*.py"), *here.glob("theirs/*.py")])
