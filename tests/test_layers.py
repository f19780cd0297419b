"""The rules of the house: who imports whom, what a file may be called, and how long it may be.

A room imports only from rooms of earlier rows, or from itself; rooms of one row are strangers.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest

ROWS = (
    ("errors",),
    ("files",),
    ("stage", "pool", "timing", "documents", "image", "workspace"),
    ("device",),
    ("data", "nets", "learn", "infer"),
    ("rules",),
    ("costs", "models"),
    ("stages", "interop", "report"),
    ("flow",),
    ("api",),
    ("cluster",),
    ("cli",),
    ("__main__",),
)
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

WITHOUT_TORCH = {"errors", "files", "stage", "pool", "timing", "documents", "image", "workspace"}
"""Rooms that never name torch, not even inside a function."""

NAMES_OF_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
NAMES_OF_NOTHING |= {"constants", "registry"}

LONGEST_FILE = 450


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of everything imported, with `from autoseg import x` as `autoseg.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "autoseg":
                for alias in node.names:
                    yield f"autoseg.{alias.name}", node.lineno
            else:
                yield module, node.lineno


def faults(sources: Mapping[str, str]) -> list[str]:
    """Everything against the rules in a package: dotted module name -> its text."""
    return list(chain.from_iterable(_faults_of(name, text) for name, text in sources.items()))


def _faults_of(name: str, text: str) -> Iterator[str]:
    words = name.split(".")
    room = words[1] if len(words) > 1 else ""
    if room and room not in ROW:
        yield f"{name}: {room!r} is no room of the house"
        return
    for word in NAMES_OF_NOTHING.intersection(words):
        yield f"{name}: {word!r} names no question"
    if text.count("\n") > LONGEST_FILE:
        yield f"{name}: {text.count(chr(10))} lines"
    for target, line in imports(ast.parse(text)):
        reason = _why_not(name, room, target)
        if reason:
            yield f"{name}:{line}: {target}: {reason}"


def _why_not(name: str, room: str, target: str) -> str:
    """Why module `name` in `room` may not import `target`; empty if it may."""
    if target.startswith("."):
        return "relative"
    words = target.split(".")
    if words[0] == "torch" and room in WITHOUT_TORCH:
        return f"{room} stays without torch"
    if words[0] != "autoseg" or len(words) < 2 or words[1].startswith("__version"):
        return ""
    other = words[1]
    if not room:
        return "the package itself imports nothing of its own"
    if other not in ROW:
        return f"{other!r} is no room of the house"
    if other == room:
        return "a stage never calls another" if room == "stages" and target != name else ""
    if ROW[other] >= ROW[room]:
        return f"{room} may not know {other}"
    if room == "nets" and other == "documents" and words[2:3] != ["networks"]:
        return "nets knows no document but the networks"
    return ""


@pytest.fixture(scope="module")
def sources(repository: Path) -> dict[str, str]:
    found = {}
    for path in (repository / "autoseg").rglob("*.py"):
        parts = path.relative_to(repository).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def test_the_house_is_in_order(sources: dict[str, str]) -> None:
    assert len(sources) > 20
    assert "\n".join(faults(sources)) == ""


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("autoseg.learn.loop", "import autoseg.nets.families.unet", "learn may not know nets"),
        (
            "autoseg.nets.families.unet",
            "from autoseg.data.batch import x",
            "nets may not know data",
        ),
        (
            "autoseg.nets.families.unet",
            "from autoseg.documents.run import x",
            "no document but the networks",
        ),
        ("autoseg.image.volume", "from autoseg.documents.plan import x", "may not know documents"),
        ("autoseg.errors", "from autoseg import files", "errors may not know files"),
        ("autoseg.stages.train", "from autoseg.stages.plan import x", "a stage never calls"),
        ("autoseg.image.volume", "def f():\n    import torch", "stays without torch"),
        ("autoseg.documents.plan", "from torch.nn import x", "stays without torch"),
        ("autoseg.rules.grid", "from . import budget", "relative"),
        ("autoseg.rules.grid", "from autoseg.api import plan", "rules may not know api"),
        ("autoseg.tools.grid", "", "'tools' is no room"),
        ("autoseg.rules.grid", "import autoseg.tools", "'tools' is no room"),
        ("autoseg.image.utils", "", "'utils' names no question"),
        ("autoseg.image.volume", "\n" * (LONGEST_FILE + 1), "lines"),
        ("autoseg", "from autoseg.api import plan", "imports nothing of its own"),
    ],
)
def test_a_planted_fault_is_found(name: str, text: str, fault: str) -> None:
    (found,) = faults({name: text})
    assert found.startswith(name)
    assert fault in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("autoseg.stages.train", "import torch\nfrom autoseg.rules.grid import x"),
        (
            "autoseg.nets.families.unet",
            "from autoseg.documents.networks.word import x\nfrom autoseg.nets import y",
        ),
        ("autoseg.documents.plan", "from autoseg.documents.document import x\nimport torchio"),
        ("autoseg.cli", "from autoseg import __version__, api"),
        ("autoseg.image.checks", "import numpy as np\nfrom autoseg.files import read_json"),
    ],
)
def test_what_is_allowed_is_no_fault(name: str, text: str) -> None:
    assert faults({name: text}) == []


def test_documents_and_images_work_without_torch(sources: dict[str, str]) -> None:
    modules = sorted(n for n in sources if "." in n and n.split(".")[1] in WITHOUT_TORCH)
    assert {"autoseg.documents.plan", "autoseg.image.reading"} <= set(modules)
    ask = (
        "import sys, importlib\n"
        f"for name in {[*modules, 'autoseg.stages.demo']}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        "print(len(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")
    assert int(said.stdout) > len(modules)
