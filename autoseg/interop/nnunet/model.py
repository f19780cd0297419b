"""A trained model of nnU-Net as one of ours: its document, and its weights as safetensors.

Nothing of it is run. Whatever of nnU-Net's pipeline cannot be done here is refused in one line.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoseg import __version__
from autoseg.documents.labels import LabelSet
from autoseg.documents.model import Member, ModelSpec, Weights
from autoseg.documents.networks.sentence import UNetSpec
from autoseg.documents.plan import Configuration
from autoseg.documents.postprocessing import EVERYTHING, KeepLargest, Step
from autoseg.errors import AutosegError, PlanError, nearest
from autoseg.files import explaining, sha256_file
from autoseg.interop.nnunet.checkpoint import Checkpoint, read_checkpoint, tensors_of
from autoseg.interop.nnunet.folder import (
    DATASET,
    FINAL,
    FINGERPRINT,
    PLANS,
    Trained,
    chosen_of,
    no_checkpoint,
    stage_of,
    trained_in,
)
from autoseg.interop.nnunet.network import foreign_names
from autoseg.interop.nnunet.pickle import Foreign, read_pickle
from autoseg.interop.nnunet.read import NNUNetPlans, read_object
from autoseg.learn.weights import write_tensors
from autoseg.nets.shapes import tensor_forms

log = logging.getLogger(__name__)

KEEPS_LARGEST = "remove_all_but_largest_component_from_segmentation"
PICKLE_LIMIT = 1 << 20
KINDS = {"F32": np.float32, "I64": np.int64}


@dataclass(frozen=True)
class Wanted:
    """What of nnU-Net's models is to be taken."""

    configurations: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    checkpoint: str = FINAL
    postprocessing: bool = True


def model_from(folder: Path, into: Path, name: str | None, wanted: Wanted) -> ModelSpec:
    """The model in a folder of nnU-Net, its weights written below `into`.

    Raises AutosegError for what is damaged, hostile, or cannot be done here.
    """
    found = trained_in(folder)
    chosen, cleaning = chosen_of(found, folder, wanted.configurations)
    read = [_Reading(one, wanted, into) for one in chosen]
    members = [one.member for one in read]
    stages: dict[str, Member] = {}
    for one in read:
        before = one.plans.previous(one.name)
        if before is not None and before not in stages:
            stages[before] = _Reading(stage_of(one.trained, before, found), wanted, into).member
    first = read[0]
    axes = {member.configuration.preparation.axes for member in (*members, *stages.values())}
    if len(axes) > 1:
        raise AutosegError(
            f"the models order their axes differently ({' and '.join(sorted(axes))}) and cannot speak "
            "together; import one of them with -c"
        )
    steps: tuple[Step, ...] = ()
    if cleaning is not None and wanted.postprocessing:
        steps = _steps(cleaning, first.plans.labels)
    _tell(cleaning, steps, wanted)
    return ModelSpec(
        name=name or first.plans.name,
        dataset=first.plans.name,
        dimensions=2 if first.plans.flat else 3,
        channels=first.plans.channels,
        labels=first.plans.labels,
        members=tuple(members),
        stages=tuple(stages.values()),
        postprocessing=steps,
        intensity_ranges=(None,) * len(first.plans.channels),
        spacing_ranges_mm=_spacings(first),
        version=f"{__version__}, imported from nnU-Net v2",
    )


def _tell(cleaning: Path | None, steps: Sequence[Step], wanted: Wanted) -> None:
    """Say what becomes of the postprocessing that nnU-Net would need another command for."""
    if cleaning is not None and not wanted.postprocessing:
        log.info("nnU-Net's postprocessing is left out (--raw)")
    for step in steps:
        log.info("taken from nnU-Net's postprocessing, done by `predict`: %s", step.phrase)


class _Reading:
    """One trained configuration while it is read."""

    def __init__(self, trained: Trained, wanted: Wanted, into: Path) -> None:
        self.trained, self.into = trained, into
        where = trained.folder / PLANS
        self.plans = NNUNetPlans(
            read_object(where), read_object(trained.folder / DATASET), str(where)
        )
        paths = _folds(trained, wanted)
        checkpoints = {fold: read_checkpoint(path) for fold, path in paths.items()}
        first = next(iter(checkpoints.values()))
        self.name = first.configuration or trained.configuration
        if not self.name:
            raise AutosegError(f"{first.path} does not say which configuration of its plans it is")
        self.checkpoints = checkpoints
        self.configuration = self.plans.configuration(self.name, first.mirror_axes)
        for checkpoint in checkpoints.values():
            if checkpoint.mirror_axes != first.mirror_axes:
                log.warning("%s was trained with other mirroring than %s, whose axes are used",
                            checkpoint.path, first.path)  # fmt: skip

    @property
    def member(self) -> Member:
        """It as a member of a model, its weights written."""
        trainer = next(iter(self.checkpoints.values())).trainer or self.trained.trainer
        return Member(
            name=self.name,
            plan=self.trained.plans,
            run=trainer,
            configuration=self.configuration,
            weights=tuple(self._written(fold, c) for fold, c in self.checkpoints.items()),
            precision="float16",  # nnU-Net trains and predicts so on a card, float32 on processors
        )

    def _written(self, fold: str, checkpoint: Checkpoint) -> Weights:
        name = f"weights/{len(list(self.into.rglob('*.safetensors')))}.safetensors"
        path = self.into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = weights_of(checkpoint, self.configuration)
        write_tensors(path, tensors, {"origin": "nnU-Net"})
        with explaining(path, "read"):
            size = path.stat().st_size
        return Weights(fold=fold, file=name, sha256=sha256_file(path), size=size)


def weights_of(checkpoint: Checkpoint, configuration: Configuration) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint under our names. Raises AutosegError if one lacks or differs."""
    spec = configuration.network
    if not isinstance(spec, UNetSpec):
        raise ValueError(f"{spec.preset} is no network of nnU-Net")
    forms, names = tensor_forms(spec), foreign_names(spec)
    found = {}
    with tensors_of(checkpoint) as tensors:
        numbers = sum(prod(forms[ours][1]) for ours, name in names.items() if _is_kept(name))
        if numbers > tensors.length:
            # weights that share numbers would fill the memory from a small file
            raise AutosegError(
                f"{checkpoint.path} has {tensors.length} bytes, the network of plans.json {numbers} "
                "weights; the checkpoint belongs to other plans"
            )
        for ours, theirs in names.items():
            kind, shape = forms[ours]
            read = tensors.read(theirs, shape)
            if read is None and _is_kept(theirs):
                raise AutosegError(
                    f"{checkpoint.path} lacks the weight {theirs}"
                    + nearest(theirs, list(checkpoint.weights)[:2000])
                    + "; the checkpoint belongs to another network than its plans"
                )
            # convolutions that were built without a bias add nothing
            array = np.zeros(shape, KINDS[kind]) if read is None else read.astype(KINDS[kind])
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise AutosegError(
                    f"{checkpoint.path}: {theirs} holds NaN or infinity; train it again"
                )
            found[ours] = torch.from_numpy(array)
    _refuse_left_over(checkpoint, set(names.values()))
    return found


def _is_kept(name: str) -> bool:
    """Whether a weight is always in a checkpoint: convolutions built without biases have none."""
    return not name.endswith(".bias")


def _refuse_left_over(checkpoint: Checkpoint, used: set[str]) -> None:
    """Raise AutosegError if a checkpoint has weights that its plans' network does not have."""
    for name in checkpoint.weights:
        plain = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
        if plain not in used and ".all_modules." not in plain:
            raise AutosegError(
                f"{checkpoint.path} holds the weight {name[:80]!r}, which the network of its plans "
                "does not have; a trainer of its own built another network"
            )


def _folds(trained: Trained, wanted: Wanted) -> dict[str, Path]:
    """The checkpoints to take. Raises AutosegError if a fold that is asked for is not there."""
    there = trained.folds(wanted.checkpoint)
    if not there:
        others = {p.name for p in trained.folder.glob("fold_*/*.pth")}
        raise AutosegError(f"{trained.folder} {no_checkpoint(wanted.checkpoint, others)}")
    if not wanted.folds:
        # a network that saw all cases is one of its own, as for nnU-Net
        return {f: p for f, p in there.items() if f != "all"} or there
    for fold in wanted.folds:
        if fold not in there:
            raise AutosegError(f"{trained.folder} has no fold {fold}; there is {', '.join(there)}")
    return {fold: there[fold] for fold in wanted.folds}


def _spacings(read: _Reading) -> tuple[tuple[float, float], ...]:
    """The spacings of the training set in our axes: of its fingerprint, else their median."""
    path = read.trained.folder / FINGERPRINT
    cases: Any = read_object(path).get("spacings") if path.is_file() else None
    if isinstance(cases, list) and cases:
        try:
            table = np.asarray(cases, np.float64)
        except (TypeError, ValueError):
            table = np.zeros(0)
        if table.ndim == 2 and table.shape[1] == 3 and np.isfinite(table).all() and table.min() > 0:
            columns = [table[:, axis] for axis in read.plans.order]
            return tuple((float(c.min()), float(c.max())) for c in columns)
    target = read.configuration.preparation.spacing_mm
    median = read.plans.median_mm or tuple(1.0 if mm is None else mm for mm in target)
    return tuple((mm, mm) for mm in median)


# ---- postprocessing


def _steps(path: Path, labels: LabelSet) -> tuple[Step, ...]:
    """The steps of nnU-Net's postprocessing; what is not known here is told and left out."""
    names, arguments = _said(path)
    steps: list[Step] = []
    for name, options in zip(names, arguments, strict=False):
        of = _structure(options.get("labels_or_regions"), labels)
        if not name.endswith(KEEPS_LARGEST) or of is None or options.get("background_label", 0):
            log.warning("a step of nnU-Net's postprocessing is left out: %s", name[:80])
            continue
        steps.append(KeepLargest(of=of))
    return tuple(steps)


def _said(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The functions and their arguments in a postprocessing file, JSON or a pickle."""
    names: Any
    if path.suffix == ".json":
        said = read_object(path)
        names, arguments = said.get("postprocessing_fns"), said.get("postprocessing_kwargs")
    else:
        with explaining(path, "read"):
            if path.stat().st_size > PICKLE_LIMIT:
                raise AutosegError(f"{path} is too long for a postprocessing file; leave it out")
            found = read_pickle(path.read_bytes(), str(path))
        pair = found if isinstance(found, tuple) and len(found) == 2 else ([], [])
        names = (
            [f.name for f in pair[0] if isinstance(f, Foreign)] if isinstance(pair[0], list) else []
        )
        arguments = pair[1]
    if not isinstance(names, list) or not isinstance(arguments, list):
        raise PlanError(f"{path} is no postprocessing of nnU-Net; leave it out with --raw")
    options = [dict(one) for one in arguments if isinstance(one, Mapping)]
    return [str(name) for name in names if isinstance(name, str)], options


def _structure(said: Any, labels: LabelSet) -> str | None:
    """The structure that a step is about; None where it is none that we have a name for."""
    every = said if isinstance(said, list) else [said]
    parts: Sequence[Any] = [
        v for one in every for v in (one if isinstance(one, (list, tuple)) else [one])
    ]
    if any(type(value) is not int for value in parts):
        return None
    values = set(parts)
    if values == set(labels.values[1:]):
        return EVERYTHING
    if labels.regions or len(values) != 1:
        return None
    return next((n for n, held in labels.structures.items() if set(held) == values), None)
