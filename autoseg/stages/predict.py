"""A model × scans → label maps, one scan a unit: what is done is skipped, a failure named.

`predict` segments files of a folder, and several processes may do so together; each takes the
scans that no other is at. `predict_validation` segments the held-out cases of a fold.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from autoseg.data.prepare import Prepared
from autoseg.data.previous import one_hot
from autoseg.data.store import StoredCase, StoredCases
from autoseg.documents.dataset import Case, suffix_of
from autoseg.documents.model import ModelSpec
from autoseg.documents.run import RunSpec
from autoseg.errors import AutosegError, BadData, Busy, Problem
from autoseg.files import (
    Lock,
    explaining,
    read_json,
    replacing,
    sha256_file,
    sha256_json,
    sweep,
    write_json,
)
from autoseg.image.reading import ending_for, read_header, write_image
from autoseg.image.volume import Grid
from autoseg.infer.meaning import painted, probabilities
from autoseg.models.members import Model, member_of
from autoseg.models.probabilities import ProbabilityFile, described_by
from autoseg.models.segment import (
    Classes,
    Extras,
    Segmenter,
    Uncertainty,
    Voice,
    joined,
    scan_of_case,
    write_classes,
)
from autoseg.stage import Stamp, read_stamp, standing
from autoseg.workspace import DatasetPlaces, Fold

log = logging.getLogger(__name__)

VERSION = 2
SPACING_FACTOR = 1.5
"""A spacing further than this factor outside the training range is told."""
RANGE_SHARE = 0.5
"""So is an intensity range that lies outside the training range by more than half its width."""


# ---- the held-out cases of a fold


def predict_validation(
    places: DatasetPlaces,
    fold: Fold,
    spec: RunSpec,
    *,
    device: torch.device,
    ending: str,
    keep_probabilities: bool = False,
    previous: Path | None = None,
) -> dict[str, Path]:
    """Label maps of the fold's held-out cases: case id -> file, predicted where it is not current.

    `previous` holds what a cascade refines. With `keep_probabilities` they are written, too, into
    `probabilities` beside the label maps.
    """
    member = member_of([fold], fold.folder)
    prepared = places.prepared(spec.configuration.preparation.key)
    labels = spec.configuration.preparation.labels
    written: dict[str, Path] = {}
    todo: list[tuple[str, Path, Path, Stamp]] = []
    sweep(fold.validation)
    for case in spec.validation_cases:
        path = fold.validation / f"{case}{ending}"
        kept = fold.validation / ".stamps" / f"{case}.json"
        source = read_stamp(prepared / case / "stamp.json")
        if source is None:
            raise AutosegError(f"case {case} is not prepared; run preprocess again")
        inputs = {"model": sha256_json(member.speaks), "case": source.digest}
        if previous is not None:
            inputs["previous"] = sha256_file(previous / f"{case}.npy")
        stamp = Stamp("validate", VERSION, inputs)
        written[case] = path
        complete = not keep_probabilities or described_by(fold.probabilities(case)).exists()
        if not path.exists() or standing(kept, stamp).state != "current" or not complete:
            todo.append((case, path, kept, stamp))
    if not todo:
        return written
    voice = Voice(member, [fold.weights], device)
    cases = StoredCases(prepared, [case for case, *_ in todo], previous=previous)
    bar = tqdm(todo, "validate", unit="case", disable=None)
    for number, (case, path, kept, stamp) in enumerate(bar):
        stored = cases[number]
        at = fold.probabilities(case) if keep_probabilities else None
        found = _held_out(voice, stored, at)
        grid = Grid.from_dict(dict(stored.info["grid"]))
        write_classes(path, found, labels, spec.configuration.preparation.axes, grid)
        stamp.write(kept)
    return written


def _held_out(voice: Voice, stored: StoredCase, keep_at: Path | None) -> Classes:
    """Class indices of a prepared case on its own grid; probabilities are kept where a path says."""
    labels, shape = voice.labels, tuple(stored.info["arranged_shape"])
    image = np.array(stored.image)
    if stored.previous is not None:
        image = np.concatenate([image, one_hot(stored.previous, labels.count)])
    with voice.variant.pinned():
        rows = voice.rows(image, stored.info)
        if keep_at is None:
            return joined(rows, shape, labels)
        found = np.zeros(shape, np.int16)
        with ProbabilityFile.writing(keep_at, shape, stored.info, labels) as file:
            for part, logits in rows:
                found[part] = painted(logits, labels, of="logits").numpy()
                file.write(part, probabilities(logits, regional=bool(labels.regions)).numpy())
    return found


# ---- what a scan must be like


def foreign(case: str, spec: ModelSpec, scan: Prepared) -> list[Problem]:
    """How a scan differs from the training set in spacing and intensity range; warnings."""
    problems = []
    if spec.dimensions == 3:
        for mm, (low, high) in zip(scan.info["spacing_mm"], spec.spacing_ranges_mm, strict=True):
            if not low / SPACING_FACTOR <= mm <= high * SPACING_FACTOR:
                problems.append(
                    Problem(
                        case,
                        "the spacing is outside the training range",
                        f"{mm:.3g} mm, the training cases had {low:.3g} to {high:.3g} mm",
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


# ---- a folder of scans


@dataclass(frozen=True)
class Keep:
    """What is kept beside the label maps."""

    probabilities: bool = False
    uncertainty: bool = False


@dataclass
class Predicted:
    """What came of a prediction."""

    written: list[Path] = field(default_factory=list)
    skipped: int = 0
    """Cases that were done already."""
    elsewhere: list[str] = field(default_factory=list)
    """Cases that another process is at."""
    uncertainty: dict[str, float] = field(default_factory=dict)
    """Case id -> its score, 0 (certain) to 1."""
    warnings: list[Problem] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        done = f", {self.skipped} were there already" if self.skipped else ""
        yield f"{len(self.written)} label maps written{done}"
        if self.elsewhere:
            yield f"{len(self.elsewhere)} are being made by another process"
        if self.uncertainty:
            yield "least certain: " + ", ".join(
                f"{case} {score:.3f}"
                for case, score in sorted(self.uncertainty.items(), key=lambda x: -x[1])[:5]
            )


def merged(parts: Sequence[Predicted], cases: Sequence[Case]) -> Predicted:
    """What came of a prediction whose cases several processes shared."""
    whole = Predicted()
    for part in parts:
        whole.written += part.written
        whole.uncertainty |= part.uncertainty
        whole.warnings += [w for w in part.warnings if w not in whole.warnings]
        whole.failed += [f for f in part.failed if f not in whole.failed]
    failed = {problem.case for problem in whole.failed}
    whole.skipped = len(cases) - len(whole.written) - len(failed)
    return whole


def predict(
    model: Model,
    cases: Sequence[Case],
    output: Path,
    *,
    device: torch.device,
    keep: Keep | None = None,
    strict: bool = False,
) -> Predicted:
    """Segment the scans into `output`; a scan that fails does not end the others.

    With `strict` a scan unlike the training set fails too. Raises AutosegError if the folder cannot
    be written to.
    """
    keep = keep or Keep()
    with explaining(output, "write to"):
        output.mkdir(parents=True, exist_ok=True)
    sweep(output)
    done = Predicted()
    work = _Work(model, output, device, keep, strict, done)
    for case in tqdm(cases, "predict", unit="case", disable=None):
        try:
            with Lock(output / ".autoseg" / f"{case.id}.lock", f"case {case.id}"):
                work.case(case)
        except Busy:
            done.elsewhere.append(case.id)
    if keep.uncertainty:
        _write_scores(output / "uncertainty")
    return done


@dataclass
class _Work:
    """One process' share of a prediction; the networks are loaded when the first scan needs them."""

    model: Model
    output: Path
    device: torch.device
    keep: Keep
    strict: bool
    done: Predicted
    segmenter: Segmenter | None = None

    def case(self, case: Case) -> None:
        """Segment one scan, unless that was done.

        What is wrong with the scan is noted; what is wrong with the model ends everything.
        """
        path = self.output / f"{case.id}{ending_for(suffix_of(case.images[0].name))}"
        kept = self.output / ".autoseg" / f"{case.id}.json"
        stamp: Stamp | None = None
        with self._noted(case):
            files = {p.name: sha256_file(p) for p in case.images}
            stamp = Stamp("predict", VERSION, {"model": self.model.spec.digest, **files})
            if self._complete(case.id, path) and standing(kept, stamp).state == "current":
                self.done.skipped += 1
                return
        if stamp is None:
            return
        if self.segmenter is None:
            self.segmenter = Segmenter(self.model, self.device)
        with self._noted(case):
            if self._segment(self.segmenter, case, path):
                stamp.write(kept)
                self.done.written.append(path)

    @contextmanager
    def _noted(self, case: Case) -> Iterator[None]:
        """Faults of a case are kept for the end, and do not end the others."""
        try:
            yield
        except BadData as error:
            self.done.failed += error.problems
        except AutosegError as error:
            self.done.failed.append(
                Problem(case.id, "a case could not be segmented", str(error), "mend or remove it")
            )

    def _segment(self, segmenter: Segmenter, case: Case, path: Path) -> bool:
        """Write the label map and what else is kept; False for a scan that is too unlike."""
        scan = scan_of_case(case)
        made = segmenter.prepared(scan)
        odd = foreign(case.id, self.model.spec, made)
        self.done.warnings += odd
        if self.strict and odd:
            self.done.failed += odd
            return False
        extras = Extras(
            self._probabilities(case.id) if self.keep.probabilities else None,
            self.keep.uncertainty,
        )
        classes = segmenter.classes(scan, made, extras)
        axes, grid = made.info["axes"], Grid.from_dict(dict(made.info["grid"]))
        if extras.uncertainty is not None:
            self._write_uncertainty(case.id, extras.uncertainty, axes, grid)
        write_classes(path, classes, self.model.spec.labels, axes, grid)
        return True

    def _probabilities(self, case: str) -> Path:
        return self.output / "probabilities" / f"{case}.npy"

    def _score(self, case: str) -> Path:
        return self.output / "uncertainty" / f"{case}.json"

    def _complete(self, case: str, path: Path) -> bool:
        """Whether all that is to be kept is there; a score that is there is told."""
        if self.keep.probabilities and not described_by(self._probabilities(case)).exists():
            return False
        if self.keep.uncertainty:
            if not self._score(case).exists():
                return False
            self.done.uncertainty[case] = float(read_json(self._score(case))["score"])
        return path.exists()

    def _write_uncertainty(self, case: str, found: Uncertainty, axes: str, grid: Grid) -> None:
        folder = self.output / "uncertainty"
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in found.maps().items():
            _write_map(folder / f"{case}_{name}.nii.gz", image, axes, grid)
        self.done.uncertainty[case] = found.score
        write_json(self._score(case), {"case": case, "score": found.score}, durable=False)


def _write_map(path: Path, image: npt.NDArray[np.float32], axes: str, grid: Grid) -> None:
    write_image(path, image[None], axes, grid)


def _write_scores(folder: Path) -> None:
    """One line a case, the least certain first: what a person should look at before the others."""
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    found.sort(key=lambda one: (-one["score"], one["case"]))
    text = "case,uncertainty\n" + "".join(f"{one['case']},{one['score']:.6f}\n" for one in found)
    with replacing(folder / "scores.csv", durable=False) as half:
        half.write_text(text, encoding="utf-8")
