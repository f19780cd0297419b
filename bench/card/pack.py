"""Fill .card/ with what `make card` needs on a machine without a network; run it where there is one.

    python -m bench.card.pack [--data FOLDER]

Wheels are those of CPython 3.12 on Linux x86-64; packages without one are built here, which must
be pure Python. `--data` carries a folder of a small dataset (images and labels in nnU-Net's layout).
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from bench.card.wheels import OURS, TESTS, THEIRS, WHEELS
from bench.places import REPOSITORY

MOST_BYTES = 64 << 20
"""The tree and what is carried, together."""
LIBC = ("2_28", "2_27", "2_17")
FOR = [
    "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp",
    *(word for of in LIBC for word in ("--platform", f"manylinux_{of}_x86_64")),
    "--platform", "manylinux2014_x86_64",
]  # fmt: skip
PINS = {"nnunetv2": "==2.8.1", "dynamic-network-architectures": "==0.4.4",
        "batchgeneratorsv2": "==0.3.6"}  # fmt: skip
"""The versions of nnU-Net that `make bench` compares with."""
PIP = [sys.executable, "-m", "pip"]


def fetch(package: str, folder: Path) -> str:
    """Bring one wheel; says in a word what became of it."""
    name = package + PINS.get(package, "")
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    for how, command in (
        ("fetched", [*PIP, "download", *quiet, *FOR, "-d", str(folder), name]),
        ("built", [*PIP, "wheel", *quiet, "-w", str(folder), name]),
    ):
        if subprocess.run(command, capture_output=True).returncode == 0:
            return how
    return "not to be had"


def tree_bytes() -> int:
    """The bytes of the files that git knows."""
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files"], capture_output=True, text=True, check=True
    )
    return sum((REPOSITORY / name).stat().st_size for name in listed.stdout.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a dataset of a few MB to train on")
    given = parser.parse_args()
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    for package in sorted({*OURS.values(), *TESTS.values(), *THEIRS.values()}):
        print(f"{package}: {fetch(package, WHEELS)}", flush=True)
    for wheel in WHEELS.glob("*.whl"):
        if not any(tag in wheel.name for tag in ("none-any", "cp312", "abi3")):
            print(f"{wheel.name} is for this interpreter alone and is left out")
            wheel.unlink()
    if given.data is not None:
        shutil.copytree(given.data, WHEELS.parent / "data" / given.data.name, dirs_exist_ok=True)
    carried = sum(p.stat().st_size for p in WHEELS.parent.rglob("*") if p.is_file())
    whole = carried + tree_bytes()
    print(f"{carried / 2**20:.1f} MiB in .card, {whole / 2**20:.1f} MiB with the tree")
    if whole > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES / 2**20:.0f} MiB: leave something out")


if __name__ == "__main__":
    main()
