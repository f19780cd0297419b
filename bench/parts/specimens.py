"""What is made to be measured: some cases of data set 4, phantoms of any size, moved label maps.

Each is made once, into a folder that is renamed when it is complete.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bench.inputs import image, label_map
from bench.places import DATA, HIPPOCAMPUS, ROOT

HERE = ROOT / "specimens"
SUFFIX = ".nii.gz"


def some_cases(count: int) -> Path:
    """A raw root in which data set 4 has its first `count` cases alone."""
    source = DATA / HIPPOCAMPUS

    def fill(folder: Path) -> None:
        document = json.loads((source / "dataset.json").read_text())
        document |= {"numTraining": count}
        labels = sorted((source / "labelsTr").glob(f"*{SUFFIX}"))[:count]
        names = [path.name.removesuffix(SUFFIX) for path in labels]
        if "training" in document:
            document["training"] = document["training"][:count]
        images = [
            path for name in names for path in (source / "imagesTr").glob(f"{name}_*{SUFFIX}")
        ]
        for path in (*images, *labels):
            link = folder / HIPPOCAMPUS / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        (folder / HIPPOCAMPUS / "dataset.json").write_text(json.dumps(document))

    return _made(f"cases{count}", fill)


def phantom(shape: Sequence[int], channels: int) -> Path:
    """A data set of one case of the shape (x, y, z) at 1 mm, with three structures."""

    def fill(folder: Path) -> None:
        names = ["background", "one", "two", "three"]
        document = {
            "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
            "labels": {name: value for value, name in enumerate(names)},
            "numTraining": 1, "file_ending": SUFFIX,
        }  # fmt: skip
        (folder / "dataset.json").write_text(json.dumps(document))
        for channel in range(channels):
            values = (200 * image(shape, 10 * channel)).astype(np.int16)
            _write(folder / "imagesTr" / f"phantom_{channel:04d}{SUFFIX}", values)
        _write(folder / "labelsTr" / f"phantom{SUFFIX}", label_map(shape, len(names)))

    return _made(f"Dataset900_{'x'.join(map(str, shape))}x{channels}", fill)


def channels_of(dataset: Path) -> list[Path]:
    """The files of a phantom's channels."""
    return sorted((dataset / "imagesTr").glob(f"*{SUFFIX}"))


def moved_cases(count: int) -> tuple[Path, Path]:
    """Folders of the first label maps of data set 4 moved by a voxel, and of themselves."""
    sources = sorted((DATA / HIPPOCAMPUS / "labelsTr").glob(f"*{SUFFIX}"))[:count]

    def fill(folder: Path) -> None:
        for path in sources:
            source = nib.load(path)
            _write(folder / "found" / path.name, _moved(np.asarray(source.dataobj)), source.affine)
            shutil.copy(path, _beside(folder / "wanted" / path.name))

    folder = _made(f"moved{count}", fill)
    return folder / "found", folder / "wanted"


def moved_phantoms(count: int, edge: int, labels: int) -> tuple[Path, Path]:
    """Folders of made label maps (edge³) moved by a voxel, and of themselves."""

    def fill(folder: Path) -> None:
        for number in range(count):
            values = label_map([edge] * 3, labels + 1, number)
            _write(folder / "found" / f"map{number}{SUFFIX}", _moved(values))
            _write(folder / "wanted" / f"map{number}{SUFFIX}", values)

    folder = _made(f"moved{count}_{edge}_{labels}", fill)
    return folder / "found", folder / "wanted"


def _moved(labels: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.roll(labels, 1, 0)


def _made(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder of this name, filled where it is not there."""
    folder, half = HERE / name, HERE / f".{name}"
    if not folder.exists():
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        fill(half)
        half.rename(folder)
    return folder


def _write(
    path: Path, values: NDArray[np.generic], affine: NDArray[np.float64] | None = None
) -> None:
    nib.save(nib.Nifti1Image(values, np.eye(4) if affine is None else affine), _beside(path))


def _beside(path: Path) -> Path:
    """The path, whose folder is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
