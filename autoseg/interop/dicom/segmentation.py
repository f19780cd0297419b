"""How is a label map written as DICOM-SEG on the series that it was made from.

One binary segment a structure, so that structures may overlap; frames lie in the order of their
position, each naming the image under it. Read back, every voxel is where it was.
"""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import Problem
from autoseg.interop.dicom.heritage import (
    MAKER,
    VERSION,
    Drawing,
    Structures,
    colour_of,
    fresh_uid,
    laid_on,
    mask_of,
    write_object,
)
from autoseg.interop.dicom.series import Series
from autoseg.interop.dicom.source import need

TISSUE = ("85756007", "SCT", "Tissue")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
DISEASE = re.compile(r"tumou?r|lesion|cancer|nodule|metasta|o?edema|necro|carcino|glioma", re.I)


def write_segmentation(
    path: Path,
    labels: NDArray[np.integer],
    axes: str,
    series: Series,
    structures: Structures,
    *,
    case: str = "scan",
    model: str = MAKER,
) -> list[Problem]:
    """Write the label map (*axes) of a series as DICOM-SEG, in one step; the warnings.

    `structures` maps names to values of the map (`LabelSet.structures`), in the order of the
    segment numbers. `model` is named as the algorithm. Raises AutosegError if the images lack what
    a segmentation must refer to.
    """
    need("highdicom")
    drawing = laid_on(labels, axes, series, case)
    return write_object(path, drawing, lambda drawing: _dataset(drawing, structures, model))


def _dataset(drawing: Drawing, structures: Structures, model: str) -> Any:
    highdicom = need("highdicom")
    pixels = _segments(drawing.labels, structures)
    arguments: dict[str, Any] = {}
    if len(drawing.headers) == 1 and drawing.frames[0].instance.frames > 1:
        arguments["plane_positions"] = [
            highdicom.PlanePositionSequence("PATIENT", frame.position) for frame in drawing.frames
        ]
    # highdicom tells of an empty map, and of what it does about it
    logging.getLogger("highdicom").setLevel(logging.ERROR)
    dataset = highdicom.seg.Segmentation(
        source_images=list(drawing.headers),
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(highdicom, number, name, model)
            for number, name in enumerate(structures, start=1)
        ],
        series_instance_uid=fresh_uid(),
        series_number=_free_number(drawing),
        sop_instance_uid=fresh_uid(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=model[:64],
        software_versions=VERSION,
        device_serial_number="1",
        content_label="SEGMENTATION",
        series_description=f"{model}: segmentation"[:64],
        omit_empty_frames=True,
        **arguments,
    )
    # names of structures may need more letters than those of the scanner
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _segments(labels: NDArray[np.integer], structures: Structures) -> NDArray[np.unsignedinteger]:
    """Segment numbers (slice, row, column); one channel a segment where structures overlap."""
    values = [value for several in structures.values() for value in several]
    if len(values) > len(set(values)):
        stacked = np.empty((*labels.shape, len(structures)), np.uint8)
        for channel, several in enumerate(structures.values()):
            stacked[..., channel] = mask_of(labels, several)
        return stacked
    numbered = np.zeros(labels.shape, np.uint8 if len(structures) < 256 else np.uint16)
    for number, several in enumerate(structures.values(), start=1):
        numbered[mask_of(labels, several)] = number
    return numbered


def _description(highdicom: Any, number: int, name: str, model: str) -> Any:
    code = highdicom.sr.CodedConcept
    kind = code(*(ABNORMAL if DISEASE.search(name) else TISSUE))
    red, green, blue = colour_of(number - 1)
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=kind,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=model[:64],
            version=VERSION,
            family=code("123109", "DCM", "Artificial Intelligence"),
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(red, green, blue),
    )


def _free_number(drawing: Drawing) -> int:
    """A series number beside that of the source: viewers sort by it."""
    number = drawing.frames[0].instance.number
    return 100 * max(number or 0, 0) + 90
