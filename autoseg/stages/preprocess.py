"""Cases × preparation → prepared cases: arranged, cropped, normalised, resampled, stored.

A case is a unit of its own; what is current is left alone, and plans that prepare alike share
the folder. Folders that differ in their spacing alone (2d and 3d) share the files of those cases
that come out the same.
"""

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path

from tqdm import tqdm

from autoseg.data.prepare import bytes_needed, prepare, target_spacing
from autoseg.data.writing import write_case
from autoseg.documents.dataset import Case, Dataset
from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.plan import Preparation
from autoseg.errors import AutosegError, Busy, counted
from autoseg.files import Lock, is_locked, read_json, replacing_folder, sweep
from autoseg.pool import give_freed_memory_back, keep_freed_memory, over_units
from autoseg.stage import Stamp, standing
from autoseg.workspace import DatasetPlaces

log = logging.getLogger(__name__)

VERSION = 2
CASE_SECONDS = 0.007
VOXEL_SECONDS = 6e-8
PROCESS_SECONDS = 3.0
"""About what a case costs on one core, and how much work is worth a further process."""
LOOK_S = 0.2
"""How often it is looked whether another command is done with a case."""


def case_stamp(digest: str, preparation: Preparation) -> Stamp:
    """The stamp of a prepared case: its files' contents and the preparation."""
    return Stamp("preprocess", VERSION, {"case": digest}, {"preparation": preparation.key})


def _lock(folder: Path, case: str) -> Path:
    return folder / f".{case}.lock"


def _work(
    case: Case,
    preparation: Preparation,
    folder: Path,
    digests: dict[str, str],
    alike: Sequence[tuple[Path, Preparation]],
) -> None:
    keep_freed_memory()
    unit = folder / case.id
    with Lock(_lock(folder, case.id), f"prepared case {case.id}"):
        stamp = case_stamp(digests[case.id], preparation)
        if standing(unit / "stamp.json", stamp).state == "current":
            return
        for other, theirs in alike:
            stands = case_stamp(digests[case.id], theirs)
            if _shared(other / case.id, stands, unit, stamp, preparation):
                return
        made = prepare(case, preparation)
        with replacing_folder(unit) as half:
            write_case(half, made.image, made.labels, made.info)
            stamp.write(half / "stamp.json")


def _shared(other: Path, stands: Stamp, unit: Path, stamp: Stamp, preparation: Preparation) -> bool:
    """Whether the case was prepared the same elsewhere, and its files now serve here as well.

    Files are never changed once they are written, so two folders may hold the same ones.
    """
    if standing(other / "stamp.json", stands).state != "current":
        return False
    with contextlib.suppress(AutosegError, KeyError, OSError, TypeError, ValueError):
        info = read_json(other / "case.json")
        if list(target_spacing(preparation, info["spacing_mm"])) != info["target_mm"]:
            return False
        with replacing_folder(unit) as half:
            for file in sorted(other.iterdir()):
                if file.name != "stamp.json":
                    os.link(file, half / file.name)
            stamp.write(half / "stamp.json")
        return True
    return False  # another file system, or damaged: it is prepared as if it were not there


def _alike(places: DatasetPlaces, preparation: Preparation) -> list[tuple[Path, Preparation]]:
    """The other folders of prepared cases that differ in their spacing alone."""
    wanted = preparation.dump() | {"spacing_mm": None}
    found = []
    for path in sorted(places.prepared(preparation.key).parent.glob("*/preparation.json")):
        with contextlib.suppress(AutosegError):
            theirs = Preparation.read(path)
            if theirs != preparation and theirs.dump() | {"spacing_mm": None} == wanted:
                found.append((path.parent, theirs))
    return found


def _processes(workers: int, todo: Sequence[Case], fingerprint: Fingerprint) -> int:
    """How many processes the work is worth: starting one takes about a second of a core."""
    names = {case.id for case in todo}
    voxels = sum(prod(c.shape) for c in fingerprint.cases if c.case in names)
    seconds = CASE_SECONDS * len(todo) + VOXEL_SECONDS * voxels * len(fingerprint.channels)
    return min(workers, 1 + int(seconds / PROCESS_SECONDS))


def preprocess(
    places: DatasetPlaces,
    dataset: Dataset,
    fingerprint: Fingerprint,
    preparation: Preparation,
    *,
    workers: int = 1,
) -> int:
    """Prepare every training case that is not current; how many were prepared.

    Several commands may do so together: each takes the cases that no other is at, and waits for
    those in the end. Raises AutosegError naming the cases that failed; the others are done.
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
    alike = _alike(places, preparation)
    work = partial(_work, preparation=preparation, folder=folder, digests=digests, alike=alike)
    failed: list[tuple[str, AutosegError]] = []
    told, left = False, todo
    with tqdm(total=len(todo), desc="preprocess", unit="case", disable=None) as bar:
        while left:
            busy: list[Case] = []
            for case, outcome in over_units(
                work,
                left,
                workers=_processes(workers, left, fingerprint),
                bytes_of=partial(bytes_needed, preparation=preparation),
            ):
                if isinstance(outcome, Busy):
                    busy.append(case)
                    continue
                bar.update()
                if isinstance(outcome, AutosegError):
                    failed.append((case.id, outcome))
            if busy and not told:
                told = True
                log.warning("waiting for %s that another command is preparing (%s, …)",
                            counted(len(busy), "case"), busy[0].id)  # fmt: skip
            while busy and all(is_locked(_lock(folder, case.id)) for case in busy):
                time.sleep(LOOK_S)
            left = busy
    give_freed_memory_back()
    places.prepared(preparation.key).mkdir(parents=True, exist_ok=True)
    preparation.write(folder / "preparation.json")
    if failed:
        lines = "\n".join(f"  {case}: {error}" for case, error in failed)
        raise AutosegError(f"{len(failed)} of {len(todo)} cases could not be prepared:\n{lines}")
    return len(todo)
