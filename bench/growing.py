"""Does a patch that grows while training (docs/decisions/0023-growing.md) earn its place on cores?

    python -m bench.growing --work /some/folder               # resumable: a row a run
    python -m bench.growing --work /some/folder --table       # the table of what is there

Both arms train fold 0 of three sets in one thread, for the steps that fill the same minutes by the
CPU seconds that a step of each patch takes at its fastest, measured first; so a busy machine makes
the runs longer and not worse. The arms differ in `train.patch_schedule` and `train.steps` alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from autoseg.documents.patch_stages import PatchStage
from autoseg.documents.plan import Configuration, Training, read_plan
from autoseg.documents.run import append_line, lines
from autoseg.rules.growing import EFFICIENCY, growing_patches
from bench.budgets import scored
from bench.places import DATA
from bench.sides import OURS, command

SETS = ("Dataset004_Hippocampus", "Dataset005_LungNodule", "Dataset007_LowerGradeGlioma")
ARMS, SEEDS = ("plain", "growing"), (1, 2, 3)
NAME, MINUTES, ROUNDS = "3d_fullres", 3.0, 10
PLANNED = ("--time", "5min", "--device", "cpu", "--set", "train.threads=1",
           "--set", "train.precision=float32", "--set", "train.patch_schedule=[]")  # fmt: skip
Stages = list[tuple[float, tuple[int, ...], int]]
"""(share of the steps, patch, batch)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    rows = asked.work / "rows.jsonl"
    if not asked.table:
        for seed, name, arm in product(SEEDS, SETS, ARMS):
            if not any((r["set"], r["arm"], r["seed"]) == (name, arm, seed) for r in lines(rows)):
                append_line(rows, trained(asked.work, name, arm, seed, asked.minutes))
    print(*table(list(lines(rows))), sep="\n")


def trained(work: Path, name: str, arm: str, seed: int, minutes: float) -> dict[str, Any]:
    """One run of one arm, and the Dice of its held-out cases."""
    root, number = work / "root", str(int(name[7:10]))
    plan = root / "preprocessed" / name / "plans" / "default" / "plan.json"
    if not plan.exists():
        planning = [*OURS, "plan_and_preprocess", "-d", number, "-c", NAME, "--root", str(root)]
        command([*planning, *PLANNED], {"nnUNet_raw": str(DATA)})
    configuration = read_plan(plan).configuration(NAME)
    schedule = arms(configuration)[arm]
    known = work / f"{name}.json"
    if not known.exists():
        known.write_text(json.dumps(step_costs(configuration, prepared(root, name, configuration))))
    costs = json.loads(known.read_text())
    mean = sum(
        share * costs[key(patch, batch)] for share, patch, batch in stages(configuration, schedule)
    )
    steps = round(60 * minutes / mean)
    run = f"{arm}_{seed}"
    settings = {
        "train.seed": seed, "train.steps": steps, "train.validate_every": steps,
        "predict.mirror": False, "train.patch_schedule": schedule,
    }  # fmt: skip
    words = [w for k, v in settings.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    done = command(
        [*OURS, "train", number, NAME, "0", "--run", run, "--root", str(root), "--device", "cpu",
         "--workers", "0", *words], {"nnUNet_raw": str(DATA), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    fold = root / "results" / name / "default" / NAME / run / "fold_0"
    return {
        "set": name, "arm": arm, "seed": seed, "minutes": minutes, "steps": steps,
        "seconds_per_step": round(mean, 4), "cpu_s": round(done["cpu_s"], 1),
        "wall_s": round(done["wall_s"], 1), **scored(fold / "validation"),
    }  # fmt: skip


def arms(configuration: Configuration) -> dict[str, list[dict[str, Any]]]:
    """The patch schedule of each arm."""
    patch, batch = configuration.patch_vox, configuration.train.batch_size
    grown = growing_patches(configuration.network, patch, batch, EFFICIENCY)
    return {"plain": [], "growing": grown}


def stages(configuration: Configuration, schedule: list[dict[str, Any]]) -> Stages:
    """The stages of a run, with the full patch as the last."""
    found, before = [], 0.0
    for stage in (PatchStage(**s) for s in schedule):
        found.append((stage.until - before, stage.patch_vox, stage.batch_size))
        before = stage.until
    return [*found, (1 - before, configuration.patch_vox, configuration.train.batch_size)]


def key(patch: tuple[int, ...], batch: int) -> str:
    return f"{'x'.join(map(str, patch))} by {batch}"


def prepared(root: Path, name: str, configuration: Configuration) -> Path:
    return root / "preprocessed" / name / "prepared" / configuration.preparation.key


def step_costs(configuration: Configuration, cases: Path) -> dict[str, float]:
    """CPU seconds of a step with its batch, of each patch: the least of ROUNDS, in one thread."""
    import torch

    from autoseg.data.batches import Batches, BatchSpec
    from autoseg.data.store import StoredCases
    from autoseg.learn.losses import loss_of
    from autoseg.learn.trial import trial_step
    from autoseg.learn.variants import Variant
    from autoseg.nets.build import build

    torch.set_num_threads(1)
    train, variant = configuration.train, Variant("float32", "channels_last", 1)
    names = sorted(stamp.parent.name for stamp in cases.glob("*/stamp.json"))
    store = StoredCases(cases, names, 2**30)
    labels = configuration.preparation.labels
    works: dict[str, tuple[Any, Iterator[Any]]] = {}
    for _, patch, batch in stages(configuration, arms(configuration)["growing"]):
        spec = replace(BatchSpec.of(configuration), patch_vox=patch, batch_size=batch)
        shape = (configuration.network.in_channels, *patch)
        recipe = Training.parse(train.dump() | {"batch_size": batch}, "the recipe")
        step = trial_step(build(configuration.network), recipe, shape, labels.count, variant,
                          loss_of(recipe, labels))  # fmt: skip
        works[key(patch, batch)] = (step, iter(Batches(store, spec, 0, 10**6)))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, (step, batches) in works.items():
            start = time.process_time()
            next(batches)
            loaded = time.process_time()
            step()
            taken[name].append((loaded - start, time.process_time() - loaded))
    # loading differs from batch to batch, a step does not
    return {
        name: round(statistics.median(load for load, _ in t) + min(step for _, step in t), 5)
        for name, t in taken.items()
    }


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Dice by set and seed, and what growing gains."""
    yield "| set | steps | plain, by seed | growing, by seed | gain, by seed | mean gain |"
    yield "|---|---|---|---|---|---|"
    for name in SETS:
        dice = {(r["arm"], r["seed"]): r["dice"] for r in rows if r["set"] == name}
        steps = {r["arm"]: r["steps"] for r in rows if r["set"] == name}
        both = [s for s in SEEDS if all((arm, s) in dice for arm in ARMS)]
        if not both:
            continue
        gains = [dice["growing", s] - dice["plain", s] for s in both]
        cells = [" ".join(f"{dice[arm, s]:.4f}" for s in both) for arm in ARMS]
        spread = f" ± {statistics.stdev(gains):.4f}" if len(gains) > 1 else ""
        yield (
            f"| {name[11:]} | {steps['plain']}, {steps['growing']} | {' | '.join(cells)} | "
            f"{' '.join(f'{g:+.4f}' for g in gains)} | {statistics.mean(gains):+.4f}{spread} |"
        )


if __name__ == "__main__":
    main()
