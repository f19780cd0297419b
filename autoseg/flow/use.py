"""What is done with trained folds: choosing, segmenting, scoring."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.documents.dataset import Case, find_images, read_dataset
from autoseg.documents.report import Report
from autoseg.errors import AutosegError, BadData, raise_fatal
from autoseg.pool import cores
from autoseg.workspace import DatasetPlaces, Fold, Workspace

if TYPE_CHECKING:
    from autoseg.stages.predict import Predicted

log = logging.getLogger(__name__)


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
