"""DICOM series as tests need them: small, synthesised with pydicom, in any orientation."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"

PLANES = {
    "axial": ((1.0, 0, 0), (0, 1.0, 0)),
    "coronal": ((1.0, 0, 0), (0, 0, -1.0)),
    "sagittal": ((0, 1.0, 0), (0, 0, -1.0)),
    "oblique": ((0.8, 0.6, 0.0), (-0.6 * 0.8, 0.8 * 0.8, 0.6)),
}


def blobs(shape: tuple[int, int, int] = (6, 20, 24), seed: int = 0) -> np.ndarray:
    """Stored values (slice, row, column), int16 between 0 and 4000."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4000, shape, dtype=np.int16)


def structured(shape: tuple[int, int, int] = (6, 20, 24)) -> np.ndarray:
    """A label map (slice, row, column): a ring with an island, a single voxel, a speckle."""
    labels = np.zeros(shape, np.int32)
    rows, columns = np.indices(shape[1:])
    distance = np.hypot(rows - 9, columns - 10)
    for at in range(1, shape[0] - 1):
        labels[at][(distance < 8) & (distance > 4)] = 1
        labels[at][distance < 2] = 1
    labels[2, 17:, 20:] = 2
    labels[3, 0, 0] = 2
    rng = np.random.default_rng(1)
    labels[4, 14:, 16:] = np.where(rng.random((shape[1] - 14, shape[2] - 16)) > 0.5, 3, 0)
    return labels


def slice_dataset(stored: np.ndarray, **values: Any) -> pydicom.Dataset:
    """One CT slice (row, column) in explicit little endian, its entries overridden by `values`."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    entries: dict[str, Any] = {
        "SOPClassUID": CT,
        "SOPInstanceUID": generate_uid(),
        "Modality": "CT",
        "PatientID": "P1",
        "PatientName": "Doe^Jo",
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": "1.2.3.1",
        "StudyID": "1",
        "StudyDate": "20200101",
        "StudyTime": "101010",
        "AccessionNumber": "77",
        "ReferringPhysicianName": "",
        "SeriesInstanceUID": "1.2.3.1.1",
        "SeriesNumber": 3,
        "SeriesDescription": "Body 3.0",
        "FrameOfReferenceUID": "1.2.3.9",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelSpacing": [0.8, 0.7],
        "SliceThickness": 2.5,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        **values,
    }
    for name, value in entries.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID")
    return dataset


def write_series(
    folder: Path,
    stored: np.ndarray | None = None,
    *,
    plane: str = "axial",
    spacing_mm: float = 2.5,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    reverse: bool = False,
    without: tuple[int, ...] = (),
    names: str = "s{:03d}.dcm",
    per_slice: Any = None,
    **values: Any,
) -> list[pydicom.Dataset]:
    """Files of a series, slice n at n * spacing_mm along the normal plus n * shift; the datasets.

    `reverse` numbers files and instances against the order in space. `per_slice(n)` gives entries
    of slice n.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = blobs() if stored is None else stored
    row, column = (np.array(v) for v in PLANES[plane])
    normal = np.cross(row, column)
    written = []
    for n, pixels in enumerate(stored):
        if n in without:
            continue
        number = len(stored) - n if reverse else n + 1
        position = np.array([-20.0, 13.0, 40.0]) + n * (spacing_mm * normal + np.array(shift))
        own = {
            "ImagePositionPatient": [round(float(v), 5) for v in position],
            "ImageOrientationPatient": [float(v) for v in (*row, *column)],
            "InstanceNumber": number,
            **values,
            **(per_slice(n) if per_slice else {}),
        }
        dataset = slice_dataset(pixels, **own)
        dataset.save_as(folder / names.format(number), enforce_file_format=True)
        written.append(dataset)
    return written


def write_enhanced(path: Path, stored: np.ndarray, order: list[int], **values: Any) -> Path:
    """One enhanced file whose frames hold the slices `order` of `stored`, axial, 2.5 mm apart.

    A slice that comes again belongs to the next time point.
    """
    dataset = slice_dataset(
        stored[0], SOPClassUID=ENHANCED_MR, Modality="MR", ImagePositionPatient=None,
        ImageOrientationPatient=None, PixelSpacing=None, RescaleSlope=None,
        RescaleIntercept=None, **values,
    )  # fmt: skip
    dataset.NumberOfFrames = len(order)
    dataset.PixelData = np.stack([stored[n] for n in order]).tobytes()
    frames = []
    for at, n in enumerate(order):
        position, value, content = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [0.0, 0.0, 2.5 * n]
        value.RescaleSlope, value.RescaleIntercept = 2.0 + n, -3.0
        content.StackID = "1"
        content.TemporalPositionIndex = 1 + order[:at].count(n)
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = [position]
        frame.PixelValueTransformationSequence = [value]
        frame.FrameContentSequence = [content]
        frames.append(frame)
    measures, orientation, shared = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2.5
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
