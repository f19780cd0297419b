"""What does a mechanism add? Presets against plain U-Nets of as many parameters, on real cases.

Each preset is trained on fold 0 beside its twin: the plain sentence whose widths are scaled until
it has as nearly as many parameters as can be. Both see the same batches from the same seeds. What
is compared is the Dice of the held-out cases, case by case; differences have an interval, and no
order is told that the interval or the seeds do not bear.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg import api
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.networks.sentence import UNetSpec
from autoseg.documents.plan import Configuration
from autoseg.documents.presets.table import network_spec, preset_named
from autoseg.documents.run import append_line, lines
from autoseg.errors import AutosegError, Busy, Interrupted, Stale
from autoseg.nets.build import build
from autoseg.nets.cost import parameters
from bench.run import DATA, REPOSITORY, RESULTS, TARGETS, machine

KEPT = RESULTS / "mechanisms.jsonl"
ROOT = Path(os.environ.get("AUTOSEG_BENCH_ROOT", REPOSITORY / ".bench"))
PRESETS = (
    "attention_unet", "dense_unet", "dilated_unet", "hc_mamba", "inception_unet", "mednext_s",
    "resenc_m", "swin_unetr", "transunet", "umamba_bot", "unetpp",
)  # fmt: skip
SETS = tuple(name for name in TARGETS if name.startswith(("Dataset004", "Dataset005")))
CONFIGURATION = "3d_fullres"
FIRST_SEED = 12345
LEAST_SEEDS = 3
DRAWS = 10_000
NEVER = 1_000_000_000


@dataclass(frozen=True)
class Paired:
    """The mean difference over cases, its interval of 95 %, and the mean difference of each seed."""

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def shown(self) -> str:
        """`better` or `worse` where interval and all of several seeds agree, else why not."""
        if len(self.by_seed) < LEAST_SEEDS:
            return "too few seeds to tell"
        if self.low > 0 and min(self.by_seed) > 0:
            return "better"
        if self.high < 0 and max(self.by_seed) < 0:
            return "worse"
        return "no difference shown"


def paired(differences: NDArray[np.float64], draws: int = DRAWS) -> Paired:
    """What paired differences (seeds, cases) show: seeds are averaged, cases drawn again.

    The interval is that of the percentile bootstrap over cases (Efron 1979), from a fixed seed. How
    far the seeds differ is not in it, and is told beside it.
    """
    cases = differences.mean(axis=0)
    chosen = np.random.default_rng(0).integers(len(cases), size=(draws, len(cases)))
    low, high = np.percentile(cases[chosen].mean(axis=1), [2.5, 97.5])
    by_seed = tuple(float(d) for d in differences.mean(axis=1))
    return Paired(float(cases.mean()), float(low), float(high), by_seed)


def twin_widths(
    count: Callable[[tuple[int, ...]], int], base: Sequence[int], target: int
) -> tuple[int, ...]:
    """The widths in the proportions of `base` for which `count` is nearest to `target`.

    One factor scales all of them; `count` must not fall where a width grows.
    """

    def scaled(factor: float) -> tuple[int, ...]:
        return tuple(max(1, round(width * factor)) for width in base)

    low, high = 0.0, 1.0
    while count(scaled(high)) < target:
        low, high = high, 2 * high
    # widths change one by one where factors differ by less than this
    while high - low > 1 / (64 * max(base)):
        middle = (low + high) / 2
        low, high = (middle, high) if count(scaled(middle)) < target else (low, middle)
    return min((scaled(low), scaled(high)), key=lambda widths: abs(count(widths) - target))


@dataclass(frozen=True)
class Budget:
    """How long a run is: so many steps, or so many minutes with start-up and validation in them."""

    amount: float
    unit: str

    @property
    def name(self) -> str:
        return f"{self.amount:g} {self.unit}"


@dataclass(frozen=True)
class Contender:
    """A network of the comparison."""

    name: str
    spec: NetworkSpec
    parameters: int


def parameters_of(spec: NetworkSpec) -> int:
    """How many numbers a network learns; nothing is allocated."""
    with torch.device("meta"):
        return parameters(build(spec))


def contenders(preset: str, plain: UNetSpec) -> tuple[Contender, Contender]:
    """A preset on the grid of a plain network, and its twin."""
    most = preset_named(preset).most_levels or len(plain.levels)
    strides, kernels = plain.strides, [level.kernel for level in plain.levels]

    def at(name: str, widths: Sequence[int], levels: int) -> NetworkSpec:
        return network_spec(
            name, plain.in_channels, plain.classes, widths[:levels], strides[:levels],
            kernels[:levels],
        )  # fmt: skip

    def count(widths: tuple[int, ...]) -> int:
        return parameters_of(at("plain", widths, len(widths)))

    spec = at(preset, plain.widths, min(most, len(plain.levels)))
    target = parameters_of(spec)
    widths = twin_widths(count, plain.widths, target)
    return (
        Contender(preset, spec, target),
        Contender(f"plain-{'-'.join(map(str, widths))}", at("plain", widths, len(widths)),
                  count(widths)),
    )  # fmt: skip


def prepared(dataset: str, width: int) -> Configuration:
    """The configuration that all runs on a dataset share but for the network; its cases are ready."""
    os.environ.update({"nnUNet_raw": str(DATA)})
    pins = ("train.precision=float32", "train.layout=channels_last", "predict.mirror=false",
            f"train.validate_every={NEVER}", f"width={width}", "steps=1000")  # fmt: skip
    made = api.plan_and_preprocess(
        (dataset,), name=f"mechanisms-{width}", set=pins, configuration=(CONFIGURATION,),
        device="cpu", root=ROOT,
    )  # fmt: skip
    return made[0].configuration(CONFIGURATION)


def trained(
    dataset: str, who: Contender, budget: Budget, seed: int, width: int, threads: int
) -> dict[str, Any]:
    """One run as a line of the results: trained from its seed, or gone on with, and validated."""
    began = time.perf_counter()
    run = f"{who.name}-{budget.name.replace(' ', '')}-seed{seed}"
    changes = {
        "network": who.spec.dump(),
        "train.supervision": who.spec.output_weights,
        "train.seed": FIRST_SEED + seed,
        "train.threads": threads,
    }
    line: dict[str, Any] = {
        "set": dataset, "network": who.name, "parameters": who.parameters, "width": width,
        "budget": budget.name, "seed": seed,
    }  # fmt: skip
    try:
        report = api.train(
            dataset, CONFIGURATION, ("0",), plan=f"mechanisms-{width}", run=run, root=ROOT,
            set=tuple(f"{key}={json.dumps(value)}" for key, value in changes.items()),
            steps=int(budget.amount) if budget.unit == "steps" else None,
            time=f"{budget.amount * 60:.0f}s" if budget.unit == "min" else None,
            device="cpu",
        )[0]  # fmt: skip
    except (Interrupted, Busy, Stale):
        raise
    except AutosegError as fault:  # no number any more, too little memory, too little time
        return {**line, "failed": str(fault), "machine": machine()}
    fold = ROOT / "results" / dataset / f"mechanisms-{width}" / CONFIGURATION / run / "fold_0"
    saved = [entry for entry in lines(fold / "journal.jsonl") if entry["event"] == "saved"]
    return {
        **line, "steps": saved[-1]["step"], "train_s": saved[-1]["spent_s"],
        "wall_s": round(time.perf_counter() - began, 1),
        "dice": {case.case: case.mean_dice for case in report.cases}, "machine": machine(),
    }  # fmt: skip


def key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run is told apart by."""
    return tuple(line[name] for name in ("set", "network", "budget", "seed", "width"))


def compare(
    *, presets: Sequence[str], sets: Sequence[str], budgets: Sequence[Budget], seeds: int,
    width: int, threads: int, limit_s: float, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Do the runs that are not in KEPT yet, one at a time, until all are done or the time is up.

    Seeds come outermost, a preset and its twin next to each other: a table that was stopped half
    way holds whole pairs. A run that was killed goes on from its last saved state.
    """
    began = time.monotonic()
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = {key(line) for line in lines(KEPT)}
    pairs = {}
    for dataset in sets:
        if not (DATA / dataset).is_dir():
            say(f"{dataset}: not in {DATA}, left out")
            continue
        plain = prepared(dataset, width).network
        assert isinstance(plain, UNetSpec)
        pairs.update({(dataset, preset): contenders(preset, plain) for preset in presets})
    for seed, budget, ((dataset, _), pair) in product(range(seeds), budgets, pairs.items()):
        for who in pair:
            wanted = {"set": dataset, "network": who.name, "budget": budget.name,
                      "seed": seed, "width": width}  # fmt: skip
            if key(wanted) in done:
                continue
            if time.monotonic() - began > limit_s:
                say("the time is up; the same command goes on")
                return
            line = trained(dataset, who, budget, seed, width, threads)
            if who is pair[0]:
                line["twin"] = pair[1].name
            append_line(KEPT, line)
            done.add(key(wanted))
            say(f"{dataset} {who.name} {budget.name} seed {seed}: {_said(line)}; "
                f"{time.monotonic() - began:.0f} s so far")  # fmt: skip


def _said(line: Mapping[str, Any]) -> str:
    if "failed" in line:
        return str(line["failed"])
    return f"Dice {_mean_dice([line]):.4f} in {line['steps']} steps"


def _mean_dice(runs: Sequence[Mapping[str, Any]]) -> float:
    """Over the cases where Dice is defined in every run, and over the runs."""
    return float(_by_case(runs).mean())


def _by_case(runs: Sequence[Mapping[str, Any]], cases: Sequence[str] = ()) -> NDArray[np.float64]:
    """Dice (runs, cases); the cases are those defined in all runs where none are named."""
    return np.array([[run["dice"][c] for c in cases or _defined(runs)] for run in runs])


def _defined(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    everywhere = set.intersection(*({c for c, d in r["dice"].items() if d is not None}
                                    for r in runs))  # fmt: skip
    return sorted(everywhere)


def tables(kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """The second part of docs/networks.md: one table for each data set, budget and width."""
    found: list[str] = []
    groups = sorted({(r["set"], r["budget"], r["width"]) for r in kept if "twin" in r})
    for dataset, budget, width in groups:
        runs = [r for r in kept if (r["set"], r["budget"], r["width"]) == (dataset, budget, width)]
        rows = [_row(name, runs) for name in sorted({r["network"] for r in runs if "twin" in r})]
        found += [f"### {dataset}, {budget}, first width {width}", "", _where(runs), "", *HEAD,
                  *rows, ""]  # fmt: skip
    return found


HEAD = (
    "| network | parameters (twin) | steps (twin) | seconds (twin) | Dice (twin) | difference "
    "[95 %] | by seed | |",
    "|---|---|---|---|---|---|---|---|",
)


def _where(runs: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted({r["machine"]["date"] for r in runs})
    of = runs[-1]["machine"]
    return (f"{dates[0]} to {dates[-1]}, {of['cores']} cores of {of['processor']}, "
            f"Python {of['python']}.")  # fmt: skip


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """A preset beside its twin, over the seeds that both have finished."""
    own = {r["seed"]: r for r in runs if r["network"] == name}
    twin_name = next(iter(own.values()))["twin"]
    twin = {r["seed"]: r for r in runs if r["network"] == twin_name}
    failed = [r for r in (*own.values(), *twin.values()) if "failed" in r]
    seeds = [s for s in sorted(own) if s in twin and own[s] not in failed and twin[s] not in failed]
    counts = f"{next(iter(own.values()))['parameters']:,}"
    if not seeds:
        said = f"{len(failed)} runs failed" if failed else "no pair is finished"
        return f"| {name} | {counts} ({twin_name}) | | | | | | {said} |"
    mine, other = [own[s] for s in seeds], [twin[s] for s in seeds]
    cases = _defined([*mine, *other])
    result = paired(_by_case(mine, cases) - _by_case(other, cases))

    def both(field: str) -> str:
        a, b = (statistics.fmean(r[field] for r in x) for x in (mine, other))
        return f"{a:.0f} ({b:.0f})"

    note = f"{result.shown}; {len(failed)} runs failed" if failed else result.shown
    return (
        f"| {name} | {counts} ({other[0]['parameters']:,}, {twin_name}) | {both('steps')} | "
        f"{both('train_s')} | {_by_case(mine, cases).mean():.4f} "
        f"({_by_case(other, cases).mean():.4f}) | {result.mean:+.4f} "
        f"[{result.low:+.4f}, {result.high:+.4f}] | "
        f"{', '.join(f'{d:+.4f}' for d in result.by_seed)} | {note} |"
    )
