"""What a written object takes over from the images that it belongs to, and what it gets anew.

Patient and study are copied as they stand, never made up; only a UID that the source lacks, and
without which no object is valid, is made, and a warning says so.
"""

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg import __version__
from autoseg.errors import AutosegError, Problem
from autoseg.files import replacing
from autoseg.image.geometry import restore
from autoseg.interop.dicom.frames import Frame, identity_of
from autoseg.interop.dicom.pixels import header_of, slices_of
from autoseg.interop.dicom.series import Series
from autoseg.interop.dicom.source import Damaged, damage, need, opened, quiet

MAKER = "autoseg"
VERSION = __version__
PATIENT_AND_STUDY = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
)
MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
MUST_BE_THERE = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")

Structures = Mapping[str, tuple[int, ...]]
"""Name -> the values that it has in the label map, as `LabelSet.structures`; they may overlap."""


@dataclass(frozen=True)
class Drawing:
    """A label map laid on the slices of its series, in their order along the normal.

    `labels` is (slice, row, column); `headers` holds the header of each image file, in the order
    of the slices, and `file_of` the index into it of each slice.
    """

    labels: NDArray[np.integer]
    frames: tuple[Frame, ...]
    headers: tuple[Any, ...]
    file_of: tuple[int, ...]
    problems: tuple[Problem, ...]


def laid_on(labels: NDArray[np.integer], axes: str, series: Series, case: str) -> Drawing:
    """The label map (*axes) on the slices of the series that it was made from.

    Raises ValueError if it is of another size, BadData if the series cannot be read any more.
    """
    with opened(series.source) as source, quiet():
        slices = slices_of(series, case, source, accept_uneven=True)
        grid = slices.grid
        stored = restore(labels[None], grid.arrangement(axes))[0]
        if stored.shape != grid.shape:
            raise ValueError(f"a label map of {stored.shape} voxels for a series of {grid.shape}")
        names = list(dict.fromkeys(frame.instance.name for frame in slices.frames))
        instance = {frame.instance.name: frame.instance for frame in slices.frames}
        headers = tuple(header_of(instance[name], source) for name in names)
        problems = _completed(case, headers)
    file_of = tuple(names.index(frame.instance.name) for frame in slices.frames)
    return Drawing(stored.transpose(2, 1, 0), slices.frames, headers, file_of, problems)


def write_object(path: Path, drawing: Drawing, make: Callable[[Drawing], Any]) -> list[Problem]:
    """Write the dataset that `make` gives for a drawing, in one step; the warnings.

    Raises AutosegError with what the DICOM libraries refuse, or with what the disk does.
    """
    try:
        with damage():
            dataset = make(drawing)
    except Damaged as error:
        raise AutosegError(
            f"cannot write {path} for this series: {error}; write NIfTI (--format nifti) instead"
        ) from error
    with replacing(path) as half, quiet():
        dataset.save_as(half, enforce_file_format=True)
    return list(drawing.problems)


def _completed(case: str, headers: tuple[Any, ...]) -> tuple[Problem, ...]:
    """Fill in, in place, what a valid reference to these images needs."""
    uid = need("pydicom.uid")
    lacking = [
        name
        for name in MUST_BE_THERE
        if not headers[0].get(name)
        and not (name == "FrameOfReferenceUID" and "ImagePositionPatient" not in headers[0])
    ]
    made = {name: uid.generate_uid(prefix=None) for name in lacking}
    for header in headers:
        for name, value in made.items():
            setattr(header, name, value)
        header.SOPInstanceUID = identity_of(header)
        if not header.get("SOPClassUID"):
            header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
        for name in MAY_BE_EMPTY:
            if name not in header:
                setattr(header, name, None)
    if not lacking:
        return ()
    found = f"no {', '.join(lacking)}"
    fix = "write from the original series, if an archive is to put the result beside it"
    what = "the images lack identifiers, so new ones were made"
    return (Problem(case, what, found, fix, fatal=False),)


def inherit(dataset: Any, header: Any) -> None:
    """Copy what is known of patient and study to a new dataset."""
    for name in PATIENT_AND_STUDY:
        if name in header:
            dataset[name] = header[name]


def fresh_uid() -> str:
    """A new UID, derived from a random number, that no other object has."""
    return str(need("pydicom.uid").generate_uid(prefix=None))


def mask_of(labels: NDArray[np.integer], values: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where a label map has one of these values."""
    if len(values) == 1:
        return np.asarray(labels == values[0])
    return np.isin(labels, values)


def colour_of(number: int) -> tuple[int, int, int]:
    """The red, green and blue (0 to 255) of structure 0, 1, …: hues far apart, for ever the same."""
    golden = (5**0.5 - 1) / 2
    red, green, blue = colorsys.hsv_to_rgb((0.02 + number * golden) % 1.0, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
