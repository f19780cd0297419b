"""What was measured of a dataset: one document a case, and their summary.

Tuples of a case follow its own file axes, named by `orientation`: with "LPS", the first number
belongs to the axis that runs towards the patient's left. Intensities are those of the foreground
(labelled voxels); undefined numbers are null.
"""

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from autoseg.documents.document import Document, Frozen
from autoseg.documents.labels import LabelSet, Region, without_empty
from autoseg.errors import Problem

QUANTILES = 1001
"""Evenly spaced quantiles kept of each channel, so that pooled percentiles need no second read."""

Triple = tuple[PositiveInt, PositiveInt, PositiveInt]
Lengths = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class FileMark(Document):
    """A file's content hash, and the size and time that gate hashing it again."""

    size: NonNegativeInt
    mtime_ns: NonNegativeInt
    sha256: str


class ChannelMeasure(Document):
    """One channel of one case."""

    mean: float | None
    std: float | None
    quantiles: tuple[float, ...]
    """Of the foreground, minimum to maximum; empty if nothing is labelled."""
    low: float
    high: float
    """Range of the whole image."""


class LabelMeasure(Document):
    """One label of one case."""

    voxels: NonNegativeInt
    volume_mm3: float
    components: NonNegativeInt
    smallest_mm3: float | None
    median_mm3: float | None
    largest_mm3: float | None


class NamedProblem(Document):
    """A Problem as it is written down."""

    case: str
    what: str
    found: str
    fix: str
    fatal: bool = True


class CaseMeasure(Document):
    """What was measured of one case."""

    case: str
    dimensions: Literal[2, 3]
    orientation: str
    shape: Triple
    spacing_mm: Lengths
    cropped_shape: Triple
    """The box around everything that is not zero."""
    channels: tuple[ChannelMeasure, ...]
    labels: tuple[LabelMeasure, ...]
    """Of the classes 1, 2, …"""
    ignored_vox: NonNegativeInt = 0
    """Voxels inside that box that nobody labelled."""


class MeasuredCase(Document):
    """One case's file under `fingerprint/cases/`: its files, and what came out of them.

    `measure` is null if a fatal problem made measuring pointless.
    """

    version: PositiveInt
    label_values: tuple[int, ...]
    channels: PositiveInt
    files: Frozen[str, FileMark]
    measure: CaseMeasure | None
    problems: tuple[NamedProblem, ...] = ()


class Intensity(Document):
    """Pooled foreground intensities of one channel; each case counts equally, as in nnU-Net."""

    channel: str
    mean: float | None
    median: float | None
    std: float | None
    min: float | None
    max: float | None
    percentile_00_5: float | None
    percentile_05: float | None
    percentile_95: float | None
    percentile_99_5: float | None
    why_undefined: str | None = None


class LabelSummary(Document):
    """One label over all cases."""

    name: str
    value: int
    cases: NonNegativeInt
    """How many cases show it."""
    share_of_voxels: float
    """Of all voxels inside the crop boxes that somebody labelled."""
    median_volume_mm3: float | None
    median_components: float | None
    median_component_mm3: float | None
    smallest_component_mm3: float | None


class CaseSummary(Document):
    """The part of a case's measures that the rules read."""

    case: str
    dimensions: Literal[2, 3]
    orientation: str
    shape: Triple
    spacing_mm: Lengths
    cropped_shape: Triple
    label_voxels: tuple[NonNegativeInt, ...]
    label_components: tuple[NonNegativeInt, ...]
    label_component_vox: tuple[float | None, ...]
    """The median size of a label's components, in voxels of this case; null if it is absent."""
    intensity_ranges: tuple[tuple[float, float], ...]
    """Of each channel over the whole image."""
    digest: str
    """Hash of its files' contents."""


class Fingerprint(Document):
    """Everything the planner knows of a dataset."""

    schema_number: Literal[1] = Field(1, alias="schema")
    dataset: str
    dimensions: Literal[2, 3]
    channels: tuple[str, ...]
    cases: tuple[CaseSummary, ...]
    intensities: tuple[Intensity, ...]
    labels: tuple[LabelSummary, ...]
    median_crop_share: float
    """Voxels after cropping to nonzero, divided by voxels before: the median over cases."""
    imbalance: float | None
    """Background voxels for each foreground voxel, over all cases; null if nothing is labelled."""
    cases_without_label: tuple[str, ...]
    outliers: tuple[NamedProblem, ...]
    regions: tuple[Region, ...] = ()
    """Structures made of several labels, as `LabelSet` has them; empty if labels are structures."""
    ignore: int | None = None
    """The value of voxels that nobody labelled, where the dataset declares one."""

    @model_serializer(mode="wrap")
    def _plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # most datasets have neither, and what was measured before they existed keeps its hash
        return without_empty(write(self))

    @property
    def label_set(self) -> LabelSet:
        """The classes, regions and ignore value that were measured."""
        return LabelSet(
            names=("background", *(x.name for x in self.labels)),
            values=(0, *(x.value for x in self.labels)),
            regions=self.regions,
            ignore=self.ignore,
        )

    def remarks(self) -> list[Problem]:
        """What a person should look at: unlike cases, and structures that no case holds; warnings."""
        absent = [
            Problem(
                self.dataset,
                "a structure is in no case",
                f"{label.name} (value {label.value}) has no voxel in {len(self.cases)} label maps",
                "correct its value in dataset.json, or take it out: nothing can learn it",
                fatal=False,
            )
            for label in self.labels
            if label.cases == 0
        ]
        return [*(Problem(**outlier.dump()) for outlier in self.outliers), *absent]

    @property
    def orientation_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for case in self.cases:
            counts[case.orientation] = counts.get(case.orientation, 0) + 1
        return counts


def measured_key(measured: MeasuredCase) -> dict[str, Any]:
    """What the content of a measured case is known by: file names and hashes, labels, channels."""
    return {
        "files": {name: mark.sha256 for name, mark in measured.files.items()},
        "labels": list(measured.label_values),
        "channels": measured.channels,
        "version": measured.version,
    }
