"""Everything from raw data to a package, in one order, within one time, resumable at any point."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoseg.documents.dataset import Dataset
from autoseg.documents.plan import Plan
from autoseg.documents.run import append_line, lines
from autoseg.errors import AutosegError
from autoseg.flow import make, shrink
from autoseg.flow.best import Best, best
from autoseg.flow.make import Job
from autoseg.flow.order import Artefact, Scope, ordered
from autoseg.flow.package import export
from autoseg.rules.decision import Decision
from autoseg.rules.shares import Trainings, fold_seconds, trainings_within
from autoseg.rules.work import total_told
from autoseg.stages.plan import Request
from autoseg.workspace import Fold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """What `run` left."""

    best: Best
    package: Path
    spent_s: float

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        yield from self.best.lines()
        yield f"package: {self.package}"
        yield f"{self.spent_s / 60:.1f} min in all"


class Ledger:
    """How much time was given and spent, over all the times that the command was begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = list(lines(path))
        self.mark = time.monotonic()

    @property
    def total_s(self) -> float | None:
        """The time given last, if any was."""
        given = [float(e["total_s"]) for e in self.entries if e["event"] == "time"]
        return given[-1] if given else None

    @property
    def configurations(self) -> tuple[str, ...]:
        """What was decided to be trained."""
        decided = [e["names"] for e in self.entries if e["event"] == "configurations"]
        return tuple(decided[-1]) if decided else ()

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that were decided to be trained; empty where those are all, or nothing was."""
        decided = [e.get("folds", []) for e in self.entries if e["event"] == "configurations"]
        return tuple(decided[-1]) if decided else ()

    def smaller(self, configuration: str) -> dict[str, Any]:
        """The settings that a configuration was given where it did not fit into memory."""
        noted = [e for e in self.entries if e["event"] == "smaller"]
        found: dict[str, Any] = {}
        for entry in noted:
            if entry["configuration"] == configuration:
                found |= entry["settings"]
        return found

    def noted_s(self, title: str | None = None) -> float:
        """The seconds noted, of one artefact or of all."""
        return sum(
            float(e["seconds"])
            for e in self.entries
            if e["event"] == "spent" and title in (None, e["artefact"])
        )

    @property
    def spent_s(self) -> float:
        """Seconds of earlier calls and of this one until now."""
        return self.noted_s() + time.monotonic() - self.mark

    def note(self, **entry: object) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.path, dict(entry))
        self.entries.append(dict(entry))

    @contextmanager
    def timing(self, title: str) -> Iterator[None]:
        """Note what passed since the last note when the block ends, or is interrupted."""
        try:
            yield
        finally:
            now = time.monotonic()
            seconds, self.mark = now - self.mark, now
            self.note(event="spent", artefact=title, seconds=round(seconds, 2))


def ledger_of(job: Job) -> Ledger:
    """The ledger of a plan's run."""
    return Ledger(job.places.final(job.plan, job.run) / "run.jsonl")


def scope_of(job: Job, dataset: Dataset, made: Plan, configurations: Sequence[str]) -> Scope:
    """The configurations asked for, with the stages that cascades refine, and all folds."""
    for name in configurations:
        made.configuration(name)
    wanted = [name for name in made.configurations if name in configurations]
    return Scope(made, tuple(wanted), make.folds_of(job, dataset))


def is_done(job: Job, what: Artefact) -> bool:
    """Whether an artefact is there, from its last file alone; nothing is compared."""
    if what.kind == "final":
        return (job.places.final(job.plan, job.run) / "stamp.json").exists()
    if what.kind == "fold":
        return _place(job, what).stamp.exists()
    return what.kind == "validation" and (_place(job, what).validation / "report.json").exists()


def own_seconds(job: Job, what: Artefact) -> float:
    """What a fold's training has taken so far, as it noted itself."""
    saved = [float(e["spent_s"]) for e in lines(_place(job, what).journal) if e["event"] == "saved"]
    return max(saved, default=0.0)


def _place(job: Job, what: Artefact) -> Fold:
    return job.places.fold(job.plan, what.configuration, job.run, what.fold)


def progress(job: Job, dataset: Dataset, made: Plan) -> str:
    """How far the run of a plan is and about how long it will take, in words; empty if none began.

    By the time given, else by what the trainings took that are done.
    """
    ledger = ledger_of(job)
    if not ledger.entries:
        return ""
    job = replace(job, folds=ledger.folds)
    scope = scope_of(job, dataset, made, ledger.configurations or tuple(made.configurations))
    order = ordered(Artefact("final"), scope)
    counted = [a for a in order if a.kind in ("fold", "validation", "final")]
    left = [a for a in counted if not is_done(job, a)]
    text = f"{len(counted) - len(left)} of {len(counted)} steps done"
    if not left:
        return text
    text += f", next {left[0].title}"
    folds = [a for a in left if a.kind == "fold"]
    took = [own_seconds(job, a) for a in counted if a.kind == "fold" and a not in folds]
    begun = sum(own_seconds(job, a) for a in folds)
    if ledger.total_s is not None:
        seconds = ledger.total_s - ledger.noted_s() - begun
        return f"{text}, {max(seconds, 0) / 60:.0f} of {ledger.total_s / 60:.0f} min left"
    if took:
        seconds = len(folds) * sum(took) / len(took) - begun
        return f"{text}, about {max(seconds, 0) / 60:.0f} min left"
    return text


def run(
    job: Job,
    *,
    configurations: Sequence[str] = (),
    request: Request | None = None,
    total_s: float | None = None,
    output: Path | None = None,
    crf: bool = False,
) -> Finished:
    """Everything that a package needs, made where it is not current; what is done is skipped.

    `total_s` is shared out over the trainings, those of earlier, interrupted calls included; of a
    call that was killed the time is known up to its last finished step or saved state.
    """
    ledger = ledger_of(job)
    if total_s is not None and total_s != ledger.total_s:
        ledger.note(event="time", total_s=total_s)
    with ledger.timing("fingerprint and plan"):
        dataset, made, names = _planned(job, ledger, configurations, request)
    job = replace(job, folds=ledger.folds)
    order = ordered(Artefact("package"), scope_of(job, dataset, made, names))
    file = output or job.places.results / f"{dataset.name}.autoseg"
    chosen: Best | None = None
    for what in order:
        one = replace(job, configuration=what.configuration, fold=what.fold or "0")
        with ledger.timing(what.title):
            if what.kind == "prepared":
                make.prepared(job, (what.configuration,))
            elif what.kind == "fold":
                _train(one, what, order, ledger)
            elif what.kind == "validation":
                make.validation(one, dataset)
            elif what.kind == "final":
                chosen = best(job, dataset, made, names, crf=crf)
            elif what.kind == "package":
                export(job, file, overwrite=True)
    if chosen is None:
        raise AutosegError(f"{job.places.name}: nothing was chosen")
    return Finished(chosen, file, ledger.spent_s)


def _planned(
    job: Job, ledger: Ledger, configurations: Sequence[str], request: Request | None
) -> tuple[Dataset, Plan, tuple[str, ...]]:
    """The dataset, its plan, and the configurations that are trained, noted with their folds.

    A plan that is made within a time is made for what one training of it gets: first as if there
    were one configuration, and again where more, or fewer folds, are trained.
    """
    dataset, _ = make.fingerprint(job)
    folds = len(make.splits_of(job, dataset))
    new = ledger.total_s is not None and not job.places.plan(job.plan).exists()
    asked = request or Request()
    if new:
        request = replace(asked, minutes=_each_s(ledger, folds) / 60)
    dataset, _, made = make.plan(job, request)
    if ledger.configurations and (ledger.folds or not configurations):
        return dataset, made, tuple(configurations) or ledger.configurations
    if ledger.total_s is not None and made.train_minutes is None:
        log.info("plan %s was made without a time and is kept: its schedule is shortened", job.plan)
    found = _decided(ledger, made, configurations, folds)
    if new and found.value.count != folds:
        minutes = _each_s(ledger, found.value.count) / 60
        dataset, _, made = make.plan(job, replace(asked, minutes=minutes))
        left = tuple(name for name in found.value.names if name in made.configurations)
        found = replace(found, value=replace(found.value, names=left))
    names = found.value.names
    log.info("training %s: %s", ", ".join(names), found.why)
    if ledger.total_s is None and (told := total_told(made, names, folds)):
        log.info("%s", told)
    trained = [] if found.value.folds == folds else [str(i) for i in range(found.value.folds)]
    if trained or not configurations:
        noted = {"names": list(names), "why": found.why}
        ledger.note(event="configurations", **noted, **({"folds": trained} if trained else {}))
    return dataset, made, names


def _each_s(ledger: Ledger, trainings: int) -> float:
    """Seconds of each of so many trainings."""
    assert ledger.total_s is not None
    return fold_seconds(ledger.total_s, ledger.spent_s, trainings)


def _decided(
    ledger: Ledger, made: Plan, configurations: Sequence[str], folds: int
) -> Decision[Trainings]:
    """What is trained, as the time allows; on a card by the seconds of the plan's steps as well."""
    step_s = {}
    if made.gpu_memory_gb is not None:
        step_s = {n: c.cost.step_s for n, c in made.configurations.items() if c.cost is not None}
    names = configurations or tuple(made.configurations)
    for name in names:
        made.configuration(name)
    if set(step_s) < set(names):
        step_s = {}
    return trainings_within(
        names, ledger.total_s, folds, step_s, chosen=bool(configurations), spent_s=ledger.spent_s
    )


def _train(job: Job, what: Artefact, order: Sequence[Artefact], ledger: Ledger) -> None:
    """A fold within its share of the time, with what fits into memory."""

    def note(settings: Mapping[str, Any], told: Mapping[str, str]) -> None:
        ledger.note(
            event="smaller", configuration=what.configuration, fold=what.fold,
            settings=dict(settings), **told,
        )  # fmt: skip

    shrink.within_run(
        job, ledger.smaller(what.configuration), note,
        time_s=_share(job, what, order, ledger), began=time.monotonic(),
    )  # fmt: skip


def _share(job: Job, what: Artefact, order: Sequence[Artefact], ledger: Ledger) -> float | None:
    """Seconds that a training may take in all, an interrupted part of it included."""
    if ledger.total_s is None or is_done(job, what):
        return None
    own = own_seconds(job, what)
    lost = own - ledger.noted_s(what.title)
    if lost > 0:
        ledger.note(event="spent", artefact=what.title, seconds=round(lost, 2))
    left = [a for a in order if a.kind == "fold" and not is_done(job, a)]
    return own + fold_seconds(ledger.total_s, ledger.spent_s, len(left))
