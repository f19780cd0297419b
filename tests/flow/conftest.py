"""Workspaces in which everything was trained for eight steps; to be read, or copied and changed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoseg import api

ONE_CORE = ("--set", "train.threads=1")


@pytest.fixture(scope="session", autouse=True)
def without_foreign_folders() -> Iterator[None]:
    """nnU-Net's variables of the person who runs the tests lead nowhere."""
    names = ("AUTOSEG_ROOT", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    yield
    os.environ.update(before)


def pins(tiny_plan: str, *more: str) -> tuple[str, ...]:
    """The tiny plan's pins as a function takes them."""
    return (*(word for word in tiny_plan.split() if word != "--set"), *more)


@pytest.fixture(scope="session")
def whole_root(
    tmp_path_factory: pytest.TempPathFactory, phantoms: Callable[..., Path], tiny_plan: str
) -> Path:
    """A phantom with three folds of two configurations, a choice and a package. Not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    folder = phantoms(root)
    cut_folds(folder, 3)
    api.plan_and_preprocess(("1",), set=pins(tiny_plan), root=root, workers=1)
    api.run("1", configuration=("3d_fullres", "2d"), root=root, workers=1)
    return root


@pytest.fixture
def whole(whole_root: Path, tmp_path: Path) -> Path:
    """A copy of it: `./autoseg_data` for `shell`."""
    return Path(shutil.copytree(whole_root, tmp_path / "autoseg_data"))


def cut_folds(folder: Path, count: int) -> None:
    """A splits file with so many folds, to train less."""
    ids = sorted(p.name.split(".")[0] for p in (folder / "labelsTr").iterdir())
    parts = [ids[i::count] for i in range(count)]
    splits = [
        {"train": sorted(i for p in parts if p is not part for i in p), "val": part}
        for part in parts
    ]
    (folder / "splits.json").write_text(json.dumps(splits))


@pytest.fixture(scope="session")
def cascade_root(
    tmp_path_factory: pytest.TempPathFactory, phantoms: Callable[..., Path], tiny_plan: str
) -> Path:
    """A phantom whose plan has a cascade, of which fold 0 is trained. Not to be changed."""
    root = tmp_path_factory.mktemp("cascade")
    cut_folds(phantoms(root, shape_vox=(40, 48, 36)), 2)
    more = ("3d_lowres.patch_vox=[16,16,16]", "batch_size=2")
    api.plan_and_preprocess(
        ("1",), gpu_memory=8, set=pins(tiny_plan, *more), root=root, workers=1,
        configuration=("3d_cascade_fullres",), device="cpu",
    )  # fmt: skip
    api.train("1", "3d_cascade_fullres", ("0",), root=root, workers=0, device="cpu")
    return root
