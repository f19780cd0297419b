"""What every network costs, and what its mechanism adds; writes docs/networks.md.

    python -m bench.networks cost                      # every preset; resumable preset by preset
    python -m bench.networks mechanisms --steps 500 --seeds 3 --limit 8h
    python -m bench.networks --write                   # docs/networks.md from bench/results

Run from the top of the repository, on a machine that does nothing else. Seconds of a step are
medians, taken in turn with the plain network in one process and told as a ratio as well.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.presets.table import PRESETS, network_spec
from autoseg.documents.run import lines
from autoseg.documents.settings import seconds_of
from autoseg.learn.cores import usable_cores
from autoseg.learn.trial import trial_step
from autoseg.learn.variants import Variant
from autoseg.nets.build import build
from autoseg.nets.cost import multiply_adds
from autoseg.rules.recipe import CORE_TRAINING
from bench import mechanisms, memory
from bench.mechanisms import parameters_of, seconds
from bench.memory import predicted, recipe
from bench.places import REPOSITORY, RESULTS, keep

BATCH, CHANNELS, CLASSES = 2, 1, 3


@dataclass(frozen=True)
class Size:
    """A patch and the widths and strides of the plain network on it, finest first."""

    patch_vox: tuple[int, ...]
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return "×".join(map(str, self.patch_vox))

    @property
    def widths(self) -> str:
        return "-".join(map(str, self.features))

    def spec(self, preset: str) -> NetworkSpec:
        """The preset here, with fewer levels where it wants no more."""
        cut = slice(PRESETS[preset].most_levels)
        kernels = ((3,) * len(self.patch_vox),) * len(self.strides)
        return network_spec(
            preset, CHANNELS, CLASSES, self.features[cut], self.strides[cut], kernels[cut]
        )


LAPTOP = {
    "2d": Size((128, 128), (8, 16, 32, 64, 64), ((1, 1), *((2, 2),) * 4)),
    "3d": Size((32, 64, 64), (8, 16, 32, 64), ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))),
}
PUBLISHED = Size((128, 128, 128), (32, 64, 128, 256, 320, 320), ((1, 1, 1), *((2, 2, 2),) * 5))


def measured_bytes(spec: NetworkSpec, size: Size) -> int:
    """What the tensors of a real step take at most, in float32, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        train = recipe(spec, BATCH)
        return pool.submit(memory.measured, spec, size.patch_vox, train).result()["tensors"]


def alternating_seconds(
    spec: NetworkSpec, size: Size, variant: Variant, times: int
) -> tuple[float, float]:
    """Median seconds of a step, and the median ratio to the plain network's, taken in turn."""
    plain = _step(size.spec("plain"), size, variant)
    step = plain if spec.preset == "plain" else _step(spec, size, variant)
    taken = []
    with variant.pinned():
        plain(), step()
        for _ in range(times):
            taken.append((seconds(step), seconds(plain)))
    return (
        statistics.median(mine for mine, _ in taken),
        statistics.median(mine / other for mine, other in taken),
    )


def _step(spec: NetworkSpec, size: Size, variant: Variant) -> Callable[[], object]:
    train = recipe(spec, BATCH, **CORE_TRAINING)
    return trial_step(build(spec), train, (CHANNELS, *size.patch_vox), CLASSES, variant)


def cost_of(preset: str, variant: Variant, times: int) -> dict[str, Any]:
    """One row of the table of costs."""
    row: dict[str, Any] = {"network": preset}
    for name, size in LAPTOP.items():
        spec = size.spec(preset)
        step_s, ratio = alternating_seconds(spec, size, variant, times)
        row[name] = {
            "parameters": parameters_of(spec),
            "multiply_adds": multiply_adds(spec, size.patch_vox),
            "predicted": predicted(spec, size.patch_vox, recipe(spec, BATCH), "float32", "cpu"),
            "measured": measured_bytes(spec, size),
            "seconds": round(step_s, 4),
            "ratio": round(ratio, 2),
        }
    spec = PUBLISHED.spec(preset)
    row["published"] = {
        "parameters": parameters_of(spec),
        "multiply_adds": multiply_adds(spec, PUBLISHED.patch_vox),
        "predicted": predicted(spec, PUBLISHED.patch_vox, recipe(spec, BATCH), "bfloat16", "cuda"),
    }
    return row


def costs(presets: Sequence[str], threads: int, times: int, limit_s: float) -> None:
    """Add the rows that are not in the results yet, until all are there or the time is up."""
    began = time.monotonic()
    kept = RESULTS / "networks.json"
    rows = json.loads(kept.read_text())["rows"] if kept.exists() else []
    variant = Variant("float32", "channels_last", threads)
    for preset in presets:
        if any(row["network"] == preset for row in rows):
            continue
        if time.monotonic() - began > limit_s:
            print("the time is up; the same command goes on")
            return
        rows.append(cost_of(preset, variant, times))
        keep("networks", rows, f"python -m bench.networks cost --threads {threads}")
        print(f"{preset}: {time.monotonic() - began:.0f} s so far")


PAGE = REPOSITORY / "docs" / "networks.md"
MARK = "<!-- measured:"
"""Where the part of the page begins that is written from results."""

COSTS = """## What a network costs

{origin}

A batch of {batch}, one channel, {classes} classes, with the loss of every output. GFLOP is one
forward pass of one patch while training, two for a multiply-add. *Predicted* is the peak of a
training step with SGD, computed without running it; *measured* what such a step really allocated
(`bench/memory.py`), in float32 on processor cores. *Step* is the median time of a step with Muon, as
on cores; *× plain* its median ratio to the plain network's, taken in turn: the plain network's own
tells the noise."""

AT_FULL_SIZE = """### published widths, {published} voxels

Predicted for a card with 16-bit floats, where the plain network is {widths} wide: tensors alone,
without the overheads of the card."""

GAINS = """## What a mechanism adds

Each network is trained on fold 0 beside its *twin*, the plain network whose widths are scaled until
it has as nearly as many parameters as can be, from the same seeds and on the same batches. Dice is
the mean over the held-out cases and the seeds, given as *network (twin)*. The difference is paired
by case, seeds averaged; its interval of 95 % is that of a bootstrap over cases. `better` and `worse`
need an interval without zero and the same sign for every seed, three at least; among so many
comparisons one in twenty may still be chance. *Steps* gives both networks as many; *the time of*
those steps gives the twin as many steps as fit into the time that the network's take, from steps of
both timed in turn, since a clock over whole runs would measure who else uses the machine. Seconds
are those of whole trainings, batches included, on a machine that did other work. Rows are sorted by name, not by result."""


def written() -> str:
    """The page: what a person wrote up to the mark's line, then what was kept of the runs."""
    ours, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    found = [f"{ours}{mark} what follows is written by `python -m bench.networks --write` -->", ""]
    counted = RESULTS / "memory.json"
    if counted.exists():
        found += [*_accuracy(json.loads(counted.read_text())), ""]
    kept = RESULTS / "networks.json"
    if kept.exists():
        found += [*_cost_table(json.loads(kept.read_text())), ""]
    gains = mechanisms.tables(list(lines(mechanisms.KEPT)))
    found += [GAINS, "", *(gains or ["No run was made yet."])]
    return "\n".join(found).rstrip() + "\n"


def _accuracy(part: Mapping[str, Any]) -> list[str]:
    """How far computed memory was from that of real steps, over all networks."""
    rows, m = part["rows"], part["machine"]
    worst = max(rows, key=lambda row: abs(row["error"]))
    names = {row["network"] for row in rows}
    return [
        "## How well memory is computed",
        "",
        f"{len(rows)} steps of {len(names)} networks, in 2D and 3D at two sizes each, float32 on "
        "processor cores, each in a fresh process: what was computed against the tensors that the "
        "step really allocated. Median error "
        f"{statistics.median(abs(row['error']) for row in rows):.2%}, worst {worst['error']:+.2%} "
        f"({worst['network']}). Scratch that a library takes for itself is not counted. No card has "
        "been measured yet.",
        "",
        f"{m['date']}, {m['cores']} cores of {m['processor']}, Python {m['python']}. "
        f"`{part['command']}`",
    ]


def _cost_table(part: Mapping[str, Any]) -> list[str]:
    m = part["machine"]
    origin = (f"{m['date']}, {m['cores']} cores of {m['processor']}, Python {m['python']}, load "
              f"{m['load']} at the end. `{part['command']}`")  # fmt: skip
    rows = part["rows"]
    found = [COSTS.format(origin=origin, batch=BATCH, classes=CLASSES)]
    for name, size in LAPTOP.items():
        errors = [r[name]["predicted"] / r[name]["measured"] - 1 for r in rows]
        found += ["", f"### {name}, {size.name} voxels, plain widths {size.widths}", "",
                  f"Predicted against measured: median error "
                  f"{statistics.median(map(abs, errors)):.1%}, worst {max(errors, key=abs):+.1%}.",
                  "", "| network | parameters | GFLOP | predicted MiB | measured MiB | step s | × plain |",
                  "|---|---|---|---|---|---|---|", *(_cost_row(row, name) for row in rows)]  # fmt: skip
    return [
        *found, "", AT_FULL_SIZE.format(published=PUBLISHED.name, widths=PUBLISHED.widths), "",
        "| network | parameters | GFLOP | predicted GiB |", "|---|---|---|---|",
        *(_full_row(row) for row in rows),
    ]  # fmt: skip


def _cost_row(row: Mapping[str, Any], name: str) -> str:
    here = row[name]
    return (
        f"| {row['network']} | {here['parameters'] / 1e6:.3f} M | "
        f"{2e-9 * here['multiply_adds']:.2f} | {here['predicted'] / 2**20:.0f} | "
        f"{here['measured'] / 2**20:.0f} | {here['seconds']:.3f} | {here['ratio']:.2f} |"
    )


def _full_row(row: Mapping[str, Any]) -> str:
    full = row["published"]
    return (
        f"| {row['network']} | {full['parameters'] / 1e6:.1f} M | "
        f"{2e-9 * full['multiply_adds']:.0f} | {full['predicted'] / 2**30:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=["cost", "mechanisms", []], default=[])
    parser.add_argument("--presets", nargs="+", help="networks (default: all, or about ten)")
    parser.add_argument("--times", type=int, default=5, help="steps timed of each network")
    parser.add_argument("--sets", nargs="+", default=list(mechanisms.SETS), help="datasets")
    parser.add_argument("--steps", type=int, default=500, help="steps of every network")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each network")
    parser.add_argument("--width", type=int, default=8, help="channels of the finest level")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--limit", default="8h", help="no network or run begins after this time")
    parser.add_argument("--write", action="store_true", help="write docs/networks.md")
    asked = parser.parse_args()
    if "cost" in asked.parts:
        costs(asked.presets or list(PRESETS), asked.threads, asked.times, seconds_of(asked.limit))
    if "mechanisms" in asked.parts:
        mechanisms.compare(
            presets=asked.presets or mechanisms.PRESETS,
            sets=asked.sets,
            steps=asked.steps,
            seeds=asked.seeds,
            width=asked.width,
            threads=asked.threads,
            limit_s=seconds_of(asked.limit),
            say=print,
        )
    if asked.write:
        PAGE.write_text(written(), encoding="utf-8")


if __name__ == "__main__":
    main()
