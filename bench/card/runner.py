"""The parts one after another, each within its seconds, and the page; what is done is not done again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.card import kept
from bench.card.page import page
from bench.card.parts import PARTS, SECONDS, budget, paths
from bench.places import REPOSITORY, machine

Launch = Callable[[str, Path, float], None]
"""Does a part (its name, its JSON) in so many seconds at most."""
TO_END_S = 3.0


def run(
    out: Path,
    launch: Launch,
    *,
    parts: Sequence[str] = (),
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> dict[str, kept.Document]:
    """All parts, or those named, within `seconds`; their documents and the page lie in `out`.

    A part that is done is left as it is; one that was stopped goes on with the rows that it lacks.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = clock() + seconds
    found = {}
    for index, part in enumerate(PARTS):
        path = paths(out)[part.name]
        document = kept.read(path, part.name)
        wanted = (not parts or part.name in parts) and document["state"] != "done"
        given = budget(index, end - clock()) if wanted else 0.0
        if wanted and given:
            say(f"{part.name}: {part.what}, at most {given:.0f} s")
            start = clock()
            launch(part.name, path, given)
            document = kept.read(path, part.name)
            if document["state"] in ("", "running"):
                document = kept.mark(path, part.name, "stopped", f"stopped after {given:.0f} s")
            say(f"{part.name}: {document['state']}, {clock() - start:.0f} s")
        elif wanted and not document["state"]:
            document = kept.mark(path, part.name, "no time", "no time was left to begin it")
        found[part.name] = document
        (out / "card.md").write_text(page(found, machine()), encoding="utf-8")
    return found


def process(environment: Mapping[str, str], device: str, dry: bool) -> Launch:
    """Parts as processes in sessions of their own; with all that they started they are ended in time."""

    def launch(part: str, path: Path, seconds: float) -> None:
        command = [sys.executable, "-m", "bench.card.worker", part, str(path), "--device", device]
        command += ["--seconds", str(max(1.0, seconds - TO_END_S)), *(["--dry"] if dry else [])]
        child = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            child.wait(seconds - TO_END_S)
        except subprocess.TimeoutExpired:
            _end(child)
        if child.returncode not in (0, 1):
            state = kept.read(path, part)["state"]
            if state in ("", "running") and child.returncode not in (
                -signal.SIGTERM,
                -signal.SIGKILL,
            ):
                kept.mark(path, part, "failed", f"its process ended with {child.returncode}")

    return launch


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started: a word first, then by force."""
    for number, wait_s in ((signal.SIGTERM, TO_END_S / 2), (signal.SIGKILL, TO_END_S / 2)):
        try:
            os.killpg(child.pid, number)
            child.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
    child.poll()
