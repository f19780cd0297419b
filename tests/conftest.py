"""What every test may use: the real datasets, where a developer has them, and a tiny workspace.

The tiny workspace is a phantom of six scans of 20 x 24 x 18 voxels with a network of four
channels: every stage takes a second, and nothing that it learns is worth knowing.
"""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from autoseg.models.members import Model

REPOSITORY = Path(__file__).parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"

# A busy machine is no failure, and the check of a change must say the same when it is run again.
settings.register_profile("autoseg", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("AUTOSEG_TEST_EXPLORE") else "autoseg")

TINY_PLAN = (
    "--set width=4 --set 3d_fullres.patch_vox=[16,16,16] --set 2d.patch_vox=[16,16] --set steps=8 "
    "--set train.threads=1 --set train.precision=float32 --set train.layout=contiguous "
    "--set train.validate_every=4 --set train.validation_batches=2 --set train.save_every_s=0.05 "
    "--set predict.mirror=false"
)
"""One thread and one variant: nothing is timed, so the tests take the same way everywhere."""
FOREIGN = ("AUTOSEG_ROOT", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class Said:
    """What a command left behind: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


Shell = Callable[[str], Said]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets beside the checkout; skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_plan() -> str:
    """The options of `autoseg plan` that make every stage take a second."""
    return TINY_PLAN


@pytest.fixture(scope="session")
def phantoms() -> Callable[..., Path]:
    """`phantoms(root, "ct", cases=4)`: the folder of a dataset of tiny phantoms."""
    from autoseg.stages.demo import LOOKS, make_phantom

    def make(root: Path, look: str = "mr", *, name: str = "Dataset001_Phantom", **rest) -> Path:
        counts = {key: rest.pop(key) for key in ("cases", "test_cases", "seed") if key in rest}
        small = {"shape_vox": (20, 24, 18), "spacing_mm": (3.0, 3.0, 3.0)} if look != "rgb" else {}
        changed = dataclasses.replace(LOOKS[look], **{**small, **rest})
        return make_phantom(
            root / "raw", changed, name=name, **{"cases": 6, "test_cases": 2, **counts}
        )

    return make


def run(line: str, root: Path) -> None:
    """A command that must work, in this process."""
    from autoseg.cli import main

    code = main([*shlex.split(line), "--root", str(root)])
    assert code == 0, f"autoseg {line} ended with {code}"


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory, phantoms: Callable[..., Path]) -> Path:
    """A workspace with a phantom, measured, planned and prepared. To be copied, not changed."""
    root = tmp_path_factory.mktemp("tiny")
    phantoms(root)
    run(f"plan_and_preprocess -d 1 --workers 1 {TINY_PLAN}", root)
    return root


@pytest.fixture(scope="session")
def trained_root(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    """The tiny workspace with fold 0 of 3d_fullres trained. To be copied, not changed."""
    root = tmp_path_factory.mktemp("trained") / "autoseg_data"
    shutil.copytree(tiny_root, root)
    run("train 1 3d_fullres 0 --workers 0", root)
    return root


@pytest.fixture
def tiny(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the prepared workspace: `./autoseg_data` for `shell`."""
    return Path(shutil.copytree(tiny_root, tmp_path / "autoseg_data"))


@pytest.fixture
def trained(trained_root: Path, tmp_path: Path) -> Path:
    """A copy of the trained workspace: `./autoseg_data` for `shell`."""
    return Path(shutil.copytree(trained_root, tmp_path / "autoseg_data"))


@pytest.fixture(scope="session")
def one_network(tmp_path_factory: pytest.TempPathFactory) -> "Model":
    """A model of random weights for one channel of CT, which tells left from right, up from down."""
    from autoseg.models.members import Model
    from tests.stages.tiny_model import one_network

    root = tmp_path_factory.mktemp("one_network")
    return Model(one_network(root), root)


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """Runs a command line as it stands, in an empty folder, on one core, and tells what it said."""
    from autoseg.cli import main

    monkeypatch.chdir(tmp_path)
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})

    def say(line: str) -> Said:
        words = shlex.split(line)
        assert words[0] == "autoseg"
        capsys.readouterr()
        code = main(words[1:])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return say
