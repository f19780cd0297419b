"""What is done with a model and with label maps: segmenting, averaging, scoring."""

import functools
import logging
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.documents.dataset import Case, find_images, read_dataset
from autoseg.documents.model import ModelSpec
from autoseg.documents.onnx import is_onnx
from autoseg.documents.report import Report
from autoseg.errors import AutosegError, BadData, raise_fatal
from autoseg.image.reading import suffix_of
from autoseg.interop.dicom.source import opened
from autoseg.models.outputs import refuse_if_all_kept
from autoseg.pool import cores
from autoseg.workspace import DatasetPlaces

if TYPE_CHECKING:
    import torch

    from autoseg.models.members import Model
    from autoseg.stages.ensemble import Averaged
    from autoseg.stages.postprocess import Applied
    from autoseg.stages.predict import Keep, Predicted

    Share = Callable[..., Predicted]

log = logging.getLogger(__name__)


def input_cases(folder: Path | None, places: DatasetPlaces | None) -> list[Case]:
    """The scans to segment: of a folder, else the dataset's test scans. Raises BadData."""
    if folder is None:
        if places is None:
            raise AutosegError("name the folder of the scans with -i")
        dataset, _ = read_dataset(places.raw)
        if not dataset.test_cases:
            raise AutosegError(f"{places.name} has no imagesTs; name a folder with -i")
        return list(dataset.test_cases)
    if folder.is_file():
        raise AutosegError(_of_no_use(folder))
    images, problems = find_images(folder)
    raise_fatal(problems)
    if not images:
        raise AutosegError(
            f"{folder} holds no image; expected files such as CASE_0000.nii.gz, or DICOM files in "
            "it or in folders below it"
        )
    return [Case(case, files, None) for case, files in sorted(images.items())]


def holds_images(folder: Path) -> bool:
    """Whether a folder holds files that are images by their names."""
    return folder.is_dir() and any(suffix_of(path) for path in folder.iterdir())


def no_dicom(source: Path | None, options: Sequence[str]) -> AutosegError:
    """Why options for DICOM cannot be used with this input."""
    named = " and ".join(options)
    if source is None:
        return AutosegError(f"{named}: for DICOM only; name a folder or zip of it with -i")
    if source.is_file():
        return AutosegError(_of_no_use(source))
    if not source.exists():
        return AutosegError(f"cannot read {source}: it does not exist")
    if holds_images(source):
        return AutosegError(f"{named}: for DICOM only; {source} holds images of other formats")
    return AutosegError(
        f"{source} holds no DICOM, which {named} needs, and no image; expected DICOM files in it or "
        "in folders below it, or files such as CASE_0000.nii.gz"
    )


def _of_no_use(path: Path) -> str:
    """What is said of a file that is no input: neither a folder, nor does it hold DICOM."""
    if not path.stat().st_size:
        return f"{path} is empty (0 bytes); copy it again"
    suffix = suffix_of(path)
    if suffix:
        folder = path.resolve().parent
        return f"{path} is one image; give the folder that holds it (-i {folder})"
    with opened(path) as source:
        if source.archive is None:
            return f"{path} is neither a folder of images, nor DICOM, nor a zip of it"
        names = [item.name for item in source.items()]
    if not names:
        return f"{path} is an empty zip: it holds no file; copy or pack it again"
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    images = any(suffix_of(Path(name)) for name in names)
    advice = "unpack it and give the folder of the images" if images else "give another"
    return f"{path} holds no DICOM, but {shown}; {advice}"


def predictions(
    model: "Model",
    cases: Sequence[Case],
    output: Path,
    *,
    device: str | None = None,
    workers: int = 1,
    keep: "Keep | None" = None,
    strict: bool = False,
    skip_air: bool = False,
    profile: bool = False,
    overwrite: bool = False,
) -> "Predicted":
    """Label maps of scans. Raises BadData naming the scans that failed, the others are written.

    `device` may name several, as `cuda:0,cuda:1`; they, or `workers` processes on one, share the
    scans, and so do several of these commands with one output folder. With `profile` each process
    writes where its time went into a folder of `output`.
    """
    from autoseg.models.scans import check_inputs
    from autoseg.stages.predict import merged, predict

    unfit = check_inputs(cases, model.spec)
    cases = [case for case in cases if case.id not in {problem.case for problem in unfit}]
    if not cases:
        raise_fatal(unfit)
    devices = _devices(device or ("cpu" if is_onnx(model.spec) else None), workers)
    share = functools.partial(
        predict, model, cases, output, keep=keep, strict=strict, skip_air=skip_air,
        overwrite=overwrite,
    )  # fmt: skip
    if len(devices) == 1:
        found = _recorded(share, devices[0], output / "profile" if profile else None)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(devices), context) as pool:
            threads = max(1, cores() // len(devices))
            parts = [
                pool.submit(
                    _part, share, one, threads,
                    output / "profile" / f"process_{number}" if profile else None,
                )
                for number, one in enumerate(devices)
            ]  # fmt: skip
            found = merged([part.result() for part in parts], cases)
    for problem in found.warnings:
        log.warning("%s: %s (%s)", problem.case, problem.what, problem.found)
    found.failed[:0] = unfit
    if found.failed:
        for line in found.lines():
            log.info(line)
        raise BadData(found.failed)
    refuse_if_all_kept(found.kept, len(found.written) + found.skipped + len(found.elsewhere))
    return found


def _devices(device: str | None, workers: int) -> list["torch.device"]:
    """The device of each process. Raises AutosegError for one that is not there."""
    from autoseg.device import pick_device

    names = device.split(",") if device else [None]
    if workers < 1:
        raise AutosegError(f"--workers {workers} must be at least 1")
    return [pick_device(name) for name in names] * workers


def _part(
    share: "Share", device: "torch.device", threads: int, profile: Path | None
) -> "Predicted":
    """One process' share of a prediction."""
    import torch

    from autoseg.device import pick_device

    # on cards too: scans are prepared, cleaned and at times restored on the processor
    torch.set_num_threads(threads)
    # the settings of a card are a process' own
    return _recorded(share, pick_device(str(device)), profile)


def _recorded(share: "Share", device: "torch.device", profile: Path | None) -> "Predicted":
    """A prediction, and where its time went in a folder, where one is given."""
    if profile is None:
        return share(device=device)
    from autoseg.learn.trace import device_facts, waiting_for
    from autoseg.timing import recording

    with recording(waiting_for(device)) as taken:
        found = share(device=device)
    taken.write(profile, device_facts(device) | {"label_maps": len(found.written)})
    log.info("%s\nwhere the time went: %s", taken.text().rstrip(), profile)
    return found


def averaged(folders: Sequence[Path], output: Path, *, overwrite: bool = False) -> "Averaged":
    """Label maps of the mean of folders of probabilities. Raises BadData naming cases that failed."""
    from autoseg.stages.ensemble import ensemble, sources_of

    found = ensemble(sources_of(folders), output, overwrite=overwrite)
    if found.failed:
        raise BadData(found.failed)
    refuse_if_all_kept(found.kept, len(found.written) + found.skipped + len(found.elsewhere))
    return found


def cleaned_up(
    spec: ModelSpec, source: Path, output: Path, workers: int | None, *, overwrite: bool = False
) -> "Applied":
    """Label maps of a folder after a model's postprocessing. Raises AutosegError if it has none."""
    from autoseg.stages.postprocess import apply

    if not spec.postprocessing:
        raise AutosegError(
            f"the model {spec.name} has no postprocessing: `autoseg find_best_configuration` kept "
            "none, or was not run"
        )
    count = max(1, workers if workers is not None else cores())
    axes = spec.members[0].configuration.preparation.axes
    done = apply(source, output, spec.postprocessing, spec.labels, workers=count, axes=axes,
                 overwrite=overwrite)  # fmt: skip
    refuse_if_all_kept(done.kept, len(done.written) + done.skipped + len(done.failed))
    return done


def evaluation(
    folder: Path,
    reference: Path | None,
    places: DatasetPlaces | None,
    tolerance_mm: float | None,
    workers: int | None,
    *,
    partial: bool = False,
) -> Report:
    """The report on a folder of label maps, against a folder or a dataset's own labels.

    Raises AutosegError where a reference has no prediction, unless `partial`; of a dataset those of
    its test cases, where one of them was predicted.
    """
    from autoseg.stages.evaluate import check_complete, evaluate, label_files, labels_seen, pairs_of

    if tolerance_mm is not None and not 0 <= tolerance_mm < math.inf:
        raise AutosegError(f"--tolerance-mm {tolerance_mm:g} must be a length in mm")
    references: dict[str, Path] = {}
    test: dict[str, Path] = {}
    twice: set[str] = set()
    name, labels = folder.name, None
    if places is not None:
        dataset, _ = read_dataset(places.raw)
        name, labels = dataset.name, dataset.labels
        trained = {c.id: c.label for c in dataset.cases if c.label is not None}
        test = {c.id: c.label for c in dataset.test_cases if c.label is not None}
        references, twice = trained | test, trained.keys() & test.keys()
    if reference is not None:
        references = test = label_files(reference)
        twice = set()
    elif places is None:
        raise AutosegError("`autoseg evaluate` needs the references: -r FOLDER or -d DATASET")
    pairs = pairs_of(folder, references)
    for case in sorted(twice & pairs.keys()):
        raise AutosegError(
            f"{case} is a case of {name}'s training and of its test, so its reference is not known; "
            "name the folder of the references with -r"
        )
    if test.keys() & pairs.keys():
        check_complete(pairs, test, partial=partial)
    return evaluate(
        pairs,
        labels or labels_seen(pairs),
        dataset=name,
        tolerance_mm=tolerance_mm,
        workers=max(1, workers if workers is not None else cores()),
    )
