"""Which artefact needs which, and how each is brought up to date.

Every verb asks here for what it needs; a stage whose artefact is current does nothing. Nothing
that took long to make (a trained fold) or that a person wrote (an edited plan) is ever redone
silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.documents.dataset import Dataset, read_dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Configuration, Plan
from autoseg.documents.report import Report
from autoseg.errors import AutosegError
from autoseg.pool import cores
from autoseg.workspace import DatasetPlaces, Fold

if TYPE_CHECKING:
    from autoseg.stages.plan import Request

NEEDS: dict[str, tuple[str, ...]] = {
    "fingerprint": (),
    "plan": ("fingerprint",),
    "prepared": ("plan",),
    "fold": ("prepared",),
    "validation": ("fold",),
    "predictions": ("fold",),
}
"""Artefact -> the artefacts that it is made from."""


@dataclass(frozen=True)
class Job:
    """What is being worked on, and with how much of the machine."""

    places: DatasetPlaces
    plan: str = "default"
    configuration: str = ""
    run: str = "default"
    fold: str = "0"
    workers: int | None = None
    device: str | None = None

    @property
    def processes(self) -> int:
        return self.workers if self.workers is not None else cores()

    @property
    def fold_places(self) -> Fold:
        return self.places.fold(self.plan, self.configuration, self.run, self.fold)


def fingerprint(job: Job, *, verify: bool = False) -> tuple[Dataset, Fingerprint]:
    """The dataset and its current fingerprint."""
    from autoseg.stages.fingerprint import fingerprint as measure

    made = measure(job.places, workers=max(1, job.processes), verify=verify)
    dataset, _ = read_dataset(job.places.raw)
    return dataset, made


def plan(job: Job, request: "Request | None" = None) -> tuple[Dataset, Fingerprint, Plan]:
    """The current plan of this name, made or made again as `request` (or the first time) asks."""
    from autoseg.stages.plan import current_plan

    dataset, measured = fingerprint(job)
    return dataset, measured, current_plan(job.places, measured, job.plan, request, job.device)


def prepared(
    job: Job, configurations: Sequence[str] = (), request: "Request | None" = None
) -> tuple[Dataset, Fingerprint, Plan]:
    """Every training case prepared as the configurations (all, if none is named) need it."""
    from autoseg.stages.preprocess import preprocess

    dataset, measured, made = plan(job, request)
    wanted = configurations or tuple(made.configurations)
    specs = {made.configuration(name).preparation.key: name for name in wanted}
    for name in specs.values():
        preprocess(
            job.places,
            dataset,
            measured,
            made.configuration(name).preparation,
            workers=max(1, job.processes),
        )
    return dataset, measured, made


def configuration_of(job: Job, made: Plan) -> tuple[Job, Configuration]:
    """The job with its configuration filled in: the one asked for, else 3d_fullres, else 2d."""
    name = job.configuration or next(
        (n for n in ("3d_fullres", "2d") if n in made.configurations),
        next(iter(made.configurations)),
    )
    return replace(job, configuration=name), made.configuration(name)


def validation(job: Job, dataset: Dataset) -> Report:
    """The report on the fold's held-out cases; their label maps are predicted where they lack."""
    from autoseg.documents.run import RunSpec
    from autoseg.stages.evaluate import evaluate
    from autoseg.stages.predict import predict_validation

    fold = job.fold_places
    if not fold.weights.exists():
        raise AutosegError(
            f"fold {job.fold} of {job.places.name} {job.configuration} is not trained; "
            f"run `autoseg train {job.places.name} {job.configuration} {job.fold}` first"
        )
    spec = RunSpec.read(fold.run)
    written = predict_validation(job.places, fold, spec, device=job.device)
    references: dict[str, Path] = {c.id: c.label for c in dataset.cases if c.label is not None}
    pairs = {case: (path, references[case]) for case, path in written.items()}
    report = evaluate(
        pairs,
        spec.labels,
        dataset=spec.dataset,
        workers=1 if len(pairs) < 16 else max(1, job.processes),
        made_by=(spec.plan, spec.configuration_name, spec.run),
        fold=int(spec.fold) if spec.fold.isdigit() else None,
    )
    report.write(fold.validation / "report.json")
    return report
