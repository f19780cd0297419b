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
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg import api
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.networks.sentence import UNetSpec
from autoseg.documents.plan import Configuration, Training
from autoseg.documents.presets.table import network_spec, preset_named
from autoseg.documents.run import append_line, lines
from autoseg.errors import AutosegError, Busy, Interrupted, Stale
from autoseg.learn.trial import trial_step
from autoseg.learn.variants import Variant
from autoseg.nets.build import build
from autoseg.nets.cost import parameters
from bench.budgets import TARGETS
from bench.places import DATA, RESULTS, ROOT, machine

KEPT = RESULTS / "mechanisms.jsonl"
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
class Contender:
    """A network of the comparison."""

    name: str
    spec: NetworkSpec
    parameters: int


def budgets(steps: int) -> tuple[str, str]:
    """What is equal for a preset and its twin: the steps, or the time that the preset needs for them."""
    return f"{steps} steps", f"the time of {steps} steps"


def time_ratio(
    pair: tuple[Contender, Contender], configuration: Configuration, threads: int, times: int = 7
) -> float:
    """How many steps of the twin take as long as one of the preset: the median of steps in turn.

    A clock over whole runs would measure who else uses the machine.
    """
    variant = Variant("float32", "channels_last", threads)

    def step_of(spec: NetworkSpec) -> Callable[[], object]:
        train = {**configuration.train.dump(), "supervision": spec.output_weights}
        shape = (spec.in_channels, *configuration.patch_vox)
        return trial_step(
            build(spec), Training.parse(train, spec.preset), shape, spec.classes, variant
        )

    mine, twin = step_of(pair[0].spec), step_of(pair[1].spec)
    with variant.pinned():
        mine(), twin()
        return statistics.median(seconds(mine) / seconds(twin) for _ in range(times))


def seconds(step: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


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
    dataset: str, who: Contender, steps: int, seed: int, width: int, threads: int
) -> dict[str, Any]:
    """One run as a line of the results: trained from its seed, or gone on with, and validated."""
    began = time.perf_counter()
    run = f"{who.name}-{steps}steps-seed{seed}"
    changes = {
        "network": who.spec.dump(),
        "train.supervision": who.spec.output_weights,
        "train.seed": FIRST_SEED + seed,
        "train.threads": threads,
    }
    line: dict[str, Any] = {
        "set": dataset, "network": who.name, "parameters": who.parameters, "width": width,
        "seed": seed,
    }  # fmt: skip
    try:
        report = api.train(
            dataset, CONFIGURATION, ("0",), plan=f"mechanisms-{width}", run=run, root=ROOT,
            set=tuple(f"{key}={json.dumps(value)}" for key, value in changes.items()),
            steps=steps, device="cpu",
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
    *, presets: Sequence[str], sets: Sequence[str], steps: int, seeds: int, width: int,
    threads: int, limit_s: float, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Do the runs that are not in KEPT yet, one at a time, until all are done or the time is up.

    Seeds come outermost, a preset and its twin next to each other: a table that was stopped half
    way holds whole pairs. A run that was killed goes on from its last saved state. For equal time
    the twin alone runs again, with more or fewer steps.
    """
    began = time.monotonic()
    RESULTS.mkdir(parents=True, exist_ok=True)
    done = {key(line): line for line in lines(KEPT)}
    pairs, plans = {}, {}
    for dataset in sets:
        if not (DATA / dataset).is_dir():
            say(f"{dataset}: not in {DATA}, left out")
            continue
        plans[dataset] = prepared(dataset, width)
        plain = plans[dataset].network
        assert isinstance(plain, UNetSpec)
        pairs.update({(dataset, preset): contenders(preset, plain) for preset in presets})

    def run(dataset: str, who: Contender, count: int, seed: int, **told: Any) -> dict[str, Any]:
        """The kept line of a run, made now if there is none."""
        wanted = {"set": dataset, "network": who.name, "seed": seed, "width": width, **told}
        if key(wanted) not in done:
            if time.monotonic() - began > limit_s:
                raise TimeoutError
            line = {**trained(dataset, who, count, seed, width, threads), **told}
            append_line(KEPT, line)
            done[key(wanted)] = line
            say(f"{dataset} {who.name} {told['budget']} seed {seed}: {_said(line)}; "
                f"{time.monotonic() - began:.0f} s so far")  # fmt: skip
        return done[key(wanted)]

    equal_steps, equal_time = budgets(steps)
    try:
        for seed, ((dataset, preset), (own, twin)) in product(range(seeds), pairs.items()):
            mine = run(dataset, own, steps, seed, budget=equal_steps, twin=twin.name)
            run(dataset, twin, steps, seed, budget=equal_steps)
            rival = replace(twin, name=f"{twin.name} beside {preset}")
            first = done.get(key({**mine, "seed": 0, "budget": equal_time}), {})
            ratio = first.get("ratio") or time_ratio((own, twin), plans[dataset], threads)
            again = {**mine, "budget": equal_time, "twin": rival.name, "ratio": round(ratio, 3)}
            if key(again) not in done:
                append_line(KEPT, again)
                done[key(again)] = again
            run(dataset, rival, round(steps * ratio), seed, budget=equal_time)
    except TimeoutError:
        say("the time is up; the same command goes on")


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
