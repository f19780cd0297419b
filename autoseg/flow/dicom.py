"""DICOM in, label maps out: series brought into files that `predict` takes, results put back on them.

Each scan lies as NIfTI below `.autoseg/dicom` of the output folder, where the next run of the same
command finds it; label maps are NIfTI as ever, and in the form that was asked for beside that.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.documents.dataset import Case
from autoseg.documents.model import ModelSpec
from autoseg.errors import AutosegError, BadData, Busy, Problem, raise_fatal
from autoseg.files import Lock, sha256_file
from autoseg.flow.use import predictions
from autoseg.image.reading import read_labels
from autoseg.interop.dicom.choosing import Scan, choose
from autoseg.interop.dicom.modality import of_another_modality
from autoseg.interop.dicom.pixels import read_scan
from autoseg.interop.dicom.results import ending_of, write_channels, write_result
from autoseg.interop.dicom.series import find
from autoseg.stage import Stamp, standing

if TYPE_CHECKING:
    from autoseg.models.members import Model
    from autoseg.stages.predict import Predicted

log = logging.getLogger(__name__)

VERSION = 1
STORED = "stored"
"""Axes in which a scan goes through NIfTI: as it lies in its files, slices last."""


def segmented(
    model: "Model",
    source: Path,
    output: Path,
    *,
    series: Sequence[str] = (),
    form: str = "nifti",
    accept_uneven: bool = False,
    strict: bool = False,
    **how: Any,
) -> "Predicted":
    """Label maps of the scans in a folder or zip of DICOM; `how` is handed to `predictions`.

    With `accept_uneven` slices with gaps are taken as evenly spaced. Raises AutosegError, with a
    list, where it cannot be told which series is meant, and BadData naming the scans that failed;
    the others are written. Where every scan is refused, nothing is.
    """
    from autoseg.stages.predict import Predicted

    ending_of(form)
    found = find(source)
    raise_fatal(found.problems)
    scans, odd = choose(found, series)
    _tell([*(p for p in found.problems if not p.fatal), *odd])
    cases: dict[str, Case] = {}
    failed: list[Problem] = []
    elsewhere: list[str] = []
    for scan in scans:
        unlike = list(of_another_modality(scan, model.spec.channels))
        if strict and unlike:
            failed += unlike
            continue
        _tell(unlike)
        try:
            cases[scan.case] = _as_files(scan, output / ".autoseg" / "dicom", accept_uneven)
        except BadData as error:
            failed += error.problems
        except Busy:
            elsewhere.append(scan.case)
    done = Predicted()
    if cases:
        try:
            done = predictions(model, list(cases.values()), output, strict=strict, **how)
        except BadData as error:
            failed += error.problems
    done.elsewhere += elsewhere
    apart = {problem.case for problem in failed} | set(done.elsewhere)
    for scan in scans:
        if form != "nifti" and scan.case in cases and scan.case not in apart:
            try:
                done.results += _put_back(scan, output, model.spec, form)
            except BadData as error:
                failed += error.problems
            except AutosegError as error:
                fault = "a result could not be written"
                failed.append(Problem(scan.case, fault, str(error), "read the reason"))
    if failed:
        raise BadData(failed)
    return done


def _tell(problems: Sequence[Problem]) -> None:
    for problem in problems:
        log.warning("%s: %s (%s)", problem.case, problem.what, problem.found)


def _as_files(scan: Scan, folder: Path, accept_uneven: bool) -> Case:
    """The scan as files of a case; written unless that was done. Raises BadData, Busy."""
    paths = tuple(folder / f"{scan.case}_{n:04d}.nii.gz" for n in range(len(scan.channels)))
    kept = folder / f"{scan.case}.json"
    options = {"accept_uneven": True} if accept_uneven else {}
    stamp = Stamp("dicom", VERSION, {"scan": scan.digest}, options)

    def there() -> bool:
        return standing(kept, stamp).state == "current" and all(path.exists() for path in paths)

    if not there():
        # read before anything is locked: a scan that is refused leaves nothing behind
        volume, odd = read_scan(scan, STORED, accept_uneven=accept_uneven)
        _tell(odd)
        with Lock(folder / f"{scan.case}.lock", f"scan {scan.case}"):
            if not there():
                paths = tuple(write_channels(folder, scan.case, volume))
                stamp.write(kept)
    return Case(scan.case, paths, None)


def _put_back(scan: Scan, output: Path, spec: ModelSpec, form: str) -> list[Path]:
    """The result on the scan's series, if it was written now and did not stand already."""
    labels = output / f"{scan.case}.nii.gz"
    if not labels.exists():
        return []
    kept = output / ".autoseg" / "dicom" / f"{scan.case}.{form}.json"
    stamp = Stamp("dicom result", VERSION, {"labels": sha256_file(labels), "scan": scan.digest})
    path = output / f"{scan.case}{ending_of(form)}"
    if path.exists() and standing(kept, stamp).state == "current":
        return []
    volume, _ = read_labels(labels, STORED)
    path, odd = write_result(
        output, volume.array[0], STORED, scan, spec.labels, form, model=spec.name
    )
    _tell(odd)
    stamp.write(kept)
    return [path]
