"""What lies in a folder of label maps: which of them did this program write, and what are their scores?

The hash of each label map is written down in the folder's .autoseg before the map takes its place,
beside that of the one before it. A file with another hash was drawn or corrected by a person: it is
never replaced without being asked to.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from autoseg.errors import AutosegError, counted
from autoseg.files import explaining, read_json, replacing, sha256_file

KEPT = 2
"""Hashes that are remembered: of the file that is there, and of the one that takes its place."""


def noting(output: Path, case: str) -> Callable[[Path], None]:
    """What remembers a finished label map of a case as written by this program."""

    def note(finished: Path) -> None:
        hashes = [*_hashes(output, case), sha256_file(finished)]
        path = _record(output, case)
        with replacing(path, durable=False) as half:
            half.write_text("".join(f"{one}\n" for one in hashes[-KEPT:]), encoding="utf-8")

    return note


def is_a_persons(path: Path, output: Path, case: str) -> bool:
    """Whether a label map is there that this program did not write, or that was changed since."""
    if not path.exists():
        return False
    known = _hashes(output, case)
    if known:
        return sha256_file(path) not in known
    # versions that remembered no hash wrote a stamp right after the label map
    stamp = output / ".autoseg" / f"{case}.json"
    return not stamp.exists() or path.stat().st_mtime_ns > stamp.stat().st_mtime_ns


def kept_line(kept: Sequence[Path]) -> str:
    """What a person is told of label maps that were stepped round."""
    names = ", ".join(path.name for path in kept[:3]) + (", …" if len(kept) > 3 else "")
    return (
        f"{counted(len(kept), 'label map')} left as found, not written by autoseg or changed since: "
        f"{names}; --overwrite replaces"
    )


def refuse_if_all_kept(kept: Sequence[Path], others: int) -> None:
    """Raises AutosegError where every label map was a person's, so that nothing was done."""
    if kept and not others:
        raise AutosegError(f"nothing was written: {kept_line(kept)}; or name another output folder")


def _record(output: Path, case: str) -> Path:
    return output / ".autoseg" / f"{case}.sha256"


def _hashes(output: Path, case: str) -> list[str]:
    path = _record(output, case)
    if not path.exists():
        return []
    with explaining(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").split()
    return [line for line in lines if len(line) == 64]


def score_in(path: Path) -> float | None:
    """The uncertainty of a case; None where there is none, or where a power cut damaged the file."""
    try:
        return float(read_json(path)["score"]) if path.exists() else None
    except (AutosegError, KeyError, TypeError, ValueError):
        return None


def write_scores(folder: Path) -> None:
    """One line a case, the least certain first: what a person should look at before the others."""
    known = [(path.stem, score_in(path)) for path in folder.glob("*.json")]
    found = sorted((-score, case) for case, score in known if score is not None)
    text = "case,uncertainty\n" + "".join(f"{case},{-score:.6f}\n" for score, case in found)
    with replacing(folder / "scores.csv", durable=False) as half:
        half.write_text(text, encoding="utf-8")
