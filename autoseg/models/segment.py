"""One scan, spoken about by a model: prepared, segmented slab by slab, put back on its own grid.

Folds of a configuration average their logits, configurations their probabilities. No array of all
classes and all voxels is held, unless a conditional random field is among the steps that follow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoseg.data.prepare import Prepared, prepare_volume
from autoseg.data.previous import one_hot, prepare_previous
from autoseg.documents.dataset import Case
from autoseg.documents.labels import LabelSet
from autoseg.documents.model import Member, ModelSpec
from autoseg.documents.plan import Preparation
from autoseg.documents.postprocessing import DenseCRF
from autoseg.errors import AutosegError, raise_fatal
from autoseg.image.cleaning import cleaned
from autoseg.image.geometry import arrange
from autoseg.image.reading import read_image, write_labels
from autoseg.image.volume import Grid, Volume
from autoseg.infer.meaning import certain_background, painted, probabilities
from autoseg.infer.restore import restored, rows_at_once
from autoseg.infer.uncertainty import Score, entropy, fold_variance
from autoseg.infer.volume import logit_slabs
from autoseg.learn.variants import Variant, refuse_impossible
from autoseg.learn.weights import load_weights
from autoseg.models.members import Model
from autoseg.models.probabilities import ProbabilityFile
from autoseg.models.refine import refined_by, standardised
from autoseg.nets.build import build

Classes = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Scan:
    """A scan to be segmented: its name, and its image in the axes that are asked for."""

    name: str
    read: Callable[[str], Volume]
    """Raises BadData for files that cannot be used."""

    def prepared(self, preparation: Preparation) -> Prepared:
        return prepare_volume(self.name, self.read(preparation.axes), preparation)


def scan_of_case(case: Case) -> Scan:
    """The scan in a case's files."""

    def read(axes: str) -> Volume:
        volume, problems = read_image(case.images, axes)
        raise_fatal(replace(problem, case=case.id) for problem in problems)
        return volume

    return Scan(case.id, read)


def scan_of_array(
    image: npt.ArrayLike,
    affine: npt.ArrayLike | None,
    spacing_mm: Sequence[float] | None,
    spec: ModelSpec,
) -> Scan:
    """The scan in an array: 3D (X, Y, Z) or (C, X, Y, Z), 2D (H, W) or (C, H, W).

    `affine` goes from voxel to RAS+ mm. Raises AutosegError for another shape, for values that are
    no numbers, or where a volume has neither affine nor spacing.
    """
    array = np.asarray(image)
    wanted = (
        f"{len(spec.channels)} channels ({', '.join(spec.channels)}) and {spec.dimensions} axes"
    )
    if array.ndim == spec.dimensions:
        array = array[None]
    if array.ndim != spec.dimensions + 1 or len(array) != len(spec.channels):
        raise AutosegError(
            f"an array of shape {np.shape(image)} was given; the model needs {wanted}"
        )
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise AutosegError("the array holds values that are no numbers; replace NaN and infinity")
    if spec.dimensions == 2:
        array = array.transpose(0, 2, 1)[..., None]
    if affine is None and spacing_mm is None and spec.dimensions == 3:
        raise AutosegError("an array does not say where it lies: give its affine, or spacing_mm")
    place = np.diag([*(spacing_mm or (1.0, 1.0)), 1.0, 1.0][:4]) if affine is None else affine
    if np.shape(place) != (4, 4):
        raise AutosegError(f"the affine must be 4 x 4, found {np.shape(place)}")
    placed = affine is not None or spec.dimensions == 3
    grid = Grid.of(array.shape[1:], place, placed=placed)

    def read(axes: str) -> Volume:
        return Volume(np.ascontiguousarray(arrange(array, grid.arrangement(axes))), axes, grid)

    return Scan("array", read)


Rows = Iterator[tuple[slice, Tensor]]


class Voice:
    """The networks of one member of a model, loaded once."""

    def __init__(self, member: Member, weights: Sequence[Path], device: torch.device) -> None:
        refuse_impossible(device.type, member.precision)
        self.configuration = member.configuration
        self.device = device
        layout = member.layouts.get(device.type, "channels_last")
        self.variant = Variant(member.precision, layout, None)
        self.nets = []
        for path in weights:
            net = build(self.configuration.network)
            load_weights(path, net)
            self.nets.append(self.variant.speaking(net.to(device).eval()))

    def rows(
        self,
        image: npt.NDArray[np.float32],
        info: Mapping[str, Any],
        *,
        apart: bool = False,
        copies: int = 1,
    ) -> Rows:
        """Mean logits (K, rows, Y, X) of a prepared image (C, Z, Y, X) on the scan's own grid.

        In plan axes, a few rows of axis 0 after another; with `apart` (F, K, rows, Y, X), each
        network's own. Voices that are asked for as many `copies` give the same rows at a time.
        """
        c = self.configuration
        labels = c.preparation.labels
        slabs = logit_slabs(
            self.nets, image, c.patch_vox, labels.outputs, c.predict, c.augmentation.mirror_axes,
            self.device, c.network.divisor, apart=apart,
        )  # fmt: skip
        return restored(
            slabs,
            image.shape[1:],
            [(int(a), int(b)) for a, b in info["box"]],
            info["arranged_shape"],
            info["target_mm"],
            info["spacing_mm"],
            rows=rows_at_once(labels.outputs * copies, info["arranged_shape"]),
            outside=certain_background(labels),
        )

    def classes(self, image: npt.NDArray[np.float32], info: Mapping[str, Any]) -> Classes:
        """What it alone says of a prepared image: class indices on the scan's own grid."""
        return joined(self.rows(image, info), info["arranged_shape"], self.labels)

    @property
    def labels(self) -> LabelSet:
        return self.configuration.preparation.labels


def joined(rows: Rows, shape: Sequence[int], labels: LabelSet) -> Classes:
    """Class indices (*shape) painted from logits that come a few rows after another."""
    found = np.zeros(tuple(shape), np.int16)
    for at, logits in rows:
        found[at] = painted(logits, labels, of="logits").numpy()
    return found


class Uncertainty:
    """Maps of how unsure a model is of a scan, in plan axes, and the one number of the case."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.entropy = np.zeros(tuple(shape), np.float32)
        self.variance = np.zeros(tuple(shape), np.float32)
        self.folds = 0
        self._score = Score()

    def add(self, rows: slice, mean: Tensor, each: Tensor, classes: Tensor, regional: bool) -> None:
        """Take in some rows: mean probabilities, each fold's, and what was painted."""
        here = entropy(mean, regional=regional)
        self.entropy[rows] = here.numpy()
        self.variance[rows] = fold_variance(each).numpy()
        self.folds = len(each)
        self._score.add(here, classes)

    @property
    def score(self) -> float:
        return self._score.value

    def maps(self) -> dict[str, npt.NDArray[np.float32]]:
        """What is worth keeping: one network alone does not disagree."""
        found = {"entropy": self.entropy}
        return found | {"variance": self.variance} if self.folds > 1 else found


@dataclass
class Extras:
    """What is kept besides the label map, and where: nothing, unless a path is given."""

    probabilities: Path | None = None
    uncertain: bool = False
    uncertainty: Uncertainty | None = field(default=None, init=False)
    """Filled in while a scan is segmented."""


class Segmenter:
    """A model, loaded once, that segments one scan after another."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        spec = model.spec
        self.labels = spec.labels
        self.voices = {
            member.title: Voice(member, [model.path(w) for w in member.weights], device)
            for member in spec.every_member()
        }

    def prepared(self, scan: Scan) -> Prepared:
        """The scan as the first member is shown it. Raises BadData if it cannot be used."""
        return scan.prepared(self.model.spec.members[0].configuration.preparation)

    def classes(self, scan: Scan, first: Prepared, extras: Extras | None = None) -> Classes:
        """Class indices of a scan on its own grid in plan axes, cleaned as the model says.

        `first` is what `prepared` gave.
        """
        extras = extras or Extras()
        spec = self.model.spec
        ready = {spec.members[0].configuration.preparation.key: first}
        with ExitStack() as pinned:
            for voice in self.voices.values():
                pinned.enter_context(voice.variant.pinned())
            rows = [self._rows(scan, member, ready, extras.uncertain) for member in spec.members]
            fields = [step for step in spec.postprocessing if isinstance(step, DenseCRF)]
            if len(rows) == 1 and not fields and extras == Extras():
                found = joined(rows[0], first.info["arranged_shape"], self.labels)
            else:
                found = self._weighed(rows, first, scan, fields, extras)
        steps = [step for step in spec.postprocessing if not isinstance(step, DenseCRF)]
        return cleaned(found, first.info["spacing_mm"], steps, self.labels)

    def _rows(self, scan: Scan, member: Member, ready: dict[str, Prepared], apart: bool) -> Rows:
        """A member's logits; a cascade first asks the stage that it refines."""
        made = self._ready(scan, member, ready)
        image = made.image
        before = member.configuration.previous
        if before is not None:
            stage = self.model.spec.stage(before.configuration)
            earlier = self._ready(scan, stage, ready)
            said = self.voices[stage.title].classes(earlier.image, earlier.info)
            preparation = member.configuration.preparation
            shown = prepare_previous(said, made.info, preparation)
            image = np.concatenate([image, one_hot(shown, self.labels.count)])
        folds = max(len(one.weights) for one in self.model.spec.members) if apart else 1
        return self.voices[member.title].rows(image, made.info, apart=apart, copies=folds)

    def _ready(self, scan: Scan, member: Member, ready: dict[str, Prepared]) -> Prepared:
        preparation = member.configuration.preparation
        if preparation.key not in ready:
            ready[preparation.key] = scan.prepared(preparation)
        return ready[preparation.key]

    def _weighed(
        self,
        rows: Sequence[Rows],
        first: Prepared,
        scan: Scan,
        fields: Sequence[DenseCRF],
        extras: Extras,
    ) -> Classes:
        """Class indices from the mean of the members' probabilities; extras are kept on the way."""
        found = np.zeros(tuple(first.info["arranged_shape"]), np.int16)
        chunks = self._means(rows, first, extras)
        if fields:
            image = standardised(scan.read(first.info["axes"]).array)
            chunks = refined_by(fields, chunks, image, first.info["spacing_mm"], self.labels)
        for at, mean in chunks:
            found[at] = painted(mean, self.labels, of="probabilities").numpy()
        return found

    def _means(self, rows: Sequence[Rows], first: Prepared, extras: Extras) -> Rows:
        """The mean probabilities (K, rows, Y, X), kept and weighed as the extras ask."""
        shape = tuple(first.info["arranged_shape"])
        regional = bool(self.labels.regions)
        if extras.uncertain:
            extras.uncertainty = Uncertainty(shape)
        with ExitStack() as open_files:
            kept = None
            if extras.probabilities is not None:
                kept = open_files.enter_context(
                    ProbabilityFile.writing(extras.probabilities, shape, first.info, self.labels)
                )
            for parts in zip(*rows, strict=True):
                at = parts[0][0]
                mean, each = self._mean([logits for _, logits in parts], extras.uncertain)
                if kept is not None:
                    kept.write(at, mean.numpy())
                if extras.uncertainty is not None and each is not None:
                    classes = painted(mean, self.labels, of="probabilities")
                    extras.uncertainty.add(at, mean, each, classes, regional)
                yield at, mean

    def _mean(self, logits: Sequence[Tensor], apart: bool) -> tuple[Tensor, Tensor | None]:
        """The mean probability (K, rows, Y, X) of the members, and each fold's (F, K, …)."""
        regional = bool(self.labels.regions)
        means = [probabilities(x.mean(0) if apart else x, regional=regional) for x in logits]
        each = torch.cat([probabilities(x, regional=regional) for x in logits]) if apart else None
        total = means[0]
        for other in means[1:]:
            total = total + other
        return total / len(means), each


def write_classes(path: Path, classes: Classes, labels: LabelSet, axes: str, grid: Grid) -> None:
    """Write class indices in plan axes as label values on the file's grid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, labels.to_values(classes), axes, grid)
