"""Cases × preparation → prepared cases: arranged, cropped, normalised, resampled, stored.

A case is a unit of its own; what is current is left alone, and plans that prepare alike share
the folder.
"""

import logging
from functools import partial
from pathlib import Path

from tqdm import tqdm

from autoseg.data.prepare import bytes_needed, prepare
from autoseg.data.store import write_case
from autoseg.documents.dataset import Case, Dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Preparation
from autoseg.errors import AutosegError
from autoseg.files import Lock, replacing_folder, sweep
from autoseg.pool import over_units
from autoseg.stage import Stamp, standing
from autoseg.workspace import DatasetPlaces

log = logging.getLogger(__name__)

VERSION = 1


def case_stamp(digest: str, preparation: Preparation) -> Stamp:
    """The stamp of a prepared case: its files' contents and the preparation."""
    return Stamp("preprocess", VERSION, {"case": digest}, {"preparation": preparation.key})


def _work(case: Case, preparation: Preparation, folder: Path, digests: dict[str, str]) -> None:
    unit = folder / case.id
    with Lock(folder / f".{case.id}.lock", f"prepared case {case.id}"):
        stamp = case_stamp(digests[case.id], preparation)
        if standing(unit / "stamp.json", stamp).state == "current":
            return
        made = prepare(case, preparation)
        with replacing_folder(unit) as half:
            write_case(half, made.image, made.labels, made.info)
            stamp.write(half / "stamp.json")


def preprocess(
    places: DatasetPlaces,
    dataset: Dataset,
    fingerprint: Fingerprint,
    preparation: Preparation,
    *,
    workers: int = 1,
) -> int:
    """Prepare every training case that is not current; how many were prepared.

    Raises AutosegError naming the cases that failed; the others are done.
    """
    folder = places.prepared(preparation.key)
    sweep(folder)
    digests = {c.case: c.digest for c in fingerprint.cases}
    todo = []
    for case in dataset.cases:
        if case.id not in digests:
            continue
        found = standing(folder / case.id / "stamp.json", case_stamp(digests[case.id], preparation))
        if found.state == "stale":
            log.info("%s is prepared again: %s", case.id, found.why)
        if found.state != "current":
            todo.append(case)
    if not todo:
        return 0
    work = partial(_work, preparation=preparation, folder=folder, digests=digests)
    failed: list[tuple[str, AutosegError]] = []
    with tqdm(total=len(todo), desc="preprocess", unit="case", disable=None) as bar:
        for case, outcome in over_units(
            work,
            todo,
            workers=workers,
            bytes_of=partial(bytes_needed, preparation=preparation),
        ):
            bar.update()
            if isinstance(outcome, AutosegError):
                failed.append((case.id, outcome))
    places.prepared(preparation.key).mkdir(parents=True, exist_ok=True)
    preparation.write(folder / "preparation.json")
    if failed:
        lines = "\n".join(f"  {case}: {error}" for case, error in failed)
        raise AutosegError(f"{len(failed)} of {len(todo)} cases could not be prepared:\n{lines}")
    return len(todo)
