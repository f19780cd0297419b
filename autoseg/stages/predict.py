"""A model × scans → label maps, one scan a unit: what is done is skipped, a failure named.

`predict` segments files of a folder, and several processes may do so together; each takes the
scans that no other is at. `predict_validation` segments the held-out cases of a fold.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from autoseg.data.prepare import bytes_needed
from autoseg.data.previous import one_hot
from autoseg.data.store import StoredCase, StoredCases
from autoseg.documents.dataset import Case, suffix_of
from autoseg.documents.run import RunSpec
from autoseg.errors import AutosegError, BadData, Busy, Problem, counted
from autoseg.files import (
    Lock,
    explaining,
    sha256_file,
    sha256_json,
    sweep,
    write_json,
)
from autoseg.image.reading import ending_for, write_image
from autoseg.image.tif_spacing import spacing_files
from autoseg.image.volume import Grid
from autoseg.infer.meaning import painted, probabilities
from autoseg.infer.resample import resampling_on
from autoseg.infer.together import FREE_IT, NoRoom, explained
from autoseg.models.members import Model, member_of
from autoseg.models.outputs import is_a_persons, kept_line, noting, score_in, write_scores
from autoseg.models.overlap import overlapped
from autoseg.models.probabilities import ProbabilityFile, described_by
from autoseg.models.scans import Ready, foreign, made_ready, scan_of_case
from autoseg.models.segment import (
    Classes,
    Extras,
    Segmenter,
    Shown,
    Uncertainty,
    Voice,
    write_classes,
)
from autoseg.pool import free_bytes
from autoseg.stage import Stamp, read_stamp, standing
from autoseg.timing import part
from autoseg.workspace import DatasetPlaces, Fold

log = logging.getLogger(__name__)

VERSION = 2
READ_AHEAD_SHARE = 0.4
"""A scan that needs more of the free memory is read when the one before is done."""


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
        try:
            found = _held_out(voice, stored, at)
        except NoRoom as error:
            raise NoRoom(f"case {case}: {error.what}") from None
        grid = Grid.from_dict(dict(stored.info["grid"]))
        write_classes(path, found, labels, spec.configuration.preparation.axes, grid)
        stamp.write(kept)
    return written


def _held_out(voice: Voice, stored: StoredCase, keep_at: Path | None) -> Classes:
    """Class indices of a prepared case on its own grid; probabilities are kept where a path says."""
    labels, shape = voice.labels, tuple(stored.info["arranged_shape"])
    image = stored.image.astype(np.float32)
    if stored.previous is not None:
        image = np.concatenate([image, one_hot(stored.previous, labels.count)])
    with voice.variant.pinned(), explained(voice.device):
        shown = Shown(image, stored.info)
        if keep_at is None:
            return voice.classes(shown)
        found = np.zeros(shape, np.int16)
        with ProbabilityFile.writing(keep_at, shape, stored.info, labels) as file:
            for at, rows in voice.rows(shown):
                logits = rows.cpu()
                found[at] = painted(logits, labels, of="logits").numpy()
                file.write(at, probabilities(logits, regional=bool(labels.regions)).numpy())
    return found


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
    """Label maps, one a scan."""
    results: list[Path] = field(default_factory=list)
    """The same in another form, which was asked for beside them."""
    skipped: int = 0
    """Cases that were done already."""
    elsewhere: list[str] = field(default_factory=list)
    """Cases that another process is at."""
    kept: list[Path] = field(default_factory=list)
    """Label maps that a person drew or corrected, left as they are."""
    uncertainty: dict[str, float] = field(default_factory=dict)
    """Case id -> its score, 0 (certain) to 1."""
    tiles: int = 0
    """How many there were, where air was to be skipped; `air_tiles` of them were."""
    air_tiles: int = 0
    warnings: list[Problem] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        done = f", {self.skipped} were there already" if self.skipped else ""
        yield f"{counted(len(self.written), 'label map')} written{done}"
        if self.results:
            names = ", ".join(path.name for path in self.results[:3])
            more = ", …" if len(self.results) > 3 else ""
            yield f"{len(self.results)} of them also written as DICOM: {names}{more}"
        if self.elsewhere:
            yield f"{len(self.elsewhere)} are being made by another process"
        if self.kept:
            yield kept_line(self.kept)
        if self.tiles:
            yield f"{self.air_tiles} of {self.tiles} tiles held only air and were skipped"
        if self.uncertainty:
            yield "least certain: " + ", ".join(
                f"{case} {score:.3f}"
                for case, score in sorted(self.uncertainty.items(), key=lambda x: -x[1])[:5]
            )


def merged(parts: Sequence[Predicted], cases: Sequence[Case]) -> Predicted:
    """What came of a prediction whose cases several processes shared."""
    whole = Predicted()
    for share in parts:
        whole.written += share.written
        whole.uncertainty |= share.uncertainty
        whole.tiles += share.tiles
        whole.air_tiles += share.air_tiles
        whole.warnings += [w for w in share.warnings if w not in whole.warnings]
        whole.failed += [f for f in share.failed if f not in whole.failed]
        whole.kept += [path for path in share.kept if path not in whole.kept]
    failed = {problem.case for problem in whole.failed}
    whole.skipped = len(cases) - len(whole.written) - len(failed) - len(whole.kept)
    return whole


def predict(
    model: Model,
    cases: Sequence[Case],
    output: Path,
    *,
    device: torch.device,
    keep: Keep | None = None,
    strict: bool = False,
    skip_air: bool = False,
    overwrite: bool = False,
) -> Predicted:
    """Segment the scans into `output`; a scan that fails does not end the others.

    While one is computed the next is read and the one before is written. With `strict` a scan unlike
    the training set fails too; with `skip_air` no network looks at tiles that hold but air. Label
    maps that a person drew or corrected are kept, unless `overwrite`. Raises AutosegError if the folder cannot be written to.
    """
    with explaining(output, "write to"):
        output.mkdir(parents=True, exist_ok=True)
    sweep(output)
    work = _Work(model, output, device, keep or Keep(), strict, skip_air, overwrite)
    done = Predicted()
    bar = tqdm(total=len(cases), desc="predict", unit="case", disable=None)
    with (
        bar,
        closing(
            overlapped(
                cases, work.opened, work.computed, work.written, drop=_Job.end, fits=work.fits
            )
        ) as jobs,
    ):
        for job in jobs:
            job.tell(done)
            bar.update()
    if work.keep.uncertainty:
        write_scores(output / "uncertainty")
    return done


@dataclass
class _Job:
    """One scan on its way, from when it is locked until it is written."""

    case: Case
    path: Path
    """Of the label map."""
    lock: ExitStack
    state: Literal["busy", "there", "kept", "failed", "read", "computed", "written"] = "failed"
    stamp: Stamp | None = None
    ready: Ready | None = None
    classes: Classes | None = None
    extras: Extras = field(default_factory=Extras)
    score: float | None = None
    warnings: list[Problem] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)

    def end(self) -> None:
        """Let others at the scan, and what was made of it go."""
        self.lock.close()
        self.ready, self.classes = None, None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Faults of a case are kept for the end, and do not end the others."""
        try:
            yield
        except BadData as error:
            self.state = "failed"
            self.failed += error.problems
        except NoRoom as error:
            self.state = "failed"
            self.failed.append(Problem(self.case.id, "too little memory", error.what, FREE_IT))
        except MemoryError:
            self.state = "failed"
            found = "the memory of this machine does not suffice for it"
            self.failed.append(Problem(self.case.id, "too little memory", found, FREE_IT))
        except AutosegError as error:
            self.state = "failed"
            fault, fix = "a case could not be segmented", "mend or remove it"
            self.failed.append(Problem(self.case.id, fault, str(error), fix))

    def tell(self, done: Predicted) -> None:
        """Add what came of it."""
        done.warnings += self.warnings
        done.failed += self.failed
        done.skipped += self.state == "there"
        done.tiles += sum(one.tiles for one in self.extras.skipped)
        done.air_tiles += sum(one.skipped for one in self.extras.skipped)
        if self.state == "busy":
            done.elsewhere.append(self.case.id)
        if self.state == "kept":
            done.kept.append(self.path)
        if self.state == "written":
            done.written.append(self.path)
        if self.score is not None and self.state in ("there", "written"):
            done.uncertainty[self.case.id] = self.score


@dataclass
class _Work:
    """One process' share of a prediction; the networks are loaded when the first scan needs them."""

    model: Model
    output: Path
    device: torch.device
    keep: Keep
    strict: bool
    skip_air: bool
    overwrite: bool
    segmenter: Segmenter | None = None

    def __post_init__(self) -> None:
        self.resample = resampling_on(self.device)

    def fits(self, case: Case) -> bool:
        """Whether a scan can be read while another one is computed."""
        members = self.model.spec.every_member()
        needed = sum(bytes_needed(case, m.configuration.preparation) for m in members)
        return needed < READ_AHEAD_SHARE * free_bytes()

    def opened(self, case: Case) -> _Job:
        """A scan locked, read and prepared, unless that was done; what is wrong is noted."""
        path = self.output / f"{case.id}{ending_for(suffix_of(case.images[0].name))}"
        job = _Job(case, path, ExitStack())
        try:
            job.lock.enter_context(Lock(self._kept(case, "lock"), f"case {case.id}"))
        except Busy:
            job.state = "busy"
            return job
        try:
            with job.noted():
                self._open(job)
        finally:
            if job.state != "read":
                job.end()
        return job

    def _open(self, job: _Job) -> None:
        case = job.case
        with part("hash"):
            read = [*case.images, *spacing_files(case.images)]
            files = {p.name: sha256_file(p) for p in read}
        # without options as it always was, so that what is done stays so
        options = {"skip_air": True} if self.skip_air else {}
        job.stamp = Stamp("predict", VERSION, {"model": self.model.digest, **files}, options)
        current = standing(self._kept(case), job.stamp).state == "current"
        if current and self._complete(job):
            job.state = "there"
            return
        if not self.overwrite and is_a_persons(job.path, self.output, case.id):
            job.state = "kept"
            return
        job.ready = made_ready(
            scan_of_case(case), self.model.spec, air=self.skip_air, resample=self.resample
        )
        unlike = foreign(case.id, self.model.spec, job.ready.first)
        job.warnings += [*job.ready.odd, *unlike]
        if self.strict and unlike:
            job.failed += unlike
            return
        job.state = "read"

    def computed(self, job: _Job) -> _Job:
        """The class indices of a scan that was read.

        What is wrong with the scan is noted; what is wrong with the model ends everything.
        """
        if job.state != "read" or job.ready is None:
            return job
        try:
            if self.segmenter is None:
                self.segmenter = Segmenter(self.model, self.device)
            if self.keep.probabilities:
                job.extras.probabilities = self._probabilities(job.case.id)
            job.extras.uncertain = self.keep.uncertainty
            with job.noted(), part("segment"):
                job.classes = self.segmenter.found(job.ready, job.extras)
                job.state = "computed"
        finally:
            if job.state != "computed":
                job.end()
        return job

    def written(self, job: _Job) -> _Job:
        """Clean and write the label map and what else is kept, the stamp last."""
        if job.state != "computed" or job.ready is None or job.classes is None:
            return job
        if self.segmenter is None:
            raise ValueError("nothing was computed")
        info = job.ready.first.info
        axes, grid = info["axes"], Grid.from_dict(dict(info["grid"]))
        try:
            with job.noted():
                if job.extras.uncertainty is not None:
                    self._write_uncertainty(job, job.extras.uncertainty, axes, grid)
                classes = self.segmenter.cleaned(job.classes, job.ready)
                note = noting(self.output, job.case.id)
                write_classes(job.path, classes, self.model.spec.labels, axes, grid, note)
                if job.stamp is not None:
                    job.stamp.write(self._kept(job.case))
                job.state = "written"
        finally:
            job.end()
        return job

    def _kept(self, case: Case, kind: str = "json") -> Path:
        return self.output / ".autoseg" / f"{case.id}.{kind}"

    def _probabilities(self, case: str) -> Path:
        return self.output / "probabilities" / f"{case}.npy"

    def _score(self, case: str) -> Path:
        return self.output / "uncertainty" / f"{case}.json"

    def _complete(self, job: _Job) -> bool:
        """Whether all that is to be kept is there; a score that is there is told."""
        case = job.case.id
        if self.keep.probabilities and not described_by(self._probabilities(case)).exists():
            return False
        if self.keep.uncertainty:
            job.score = score_in(self._score(case))
            if job.score is None:
                return False
        return job.path.exists()

    def _write_uncertainty(self, job: _Job, found: Uncertainty, axes: str, grid: Grid) -> None:
        case = job.case.id
        folder = self.output / "uncertainty"
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in found.maps().items():
            _write_map(folder / f"{case}_{name}.nii.gz", image, axes, grid)
        job.score = found.score
        write_json(self._score(case), {"case": case, "score": found.score}, durable=False)


def _write_map(path: Path, image: npt.NDArray[np.float32], axes: str, grid: Grid) -> None:
    write_image(path, image[None], axes, grid)
