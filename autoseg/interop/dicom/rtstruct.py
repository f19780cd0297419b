"""How is a label map written as an RTSTRUCT on the series that it was made from.

Contours run half-way between the voxel centres inside and outside of a structure, slice by slice,
so they are within half a voxel of its border, and filled by voxel centres give the map back.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError, Problem
from autoseg.image.itk import RAS_FROM_LPS
from autoseg.interop.dicom.contours import Points, contours_of
from autoseg.interop.dicom.frames import STRUCTURE_SET, Frame
from autoseg.interop.dicom.heritage import (
    MAKER,
    VERSION,
    Drawing,
    Structures,
    colour_of,
    fresh_uid,
    inherit,
    laid_on,
    mask_of,
    write_object,
)
from autoseg.interop.dicom.placing import grid_of
from autoseg.interop.dicom.series import Series
from autoseg.interop.dicom.source import need

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
CONTOUR_DATA = 0x30060050


def write_rtstruct(
    path: Path,
    labels: NDArray[np.integer],
    axes: str,
    series: Series,
    structures: Structures,
    *,
    case: str = "scan",
    model: str = MAKER,
) -> list[Problem]:
    """Write the label map (*axes) of a series as RTSTRUCT, in one step; the warnings.

    `structures` maps names to values of the map (`LabelSet.structures`), in the order of the ROI
    numbers; one that is empty is named without contours. Raises AutosegError for pictures that do
    not say where in the patient they lie.
    """
    if series.kind == "picture":
        raise AutosegError(
            f"{case}: an RTSTRUCT needs images that say where in the patient they lie, and "
            f"{series.described} does not; write NIfTI or DICOM-SEG instead"
        )
    drawing = laid_on(labels, axes, series, case)
    return write_object(path, drawing, lambda drawing: _dataset(drawing, structures, model))


def _dataset(drawing: Drawing, structures: Structures, model: str) -> Any:
    pydicom, now = need("pydicom"), datetime.now()
    dataset = pydicom.Dataset()
    header = drawing.headers[0]
    inherit(dataset, header)
    for name, value in {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": STRUCTURE_SET,
        "SOPInstanceUID": fresh_uid(),
        "Modality": "RTSTRUCT",
        "SeriesInstanceUID": fresh_uid(),
        "SeriesNumber": 100 * max(drawing.frames[0].instance.number or 0, 0) + 91,
        "SeriesDescription": f"{model}: contours"[:64],
        "InstanceNumber": 1,
        "Manufacturer": MAKER,
        "ManufacturerModelName": model[:64],
        "SoftwareVersions": VERSION,
        "OperatorsName": None,
        "FrameOfReferenceUID": header.FrameOfReferenceUID,
        "PositionReferenceIndicator": None,
        "StructureSetLabel": model[:16],
        "StructureSetDate": now.strftime("%Y%m%d"),
        "StructureSetTime": now.strftime("%H%M%S"),
        "InstanceCreationDate": now.strftime("%Y%m%d"),
        "InstanceCreationTime": now.strftime("%H%M%S"),
        "ApprovalStatus": "UNAPPROVED",
    }.items():
        setattr(dataset, name, value)
    dataset.ReferencedFrameOfReferenceSequence = [_referenced(drawing)]
    _add_structures(dataset, drawing, structures)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    # with explicit types a contour could not be longer than 64 KiB
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    return dataset


def _referenced(drawing: Drawing) -> Any:
    """The images that the structures belong to, as series of a study in a frame of reference."""
    header = drawing.headers[0]
    images = [_reference(drawing, at, frame) for at, frame in enumerate(drawing.frames)]
    series = _item(SeriesInstanceUID=header.SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID=STUDY_CLASS,
        ReferencedSOPInstanceUID=header.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=header.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _add_structures(dataset: Any, drawing: Drawing, structures: Structures) -> None:
    """Name the structures, and give each its contours and colour."""
    header = drawing.headers[0]
    numbered = list(enumerate(structures, start=1))
    dataset.StructureSetROISequence = [
        _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=header.FrameOfReferenceUID,
            ROIName=name[:64],
            ROIGenerationAlgorithm="AUTOMATIC",
        )
        for number, name in numbered
    ]
    dataset.ROIContourSequence = [
        _item(ReferencedROINumber=number, ROIDisplayColor=list(colour_of(number - 1)))
        for number, _ in numbered
    ]
    for (_, name), item in zip(numbered, dataset.ROIContourSequence):
        contours = list(_contours(drawing, structures[name]))
        if contours:  # a sequence without items is not allowed here
            item.ContourSequence = contours
    dataset.RTROIObservationsSequence = [
        _item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIInterpretedType=None,
            ROIInterpreter=None,
        )
        for number, _ in numbered
    ]


def _contours(drawing: Drawing, values: tuple[int, ...]) -> Iterator[Any]:
    """One item a contour, slice by slice."""
    affine = RAS_FROM_LPS @ np.asarray(grid_of(drawing.frames).affine)
    number = 0
    for at, labels in enumerate(drawing.labels):
        mask = mask_of(labels, values)
        if not mask.any():
            continue
        frame = drawing.frames[at]
        for points in contours_of(mask):
            number += 1
            item = _item(
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourNumber=number,
                ContourImageSequence=[_reference(drawing, at, frame)],
            )
            item[CONTOUR_DATA] = _data(points, frame, affine)
            yield item


def _data(points: Points, frame: Frame, affine: NDArray[np.float64]) -> Any:
    """ContourData as it stands in the file: x, y, z of each point in mm, to a ten-thousandth.

    pydicom would make an object of every number, which took nine tenths of the time.
    """
    # each slice's own position, which an uneven series has off the grid
    at_mm = np.asarray(frame.position) + points[:, ::-1] @ affine[:3, :2].T
    text = "\\".join(f"{value:.4f}" for value in at_mm.ravel().tolist())
    content = text.encode("ascii") + b" " * (len(text) % 2)
    elements = need("pydicom.dataelem")
    tag = need("pydicom.tag").Tag(CONTOUR_DATA)
    return elements.RawDataElement(tag, "DS", len(content), content, 0, True, True)


def _reference(drawing: Drawing, at: int, frame: Frame) -> Any:
    header = drawing.headers[drawing.file_of[at]]
    item = _item(
        ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID
    )
    if frame.instance.frames > 1:
        item.ReferencedFrameNumber = frame.index + 1
    return item


def _item(**values: Any) -> Any:
    item = need("pydicom").Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
