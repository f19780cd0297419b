"""What an installation holds: every room, and the specifications of the public datasets."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SPECS = ("004_Hippocampus", "005_LungNodule", "006_Nuclei", "007_LowerGradeGlioma")


@pytest.fixture(scope="module")
def options(repository: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg", encoding="utf-8")
    return parser


def test_setup_cfg_names_every_package(
    options: configparser.ConfigParser, repository: Path
) -> None:
    listed = options["options"]["packages"].split()
    rooms = [
        ".".join(p.parent.relative_to(repository).parts)
        for p in (repository / "autoseg").rglob("__init__.py")
    ]
    assert sorted(listed) == sorted([*rooms, "autoseg.datasets_spec"])


def test_datasets_spec_is_installed_inside_the_package(
    options: configparser.ConfigParser,
) -> None:
    assert options["options"]["package_dir"].split("=") == [
        "\nautoseg.datasets_spec ",
        " datasets_spec",
    ]
    assert options["options.package_data"]["autoseg.datasets_spec"] == "*.json"


def test_no_other_project_of_that_name_can_be_installed_by_mistake(repository: Path) -> None:
    for page in [*repository.glob("*.md"), *repository.glob("docs/**/*.md")]:
        assert "pip install autoseg" not in page.read_text("utf-8"), page.name


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that nothing is left behind in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    for name in ("autoseg", "datasets_spec"):
        shutil.copytree(
            repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "setup.cfg", "LICENSE", "NOTICE", "README.md"):
        if (repository / name).exists():
            shutil.copy(repository / name, source)
    out = tmp_path_factory.mktemp("wheel")
    build_it = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build_it, str(out)], cwd=source, check=True, capture_output=True
    )
    (found,) = out.glob("autoseg-*.whl")
    return found


def test_wheel_holds_packages_specifications_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"autoseg/datasets_spec/Dataset{spec}.json" for spec in SPECS} <= names
    assert "autoseg/datasets_spec/schema.json" in names
    assert "autoseg/documents/spec.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"autoseg"}
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode("utf-8")
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Dist: torch>=2.10" in text


def test_installed_specifications_are_found_from_another_folder(
    wheel: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    ask = (
        "import sys; sys.path.insert(0, sys.argv[1]); import autoseg.documents.spec as s; "
        "print(s.__file__); print(*s.list_specs()); print(s.read_spec('6').landing_page)"
    )
    said = subprocess.run(
        [sys.executable, "-c", ask, str(installed)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert Path(said[0]).is_relative_to(installed)
    assert {f"Dataset{spec}" for spec in SPECS} <= set(said[1].split())
    assert said[2] == "https://bbbc.broadinstitute.org/BBBC038"
