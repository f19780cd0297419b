"""Which artefact needs which, and how each is brought up to date.

Every verb asks here for what it needs; a stage whose artefact is current does nothing. Nothing
that took long to make (a trained fold) or that a person wrote (an edited plan) is ever redone
silently.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg import __version__
from autoseg.documents.dataset import Case, Dataset, find_images, read_dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Configuration, Plan, read_plan
from autoseg.documents.report import Report
from autoseg.documents.run import RunSpec, lines
from autoseg.documents.settings import patched
from autoseg.documents.splits import Split, kfold, read_splits, split_of
from autoseg.errors import AutosegError, BadData, raise_fatal
from autoseg.files import sha256_json
from autoseg.image.reading import ending_for
from autoseg.pool import cores
from autoseg.rules.axes import in_axes
from autoseg.stage import Stamp, read_stamp
from autoseg.workspace import DatasetPlaces, Fold, Workspace

if TYPE_CHECKING:
    from autoseg.stages.plan import Request
    from autoseg.stages.predict import Predicted
    from autoseg.stages.status import Row, Status

log = logging.getLogger(__name__)
TRAINING_VERSION = 1
"""Raised when training starts to mean something else."""
SPLIT_FILES = ("splits.json", "splits_final.json")
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


def splits_of(job: Job, dataset: Dataset) -> tuple[Split, ...]:
    """The folds: of a splits file in the raw or the preprocessed folder, else five shuffled ones."""
    ids = [case.id for case in dataset.cases if case.label is not None]
    for folder in (job.places.raw, job.places.preprocessed):
        for name in SPLIT_FILES:
            if (folder / name).exists():
                return read_splits(folder / name, ids)
    return kfold(ids)


def run_spec(
    job: Job,
    dataset: Dataset,
    measured: Fingerprint,
    made: Plan,
    overrides: Mapping[str, Any] | None = None,
) -> RunSpec:
    """What the fold's training is made of. Raises AutosegError for a fold that does not exist.

    Without `overrides` a run that was begun keeps those it was begun with.
    """
    configuration = made.configuration(job.configuration)
    if overrides is None:
        overrides = (
            dict(RunSpec.read(job.fold_places.run).overrides)
            if job.fold_places.run.exists()
            else {}
        )
    if overrides:
        configuration = Configuration.parse(
            patched(configuration.dump(), overrides), f"the run {job.run!r}"
        )
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
        train_cases=split.train,
        validation_cases=split.validation,
        intensity_ranges=tuple(
            (min(r[i][0] for r in ranges), max(r[i][1] for r in ranges))
            for i in range(len(made.channels))
        ),
        spacing_ranges_mm=tuple((min(mm), max(mm)) for mm in zip(*spacings, strict=True)),
        version=__version__,
    )


def case_digests(places: DatasetPlaces, spec: RunSpec) -> dict[str, str]:
    """Case id -> digest of its prepared arrays' stamp, for the cases of a fold."""
    folder = places.prepared(spec.configuration.preparation.key)
    digests = {}
    for case in (*spec.train_cases, *spec.validation_cases):
        stamp = read_stamp(folder / case / "stamp.json")
        digests[case] = stamp.digest if stamp else "missing"
    return digests


def fold_stamp(spec: RunSpec, digests: dict[str, str]) -> Stamp:
    """What a trained fold was made from: its cases' contents, and the configuration it reads."""
    cases = {case: digests[case] for case in (*spec.train_cases, *spec.validation_cases)}
    configuration = spec.configuration.dump()
    configuration.pop("predict")
    return Stamp(
        "train",
        TRAINING_VERSION,
        {"cases": sha256_json(cases)},
        {"configuration": configuration, "fold": [spec.train_cases, spec.validation_cases]},
    )


def fold(
    job: Job,
    *,
    overrides: Mapping[str, Any] | None = None,
    time_s: float | None = None,
    began: float | None = None,
    redo: bool = False,
) -> tuple[Job, Dataset]:
    """The trained fold, with all that it needs; curves are drawn also when it stops half way."""
    from autoseg.report.curves import draw_curves
    from autoseg.stages.train import train

    if job.configuration == "":
        raise AutosegError("say which configuration to train, as `autoseg train 1 3d_fullres 0`")
    dataset, measured, made = prepared(job, (job.configuration,))
    spec = run_spec(job, dataset, measured, made, overrides)
    places = job.fold_places
    title = (
        f"{spec.dataset} · {spec.configuration_name} · fold {spec.fold} · {spec.plan}/{spec.run}"
    )
    trained = None
    try:
        trained = train(
            job.places, places, spec, fold_stamp(spec, case_digests(job.places, spec)),
            device=job.device,
            workers=job.workers, time_s=time_s, began=began, redo=redo,
        )  # fmt: skip
    finally:
        if trained is not False and places.history.exists():
            draw_curves(list(lines(places.history)), places.curves, title)
    return job, dataset


def validation(job: Job, dataset: Dataset) -> Report:
    """The report on the fold's held-out cases; their label maps are predicted where they lack."""
    from autoseg.learn.device import pick_device
    from autoseg.stages.evaluate import evaluate
    from autoseg.stages.predict import predict_validation

    places = job.fold_places
    if not places.weights.exists():
        raise AutosegError(
            f"fold {job.fold} of {job.places.name} {job.configuration} is not trained; "
            f"run `autoseg train {job.places.name} {job.configuration} {job.fold}` first"
        )
    spec = RunSpec.read(places.run)
    written = predict_validation(
        job.places,
        places,
        spec,
        device=pick_device(job.device),
        ending=ending_for(dataset.file_ending),
    )
    references: dict[str, Path] = {c.id: c.label for c in dataset.cases if c.label is not None}
    report = evaluate(
        {case: (path, references[case]) for case, path in written.items()},
        spec.labels,
        dataset=spec.dataset,
        made_by=(spec.plan, spec.configuration_name, spec.run),
        fold=int(spec.fold) if spec.fold.isdigit() else None,
    )
    report.write(places.validation / "report.json")
    return report


def trained_folds(places: DatasetPlaces) -> list[Fold]:
    """Every fold of the dataset that has weights, in the order of its path."""
    found = places.results.glob("*/*/*/fold_*/weights.safetensors")
    return [Fold(path.parent) for path in sorted(found)]


def choose_model(
    workspace: Workspace,
    dataset: str | None,
    configuration: str | None,
    plan_name: str | None,
    run: str | None,
    folds: Sequence[str],
) -> tuple[DatasetPlaces, list[Fold]]:
    """The folds to predict with: of the one dataset that has models, of the best configuration.

    Raises AutosegError listing what there is if the choice is not clear.
    """
    if dataset is None:
        names = [n for n in workspace.datasets() if trained_folds(workspace.places(n))]
        if not names:
            raise AutosegError(
                f"there is no trained model in {workspace.results}; train one, or choose --root"
            )
        if len(names) > 1:
            raise AutosegError(
                f"several datasets have models; choose one with -d: {', '.join(names)}"
            )
        places = workspace.places(names[0])
        log.info("predicting with the models of %s", names[0])
    else:
        places = workspace.dataset(dataset)
    wanted = {"plan": plan_name, "configuration": configuration, "run": run}
    groups: dict[tuple[str, str, str], list[Fold]] = {}
    for one in trained_folds(places):
        key = (one.folder.parts[-4], one.folder.parts[-3], one.folder.parts[-2])
        groups.setdefault(key, []).append(one)
    if not groups:
        raise AutosegError(f"{places.name} has no trained fold; run `autoseg train` first")
    fitting = {
        key: found
        for key, found in groups.items()
        if all(w in (None, k) for w, k in zip(wanted.values(), key, strict=True))
    }
    if not fitting:
        there = "; ".join("plan {} configuration {} run {}".format(*key) for key in groups)
        raise AutosegError(f"no trained model of {places.name} is that; there is: {there}")
    key = max(fitting, key=lambda k: (_validated(fitting[k]), k[1] == "3d_fullres"))
    if len(fitting) > 1:
        log.info("using plan %s, configuration %s, run %s: its validation Dice is the best", *key)
    chosen = fitting[key]
    if folds:
        ready = {f.folder.name.removeprefix("fold_"): f for f in chosen}
        for asked in folds:
            if asked not in ready:
                raise AutosegError(
                    f"fold {asked} of {'/'.join(key)} is not trained; there is {', '.join(ready)}"
                )
        chosen = [ready[asked] for asked in folds]
    elif len(chosen) > 1:
        # a network that saw all cases cannot be compared by its own validation: folds go first
        chosen = [f for f in chosen if f.folder.name != "fold_all"]
    return places, chosen


def _validated(folds: Sequence[Fold]) -> float:
    """The mean validation Dice of the folds that were validated, 0 if none was."""
    reports = [f.validation / "report.json" for f in folds]
    scores = [Report.read(path).mean_dice for path in reports if path.exists()]
    known = [s for s in scores if s is not None]
    return sum(known) / len(known) if known else 0.0


def input_cases(places: DatasetPlaces, folder: Path | None) -> list[Case]:
    """The scans to segment: of a folder, else the dataset's test scans. Raises BadData."""
    if folder is None:
        dataset, _ = read_dataset(places.raw)
        if not dataset.test_cases:
            raise AutosegError(f"{places.name} has no imagesTs; name a folder with -i")
        return list(dataset.test_cases)
    images, problems = find_images(folder)
    raise_fatal(problems)
    if not images:
        raise AutosegError(f"{folder} holds no image; expected files such as CASE_0000.nii.gz")
    return [Case(case, files, None) for case, files in sorted(images.items())]


def predictions(
    places: DatasetPlaces,
    folds: Sequence[Fold],
    source: Path | None,
    output: Path,
    *,
    device: str | None = None,
    strict: bool = False,
) -> "Predicted":
    """Label maps of scans. Raises BadData naming the scans that failed, the others are written."""
    cases = input_cases(places, source)
    from autoseg.learn.device import pick_device
    from autoseg.stages.predict import check_inputs, open_model, predict

    model = open_model(folds)
    raise_fatal(check_inputs(cases, model.spec))
    found = predict(model, cases, output, device=pick_device(device), strict=strict)
    for problem in found.warnings:
        log.warning("%s: %s (%s)", problem.case, problem.what, problem.found)
    if found.failed:
        raise BadData(found.failed)
    return found


def evaluation(
    folder: Path,
    reference: Path | None,
    places: DatasetPlaces | None,
    tolerance_mm: float | None,
    workers: int | None,
) -> Report:
    """The report on a folder of label maps, against a folder or a dataset's own labels."""
    from autoseg.image.metrics import TOLERANCE_MM
    from autoseg.stages.evaluate import evaluate, label_files, labels_seen, pairs_of

    references: dict[str, Path] = {}
    name, labels = folder.name, None
    if places is not None:
        dataset, _ = read_dataset(places.raw)
        name, labels = dataset.name, dataset.labels
        references = {
            c.id: c.label for c in (*dataset.cases, *dataset.test_cases) if c.label is not None
        }
    if reference is not None:
        references = label_files(reference)
    elif places is None:
        raise AutosegError("`autoseg evaluate` needs the references: -r FOLDER or -d DATASET")
    pairs = pairs_of(folder, references)
    return evaluate(
        pairs,
        labels or labels_seen(pairs),
        dataset=name,
        tolerance_mm=TOLERANCE_MM if tolerance_mm is None else tolerance_mm,
        workers=max(1, workers if workers is not None else cores()),
    )


def status(places: DatasetPlaces) -> "Status":
    """How everything of one dataset stands; reads no image."""
    from autoseg.stages.status import Row, Status, fingerprint_row, plan_rows, prepared_rows

    dataset: Dataset | None = None
    rows: list[Row] = []
    try:
        dataset, _ = read_dataset(places.raw)
        rows.append(fingerprint_row(places, dataset))
    except AutosegError as error:
        rows.append(Row("raw data", "missing", str(error)))
    rows += plan_rows(places)
    rows += prepared_rows(places)
    for folder in sorted(places.results.glob("*/*/*/fold_*")):
        rows += _fold_rows(places, folder, dataset)
    return Status(places.name, tuple(rows))


def _fold_rows(places: DatasetPlaces, folder: Path, dataset: Dataset | None) -> list["Row"]:
    from autoseg.stages.status import Row, fold_row, validation_row

    one = Fold(folder)
    plan_name, configuration, run, name = folder.parts[-4:]
    title = f"{name.replace('_', ' ')} of {configuration} ({plan_name}/{run})"
    if not one.run.exists():
        return [Row(title, "missing", "nothing was begun")]
    spec, why = RunSpec.read(one.run), ""
    try:
        if dataset is not None and places.plan(plan_name).exists():
            job = Job(places, plan_name, configuration, run, spec.fold)
            measured = Fingerprint.read(places.fingerprint)
            made = read_plan(places.plan(plan_name))
            spec = run_spec(job, dataset, measured, made)
    except AutosegError as error:
        why = str(error)
    wanted = fold_stamp(spec, case_digests(places, spec))
    return [fold_row(title, one, wanted, why), validation_row(title, one)]
