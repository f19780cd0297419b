"""Whether a fold may be trained from here on, and what is removed before it is trained anew."""

import shutil

from autoseg.documents.run import RunSpec
from autoseg.errors import AutosegError, Stale
from autoseg.files import sweep
from autoseg.stage import Stamp, differences, read_stamp
from autoseg.workspace import Fold


def begin(fold: Fold, spec: RunSpec, stamp: Stamp, *, redo: bool) -> bool:
    """Make the fold's folder ready; False if the fold is trained already.

    Raises Stale if it was begun or made from something else and `redo` is not given.
    """
    name = f"fold {spec.fold} of {spec.dataset} {spec.configuration_name} ({spec.plan}/{spec.run})"
    if redo:
        clear(fold)
    done, started = read_stamp(fold.stamp), read_stamp(fold.begun)
    if done == stamp:
        if not readable(fold):  # as a power cut may leave it; the stamp says that it was this
            spec.write(fold.run)
        return False
    other = done or started
    state = "was trained" if done else "is half trained"
    again = "train it again with --redo, or under another name with --run NAME"
    if other is not None and other != stamp:
        reasons = "; ".join(differences(other, stamp)[:4])
        raise Stale(f"{name} {state} from something else ({reasons}); {again}")
    if other is None and fold.last.exists():
        raise Stale(f"{name} {state}, and it cannot be told any more from what; {again}")
    sweep(fold.folder)
    spec.write(fold.run)
    # on the disk before any state: a state whose begin is not known cannot be gone on from
    stamp.write(fold.begun, durable=True)
    return True


def clear(fold: Fold) -> None:
    """Remove what a fold's folder holds: first what says that it is done, then the state.

    What says from what it was begun goes last. Killed at any point, the next command sees a fold
    that was begun from something else, or an empty one, and never goes on from the old state.
    """
    if not fold.folder.is_dir():
        return
    first, last = [fold.stamp, fold.last], [fold.run, fold.begun]
    rest = [e for e in sorted(fold.folder.iterdir()) if e not in (*first, *last, fold.lock)]
    for entry in (*first, *rest, *last):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def readable(fold: Fold) -> bool:
    """Whether run.json says what the fold is."""
    try:
        RunSpec.read(fold.run)
    except AutosegError:
        return False
    return True
