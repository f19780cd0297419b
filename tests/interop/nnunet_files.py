"""Genuine models of nnU-Net 2.8.1, tiny and untrained, and what it said of a synthetic scan.

Made by its own classes: `nnUNetTrainer.save_checkpoint` wrote the weights (random, with shaken
biases), `nnUNetPredictor` the label maps and, with sums in 32 bits, the logits, of which every third
voxel is kept.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its users know

from autoseg.documents.model import ModelSpec
from autoseg.interop.nnunet.model import Wanted, model_from

GOLDEN = Path(__file__).parents[1] / "golden" / "nnunet_models"
SCANS = {
    "plain_ct": ((30, 12, 26), (1.3, 1.6, 4.0), 2),
    "resenc_regions": ((9, 25, 22), (1.4, 1.0, 2.0), 1),
    "cascade": ((20, 22, 19), (1.1, 1.0, 1.3), 1),
}
"""Shape (z, y, x), spacing (x, y, z) and channels."""


@dataclass(frozen=True)
class Genuine:
    """One model and its scan."""

    name: str
    configuration: str

    @property
    def folder(self) -> Path:
        """The results folder of its dataset."""
        return GOLDEN / self.name

    @property
    def model(self) -> Path:
        return self.folder / f"nnUNetTrainer__nnUNetPlans__{self.configuration}"

    @property
    def checkpoint(self) -> Path:
        return self.model / "fold_0" / "checkpoint_final.pth"

    @property
    def expected(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"expected_{self.configuration}.npz") as found:
            return dict(found)

    def scan(self, into: Path) -> list[Path]:
        """The scan's files, with axes that are neither square to the world nor in its order."""
        shape, spacing, channels = SCANS[self.name]
        z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
        paths = []
        into.mkdir(parents=True, exist_ok=True)
        for channel in range(channels):
            values = 300 * np.sin(z / 3.1 + channel) * np.cos(y / 4.3)
            values += 200 * np.sin(x / 2.7 + y / 9.1)
            values[:, :3] = 0
            values[:, :, -2:] = 0
            image = sitk.GetImageFromArray(np.round(values).astype(np.int16))
            image.SetSpacing(spacing)
            image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
            image.SetOrigin((3, 4, 5))
            paths.append(into / f"scan_{channel:04d}.nii.gz")
            sitk.WriteImage(image, str(paths[-1]))
        return paths

    def zipped(self, path: Path) -> Path:
        """The folder as nnU-Net zips it: deflated, below the name of the dataset."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(self.folder.rglob("*")):
                if file.is_file() and file.suffix != ".npz":
                    archive.write(file, Path("Dataset901_X") / file.relative_to(self.folder))
        return path


PLAIN = Genuine("plain_ct", "3d_fullres")
REGIONS = Genuine("resenc_regions", "2d")
LOW = Genuine("cascade", "3d_lowres")
CASCADE = Genuine("cascade", "3d_cascade_fullres")
EVERY = [PLAIN, REGIONS, LOW, CASCADE]


def changed(genuine: Genuine, into: Path, file: str, change: Callable[[dict], object]) -> Path:
    """A copy of a model folder with one of its JSON files changed."""
    shutil.copytree(genuine.model, into / genuine.model.name)
    path = into / genuine.model.name / file
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path.parent


def full(plans: dict) -> dict:
    return plans["configurations"]["3d_fullres"]


def kwargs(plans: dict) -> dict:
    return full(plans)["architecture"]["arch_kwargs"]


def imported(genuine: Genuine, into: Path | None = None) -> tuple[ModelSpec, Path]:
    """The model's document, and the folder of its weights where one is given."""
    place = into or Path(tempfile.mkdtemp())
    wanted = Wanted((genuine.configuration,))
    spec = model_from(genuine.folder, place, None, wanted)
    if into is None:
        shutil.rmtree(place)
    return spec, place
