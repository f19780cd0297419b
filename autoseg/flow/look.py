"""How everything of a dataset stands, from stamps, sizes and times alone."""

from collections.abc import Iterator
from pathlib import Path

from autoseg.documents.dataset import Dataset, read_dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import read_plan
from autoseg.documents.run import RunSpec
from autoseg.errors import AutosegError
from autoseg.flow.make import Job, case_digests, fold_stamp, previous_digests, run_spec
from autoseg.flow.run import progress
from autoseg.stages.status import (
    Row,
    Status,
    choice_rows,
    fingerprint_row,
    fold_row,
    plan_rows,
    prepared_rows,
    validation_row,
)
from autoseg.workspace import DatasetPlaces, Fold


def status(places: DatasetPlaces) -> Status:
    """How everything of one dataset stands; reads no image."""
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
    rows += _final_rows(places, dataset)
    return Status(places.name, tuple(rows))


def _final_rows(places: DatasetPlaces, dataset: Dataset | None) -> Iterator[Row]:
    """Of each plan: how far `run` is, and what was chosen."""
    for folder in sorted(places.results.glob("*/final*")):
        plan, run = folder.parts[-2], folder.name.removeprefix("final").lstrip("_") or "default"
        if dataset is not None and places.plan(plan).exists() and places.fingerprint.exists():
            try:
                made = read_plan(places.plan(plan))
                told = progress(Job(places, plan, run=run), dataset, made)
            except AutosegError as error:
                told = str(error)
            if told:
                yield Row(f"run of {plan}", "", told)
        yield from choice_rows(folder, f"choice of {plan}/{run}", places.results)


def _fold_rows(places: DatasetPlaces, folder: Path, dataset: Dataset | None) -> list[Row]:
    one = Fold(folder)
    plan_name, configuration, run, name = folder.parts[-4:]
    title = f"{name.replace('_', ' ')} of {configuration} ({plan_name}/{run})"
    if not one.run.exists():
        return [Row(title, "missing", "nothing was begun")]
    try:
        spec, why = RunSpec.read(one.run), ""
    except AutosegError as error:
        return [Row(title, "unreadable", str(error).splitlines()[0])]
    try:
        if dataset is not None and places.plan(plan_name).exists():
            job = Job(places, plan_name, configuration, run, spec.fold)
            measured = Fingerprint.read(places.fingerprint)
            made = read_plan(places.plan(plan_name))
            spec = run_spec(job, dataset, measured, made)
    except AutosegError as error:
        why = str(error)
    wanted = fold_stamp(spec, case_digests(places, spec), previous_digests(places, spec))
    return [fold_row(title, one, wanted, why), validation_row(title, one)]
