"""One scan, spoken about by a model: prepared, segmented slab by slab, put back on its own grid.

Folds of a configuration average their logits, configurations their probabilities. No array of all
classes and all voxels is held, unless a conditional random field is among the steps that follow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoseg.data.prepare import Prepared
from autoseg.data.previous import one_hot, prepare_previous
from autoseg.device import free_card_bytes, out_of_memory
from autoseg.documents.labels import LabelSet
from autoseg.documents.model import Member, Precision
from autoseg.documents.onnx import ENDING
from autoseg.documents.postprocessing import DenseCRF
from autoseg.image.cleaning import cleaned
from autoseg.image.reading import write_labels
from autoseg.image.volume import Grid
from autoseg.infer.air import Air, Skipped
from autoseg.infer.meaning import Slab, certain_background, painted, probabilities
from autoseg.infer.restore import Box, classes_on, restored, rows_at_once
from autoseg.infer.together import NoRoom, Speaker, Together, explained
from autoseg.infer.uncertainty import Score, entropy, fold_variance
from autoseg.infer.volume import logit_slabs
from autoseg.learn.variants import Variant
from autoseg.learn.weights import load_weights
from autoseg.models.members import Model
from autoseg.models.onnx import speakers
from autoseg.models.precision import precision_on
from autoseg.models.probabilities import ProbabilityFile
from autoseg.models.refine import refined_by, standardised
from autoseg.models.scans import Ready
from autoseg.nets.build import build
from autoseg.timing import part, pulled

Classes = npt.NDArray[np.int16]

ACTIVATIONS = 8
"""Full feature maps of the finest level that a forward pass holds at its peak, copies included."""


Rows = Iterator[tuple[slice, Tensor]]


class Shown(NamedTuple):
    """What networks are shown: a prepared image (C, Z, Y, X), and what preparing said of the scan."""

    image: npt.NDArray[np.float32]
    info: Mapping[str, Any]
    skipped: Skipped | None = None
    """Tiles that are known to be air."""


class Voice:
    """The networks of one member of a model, loaded once."""

    def __init__(
        self,
        member: Member,
        weights: Sequence[Path],
        device: torch.device,
        precision: Precision | None = None,
    ) -> None:
        """In the `precision` that is asked for, else the trained one where the device can."""
        self.configuration = member.configuration
        self.device = device
        layout = member.layouts.get(device.type, "channels_last")
        self.variant = Variant(precision_on(device, member, precision), layout, None)
        network = self.configuration.network
        self.together = Together(
            device, ACTIVATIONS * 4 * network.widths[0] * prod(self.configuration.patch_vox)
        )
        with part("load networks"):
            if weights[0].suffix == ENDING:
                self.nets = speakers(member, weights, device, precision)
            else:
                self.nets = self._speakers(weights)

    def _speakers(self, weights: Sequence[Path]) -> list[Speaker]:
        """The networks of all folds. Raises NoRoom where the device does not hold them."""
        try:
            return [self._speaker(path) for path in weights]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        free = free_card_bytes(self.device) / 2**30
        raise NoRoom(f"{self.device} has no room for {len(weights)} networks ({free:.2f} GiB free)")

    def _speaker(self, path: Path) -> Speaker:
        """The network whose weights are in a file, computed by torch."""
        net = build(self.configuration.network)
        load_weights(path, net)
        return self.variant.speaking(net.to(self.device).eval())

    def rows(self, shown: Shown, *, apart: bool = False, copies: int = 1) -> Rows:
        """Mean logits (K, rows, Y, X) of a prepared image (C, Z, Y, X) on the scan's own grid.

        In plan axes, a few rows of axis 0 after another; with `apart` (F, K, rows, Y, X), each
        network's own. Voices that are asked for as many `copies` give the same rows at a time.
        """
        size = rows_at_once(self.labels.outputs * copies, shown.info["arranged_shape"])
        return restored(
            self._slabs(shown, apart=apart),
            *self._grids(shown),
            rows=size,
            outside=certain_background(self.labels),
            separate_z_above=self.configuration.preparation.separate_z_above,
        )

    def classes(self, shown: Shown) -> Classes:
        """What it alone says of a prepared image: class indices on the scan's own grid."""
        slabs = self._slabs(shown)
        with part("restore and paint"):
            return classes_on(
                slabs,
                *self._grids(shown),
                labels=self.labels,
                separate_z_above=self.configuration.preparation.separate_z_above,
            )

    def _slabs(self, shown: Shown, *, apart: bool = False) -> Iterator[Slab]:
        """Mean logits of the prepared image, finished rows one after another."""
        c = self.configuration
        slabs = logit_slabs(
            self.nets, shown.image, c.patch_vox, self.labels.outputs, c.predict,
            c.augmentation.mirror_axes, self.device, c.network.divisor, apart=apart,
            together=self.together, skipped=shown.skipped,
        )  # fmt: skip
        return pulled("tiles", slabs)

    def _grids(
        self, shown: Shown
    ) -> tuple[Sequence[int], Box, Sequence[int], Sequence[float], Sequence[float]]:
        """The prepared grid and the scan's own, as `infer.restore` wants them."""
        info = shown.info
        box = [(int(a), int(b)) for a, b in info["box"]]
        spacings = info["target_mm"], info["spacing_mm"]
        return shown.image.shape[1:], box, info["arranged_shape"], *spacings

    def skipping(
        self, air: Air, image: npt.NDArray[np.float32], info: Mapping[str, Any]
    ) -> Skipped:
        """The tiles of a prepared image that need not be looked at."""
        channels = len(self.configuration.preparation.channels)
        return Skipped(air, image, info, channels, certain_background(self.labels))

    @property
    def labels(self) -> LabelSet:
        return self.configuration.preparation.labels


class Uncertainty:
    """Maps of how unsure a model is of a scan, in plan axes, and the one number of the case."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.entropy = np.zeros(tuple(shape), np.float32)
        self.variance = np.zeros(tuple(shape), np.float32)
        self.folds = 0
        self._score = Score()

    def add(self, rows: slice, members: Sequence[Tensor], classes: Tensor, regional: bool) -> None:
        """Take in some rows: each member's folds' probabilities (F, K, …), and what was painted.

        The entropy is that of the mean of probabilities. Label maps come from the mean of logits, as
        in nnU-Net, in which a fold that is very sure hides that another one contradicts it.
        """
        mixture = torch.stack([folds.mean(0) for folds in members]).mean(0)
        here = entropy(mixture, regional=regional)
        self.entropy[rows] = here.cpu().numpy()
        each = torch.cat(list(members))
        self.variance[rows] = fold_variance(each).cpu().numpy()
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
    skipped: list[Skipped] = field(default_factory=list, init=False)
    """Filled in while a scan is segmented; the latter has tiles where air was looked for."""

    @property
    def wanted(self) -> bool:
        return self.uncertain or self.probabilities is not None


class Segmenter:
    """A model, loaded once, that segments one scan after another."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model, self.device = model, device
        spec = model.spec
        self.labels = spec.labels
        self.voices = {
            member.title: Voice(
                member, [model.path(w) for w in member.weights], device, model.precision
            )
            for member in spec.every_member()
        }

    def classes(self, ready: Ready, extras: Extras | None = None) -> Classes:
        """Class indices of a scan on its own grid in plan axes, cleaned as the model says.

        Tiles of air are skipped where that was looked for.
        """
        return self.cleaned(self.found(ready, extras), ready)

    def found(self, ready: Ready, extras: Extras | None = None) -> Classes:
        """The same before it is cleaned, which needs no network."""
        extras = extras or Extras()
        spec = self.model.spec
        with ExitStack() as pinned, explained(self.device):
            for voice in self.voices.values():
                pinned.enter_context(voice.variant.pinned())
            fields = [step for step in spec.postprocessing if isinstance(step, DenseCRF)]
            if len(spec.members) == 1 and not fields and not extras.wanted:
                return self._alone(ready, spec.members[0], extras)
            return self._weighed(ready, fields, extras)

    def cleaned(self, found: Classes, ready: Ready) -> Classes:
        """Class indices after the model's postprocessing; may run beside a network."""
        steps = [s for s in self.model.spec.postprocessing if not isinstance(s, DenseCRF)]
        with part("postprocess"):
            return cleaned(found, ready.first.info["spacing_mm"], steps, self.labels)

    def _alone(self, ready: Ready, member: Member, extras: Extras) -> Classes:
        """What one member says by itself."""
        return self.voices[member.title].classes(self._shown(ready, member, extras))

    def _rows(self, ready: Ready, member: Member, extras: Extras) -> Rows:
        """A member's logits; with uncertainty each network's own."""
        folds = max(len(one.weights) for one in self.model.spec.members)
        return self.voices[member.title].rows(
            self._shown(ready, member, extras),
            apart=extras.uncertain,
            copies=folds if extras.uncertain else 1,
        )

    def _shown(self, ready: Ready, member: Member, extras: Extras) -> Shown:
        """What a member is shown; a cascade first asks the stage that it refines."""
        made = ready.of(member)
        image = made.image
        before = member.configuration.previous
        if before is not None:
            said = self._alone(ready, self.model.spec.stage(before.configuration), extras)
            shown = prepare_previous(said, made.info, member.configuration.preparation)
            image = np.concatenate([image, one_hot(shown, self.labels.count)])
        return Shown(image, made.info, self._skipped(ready, member, image, extras))

    def _skipped(
        self, ready: Ready, member: Member, image: npt.NDArray[np.float32], extras: Extras
    ) -> Skipped | None:
        """The tiles that a member need not look at; None where air was not looked for."""
        air = ready.air.get(member.configuration.preparation.axes)
        if air is None:
            return None
        made = self.voices[member.title].skipping(air, image, ready.of(member).info)
        extras.skipped.append(made)
        return made

    def _weighed(
        self,
        ready: Ready,
        fields: Sequence[DenseCRF],
        extras: Extras,
    ) -> Classes:
        """Class indices from the mean of the members' probabilities; extras are kept on the way."""
        first = ready.first
        found = np.zeros(tuple(first.info["arranged_shape"]), np.int16)
        rows = [self._rows(ready, member, extras) for member in self.model.spec.members]
        chunks = self._means(rows, first, extras)
        if fields:
            image = standardised(ready.scan.read(first.info["axes"])[0].array)
            chunks = ((at, mean.cpu()) for at, mean in chunks)
            chunks = refined_by(fields, chunks, image, first.info["spacing_mm"], self.labels)
        with part("restore and paint"):
            for at, mean in chunks:
                found[at] = painted(mean, self.labels, of="probabilities").cpu().numpy()
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
                    kept.write(at, mean.cpu().numpy())
                if extras.uncertainty is not None and each is not None:
                    classes = painted(mean, self.labels, of="probabilities")
                    extras.uncertainty.add(at, each, classes, regional)
                yield at, mean

    def _mean(
        self, logits: Sequence[Tensor], apart: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The mean probability (K, rows, Y, X) of the members, and of each its folds' (F, K, …).

        Where all logits lie; in main memory if that holds some of them, or the card has no room.
        """
        if len({x.device for x in logits}) == 1:
            try:
                return self._mean_there(logits, apart)
            except RuntimeError as error:
                if logits[0].device.type == "cpu" or not out_of_memory(error):
                    raise
        return self._mean_there([x.cpu() for x in logits], apart)

    def _mean_there(
        self, logits: Sequence[Tensor], apart: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        regional = bool(self.labels.regions)
        means = [probabilities(x.mean(0) if apart else x, regional=regional) for x in logits]
        each = tuple(probabilities(x, regional=regional) for x in logits) if apart else None
        total = means[0]
        for other in means[1:]:
            total = total + other
        return total / len(means), each


def write_classes(
    path: Path,
    classes: Classes,
    labels: LabelSet,
    axes: str,
    grid: Grid,
    noted: Callable[[Path], None] | None = None,
) -> None:
    """Write class indices in plan axes as label values on the file's grid; `noted` as in write_labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with part("write"):
        write_labels(path, labels.to_values(classes), axes, grid, noted)
