"""From scans to prepared cases: looking, measuring, splitting, planning, preparing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.api.job import job_of, processes, several

if TYPE_CHECKING:
    from autoseg.documents.fingerprint import Fingerprint
    from autoseg.documents.plan import Plan
    from autoseg.errors import Problem
    from autoseg.report.datasets import ConvertedDataset, KnownDatasets, ShownDataset
    from autoseg.report.overlay import DemoResult
    from autoseg.stages.networks import Networks
    from autoseg.stages.split import SplitReport


def check(
    dataset: str, *, root: Path | None = None, workers: int | None = None, json: bool = False
) -> list[Problem]:
    """Look for everything that is wrong with a dataset; warnings are listed too.

    dataset: number or name
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.errors import Problem
    from autoseg.files import read_json
    from autoseg.flow import make

    job = job_of(dataset, root, workers=workers)
    measured = make.fingerprint(job)[1]
    found = [Problem(**entry) for entry in read_json(job.places.checks)["problems"]]
    return [*found, *measured.remarks()]


def fingerprint(
    dataset: str,
    *,
    root: Path | None = None,
    workers: int | None = None,
    verify: bool = False,
    json: bool = False,
) -> Fingerprint:
    """Measure a dataset: geometry, intensities, structures; case by case, only what is new.

    dataset: number or name
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    verify: hash every file again, even if its size and time have not changed
    json: print JSON
    """
    from autoseg.flow import make

    return make.fingerprint(job_of(dataset, root, workers=workers), verify=verify)[1]


def plan(
    dataset: str | None = None,
    *,
    name: str = "default",
    planner: str = "autoseg",
    network: str = "plain",
    gpu_memory: float | None = None,
    use_memory: bool = False,
    time: str | None = None,
    set: tuple[str, ...] = (),
    fingerprint: Path | None = None,
    dataset_json: Path | None = None,
    device: str | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> Plan | dict[str, Any]:
    """Decide grid, patch, batch, network and recipe, each with its reason.

    With --fingerprint and --dataset-json (nnU-Net's own files) and --planner nnunet, print
    nnU-Net's plan under its keys instead, without any dataset folder.

    dataset: number or name
    name: the plan's name; several live side by side
    planner: autoseg, or nnunet for nnU-Net's own values
    network: a preset of `autoseg networks`, as plain, resenc_m, swin_unetr, umamba_bot
    gpu_memory: memory of the card to plan for, in GB (default: the card that is there, else none)
    use_memory: fill the card's memory with larger patches and batches, for more time a fold
    time: training time of a fold to plan for, as 20min or 2h
    set: pin a value before the rules run, as --set batch_size=4
    fingerprint: nnU-Net's dataset_fingerprint.json
    dataset_json: nnU-Net's dataset.json, with --fingerprint
    device: cpu, cuda or cuda:1, which is planned for (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.errors import AutosegError
    from autoseg.flow import ask, make

    asked = ask.request(planner, network, gpu_memory, time, set, use_memory=use_memory)
    if fingerprint is not None or dataset_json is not None:
        return ask.nnunet_plan(asked, fingerprint, dataset_json, dataset)
    if dataset is None:
        raise AutosegError("`autoseg plan` needs dataset (-d)")
    job = job_of(dataset, root, plan=name, workers=workers, device=device)
    return make.plan(job, asked)[2]


def preprocess(
    dataset: str,
    *,
    configuration: tuple[str, ...] = (),
    plan: str = "default",
    root: Path | None = None,
    workers: int | None = None,
) -> str:
    """Prepare the training cases for some or all configurations of a plan.

    dataset: number or name
    configuration: which ones (default: all of the plan)
    plan: name of the plan
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    """
    from autoseg.flow import make

    job = job_of(dataset, root, plan=plan, workers=workers)
    wanted = several(configuration)
    make.check_plan_name(job)
    data, _, made = make.prepared(job, wanted)
    return f"{data.name}: {', '.join(wanted or made.configurations)} prepared"


def plan_and_preprocess(
    dataset: tuple[str, ...],
    *,
    name: str = "default",
    planner: str = "autoseg",
    network: str = "plain",
    gpu_memory: float | None = None,
    use_memory: bool = False,
    time: str | None = None,
    set: tuple[str, ...] = (),
    configuration: tuple[str, ...] = (),
    device: str | None = None,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> list[Plan]:
    """Measure, plan and prepare one or more datasets: all that training needs.

    dataset: numbers or names
    name: the plan's name; several live side by side
    planner: autoseg, or nnunet for nnU-Net's own values
    network: a preset of `autoseg networks`, as plain, resenc_m, swin_unetr, umamba_bot
    gpu_memory: memory of the card to plan for, in GB (default: the card that is there, else none)
    use_memory: fill the card's memory with larger patches and batches, for more time a fold
    time: training time of a fold to plan for, as 20min or 2h
    set: pin a value before the rules run, as --set batch_size=4
    configuration: which ones to prepare (default: all of the plan)
    device: cpu, cuda or cuda:1, which is planned for (default: a card if there is one)
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.flow import ask, make
    from autoseg.stages.plan import Request

    asked = ask.request(planner, network, gpu_memory, time, set, use_memory=use_memory)
    request = None if asked == Request() else asked
    made = []
    for one in several(dataset):
        job = job_of(one, root, plan=name, workers=workers, device=device)
        made.append(make.prepared(job, several(configuration), request)[2])
    return made


def split(
    dataset: str,
    *,
    by: str | None = None,
    pattern: str | None = None,
    table: Path | None = None,
    folds: int = 5,
    redo: bool = False,
    root: Path | None = None,
    json: bool = False,
) -> SplitReport:
    """Divide the training cases into folds: never one patient in two, classes spread evenly.

    Without it the folds are nnU-Net's, or by patient where cases.csv has such a column.

    dataset: number or name
    by: column of the table that groups cases, as patient or site
    pattern: regular expression whose first group is the patient in a case's name
    table: CSV or TSV with a column case (default: cases.csv or cases.tsv beside dataset.json)
    folds: how many
    redo: replace folds although networks were trained with them
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    json: print JSON
    """
    from autoseg.flow import make

    return make.split(
        job_of(dataset, root), by=by, pattern=pattern, table=table, folds=folds, redo=redo
    )


def networks(
    dataset: str | None = None,
    *,
    configuration: str = "",
    plan: str = "default",
    patch: str | None = None,
    batch: int | None = None,
    network: tuple[str, ...] = (),
    measure: tuple[str, ...] = (),
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> Networks:
    """List the networks that a plan may have, with their parameters, operations and memory.

    On the grid of a dataset's plan, or on --patch voxels of 1 mm. Memory is computed, for one step
    in mixed precision on a card; nothing is trained.

    dataset: number or name; its plan says channels, classes, spacing and patch
    configuration: which one of the plan (default: 3d_fullres, else 2d)
    plan: name of the plan
    patch: voxels of a patch, as 128,128,128 or 256,256
    batch: patches in a step (default: the plan's, else 2)
    network: which ones (default: all)
    measure: time a training step of these on this machine's cores
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.flow import ask
    from autoseg.flow.networks import networks as costs

    job = None
    if dataset is not None:
        job = job_of(dataset, root, plan=plan, configuration=configuration, workers=workers)
    return costs(
        job, patch=ask.patch_size(patch), batch=ask.batch(batch), names=several(network),
        measure=several(measure), workers=processes(workers),
    )  # fmt: skip


def datasets(
    action: str | None = None,
    name: str | None = None,
    path: Path | None = None,
    *,
    to: Path | None = None,
    keep: bool = False,
    link: str = "",
    overwrite: bool = False,
    root: Path | None = None,
    workers: int | None = None,
    json: bool = False,
) -> KnownDatasets | ShownDataset | ConvertedDataset:
    """List the public datasets that autoseg knows, show one, fetch one, or convert one.

    `datasets` lists them, `datasets KiTS23` (or `datasets show KiTS23`) shows one in full. `datasets fetch NAME` downloads what
    may be fetched freely, verifies, unpacks and converts it; stopped, it goes on. `datasets convert
    NAME PATH` makes the dataset from data that you got by hand.

    action: list, show, fetch or convert, or the dataset to show (default: list)
    name: number, word or alias, as 112, KiTS23 or Task04_Hippocampus
    path: with convert, the folder of the source, or its zip or tar
    to: with fetch, where archives are put (default: downloads of the root)
    keep: with fetch, keep the archives and what they held
    link: hard or soft, to link files that need no change (default: copy)
    overwrite: make a converted dataset again whose source changed
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    workers: processes (default: one for each core)
    json: print JSON
    """
    from autoseg.documents.spec import list_specs, read_spec
    from autoseg.report.datasets import ConvertedDataset, KnownDatasets, ShownDataset

    if action == "show" or (action == "list" and name is None):
        action, name = name, None
    does = action if action in ("fetch", "convert") else None
    _check_datasets_options(does, action, name, path, to, keep, link, overwrite)
    if does is None:
        if action is None and name is None:
            return KnownDatasets(tuple(read_spec(known) for known in list_specs()))
        return ShownDataset(read_spec(action or name or ""))
    from autoseg.errors import AutosegError
    from autoseg.flow.datasets import Asked, convert_public, fetch_dataset
    from autoseg.workspace import open_workspace

    spec = read_spec(name or "")
    asked = Asked(link=link, overwrite=overwrite, workers=processes(workers))
    if does == "fetch":
        made = fetch_dataset(open_workspace(root), spec, to, keep=keep, asked=asked)
    else:
        if path is None:
            raise AutosegError(f"`autoseg datasets convert {spec.name}` needs the path of the data")
        made = convert_public(open_workspace(root), spec, path, asked)
    return ConvertedDataset(made.converted, made.patterns, made.expected)


def _check_datasets_options(
    does: str | None,
    action: str | None,
    name: str | None,
    path: Path | None,
    to: Path | None,
    keep: bool,
    link: str,
    overwrite: bool,
) -> None:
    """Raises AutosegError for what has no meaning together."""
    from autoseg.errors import AutosegError, nearest

    if does is None and action is not None and name is not None:
        raise AutosegError(
            f"datasets cannot {action!r}" + nearest(action, ["list", "show", "fetch", "convert"])
        )
    if does is not None and name is None:
        raise AutosegError(f"`autoseg datasets {does}` needs the name of a dataset")
    useless = {
        "--to": to is not None and does != "fetch",
        "--keep": keep and does != "fetch",
        "--link": bool(link) and does is None,
        "--overwrite": overwrite and does is None,
        "--path": path is not None and does != "convert",
    }
    for option, wrong in useless.items():
        if wrong:
            raise AutosegError(f"{option} means nothing for {does or 'a list of datasets'}")


def demo(*, run: bool = False, root: Path | None = None, time: str = "90s") -> DemoResult:
    """Make Dataset001_Phantom, synthetic scans to try everything on; with --run, all stages too.

    run: also plan, train fold 0, segment the test scans, score them and draw an overlay
    root: folder with raw, preprocessed and results (else AUTOSEG_ROOT, else ./autoseg_data)
    time: with --run, how long to train, as 90s or 5min
    """
    from autoseg.flow.demo import demo as make_demo
    from autoseg.workspace import open_workspace

    return make_demo(open_workspace(root), run=run, time=time)
