"""Trained folds × scans → label maps, one scan a unit: what is done is skipped, a failure named.

`predict` segments files of a folder, `predict_validation` the held-out cases of a fold.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from autoseg.data.prepare import Prepared, prepare
from autoseg.data.store import open_case
from autoseg.documents.dataset import Case, suffix_of
from autoseg.documents.plan import Configuration
from autoseg.documents.run import RunSpec, lines
from autoseg.errors import AutosegError, Problem
from autoseg.files import Lock, explaining, sha256_file, sha256_json, sweep
from autoseg.image.reading import ending_for, read_header, write_labels
from autoseg.image.volume import Grid
from autoseg.infer.restore import restore_labels
from autoseg.infer.volume import predict_logits
from autoseg.learn.variants import Variant
from autoseg.learn.weights import load_weights
from autoseg.nets.build import build
from autoseg.stage import Stamp, read_stamp, standing
from autoseg.workspace import DatasetPlaces, Fold

log = logging.getLogger(__name__)

VERSION = 1
SPACING_FACTOR = 1.5
"""A spacing further than this factor outside the training range is told."""
RANGE_SHARE = 0.5
"""So is an intensity range that lies outside the training range by more than half its width."""


@dataclass(frozen=True)
class Model:
    """The trained folds that speak together; all of one configuration."""

    spec: RunSpec
    folds: tuple[Fold, ...]

    @property
    def digest(self) -> str:
        """What identifies the weights and how they are used."""
        predict = self.spec.configuration.predict.dump()
        return sha256_json([predict, *(sha256_file(f.weights) for f in self.folds)])


def open_model(folds: Sequence[Fold]) -> Model:
    """The model of trained folds. Raises AutosegError if one is damaged or they differ."""
    specs = [RunSpec.read(fold.run) for fold in folds]
    for spec, fold in zip(specs, folds, strict=True):
        if not fold.weights.exists():
            raise AutosegError(f"{fold.folder} holds no trained weights; train this fold first")
        if spec.configuration.network != specs[0].configuration.network or (
            spec.configuration.preparation != specs[0].configuration.preparation
        ):
            raise AutosegError(
                f"fold {spec.fold} was trained with another network or preparation than fold "
                f"{specs[0].fold}; predict with --fold {specs[0].fold} alone, or train it again"
            )
    return Model(specs[0], tuple(folds))


class Speaker:
    """The networks of a model, loaded once, that turn prepared images into logits."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self.configuration: Configuration = model.spec.configuration
        self.device = device
        self.variant = variant_of(model.folds[0], device)
        self.nets = []
        for fold in model.folds:
            net = build(self.configuration.network)
            load_weights(fold.weights, net)
            self.nets.append(self.variant.speaking(net.to(device).eval()))

    def logits(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Mean logits (K, Z, Y, X) of a prepared image (C, Z, Y, X)."""
        with self.variant.pinned():
            return predict_logits(
                self.nets,
                image,
                self.configuration.patch_vox,
                self.configuration.network.classes,
                self.configuration.predict,
                self.configuration.augmentation.mirror_axes,
                self.device,
                self.configuration.network.divisor,
            )

    def labels(
        self, image: npt.NDArray[np.float32], info: Mapping[str, Any]
    ) -> npt.NDArray[np.int16]:
        """Class indices on the scan's own grid, in plan axes."""
        with self.variant.pinned():
            return restore_labels(
                self.logits(image),
                [(int(a), int(b)) for a, b in info["box"]],
                info["arranged_shape"],
                info["target_mm"],
                info["spacing_mm"],
            )


def variant_of(fold: Fold, device: torch.device) -> Variant:
    """float32, in the layout that was fastest in training where it was measured on such a device."""
    for entry in lines(fold.journal):
        if entry["event"] == "variant" and entry["device"].split(":")[0] == device.type:
            return Variant("float32", entry["layout"], None)
    return Variant("float32", "channels_last", None)


def _write(
    path: Path, speaker: Speaker, image: npt.NDArray[np.float32], info: Mapping[str, Any]
) -> None:
    preparation = speaker.configuration.preparation
    values = preparation.labels.to_values(speaker.labels(image, info))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, values, preparation.axes, Grid.from_dict(dict(info["grid"])))


def predict_validation(
    places: DatasetPlaces, fold: Fold, spec: RunSpec, *, device: torch.device, ending: str
) -> dict[str, Path]:
    """Label maps of the fold's held-out cases: case id -> file, predicted where it is not current."""
    model = open_model([fold])
    digest = model.digest
    prepared = places.prepared(spec.configuration.preparation.key)
    written: dict[str, Path] = {}
    todo: list[tuple[str, Path, Path, Stamp]] = []
    sweep(fold.validation)
    for case in spec.validation_cases:
        path = fold.validation / f"{case}{ending}"
        kept = fold.validation / ".stamps" / f"{case}.json"
        source = read_stamp(prepared / case / "stamp.json")
        if source is None:
            raise AutosegError(f"case {case} is not prepared; run preprocess again")
        stamp = Stamp("validate", VERSION, {"model": digest, "case": source.digest})
        written[case] = path
        if not path.exists() or standing(kept, stamp).state != "current":
            todo.append((case, path, kept, stamp))
    if todo:
        speaker = Speaker(model, device)
        for case, path, kept, stamp in tqdm(todo, "validate", unit="case", disable=None):
            stored = open_case(prepared / case)
            _write(path, speaker, np.array(stored.image), stored.info)
            stamp.write(kept)
    return written


def foreign(
    case: Case, spec: RunSpec, prepared: Prepared, low_high: Sequence[Any]
) -> list[Problem]:
    """How a scan differs from the training set in spacing and intensity range; warnings."""
    problems = []
    own = prepared.info["spacing_mm"]
    if spec.dimensions == 3:
        for mm, (low, high) in zip(own, spec.spacing_ranges_mm, strict=True):
            if not low / SPACING_FACTOR <= mm <= high * SPACING_FACTOR:
                problems.append(
                    Problem(
                        case.id,
                        "the spacing is outside the training range",
                        f"{mm:.3g} mm, the training cases had {low:.3g} to {high:.3g} mm",
                        "check the header; the result may be poor",
                        fatal=False,
                    )
                )
    for index, (known, (low, high)) in enumerate(zip(spec.intensity_ranges, low_high, strict=True)):
        if known is None:
            continue
        width = max(known[1] - known[0], 1e-6)
        if low < known[0] - RANGE_SHARE * width or high > known[1] + RANGE_SHARE * width:
            problems.append(
                Problem(
                    case.id,
                    "the intensities are outside the training range",
                    f"{spec.channels[index]} runs from {low:.5g} to {high:.5g}, in training from "
                    f"{known[0]:.5g} to {known[1]:.5g}",
                    "check the modality and the units; the result may be poor",
                    fatal=False,
                )
            )
    return problems


def check_inputs(cases: Sequence[Case], spec: RunSpec) -> list[Problem]:
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
                    f"give one file for each channel, {case.id}_0000 to "
                    f"{case.id}_{len(spec.channels) - 1:04d}",
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


@dataclass(frozen=True)
class Predicted:
    """What came of a prediction."""

    written: tuple[Path, ...]
    skipped: int
    """Cases that were done already."""
    warnings: tuple[Problem, ...]
    failed: tuple[Problem, ...]

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        done = f", {self.skipped} were there already" if self.skipped else ""
        yield f"{len(self.written)} label maps written{done}"


def predict(
    model: Model, cases: Sequence[Case], output: Path, *, device: torch.device, strict: bool = False
) -> Predicted:
    """Segment the scans into `output`; a scan that fails does not end the others.

    With `strict` a scan unlike the training set fails too. Raises BadData or AutosegError before
    any work if the inputs cannot fit the model.
    """
    with explaining(output, "write to"):
        output.mkdir(parents=True, exist_ok=True)
    sweep(output)
    digest = model.digest
    speaker: Speaker | None = None
    written, warnings, failed, skipped = [], [], [], 0
    with Lock(output / ".autoseg" / "lock", f"the output folder {output}"):
        for case in tqdm(cases, "predict", unit="case", disable=None):
            path = output / f"{case.id}{ending_for(suffix_of(case.images[0].name))}"
            kept = output / ".autoseg" / f"{case.id}.json"
            files = {p.name: sha256_file(p) for p in case.images}
            stamp = Stamp("predict", VERSION, {"model": digest, **files})
            if path.exists() and standing(kept, stamp).state == "current":
                skipped += 1
                continue
            speaker = speaker or Speaker(model, device)
            try:
                made = prepare(
                    Case(case.id, case.images, None), model.spec.configuration.preparation
                )
                odd = foreign(case, model.spec, made, made.info["intensity_ranges"])
                warnings += odd
                if strict and odd:
                    failed += odd
                    continue
                _write(path, speaker, made.image, made.info)
            except AutosegError as error:
                failed.append(
                    Problem(
                        case.id, "a case could not be segmented", str(error), "mend or remove it"
                    )
                )
                continue
            stamp.write(kept)
            written.append(path)
    return Predicted(tuple(written), skipped, tuple(warnings), tuple(failed))
