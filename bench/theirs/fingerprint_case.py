"""One case measured for the fingerprint by nnU-Net: read, cropped, sampled, measured."""

from pathlib import Path

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
    DatasetFingerprintExtractor,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from bench.clock import asked, measured, tell

given = asked()
folder = Path(given["dataset"])
images = [str(path) for path in sorted((folder / "imagesTr").glob("*.nii.gz"))]
labels = str(next((folder / "labelsTr").glob("*.nii.gz")))
found, cost = measured(
    lambda: DatasetFingerprintExtractor.analyze_case(images, labels, SimpleITKIO)
)
tell(**cost, channels=len(found[2]))
