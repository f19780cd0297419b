"""How each artefact is brought up to date, with all that it is made from.

Every verb asks here for what it needs; a stage whose artefact is current does nothing. Nothing
that took long to make (a trained fold) or that a person wrote (an edited plan) is ever redone
silently.
"""

import json
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg import __version__
from autoseg.documents.dataset import Dataset, read_dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Configuration, Plan, read_plan
from autoseg.documents.report import Report
from autoseg.documents.run import RunSpec, WeightsFile, lines
from autoseg.documents.settings import patched
from autoseg.documents.splits import FOLDS, Split, split_of
from autoseg.errors import AutosegError, Busy, Interrupted, TrainingDiverged, nearest
from autoseg.files import is_blank, sha256_file, sha256_json
from autoseg.flow.order import Artefact, Scope, needs
from autoseg.image.reading import ending_for
from autoseg.pool import cores
from autoseg.rules.axes import in_axes
from autoseg.stage import Stamp, read_stamp, standing
from autoseg.workspace import DatasetPlaces, Fold

if TYPE_CHECKING:
    from autoseg.learn.manner import Manner
    from autoseg.stages.plan import Request
    from autoseg.stages.split import SplitReport

log = logging.getLogger(__name__)
TRAINING_VERSION = 1
"""Raised when training starts to mean something else."""
EVALUATION_VERSION = 1
"""Raised when a score starts to mean something else."""

LOOK_S = 5.0
"""How often it is looked whether another command is done with a fold."""


@dataclass(frozen=True)
class Job:
    """What is being worked on, and with how much of the machine."""

    places: DatasetPlaces
    plan: str = "default"
    configuration: str = ""
    run: str = "default"
    fold: str = "0"
    folds: tuple[str, ...] = ()
    """The folds that are trained where those are not all."""
    workers: int | None = None
    device: str | None = None

    @property
    def processes(self) -> int:
        return self.workers if self.workers is not None else cores()

    @property
    def fold_places(self) -> Fold:
        return self.places.fold(self.plan, self.configuration, self.run, self.fold)

    def command(self, *folds: str, changes: Mapping[str, Any] | None = None) -> str:
        """What a person types to train folds of this (else its own), with changed settings."""
        words = ["autoseg", "train", self.places.name, self.configuration, *(folds or [self.fold])]
        words += [] if self.plan == "default" else ["--plan", self.plan]
        words += [] if self.run == "default" else ["--run", self.run]
        for key, value in (changes or {}).items():
            words += ["--set", f"{key}={json.dumps(value, separators=(',', ':'))}"]
        return shlex.join(words)


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


def check_plan_name(job: Job) -> None:
    """A plan that is asked for by a name of its own must be there; `default` is made where it lacks.

    Raises AutosegError with the plans that there are.
    """
    if job.plan != "default" and not job.places.plan(job.plan).exists():
        raise AutosegError(
            f"{job.places.name} has no plan {job.plan!r}"
            + nearest(job.plan, job.places.plan_names())
            + f"; `autoseg plan -d {job.places.name} --name {job.plan}` makes it"
        )


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


def splits_of(job: Job, dataset: Dataset) -> tuple[Split, ...]:
    """The folds of a measured dataset: of a splits file, else by patient where a table names them,
    else nnU-Net's."""
    from autoseg.stages.split import current_splits

    return current_splits(job.places, dataset, Fingerprint.read(job.places.fingerprint))


def folds_of(job: Job, dataset: Dataset) -> tuple[str, ...]:
    """The folds that are trained: all, unless the job has fewer."""
    return job.folds or tuple(str(i) for i in range(len(splits_of(job, dataset))))


def check_folds(job: Job, folds: Sequence[str]) -> None:
    """Raises AutosegError for one that there is not, before the first of several is trained."""
    check_plan_name(job)
    dataset, _ = fingerprint(job)
    ids = [case.id for case in dataset.cases if case.label is not None]
    for fold in folds:
        split_of(fold, splits_of(job, dataset), ids)


def split(
    job: Job,
    *,
    by: str | None = None,
    pattern: str | None = None,
    table: Path | None = None,
    folds: int = FOLDS,
    redo: bool = False,
) -> "SplitReport":
    """The folds made anew and written down."""
    from autoseg.stages.split import split as divide

    dataset, measured = fingerprint(job)
    return divide(
        job.places, dataset, measured, by=by, pattern=pattern, table=table, folds=folds, redo=redo
    )


def run_spec(
    job: Job,
    dataset: Dataset,
    measured: Fingerprint,
    made: Plan,
    overrides: Mapping[str, Any] | None = None,
    encoder_weights: WeightsFile | None = None,
) -> RunSpec:
    """What the fold's training is made of. Raises AutosegError for a fold that does not exist.

    Without `overrides` or `encoder_weights` a run that was begun keeps those it was begun with.
    """
    configuration = made.configuration(job.configuration)
    begun = _begun(job.fold_places.run)
    if overrides is None:
        overrides = dict(begun.overrides) if begun else {}
    if encoder_weights is None and begun:
        encoder_weights = begun.encoder_weights
    if overrides:
        # what the plan's training costs says nothing of a changed one
        changed = configuration.dump() | {"cost": None}
        configuration = Configuration.parse(patched(changed, overrides), f"the run {job.run!r}")
    ids = [case.id for case in dataset.cases if case.label is not None]
    split = split_of(job.fold, splits_of(job, dataset), ids)
    axes = configuration.preparation.axes
    spacings = [in_axes(c.spacing_mm, c.orientation, axes) for c in measured.cases]
    ranges = [c.intensity_ranges for c in measured.cases]
    return RunSpec(
        dataset=made.dataset,
        plan=made.name,
        configuration_name=job.configuration,
        run=job.run,
        fold=job.fold,
        dimensions=made.dimensions,
        channels=made.channels,
        labels=made.labels,
        configuration=configuration,
        overrides=overrides,
        encoder_weights=encoder_weights,
        train_cases=split.train,
        validation_cases=split.validation,
        intensity_ranges=tuple(
            (min(r[i][0] for r in ranges), max(r[i][1] for r in ranges))
            for i in range(len(made.channels))
        ),
        spacing_ranges_mm=tuple((min(mm), max(mm)) for mm in zip(*spacings, strict=True)),
        version=__version__,
    )


def _begun(path: Path) -> RunSpec | None:
    """What a run was begun with; None if it was not, or if a power cut left nothing of it."""
    if not path.exists():
        return None
    if is_blank(path):
        log.warning("%s is empty; it is written again", path)
        return None
    return RunSpec.read(path)


def _weights_file(path: Path | None) -> WeightsFile | None:
    if path is None:
        return None
    if not path.is_file():
        raise AutosegError(f"there is no weight file {path}; give a .safetensors or .pth file")
    return WeightsFile(path=str(path.absolute()), sha256=sha256_file(path))


def case_digests(places: DatasetPlaces, spec: RunSpec) -> dict[str, str]:
    """Case id -> digest of its prepared arrays' stamp, for the cases of a fold."""
    folder = places.prepared(spec.configuration.preparation.key)
    digests = {}
    for case in (*spec.train_cases, *spec.validation_cases):
        stamp = read_stamp(folder / case / "stamp.json")
        digests[case] = stamp.digest if stamp else "missing"
    return digests


def previous_digests(places: DatasetPlaces, spec: RunSpec) -> dict[str, str] | None:
    """Case id -> digest of what a cascade is shown, as it lies there; None for other networks."""
    if spec.configuration.previous is None:
        return None
    folder = places.previous(spec.plan, spec.configuration_name, spec.run)
    cases = (*spec.train_cases, *spec.validation_cases)
    stamps = {case: read_stamp(folder / f"{case}.json") for case in cases}
    return {case: stamp.digest if stamp else "missing" for case, stamp in stamps.items()}


def fold_stamp(
    spec: RunSpec, digests: dict[str, str], previous: Mapping[str, str] | None = None
) -> Stamp:
    """What a trained fold was made from: its cases' contents, and the configuration it reads.

    `previous` holds the digests of what a cascade is shown of each case.
    """
    cases = {case: digests[case] for case in (*spec.train_cases, *spec.validation_cases)}
    configuration = spec.configuration.dump()
    configuration.pop("predict")
    configuration.pop("cost", None)
    made_from = {"cases": sha256_json(cases)}
    if previous is not None:
        made_from["earlier stage"] = sha256_json({case: previous[case] for case in cases})
    if spec.encoder_weights is not None:
        made_from["encoder weights"] = spec.encoder_weights.sha256
    return Stamp(
        "train",
        TRAINING_VERSION,
        made_from,
        {"configuration": configuration, "fold": [spec.train_cases, spec.validation_cases]},
    )


def fold(
    job: Job,
    *,
    overrides: Mapping[str, Any] | None = None,
    encoder_weights: Path | None = None,
    time_s: float | None = None,
    began: float | None = None,
    redo: bool = False,
    manner: "Manner | None" = None,
) -> tuple[Job, Dataset]:
    """The trained fold, with all that it needs; curves are drawn also when it stops half way."""
    from autoseg.device import pick_device, short_of_plan
    from autoseg.report.curves import draw_curves
    from autoseg.stages.train import train

    if job.configuration == "":
        raise AutosegError("say which configuration to train, as `autoseg train 1 3d_fullres 0`")
    check_plan_name(job)
    device = pick_device(job.device)
    dataset, measured, made = prepared(job, (job.configuration,))
    if short := short_of_plan(made.gpu_memory_gb, device):
        log.warning("%s", short)
    spec = run_spec(job, dataset, measured, made, overrides, _weights_file(encoder_weights))
    places = job.fold_places
    title = (
        f"{spec.dataset} · {spec.configuration_name} · fold {spec.fold} · {spec.plan}/{spec.run}"
    )
    earlier = None
    if spec.configuration.previous is not None:
        earlier = previous(job, dataset, made, time_s=time_s)
    try:
        trained = train(
            job.places, places, spec, fold_stamp(spec, case_digests(job.places, spec), earlier),
            device=job.device, workers=job.workers, time_s=time_s, began=began, redo=redo,
            manner=manner,
        )  # fmt: skip
    except (Interrupted, TrainingDiverged):
        draw_curves(list(lines(places.history)), places.curves, title)
        raise
    if trained:
        draw_curves(list(lines(places.history)), places.curves, title)
    return job, dataset


def previous(
    job: Job, dataset: Dataset, made: Plan, *, time_s: float | None = None
) -> dict[str, str]:
    """What a cascade is shown of every case, with the stage that says it; case id -> digest.

    Each case's label map is that of the one fold that held the case out: a network's answer on a
    case that it was trained on is better than any that the cascade will meet. Raises AutosegError
    for a case that no fold holds out.
    """
    from autoseg.stages.previous import previous_maps

    configuration = made.configuration(job.configuration)
    splits = splits_of(job, dataset)
    scope = Scope(made, (job.configuration,), tuple(str(i) for i in range(len(splits))))
    stages = [
        replace(job, configuration=need.configuration, fold=need.fold)
        for need in needs(Artefact("previous", job.configuration), scope)
        if need.kind == "validation"
    ]
    maps = _shared_maps(stages, dataset, time_s)
    missing = [c.id for c in dataset.cases if c.label is not None and c.id not in maps]
    if missing:
        raise AutosegError(
            f"no fold of {job.places.name} holds out {missing[0]} ({len(missing)} cases in all), so "
            f"nothing honest is known of it for {job.configuration}; mend the splits file"
        )
    return previous_maps(
        maps,
        job.places.prepared(configuration.preparation.key),
        configuration.preparation,
        job.places.previous(job.plan, job.configuration, job.run),
        workers=max(1, job.processes),
    )


def _shared_maps(stages: Sequence[Job], dataset: Dataset, time_s: float | None) -> dict[str, Path]:
    """Case id -> label map of the fold that held it out; what other commands train is waited for."""
    maps: dict[str, Path] = {}
    told, left = False, list(stages)
    while left:
        busy = []
        for stage in left:
            if not stage.fold_places.stamp.exists():
                log.info("%s fold %s is needed first", stage.configuration, stage.fold)
            try:
                fold(stage, time_s=time_s)
            except Busy as error:
                if not told:
                    log.warning("%s, and is waited for", str(error).partition(";")[0])
                told = True
                busy.append(stage)
                continue
            validation(stage, dataset)
            maps |= held_out_maps(stage, dataset)
        if len(busy) == len(left):
            time.sleep(LOOK_S)
        left = busy
    return maps


def held_out_maps(job: Job, dataset: Dataset) -> dict[str, Path]:
    """Case id -> label map, of the cases that a fold was validated on and not trained on."""
    places, ending = job.fold_places, ending_for(dataset.file_ending)
    spec = RunSpec.read(places.run)
    honest = [case for case in spec.validation_cases if case not in spec.train_cases]
    return {case: places.validation / f"{case}{ending}" for case in honest}


def validation(job: Job, dataset: Dataset, *, keep_probabilities: bool = False) -> Report:
    """The report on the fold's held-out cases; their label maps are predicted where they lack."""
    from autoseg.device import pick_device
    from autoseg.stages.evaluate import evaluate
    from autoseg.stages.predict import predict_validation

    places = job.fold_places
    check_plan_name(job)
    if not places.weights.exists():
        if (plan_file := job.places.plan(job.plan)).exists():
            read_plan(plan_file).configuration(job.configuration)
        raise AutosegError(
            f"fold {job.fold} of {job.places.name} {job.configuration} is not trained; "
            f"run `{job.command()}` first"
        )
    spec = RunSpec.read(places.run)
    written = predict_validation(
        job.places,
        places,
        spec,
        device=pick_device(job.device),
        ending=ending_for(dataset.file_ending),
        keep_probabilities=keep_probabilities,
        previous=job.places.previous(job.plan, job.configuration, job.run)
        if spec.configuration.previous
        else None,
    )
    path, kept = places.validation / "report.json", places.validation / "stamp.json"
    digests = case_digests(job.places, spec)
    stamp = Stamp(
        "evaluate",
        EVALUATION_VERSION,
        {case: digests[case] for case in written} | {"weights": sha256_file(places.weights)},
    )
    if path.exists() and standing(kept, stamp).state == "current":
        return Report.read(path)
    references: dict[str, Path] = {c.id: c.label for c in dataset.cases if c.label is not None}
    report = evaluate(
        {case: (label_map, references[case]) for case, label_map in written.items()},
        spec.labels,
        dataset=spec.dataset,
        made_by=(spec.plan, spec.configuration_name, spec.run),
        fold=int(spec.fold) if spec.fold.isdigit() else None,
    )
    report.write(path)
    stamp.write(kept)
    return report
