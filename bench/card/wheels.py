"""Packages that a machine lacks, from wheels that came along: unpacked, so that nothing is installed.

For a package too large to come along, of which only names are imported here, there is an empty
stand-in: SimpleITK reads formats that this program does not write.
"""

import importlib.util
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

from bench.places import REPOSITORY

WHEELS = REPOSITORY / ".card" / "wheels"
OURS = {
    "pydantic": "pydantic", "pydantic_core": "pydantic-core", "annotated_types": "annotated-types",
    "typing_extensions": "typing-extensions", "typing_inspection": "typing-inspection",
    "safetensors": "safetensors", "tqdm": "tqdm", "nibabel": "nibabel",
    "importlib_resources": "importlib-resources", "cc3d": "connected-components-3d",
    "acvl_utils": "acvl-utils", "batchgenerators": "batchgenerators", "blosc2": "blosc2",
    "msgpack": "msgpack", "numexpr": "numexpr", "ndindex": "ndindex",
    "threadpoolctl": "threadpoolctl", "packaging": "packaging", "PIL": "pillow",
}  # fmt: skip
"""Module -> package, for training and prediction."""
TESTS = {"pytest": "pytest", "_pytest": "pytest", "pluggy": "pluggy", "iniconfig": "iniconfig",
         "pygments": "pygments"}  # fmt: skip
THEIRS = {
    "nnunetv2": "nnunetv2", "dynamic_network_architectures": "dynamic-network-architectures",
    "batchgeneratorsv2": "batchgeneratorsv2", "fft_conv_pytorch": "fft-conv-pytorch",
    "einops": "einops", "matplotlib": "matplotlib", "contourpy": "contourpy", "cycler": "cycler",
    "kiwisolver": "kiwisolver", "pyparsing": "pyparsing", "dateutil": "python-dateutil",
    "six": "six", "fontTools": "fonttools",
}  # fmt: skip
"""For nnU-Net's step; matplotlib draws our curves, too."""
STAND_INS = ("SimpleITK",)
STAND_IN = '''"""A stand-in: names are there, and nothing behind them."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
'''


def missing(modules: Mapping[str, str]) -> dict[str, str]:
    """Those that this interpreter cannot import."""
    return {m: p for m, p in modules.items() if importlib.util.find_spec(m) is None}


def unpacked(site: Path, wheels: Path = WHEELS) -> list[str]:
    """Unpack the wheels of missing packages into `site`; the packages that no wheel is there for."""
    site.mkdir(parents=True, exist_ok=True)
    lacking = missing({**OURS, **TESTS, **THEIRS})
    there = {_package(path): path for path in sorted(wheels.glob("*.whl"))}
    for package in set(lacking.values()) & set(there):
        with zipfile.ZipFile(there[package]) as wheel:
            wheel.extractall(site)
    for name in STAND_INS:
        if importlib.util.find_spec(name) is None:
            (site / f"{name}.py").write_text(STAND_IN, encoding="utf-8")
    return sorted(set(lacking.values()) - set(there))


def environment(site: Path) -> dict[str, str]:
    """The variables of a part's process: what was unpacked, and the repository, can be imported."""
    without = unpacked(site)
    if without:
        print(f"not installed, and no wheel in {WHEELS}: {', '.join(without)}")
    paths = [str(REPOSITORY), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def _package(wheel: Path) -> str:
    return wheel.name.partition("-")[0].replace("_", "-").lower()
