"""A scan to be segmented: from files or an array, prepared for a model, and what it must be like.

A scan can be read here, on a thread of its own, while a network works on another one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from autoseg.data.prepare import Prepared, prepare_volume
from autoseg.documents.dataset import Case
from autoseg.documents.model import Member, ModelSpec
from autoseg.errors import AutosegError, Problem, counted, raise_fatal
from autoseg.image.checks import check_constant, placing
from autoseg.image.geometry import arrange
from autoseg.image.reading import read_header, read_image
from autoseg.image.resample import Resampling, resample_image
from autoseg.image.volume import Grid, Volume
from autoseg.infer.air import Air
from autoseg.timing import part

SPACING_FACTOR = 1.5
"""A spacing further than this factor outside the training range is told."""
BLANK = "do not use the result: nothing can be seen in this channel; export the scan again"
RANGE_SHARE = 0.5
"""So is an intensity range that lies outside the training range by more than half its width."""


@dataclass(frozen=True)
class Scan:
    """A scan to be segmented: its name, and its image in the axes that are asked for."""

    name: str
    read: Callable[[str], tuple[Volume, list[Problem]]]
    """The image and what is odd about its files. Raises BadData for files that cannot be used."""


@dataclass
class Ready:
    """A scan as the members of a model are shown it."""

    scan: Scan
    prepared: dict[str, Prepared]
    """By the key of the preparation."""
    first: Prepared
    """That of the first member."""
    air: dict[str, Air] = field(default_factory=dict)
    """Where the scan holds but air, by axes, as far as it is asked for."""
    odd: list[Problem] = field(default_factory=list)
    """What was noticed while reading it; warnings."""

    def of(self, member: Member) -> Prepared:
        return self.prepared[member.configuration.preparation.key]


def made_ready(
    scan: Scan, spec: ModelSpec, *, air: bool = False, resample: Resampling = resample_image
) -> Ready:
    """A scan read once and prepared for every member of a model; with `air` that is looked for.

    `resample` brings images to the members' grids (`infer.resample.resampling_on`). May run beside
    a network. Raises BadData if the scan cannot be used.
    """
    wanted = {m.configuration.preparation.key: m.configuration.preparation for m in spec.members}
    wanted |= {m.configuration.preparation.key: m.configuration.preparation for m in spec.stages}
    prepared: dict[str, Prepared] = {}
    found: dict[str, Air] = {}
    odd: list[Problem] = []
    for axes in dict.fromkeys(p.axes for p in wanted.values()):
        alike = [p for p in wanted.values() if p.axes == axes]
        with part("read"):
            volume, problems = scan.read(axes)
        odd += [problem for problem in problems if problem not in odd]
        if air:
            with part("air"):
                found[axes] = Air(volume.array, [c.scheme for c in alike[0].channels])
        for preparation in alike:
            # preparing may change the array, which others still need
            own = volume if preparation is alike[-1] else replace(volume, array=volume.array.copy())
            with part("prepare"):
                prepared[preparation.key] = prepare_volume(
                    scan.name, own, preparation, resample=resample
                )
    first = prepared[spec.members[0].configuration.preparation.key]
    return Ready(scan, prepared, first, found, odd)


def scan_of_case(case: Case) -> Scan:
    """The scan in a case's files."""

    def read(axes: str) -> tuple[Volume, list[Problem]]:
        volume, problems = read_image(case.images, axes)
        # what is refused in training is told here: somebody waits for a result
        blank = [replace(p, fatal=False, fix=BLANK) for p in check_constant(case.id, volume.array)]
        problems = [replace(problem, case=case.id) for problem in [*problems, *blank]]
        raise_fatal(problems)
        return volume, problems

    return Scan(case.id, read)


def scan_of_array(
    image: npt.ArrayLike,
    affine: npt.ArrayLike | None,
    spacing_mm: Sequence[float] | None,
    spec: ModelSpec,
) -> Scan:
    """The scan in an array: 3D (X, Y, Z) or (C, X, Y, Z), 2D (H, W) or (C, H, W).

    `affine` goes from voxel to RAS+ mm. A picture needs neither it nor a spacing (x, y). Raises
    AutosegError for another shape, for values that are no numbers, or a place that cannot be.
    """
    array = np.asarray(image)
    wanted = f"{counted(len(spec.channels), 'channel')} ({', '.join(spec.channels)}) and "
    if array.ndim == spec.dimensions:
        array = array[None]
    fits = array.ndim == spec.dimensions + 1 and len(array) == len(spec.channels)
    if not fits or array.size == 0 or array.dtype.kind not in "biuf":
        raise AutosegError(
            f"an array of shape {np.shape(image)} and type {array.dtype} was given; the model needs "
            f"{wanted}{spec.dimensions} axes of numbers"
        )
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise AutosegError("the array holds values that are no numbers; replace NaN and infinity")
    flat = spec.dimensions == 2
    if flat:
        array = array.transpose(0, 2, 1)[..., None]
    if flat and affine is None:
        place = placing("the array", None, [*([1, 1] if spacing_mm is None else spacing_mm), 1])
    else:
        place = placing("the array", affine, spacing_mm)
    grid = Grid.of(array.shape[1:], place, placed=not flat or affine is not None)

    def read(axes: str) -> tuple[Volume, list[Problem]]:
        return Volume(np.ascontiguousarray(arrange(array, grid.arrangement(axes))), axes, grid), []

    return Scan("array", read)


def foreign(case: str, spec: ModelSpec, scan: Prepared) -> list[Problem]:
    """How a scan differs from the training set in spacing and intensity range; warnings."""
    problems = []
    if spec.dimensions == 3:
        axes = zip(scan.info["spacing_mm"], spec.spacing_ranges_mm, strict=True)
        odd = [
            f"{mm:.3g} mm along axis {axis}, the training cases had {low:.3g} to {high:.3g} mm"
            for axis, (mm, (low, high)) in enumerate(axes)
            if not low / SPACING_FACTOR <= mm <= high * SPACING_FACTOR
        ]
        if odd:
            problems.append(
                Problem(
                    case,
                    "the spacing is outside the training range",
                    "; ".join(odd),
                    "check the header; the result may be poor",
                    fatal=False,
                )
            )
    ranges = zip(spec.intensity_ranges, scan.info["intensity_ranges"], strict=True)
    for index, (known, (low, high)) in enumerate(ranges):
        if known is None:
            continue
        width = max(known[1] - known[0], 1e-6)
        if low < known[0] - RANGE_SHARE * width or high > known[1] + RANGE_SHARE * width:
            problems.append(
                Problem(
                    case,
                    "the intensities are outside the training range",
                    f"{spec.channels[index]} runs from {low:.5g} to {high:.5g}, in training from "
                    f"{known[0]:.5g} to {known[1]:.5g}",
                    "check the modality and the units; the result may be poor",
                    fatal=False,
                )
            )
    return problems


def check_inputs(cases: Sequence[Case], spec: ModelSpec) -> list[Problem]:
    """What headers alone tell: channels and dimensions that the model cannot take."""
    problems = []
    for case in cases:
        try:
            headers = [read_header(path) for path in case.images]
        except AutosegError as error:
            problems.append(
                Problem(case.id, "an image cannot be read", str(error), "replace the file")
            )
            continue
        channels = sum(header.channels for header in headers)
        if channels != len(spec.channels):
            problems.append(
                Problem(
                    case.id,
                    "an image has the wrong number of channels",
                    f"{channels} found, the model needs {len(spec.channels)}: "
                    + ", ".join(spec.channels),
                    "give the same channels as in training, a file each or together in one",
                )
            )
        elif headers[0].grid.dimensions != spec.dimensions:
            problems.append(
                Problem(
                    case.id,
                    "an image has the wrong number of dimensions",
                    f"it is {headers[0].grid.dimensions}D, the model is for {spec.dimensions}D",
                    "choose a model that was trained on such images",
                )
            )
    return problems
