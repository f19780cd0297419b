"""The tests that need a card, each file in a process of its own; a row for each test."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.card.parts import SECONDS, Asked, Row
from bench.places import REPOSITORY

FOLDER = REPOSITORY / "tests" / "gpu"
DRY = (
    "import pytest\n\n@pytest.mark.gpu\n@pytest.mark.skip(reason='no card')\ndef test_dry(): pass\n"
)
SAID = 2000
"""Characters that are kept of what a failed test says."""


def rows(asked: Asked) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        if asked.dry:
            (Path(folder) / "test_dry.py").write_text(DRY, encoding="utf-8")
        for path in sorted((Path(folder) if asked.dry else FOLDER).glob("test_*.py")):
            for row in _tests(path, asked.left()):
                if row["key"] not in asked.done:
                    yield row


def _tests(path: Path, left_s: float) -> list[Row]:
    """What pytest says of one file; without the suite's conftest, whose packages may not be there."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-p",
            "no:cacheprovider", "-o", "filterwarnings=default", f"--junitxml={report}", str(path),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=max(1.0, min(left_s, SECONDS)),
            )
        except subprocess.TimeoutExpired:
            return [{"key": path.name, "outcome": "not finished", "failed": "no time was left"}]
        if not report.exists():
            said = (done.stdout + done.stderr)[-SAID:]
            return [{"key": path.name, "outcome": "failed", "failed": said}]
        return [_row(path, case) for case in ElementTree.parse(report).getroot().iter("testcase")]


def _row(path: Path, case: ElementTree.Element) -> Row:
    row: Row = {"key": f"{path.name}::{case.get('name')}", "seconds": float(case.get("time", 0))}
    for outcome in ("failure", "error", "skipped"):
        found = case.find(outcome)
        if found is not None:
            said = f"{found.get('message', '')}\n{found.text or ''}".strip()[-SAID:]
            failed = {} if outcome == "skipped" else {"failed": said}
            return row | {"outcome": outcome, "said": said, **failed}
    return row | {"outcome": "passed"}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """How many tests ended in which way."""
    outcomes = [row["outcome"] for row in rows]
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
