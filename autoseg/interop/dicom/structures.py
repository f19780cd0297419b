"""Which structures does a DICOM-SEG or RTSTRUCT file name, and on which series were they drawn.

Only headers are read here; `labels` lays the structures on a grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoseg.interop.dicom.frames import SEGMENTATIONS, STRUCTURE_SET
from autoseg.interop.dicom.source import damage


@dataclass(frozen=True)
class StructureFile:
    """A file of drawn structures: names in the file's order, and what they refer to.

    `series` and `instances` are the UIDs of the images that it was drawn on, as far as it says.
    """

    source: Path
    name: str
    kind: Literal["SEG", "RTSTRUCT"]
    patient: str
    study: str
    names: tuple[str, ...]
    series: frozenset[str]
    instances: frozenset[str]
    frame_of_reference: str


def structure_of(dataset: Any, source: Path, name: str) -> StructureFile | None:
    """What a header of structures says; None for any other object. Raises Damaged."""
    with damage():
        meta = getattr(dataset, "file_meta", {})
        sop_class = str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
        modality = str(dataset.get("Modality") or "")
        if sop_class in SEGMENTATIONS or (not sop_class and modality == "SEG"):
            return _segmentation(dataset, source, name)
        if sop_class == STRUCTURE_SET or (not sop_class and modality == "RTSTRUCT"):
            return _structure_set(dataset, source, name)
        return None


def segment_names(dataset: Any) -> dict[int, str]:
    """Segment number -> label of a DICOM-SEG, in the file's order; 0 is never a segment."""
    found = {}
    for item in dataset.get("SegmentSequence") or ():
        number = int(item.SegmentNumber)
        if number > 0:
            label = item.get("SegmentLabel") or item.get("SegmentDescription")
            found[number] = str(label or f"segment {number}").strip()
    return found


def roi_names(dataset: Any) -> dict[int, str]:
    """ROI number -> name of an RTSTRUCT, in the file's order."""
    return {
        int(item.ROINumber): str(item.get("ROIName") or f"ROI {item.ROINumber}").strip()
        for item in dataset.get("StructureSetROISequence") or ()
    }


def _segmentation(dataset: Any, source: Path, name: str) -> StructureFile:
    series = dataset.get("ReferencedSeriesSequence") or ()
    return StructureFile(
        source=source,
        name=name,
        kind="SEG",
        patient=str(dataset.get("PatientID") or ""),
        study=str(dataset.get("StudyInstanceUID") or ""),
        names=tuple(segment_names(dataset).values()),
        series=frozenset(str(item.get("SeriesInstanceUID") or "") for item in series) - {""},
        instances=frozenset(_instances(dataset)),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
    )


def _instances(dataset: Any) -> Iterator[str]:
    """The images that a DICOM-SEG names, for the whole of it and for its frames."""
    for series in dataset.get("ReferencedSeriesSequence") or ():
        for item in series.get("ReferencedInstanceSequence") or ():
            yield str(item.ReferencedSOPInstanceUID)
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        for derivation in frame.get("DerivationImageSequence") or ():
            for item in derivation.get("SourceImageSequence") or ():
                yield str(item.ReferencedSOPInstanceUID)


def _structure_set(dataset: Any, source: Path, name: str) -> StructureFile:
    series: set[str] = set()
    instances: set[str] = set()
    frame_of_reference = ""
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        frame_of_reference = str(frame.get("FrameOfReferenceUID") or frame_of_reference)
        for study in frame.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                series.add(str(item.get("SeriesInstanceUID") or ""))
                for image in item.get("ContourImageSequence") or ():
                    instances.add(str(image.get("ReferencedSOPInstanceUID") or ""))
    if not instances:
        instances.update(_under_contours(dataset))
    for item in dataset.get("StructureSetROISequence") or ():
        frame_of_reference = frame_of_reference or str(
            item.get("ReferencedFrameOfReferenceUID") or ""
        )
    return StructureFile(
        source=source,
        name=name,
        kind="RTSTRUCT",
        patient=str(dataset.get("PatientID") or ""),
        study=str(dataset.get("StudyInstanceUID") or ""),
        names=tuple(roi_names(dataset).values()),
        series=frozenset(series - {""}),
        instances=frozenset(instances - {""}),
        frame_of_reference=frame_of_reference,
    )


def _under_contours(dataset: Any) -> Iterator[str]:
    """The images that contours name, one by one."""
    for item in dataset.get("ROIContourSequence") or ():
        for contour in item.get("ContourSequence") or ():
            for image in contour.get("ContourImageSequence") or ():
                yield str(image.get("ReferencedSOPInstanceUID") or "")
