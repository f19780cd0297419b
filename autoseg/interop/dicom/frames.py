"""What does a DICOM image say of each of its frames: place, rescale, and what tells it from others.

Positions and directions are in DICOM's LPS+ world, in mm. A file of the older kind is one frame;
an enhanced file holds many, whose facts stand in functional groups.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from autoseg.interop.dicom.source import Damaged, damage

Vector = tuple[float, float, float]

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
IMAGES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.128",
    "1.2.840.10008.5.1.4.1.1.130",
    "1.2.840.10008.5.1.4.1.1.20",
)
"""What CT, MR, PET and nuclear medicine store their images as, enhanced ones too."""

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
NO_IMAGES = ("RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "SR", "PR", "KO", "REG", "FID")
VOLUMETRIC = ("CT", "MR", "PT", "NM")
NO_VOLUMES = ("LOCALIZER", "SCOUT", "TOPOGRAM")
"""Words of the image type: what says so is left out unless it is chosen."""

MOSAIC = "MOSAIC"
"""Word of the image type by which Siemens says that an image is a volume, slice beside slice."""

MEASURED = VOLUMETRIC
"""Modalities whose values are measurements, so that MONOCHROME1 does not turn them over."""

MOST_FRAMES = 200_000
"""In one file; more are taken for damage."""

KINDS = (
    "echo time",
    "b-value",
    "time point",
    "stack",
    "image type",
    "inversion time",
    "cardiac phase",
    "trigger time",
    "acquisition",
    "direction",
)
"""What may tell frames in one place apart, in the order in which it is tried."""


@dataclass(frozen=True)
class Instance:
    """One image file: what holds for all of its frames.

    `taken` is the day, and where it is known the time, of the series, as 2020-01-31 09:15.
    """

    name: str
    size: int
    uid: str
    sop_class: str
    patient: str
    study: str
    series: str
    frame_of_reference: str
    modality: str
    description: str
    number: int | None
    rows: int
    columns: int
    samples: int
    bits: int
    frames: int
    photometric: str
    compressed: bool
    padding: tuple[float, float] | None
    localizer: bool
    mosaic: bool
    taken: str


@dataclass(frozen=True)
class Frame:
    """One picture of an image file. `index` counts from 0.

    `row` and `column` are the directions in which the column and the row index grow; None, as
    `position`, where the file does not say where in the patient it lies. `spacing_mm` is
    (between rows, between columns). `tags` holds the values of KINDS.
    """

    instance: Instance
    index: int
    position: Vector | None
    row: Vector | None
    column: Vector | None
    spacing_mm: tuple[float, float]
    slope: float
    intercept: float
    tags: tuple[str, ...]
    acquired: str


def frames_of(dataset: Any, name: str, size: int) -> list[Frame]:
    """The frames of an image header; empty for what is no image. Raises Damaged."""
    with damage():
        if _text(dataset, "Modality") in NO_IMAGES or _sop_class(dataset) in SEGMENTATIONS:
            return []
        if "Rows" not in dataset or "Columns" not in dataset:
            if _begins_an_image(dataset):
                raise ValueError("an image without Rows and Columns: it is cut off, or damaged")
            return []
        instance = _instance(dataset, name, size)
        if min(instance.rows, instance.columns, instance.samples, instance.frames) < 1:
            raise ValueError(f"an image of {instance.rows} x {instance.columns} pixels")
        return [_frame(dataset, instance, index) for index in range(instance.frames)]


def _begins_an_image(dataset: Any) -> bool:
    """Whether a header without a size is what is left of an image, as far as that can be known."""
    placed = _text(dataset, "Modality") in VOLUMETRIC and "ImagePositionPatient" in dataset
    # passed over it would be a slice that nobody misses, if it is the first or the last one
    nothing = not len(dataset) and bool(getattr(dataset, "preamble", None))
    # the file's own header comes first, and is whole where that of the image is cut within its class
    meta = getattr(dataset, "file_meta", {})
    stored_as = _text(meta, "MediaStorageSOPClassUID") or _sop_class(dataset)
    return placed or nothing or stored_as in IMAGES


def every_frame(dataset: Any, name: str) -> list[Frame]:
    """The frames of any object with pixels, segmentations included. Raises Damaged."""
    with damage():
        instance = _instance(dataset, name, MOST_FRAMES)
        return [_frame(dataset, instance, index) for index in range(instance.frames)]


def identity_of(dataset: Any) -> str:
    """The SOP Instance UID; where it was emptied, that of the file's own header."""
    meta = getattr(dataset, "file_meta", {})
    return _text(dataset, "SOPInstanceUID") or _text(meta, "MediaStorageSOPInstanceUID")


def _sop_class(dataset: Any) -> str:
    meta = getattr(dataset, "file_meta", {})
    return _text(dataset, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")


def _instance(dataset: Any, name: str, size: int) -> Instance:
    image_type = [str(word).upper() for word in _several(dataset, "ImageType")]
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > min(max(size, 1), MOST_FRAMES):
        raise ValueError(f"{frames} frames in one file")
    meta = getattr(dataset, "file_meta", {})
    syntax = meta.get("TransferSyntaxUID")
    number = dataset.get("SeriesNumber")
    return Instance(
        name=name,
        size=size,
        uid=identity_of(dataset),
        sop_class=_sop_class(dataset),
        patient=_text(dataset, "PatientID"),
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
        modality=_text(dataset, "Modality"),
        description=_text(dataset, "SeriesDescription"),
        number=None if number in (None, "") else int(number),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        samples=int(dataset.get("SamplesPerPixel") or 1),
        bits=int(dataset.get("BitsAllocated") or 16),
        frames=frames,
        photometric=_text(dataset, "PhotometricInterpretation"),
        compressed=bool(syntax is not None and not syntax.is_private and syntax.is_compressed),
        padding=_padding(dataset),
        localizer=any(word in NO_VOLUMES for word in image_type),
        mosaic=MOSAIC in image_type,
        taken=_taken(dataset),
    )


def _taken(dataset: Any) -> str:
    for of in ("Series", "Acquisition", "Content", "Study"):
        day, time = _text(dataset, f"{of}Date"), _text(dataset, f"{of}Time")
        if re.fullmatch(r"\d{8}", day):
            clock = f" {time[:2]}:{time[2:4]}" if re.match(r"\d{4}", time) else ""
            return f"{day[:4]}-{day[4:6]}-{day[6:]}{clock}"
    return ""


def _padding(dataset: Any) -> tuple[float, float] | None:
    """The stored values, low to high, that mean "no pixel"; None where none does."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, (int, float)):
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    ends = [float(first), float(last if isinstance(last, (int, float)) else first)]
    bits = int(dataset.get("BitsAllocated") or 16)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        # written without a sign, as some scanners do
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    return min(ends), max(ends)


def _frame(dataset: Any, instance: Instance, index: int) -> Frame:
    groups = _groups(dataset, index)
    measures = _within(groups, "PixelMeasuresSequence", dataset)
    orientation = _numbers(
        _within(groups, "PlaneOrientationSequence", dataset), "ImageOrientationPatient", 6
    )
    position = _numbers(
        _within(groups, "PlanePositionSequence", dataset), "ImagePositionPatient", 3
    )
    values = _within(groups, "PixelValueTransformationSequence", dataset)
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")
    spacing = next(
        (
            found
            for key in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
            if (found := _numbers(measures, key, 2)) is not None
        ),
        None,
    )
    if orientation is None or position is None:
        orientation = position = None
    elif spacing is None:
        raise ValueError("no PixelSpacing: the size of a pixel is unknown")
    return Frame(
        instance=instance,
        index=index,
        position=None if position is None else (position[0], position[1], position[2]),
        row=None if orientation is None else (orientation[0], orientation[1], orientation[2]),
        column=None if orientation is None else (orientation[3], orientation[4], orientation[5]),
        spacing_mm=(1.0, 1.0) if spacing is None else (spacing[0], spacing[1]),
        slope=1.0 if slope in (None, "") else _finite(slope),
        intercept=0.0 if intercept in (None, "") else _finite(intercept),
        tags=_tags(dataset, groups),
        acquired=_acquired(dataset, groups),
    )


def _groups(dataset: Any, index: int) -> list[Any]:
    """The functional groups of a frame, its own before the shared ones."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    if own and index >= len(own):
        raise Damaged(f"frame {index + 1} has no functional groups")
    return [*([own[index]] if own else ()), *shared[:1]]


def _within(groups: list[Any], name: str, otherwise: Any) -> Any:
    """The first item of a functional group of this name; `otherwise` where no group has it."""
    for group in groups:
        if group.get(name):
            return group[name][0]
    return otherwise


def _tags(dataset: Any, groups: list[Any]) -> tuple[str, ...]:
    content = _within(groups, "FrameContentSequence", dataset)
    diffusion = _within(groups, "MRDiffusionSequence", dataset)
    echo = _within(groups, "MREchoSequence", dataset)
    cardiac = _within(groups, "CardiacSynchronizationSequence", dataset)
    kind = _within(groups, "MRImageFrameTypeSequence", dataset)
    direction = _within([diffusion], "DiffusionGradientDirectionSequence", diffusion)
    found = {
        "echo time": _first(echo, "EffectiveEchoTime", "EchoTime", "EchoNumbers"),
        "b-value": _first(diffusion, "DiffusionBValue"),
        "time point": _first(content, "TemporalPositionIndex", "TemporalPositionIdentifier"),
        "stack": _first(content, "StackID"),
        "image type": _first(kind, "FrameType", "ImageType"),
        "inversion time": _first(dataset, "InversionTime"),
        "cardiac phase": _first(cardiac, "NominalPercentageOfCardiacPhase"),
        "trigger time": _first(cardiac, "NominalCardiacTriggerDelayTime", "TriggerTime"),
        "acquisition": _first(content, "FrameAcquisitionNumber", "AcquisitionNumber"),
        "direction": _first(direction, "DiffusionGradientOrientation"),
    }
    return tuple(found[kind] for kind in KINDS)


def _acquired(dataset: Any, groups: list[Any]) -> str:
    """When the frame was taken, as text that sorts; empty where that is not said."""
    content = _within(groups, "FrameContentSequence", dataset)
    day = _text(dataset, "AcquisitionDate") or _text(dataset, "ContentDate")
    time = _text(dataset, "AcquisitionTime") or _text(dataset, "ContentTime")
    return _first(content, "FrameAcquisitionDateTime") or (day + time if time else "")


def _first(dataset: Any, *names: str) -> str:
    """The text of the first of these elements that says something."""
    for name in names:
        several = [str(value) for value in _several(dataset, name)]
        if any(several):
            return "\\".join(several)
    return ""


def _several(dataset: Any, name: str) -> list[Any]:
    value = dataset.get(name)
    if value is None:
        return []
    return [value] if isinstance(value, (str, int, float)) else list(value)


def _text(dataset: Any, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value).strip(" \0")


def _numbers(dataset: Any, name: str, count: int) -> list[float] | None:
    values = _several(dataset, name)
    if not values:
        return None
    if len(values) != count:
        raise ValueError(f"{name} holds {len(values)} numbers, not {count}")
    return [_finite(value) for value in values]


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a value is {number}")
    return number
