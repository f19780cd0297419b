"""Small data in the layouts of others, for the tests of their conversion."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

SHAPE = (7, 6, 5)
AFFINE = np.array(
    [[-1.5, 0.1, 0.0, 20.0], [0.0, 1.2, 0.0, -7.0], [0.0, 0.0, 3.0, 11.0], [0, 0, 0, 1]]
)


def voxels(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def drawing(seed: int, values: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, SHAPE).astype(np.uint8)


def nifti(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def picture(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as found:
        return np.asarray(found.convert("L"))


def decathlon(folder: Path, *, frames: int = 1, cases: int = 3, test: int = 1) -> Path:
    """A task of the Medical Segmentation Decathlon, with the hidden files that a Mac leaves."""
    shape = SHAPE if frames == 1 else (*SHAPE, frames)
    training, testing = [], []
    for n in range(cases + test):
        part = "Tr" if n < cases else "Ts"
        image = f"./images{part}/scan_{n:03d}.nii.gz"
        nifti(folder / image, voxels(n, shape))
        (folder / f"images{part}" / f"._scan_{n:03d}.nii.gz").write_bytes(b"Mac OS X")
        if part == "Ts":
            testing.append(image)
            continue
        nifti(folder / f"labelsTr/scan_{n:03d}.nii.gz", drawing(n))
        training.append({"image": image, "label": f"./labelsTr/scan_{n:03d}.nii.gz"})
    document = {
        "name": "Scans", "description": "made for a test", "tensorImageSize": "4D",
        "licence": "CC0", "modality": {str(n): f"M{n}" for n in range(frames)},
        "labels": {"0": "background", "1": "organ", "2": "lesion"},
        "numTraining": cases, "numTest": test, "training": training, "test": testing,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    return folder
