"""How everything of a dataset stands: looks at stamps, sizes and times, never at an image."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autoseg.documents.dataset import Dataset
from autoseg.documents.fingerprint import Fingerprint, MeasuredCase
from autoseg.documents.model import ModelSpec
from autoseg.documents.plan import Preparation, read_plan
from autoseg.documents.report import Report
from autoseg.documents.run import RunSpec, lines
from autoseg.errors import AutosegError
from autoseg.files import is_locked, read_json, sha256_json
from autoseg.stage import Stamp, differences, read_made, read_stamp
from autoseg.workspace import DatasetPlaces, Fold


@dataclass(frozen=True)
class Row:
    """One artefact: what it is, how it stands, why."""

    artefact: str
    state: str
    """missing, half done, done, stale or running."""
    why: str = ""


@dataclass(frozen=True)
class Status:
    """All rows of one dataset."""

    dataset: str
    rows: tuple[Row, ...]

    def lines(self) -> Iterator[str]:
        """The rows as aligned text."""
        yield self.dataset
        width = max(len(row.artefact) for row in self.rows)
        for row in self.rows:
            yield f"  {row.artefact:<{width}}  {row.state:<9}  {row.why}".rstrip()


def fingerprint_row(places: DatasetPlaces, dataset: Dataset) -> Row:
    """How many cases are measured as their files are now, by size and time."""
    states: Counter[str] = Counter()
    for case in dataset.cases:
        if case.label is not None:
            states[measured_state(places, dataset, case.id)] += 1
    text = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    if states["current"] == sum(states.values()) and places.fingerprint.exists():
        return Row("fingerprint", "done", f"{states['current']} cases")
    if states["current"] == 0 and not places.fingerprint.exists():
        return Row("fingerprint", "missing", text)
    return Row("fingerprint", "stale" if places.fingerprint.exists() else "half done", text)


def measured_state(places: DatasetPlaces, dataset: Dataset, case_id: str) -> str:
    """current, changed or new: one case's files against what was measured of them."""
    path = places.measured / f"{case_id}.json"
    if not path.exists():
        return "new"
    kept = MeasuredCase.parse(read_json(path), str(path))
    case = dataset.case(case_id)
    for file in (*case.images, *([case.label] if case.label else [])):
        inside = file.is_relative_to(dataset.folder)
        known = kept.files.get(str(file.relative_to(dataset.folder)) if inside else str(file))
        stat = file.stat()
        if known is None or (known.size, known.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            return "changed"
    same = (kept.label_values, kept.channels) == (dataset.labels.allowed, len(dataset.channels))
    return "current" if same else "changed"


def plan_rows(places: DatasetPlaces) -> Iterator[Row]:
    """Each plan: done, stale against the fingerprint, or edited by hand."""
    digest = None
    if places.fingerprint.exists():
        digest = sha256_json(Fingerprint.read(places.fingerprint).dump())
    for name in places.plan_names():
        title = f"plan {name}"
        try:
            read_plan(places.plan(name))
        except AutosegError as error:
            yield Row(title, "stale", str(error).replace("\n", " "))
            continue
        old = read_made(places.plan_stamp(name))
        if old is None or old[1] != sha256_json(read_json(places.plan(name))):
            yield Row(title, "done", "edited by hand, never overwritten")
        elif digest != old[0].inputs.get("fingerprint"):
            yield Row(title, "stale", "the fingerprint changed since")
        else:
            yield Row(title, "done")


def prepared_rows(places: DatasetPlaces) -> Iterator[Row]:
    """Each configuration of each plan: how many cases are prepared as it needs them."""
    if not places.fingerprint.exists():
        return
    digests = {c.case: c.digest for c in Fingerprint.read(places.fingerprint).cases}
    for name in places.plan_names():
        try:
            plan = read_plan(places.plan(name))
        except AutosegError:
            continue
        for configuration, spec in plan.configurations.items():
            yield _prepared_row(places, f"{configuration} ({name})", spec.preparation, digests)


def _prepared_row(
    places: DatasetPlaces, name: str, preparation: Preparation, digests: Mapping[str, str]
) -> Row:
    title = f"prepared cases of {name}"
    folder = places.prepared(preparation.key)
    states: Counter[str] = Counter()
    for case, digest in digests.items():
        old = read_stamp(folder / case / "stamp.json")
        if old is None:
            states["missing"] += 1
        else:
            states["done" if old.inputs["case"] == digest else "stale"] += 1
    text = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    if states["done"] == len(digests):
        return Row(title, "done", f"{len(digests)} cases")
    if states["stale"]:
        return Row(title, "stale", text)
    return Row(title, "half done" if states["done"] else "missing", text)


def fold_row(title: str, fold: Fold, wanted: Stamp | None, why: str) -> Row:
    """A fold: running, done, half done or stale against what it would be trained from now."""
    done, begun = read_stamp(fold.stamp), read_stamp(fold.begun)
    steps = [e for e in lines(fold.journal) if e["event"] == "saved"]
    at = f"step {steps[-1]['step']}" if steps else "no state saved yet"
    made = done or begun
    changes = differences(made, wanted) if made is not None and wanted is not None else []
    if is_locked(fold.lock):
        return Row(title, "running", at)
    if changes or why:
        return Row(title, "stale", "; ".join(changes[:3]) or why)
    return Row(title, "done" if done else "half done", at)


def validation_row(title: str, fold: Fold) -> Row:
    """A fold's validation: its mean Dice, or how many label maps there are."""
    report = fold.validation / "report.json"
    name = f"validation of {title}"
    if report.exists():
        score = Report.read(report).mean_dice
        newer = fold.weights.exists() and fold.weights.stat().st_mtime > report.stat().st_mtime
        text = "no label to score" if score is None else f"mean Dice {score:.4f}"
        return Row(name, "stale" if newer else "done", text)
    stamps = list((fold.validation / ".stamps").glob("*.json"))
    total = len(RunSpec.read(fold.run).validation_cases)
    return Row(name, "half done" if stamps else "missing", f"{len(stamps)} of {total} cases")


def choice_rows(folder: Path, title: str, results: Path) -> Iterator[Row]:
    """What find_best_configuration chose: done, or stale where folds were trained since."""
    path = folder / "model.json"
    if not path.exists():
        return
    try:
        spec = ModelSpec.read(path)
    except AutosegError as error:
        yield Row(title, "stale", str(error).splitlines()[0])
        return
    members = " + ".join(member.name for member in spec.members)
    score = spec.cross_validation.mean_dice if spec.cross_validation else None
    text = members if score is None else f"{members}, mean Dice {score:.4f}"
    made = path.stat().st_mtime
    for member in spec.every_member():
        for weights in member.weights:
            file = results / weights.file
            if not file.exists() or file.stat().st_mtime > made:
                yield Row(title, "stale", f"fold {weights.fold} of {member.name} changed since")
                return
    yield Row(title, "done", text)
