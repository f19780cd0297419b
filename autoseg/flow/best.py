"""From five folds to one model: configurations and ensembles compared on the cross-validation.

Everything is kept in `results/<dataset>/<plan>/final`: what was tried and why the one was chosen,
the postprocessing, the report of the whole, and the model that `predict` and `export` use.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.costs import operations
from autoseg.documents.dataset import Dataset
from autoseg.documents.model import ModelSpec
from autoseg.documents.plan import Configuration, Plan
from autoseg.documents.postprocessing import Postprocessing
from autoseg.documents.report import CaseScores, Report
from autoseg.documents.run import RunSpec
from autoseg.errors import AutosegError, BadData
from autoseg.files import read_json, sha256_file, write_json
from autoseg.flow.choose import groups_of, model_from
from autoseg.flow.make import Job, folds_of, validation
from autoseg.image.reading import ending_for
from autoseg.rules.selection import MARGIN, Candidate, choose
from autoseg.stage import Stamp, standing

if TYPE_CHECKING:
    from autoseg.models.refine import Refine

log = logging.getLogger(__name__)
VERSION = 2
SEPARATOR = " + "


@dataclass(frozen=True)
class Best:
    """What was chosen, from what, and why."""

    folder: Path
    names: tuple[str, ...]
    """The configurations that speak together."""
    why: tuple[str, ...]
    candidates: tuple[dict[str, Any], ...]
    postprocessing: Postprocessing
    report: Report

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        yield f"chosen: {SEPARATOR.join(self.names)}"
        yield from (f"  {line}" for line in self.why)
        yield from self.postprocessing.lines()
        for name, scores in self.report.summary.labels.items():
            mean = scores.metrics["dice"].mean
            yield f"{name}: Dice {'undefined' if mean is None else f'{mean:.4f}'}"
        mean = self.report.mean_dice
        yield f"cross-validated mean Dice {'undefined' if mean is None else f'{mean:.4f}'}"
        if self.postprocessing.held_out is not None:
            yield (
                f"  {self.postprocessing.held_out:.4f} where each case is cleaned by steps that were "
                "chosen without it: what new cases may expect"
            )
        yield f"kept in {self.folder}; `autoseg predict` uses it"


def complete(job: Job, dataset: Dataset, made: Plan, asked: Sequence[str]) -> tuple[str, ...]:
    """The configurations of which every fold is trained. Raises AutosegError where one asked for is
    not, or none is."""
    folds = folds_of(job, dataset)
    lacking: dict[str, list[str]] = {}
    for name in asked:
        made.configuration(name)
    wanted = [name for name in made.configurations if name in (asked or made.configurations)]
    for name in wanted:
        places = [job.places.fold(job.plan, name, job.run, fold) for fold in folds]
        missing = [f for f, place in zip(folds, places, strict=True) if not place.weights.exists()]
        if missing:
            lacking[name] = missing
    told = "; ".join(f"{name} lacks fold {' '.join(missing)}" for name, missing in lacking.items())
    if asked and lacking:
        name, missing = next(iter(lacking.items()))
        command = replace(job, configuration=name).command(*missing)
        raise AutosegError(f"{told}: run `{command}` first")
    found = tuple(name for name in wanted if name not in lacking)
    if not found:
        raise AutosegError(
            f"no configuration of {job.places.name} is trained on every fold: {told}"
        )
    return found


def best(
    job: Job,
    dataset: Dataset,
    made: Plan,
    configurations: Sequence[str] = (),
    *,
    ensembles: bool = True,
    crf: bool = False,
    margin: float = MARGIN,
) -> Best:
    """The choice among configurations and their ensembles, with its postprocessing.

    `margin`: a cheaper candidate wins where it is shown to lose less mean Dice than this.

    What was chosen from the same folds before is only read. Raises AutosegError if folds are missing.
    """
    names = complete(job, dataset, made, configurations)
    folder = job.places.final(job.plan, job.run)
    asked = {"ensembles": ensembles, "crf": crf, "margin": margin}
    stamp = _stamp(job, dataset, names, asked)
    if (folder / "model.json").exists() and standing(
        folder / "stamp.json", stamp
    ).state == "current":
        return read_best(folder)
    pools = {name: pooled(job, dataset, name) for name in names}
    maps = {name: _maps(job, dataset, name) for name in names}
    costs = {name: _cost(made, name) for name in names}
    candidates = {name: Candidate(name, costs[name], _dice(pools[name])) for name in names}
    members: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    for group in _groups(names) if ensembles else ():
        title = SEPARATOR.join(group)
        maps[title] = _ensemble_maps(job, dataset, group, folder / "candidates" / "+".join(group))
        scored = _scored(job, dataset, maps[title], surfaces=False)
        cost = sum(costs[name] for name in group)
        candidates[title] = Candidate(title, cost, _dice(scored.cases))
        members[title] = group
    chosen = choose(list(candidates.values()), margin=margin)
    winner = chosen.value.name
    log.info("chosen: %s", winner)
    steps, report = _postprocessed(job, dataset, made, members[winner], maps[winner], folder, crf)
    groups = groups_of(job.places)
    keys = [(job.plan, name, job.run) for name in members[winner]]
    model = model_from(job.places, groups, keys)
    spec = ModelSpec.parse(
        {
            **model.spec.dump(),
            "name": dataset.name.partition("_")[2],
            "postprocessing": [step.dump() for step in steps.steps],
            "cross_validation": report.summary.dump(),
            "held_out_dice": steps.held_out,
        },
        "the chosen model",
    )
    report.write(folder / "report.json")
    steps.write(folder / "postprocessing.json")
    write_json(folder / "choice.json", {
        "chosen": members[winner], "why": [f"{name}: {why}" for name, why in chosen.reasons.items()],
        "candidates": [
            {"name": c.name, "cost": c.cost, "mean_dice": chosen.means[c.name],
             "why": chosen.reasons[c.name]} for c in candidates.values()
        ],
    })  # fmt: skip
    spec.write(folder / "model.json")
    stamp.write(folder / "stamp.json")
    return read_best(folder)


def read_best(folder: Path) -> Best:
    """What was chosen and kept in `folder`."""
    choice = read_json(folder / "choice.json")
    return Best(
        folder,
        tuple(choice["chosen"]),
        tuple(choice["why"]),
        tuple(choice["candidates"]),
        Postprocessing.read(folder / "postprocessing.json"),
        Report.read(folder / "report.json"),
    )


def _folds(job: Job, dataset: Dataset, name: str) -> list[Job]:
    return [replace(job, configuration=name, fold=fold) for fold in folds_of(job, dataset)]


def _stamp(job: Job, dataset: Dataset, names: Sequence[str], asked: Mapping[str, Any]) -> Stamp:
    inputs = {}
    for name in names:
        for one in _folds(job, dataset, name):
            inputs[f"{name} {one.fold}"] = sha256_file(one.fold_places.weights)
    return Stamp("final", VERSION, inputs, asked)


def pooled(job: Job, dataset: Dataset, name: str) -> list[CaseScores]:
    """The scores of every case by the fold that held it out."""
    found: dict[str, CaseScores] = {}
    for one in _folds(job, dataset, name):
        for scores in validation(one, dataset).cases:
            found.setdefault(scores.case, scores)
    return list(found.values())


def _maps(job: Job, dataset: Dataset, name: str) -> dict[str, Path]:
    """Case id -> the label map of the fold that held it out."""
    found: dict[str, Path] = {}
    for one in _folds(job, dataset, name):
        places, ending = one.fold_places, ending_for(dataset.file_ending)
        for case in RunSpec.read(places.run).validation_cases:
            found.setdefault(case, places.validation / f"{case}{ending}")
    return found


def _groups(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every pair, and all together where there are more."""
    yield from combinations(names, 2)
    if len(names) > 2:
        yield tuple(names)


def _ensemble_maps(
    job: Job, dataset: Dataset, group: Sequence[str], folder: Path
) -> dict[str, Path]:
    """Case id -> label map of the mean probability of several configurations, made where it lacks."""
    from autoseg.stages.ensemble import ensemble

    sources = _probabilities(job, dataset, group)
    ending = ending_for(dataset.file_ending)
    done = ensemble(sources, folder, ending=ending, overwrite=True)
    if done.failed:
        raise BadData(done.failed)
    return {case: folder / f"{case}{ending}" for case in sources}


def _probabilities(job: Job, dataset: Dataset, group: Sequence[str]) -> dict[str, list[Path]]:
    """Case id -> a file of each configuration, by the fold that held the case out; made where it
    lacks."""
    sources: dict[str, list[Path]] = {}
    for name in group:
        own: dict[str, Path] = {}
        for one in _folds(job, dataset, name):
            validation(one, dataset, keep_probabilities=True)
            for case in RunSpec.read(one.fold_places.run).validation_cases:
                own.setdefault(case, one.fold_places.probabilities(case))
        for case, path in own.items():
            sources.setdefault(case, []).append(path)
    return sources


def _refine(job: Job, dataset: Dataset, members: Sequence[str]) -> "Refine":
    from autoseg.models.refine import Refine

    images = {case.id: case.images for case in dataset.cases}
    return Refine(_probabilities(job, dataset, members), images)


def _scored(job: Job, dataset: Dataset, maps: Mapping[str, Path], *, surfaces: bool) -> Report:
    from autoseg.stages.evaluate import evaluate

    references = {c.id: c.label for c in dataset.cases if c.label is not None}
    return evaluate(
        {case: (path, references[case]) for case, path in maps.items()},
        dataset.labels,
        dataset=dataset.name,
        surfaces=surfaces,
        workers=max(1, job.processes),
        made_by=(job.plan, None, job.run),
    )


def _dice(cases: Sequence[CaseScores]) -> dict[str, dict[str, float | None]]:
    return {
        one.case: {name: scores.values.get("dice") for name, scores in one.labels.items()}
        for one in cases
    }


def _cost(made: Plan, name: str) -> float:
    """Multiply-adds of segmenting a median case once, the stages that go before included."""
    configuration = made.configuration(name)
    before = configuration.previous
    return _operations(configuration) + (_cost(made, before.configuration) if before else 0.0)


def _operations(configuration: Configuration) -> float:
    from autoseg.infer.volume import patches_to_predict

    patches = patches_to_predict(configuration.median_shape_vox, configuration)
    axes = configuration.augmentation.mirror_axes if configuration.predict.mirror else ()
    network = operations(configuration.network, configuration.patch_vox)
    return float(patches * 2 ** len(axes) * network)


def _postprocessed(
    job: Job,
    dataset: Dataset,
    made: Plan,
    members: Sequence[str],
    maps: Mapping[str, Path],
    folder: Path,
    crf: bool,
) -> tuple[Postprocessing, Report]:
    """The steps that help on the cross-validation, and the report of what they leave."""
    from autoseg.stages.determine import determine
    from autoseg.stages.postprocess import apply_to

    references = {c.id: c.label for c in dataset.cases if c.label is not None}
    pairs = {case: (path, references[case]) for case, path in maps.items()}
    # equal pieces are chosen in the order of a scan, so in the axes that prediction works in
    axes = made.configuration(members[0]).preparation.axes
    workers = max(1, job.processes)
    refine = _refine(job, dataset, members) if crf else None
    steps = determine(
        pairs, dataset.labels, folder=folder / "tried", workers=workers, axes=axes, refine=refine
    )
    if not steps.steps:
        return steps, _scored(job, dataset, maps, surfaces=True)
    cleaned = apply_to(
        maps, folder / "label_maps", steps.steps, dataset.labels,
        workers=workers, axes=axes, refine=refine,
    )  # fmt: skip
    return steps, _scored(job, dataset, cleaned, surfaces=True)
