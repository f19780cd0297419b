"""In which forms does a result of a DICOM scan leave: NIfTI, DICOM-SEG or RTSTRUCT, by one name."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.documents.labels import LabelSet
from autoseg.errors import AutosegError, Problem, nearest
from autoseg.image.reading import write_image, write_labels
from autoseg.image.volume import Volume
from autoseg.interop.dicom.choosing import Scan
from autoseg.interop.dicom.heritage import MAKER
from autoseg.interop.dicom.rtstruct import write_rtstruct
from autoseg.interop.dicom.segmentation import write_segmentation

ENDINGS = {"nifti": ".nii.gz", "dicom-seg": ".seg.dcm", "rtstruct": ".rtstruct.dcm"}
"""Form -> how its files end."""


def ending_of(form: str) -> str:
    """The ending of files of this form. Raises AutosegError for an unknown one."""
    if form not in ENDINGS:
        raise AutosegError(f"results are not written as {form!r}{nearest(form, list(ENDINGS))}")
    return ENDINGS[form]


def write_result(
    folder: Path,
    values: NDArray[np.integer],
    axes: str,
    scan: Scan,
    labels: LabelSet,
    form: str = "nifti",
    *,
    model: str = MAKER,
) -> tuple[Path, list[Problem]]:
    """The file written for a label map (*axes), which holds label values, and the warnings.

    The map lies on the grid of the scan's first channel, as `read_scan` gave it. Regions that
    overlap are segments of their own. Raises AutosegError.
    """
    path = folder / f"{scan.case}{ending_of(form)}"
    series = scan.channels[0]
    if form == "nifti":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_labels(path, values, axes, series.grid)
        return path, []
    write = write_segmentation if form == "dicom-seg" else write_rtstruct
    problems = write(path, values, axes, series, labels.structures, case=scan.case, model=model)
    return path, problems


def write_channels(folder: Path, case: str, volume: Volume) -> list[Path]:
    """The NIfTI files CASE_0000.nii.gz, … of an image, one a channel, as nnU-Net lays them out.

    Whole numbers are stored as int16 where they fit, which halves the files of CT.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, channel in enumerate(volume.array):
        path = folder / f"{case}_{number:04d}.nii.gz"
        write_image(path, _smallest(channel)[None], volume.axes, volume.grid)
        paths.append(path)
    return paths


def _smallest(channel: NDArray[np.floating]) -> NDArray[np.generic]:
    limits = np.iinfo(np.int16)
    if channel.size and channel.min() >= limits.min and channel.max() <= limits.max:
        whole = channel.astype(np.int16)
        if np.array_equal(whole, channel):
            return whole
    return channel
