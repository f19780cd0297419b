"""Where a benchmark finds its data and programs, what it runs on, and where figures are kept."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("AUTOSEG_BENCH_RESULTS", REPOSITORY / "bench" / "results"))
DATA = Path(os.environ.get("AUTOSEG_BENCH_DATA", REPOSITORY.parent / "shared" / "data"))
NNUNET = Path(os.environ.get("AUTOSEG_BENCH_NNUNET", REPOSITORY / ".venv-nnunet"))
ROOT = Path(os.environ.get("AUTOSEG_BENCH_ROOT", REPOSITORY / ".bench"))
"""What benchmarks work on; it may be removed at any time."""

CT = DATA / "volumes" / "ct_CRLM-CT-1006_5mm.nii.gz"
HIPPOCAMPUS = "Dataset004_Hippocampus"


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        rows = [
            r.split(":", 1)[1].strip() for r in info.read_text().split("\n") if "model name" in r
        ]
        name = rows[0] if rows else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": name, "cores": str(cores), "memory": memory_text(),
            "python": platform.python_version(), "date": date.today().isoformat(),
            "load": f"{os.getloadavg()[0]:.1f}"}  # fmt: skip


def memory_text() -> str:
    """The machine's main memory."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


@cache
def versions() -> dict[str, str]:
    """What was compared: our commit, nnU-Net, and both torches."""
    import torch

    found = {"autoseg": commit(), "torch": torch.__version__}
    if (NNUNET / "bin" / "python").exists():
        code = (
            "import importlib.metadata as m; "
            "print(*(m.version(p) for p in ('nnunetv2', 'torch', 'batchgeneratorsv2')))"
        )
        done = subprocess.run(
            [str(NNUNET / "bin" / "python"), "-c", code],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        names = ("nnU-Net", "nnU-Net's torch", "batchgeneratorsv2")
        found |= dict(zip(names, done.stdout.split(), strict=True))
    return found


def commit() -> str:
    """Our commit, with a + where its programs are changed; "unknown" outside a repository.

    What benchmarks write themselves does not count: they would become another version by it.
    """
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(REPOSITORY)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return "unknown"
    programs = ["autoseg", "bench", ":!bench/results"]
    differs = subprocess.run(
        [*git, "diff-index", "--quiet", "HEAD", "--", *programs], capture_output=True
    )
    return head.stdout.strip() + ("+" if differs.returncode else "")


def keep(part: str, rows: Any, command: str) -> None:
    """Write one part's figures."""
    write(part, {"part": part, "machine": machine(), "command": command, "rows": rows})


def write(part: str, document: Mapping[str, Any]) -> None:
    """Write one part's document in one step, so that an end in between loses nothing."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    half = RESULTS / f".{part}.json"
    half.write_text(json.dumps(document, indent=1) + "\n")
    half.replace(RESULTS / f"{part}.json")


def kept(part: str) -> dict[str, Any]:
    """One part's document; {} where there is none."""
    path = RESULTS / f"{part}.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return document
