"""Which model speaks: a package, what was chosen from the folds, or the best of what is trained."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.documents.model import ModelSpec
from autoseg.documents.onnx import check_manifest, is_onnx
from autoseg.documents.report import Report
from autoseg.documents.run import RunSpec
from autoseg.errors import AutosegError, nearest
from autoseg.files import sha256_file
from autoseg.interop.nnunet.folder import is_foreign
from autoseg.workspace import DatasetPlaces, Fold, Workspace

if TYPE_CHECKING:
    from autoseg.models.members import Model

log = logging.getLogger(__name__)
ALL = "fold_all"


@dataclass(frozen=True)
class Wish:
    """What a person said about the model; empty or None: not said."""

    dataset: str | None = None
    configurations: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    plan: str | None = None
    run: str | None = None

    @property
    def by_hand(self) -> bool:
        """Whether the members are named, rather than left to what was chosen before."""
        return bool(self.configurations)


def trained_folds(places: DatasetPlaces) -> list[Fold]:
    """Every fold of the dataset that has weights, in the order of its path."""
    found = places.results.glob("*/*/*/fold_*/weights.safetensors")
    return [Fold(path.parent) for path in sorted(found)]


Key = tuple[str, str, str]
"""Plan, configuration, run."""


def groups_of(places: DatasetPlaces) -> dict[Key, list[Fold]]:
    """The trained folds of each plan, configuration and run; what cannot be read is told, and left out.

    Raises AutosegError where nothing else is there.
    """
    groups: dict[Key, list[Fold]] = {}
    unreadable: list[AutosegError] = []
    for one in trained_folds(places):
        try:
            RunSpec.read(one.run)
        except AutosegError as error:
            unreadable.append(error)
            continue
        key = (one.folder.parts[-4], one.folder.parts[-3], one.folder.parts[-2])
        groups.setdefault(key, []).append(one)
    if unreadable and not groups:
        raise unreadable[0]
    for one_error in unreadable:
        log.warning("left out: %s", " ".join(str(one_error).split()))
    return groups


def places_of(workspace: Workspace, dataset: str | None) -> DatasetPlaces:
    """The dataset asked for, or the one that has models. Raises AutosegError listing them."""
    if dataset is not None:
        return workspace.dataset(dataset)
    names = [n for n in workspace.datasets() if trained_folds(workspace.places(n))]
    if not names:
        raise AutosegError(
            f"there is no trained model in {workspace.results}; train one, choose --root, or give a "
            "package with --model"
        )
    if len(names) > 1:
        raise AutosegError(f"several datasets have models; choose one with -d: {', '.join(names)}")
    log.info("using the models of %s", names[0])
    return workspace.places(names[0])


def choose_model(workspace: Workspace, wish: Wish) -> "Model":
    """The trained folds to predict with: as asked for, as chosen on the cross-validation, or the
    configuration with the best validation Dice.

    Raises AutosegError listing what there is if the choice is not clear.
    """
    places = places_of(workspace, wish.dataset)
    groups = groups_of(places)
    if not groups:
        raise AutosegError(f"{places.name} has no trained fold; run `autoseg train` first")
    if not wish.by_hand:
        chosen = chosen_model(places, wish)
        if chosen is not None:
            from autoseg.models.members import narrowed

            log.info("using the choice of find_best_configuration: %s", chosen.title)
            return narrowed(chosen, folds=wish.folds)
    return by_hand(places, groups, wish)


def by_hand(places: DatasetPlaces, groups: dict[Key, list[Fold]], wish: Wish) -> "Model":
    """The model of the named configurations, or of the one best validated."""
    fitting = {
        key: folds
        for key, folds in groups.items()
        if wish.plan in (None, key[0]) and wish.run in (None, key[2])
        and (not wish.configurations or key[1] in wish.configurations)
    }  # fmt: skip
    there = "; ".join("plan {} configuration {} run {}".format(*key) for key in groups)
    if not fitting:
        raise AutosegError(f"no trained model of {places.name} is that; there is: {there}")
    if not wish.configurations:
        key = best_validated(fitting)
        if len(fitting) > 1:
            log.info("using plan %s, configuration %s, run %s: its validation Dice is the best",
                     *key)  # fmt: skip
        return model_from(places, groups, [key], wish.folds)
    keys = []
    for name in dict.fromkeys(wish.configurations):
        known = [key for key in fitting if key[1] == name]
        if not known:
            raise AutosegError(
                f"{places.name} has no trained {name}"
                + nearest(name, [key[1] for key in groups])
                + f"; there is: {there}"
            )
        keys.append(best_validated({key: fitting[key] for key in known}))
    return model_from(places, groups, keys, wish.folds)


def model_from(
    places: DatasetPlaces,
    groups: dict[Key, list[Fold]],
    keys: Sequence[Key],
    folds: Sequence[str] = (),
) -> "Model":
    """The model of some groups of folds, with the earlier stages that cascades among them need."""
    from autoseg.models.members import model_of

    members = [_folds(key, groups[key], folds) for key in keys]
    stages = []
    for key, chosen in zip(keys, members, strict=True):
        before = RunSpec.read(chosen[0].run).configuration.previous
        if before is None:
            continue
        stage = (key[0], before.configuration, key[2])
        if stage not in groups:
            raise AutosegError(
                f"{key[1]} refines {before.configuration} of plan {key[0]}, run {key[2]}, which is "
                "not trained any more; train it again"
            )
        found = _folds(stage, groups[stage], ())
        if found not in stages:
            stages.append(found)
    name = "_".join([places.name.partition("_")[2], *(key[1] for key in keys)])
    return model_of(places.results, members, stages, name=name)


def _folds(key: Key, there: Sequence[Fold], wanted: Sequence[str]) -> list[Fold]:
    if wanted:
        ready = {f.folder.name.removeprefix("fold_"): f for f in there}
        for asked in wanted:
            if asked not in ready:
                raise AutosegError(
                    f"fold {asked} of {'/'.join(key)} is not trained; there is {', '.join(ready)}"
                )
        return [ready[asked] for asked in wanted]
    # a network that saw all cases cannot be compared by its own validation: folds go first
    return [f for f in there if f.folder.name != ALL] or list(there)


def best_validated(groups: dict[Key, list[Fold]]) -> Key:
    """The group with the highest validation Dice, each compared on the cases that both held out.

    Means over different cases say which cases are easy. The group with the most cases is compared
    with each of the others; one that was not validated loses. Raises AutosegError where two have no
    case in common.
    """
    scores = {key: _validated(_folds(key, folds, ())) for key, folds in groups.items()}
    order = sorted(scores, key=lambda k: (-len(scores[k]), k[1] != "3d_fullres"))
    best = order[0]
    for other in order[1:]:
        if not scores[other]:
            continue
        common = scores[best].keys() & scores[other].keys()
        if not common:
            raise AutosegError(
                "the validations of {}/{}/{} and {}/{}/{} have no case in common, so which is better "
                "is not known; choose with --configuration, --plan and --run".format(*best, *other)
            )
        theirs, ours = (sum(scores[key][case] for case in common) for key in (other, best))
        if theirs > ours or (theirs == ours and other[1] == "3d_fullres" != best[1]):
            best = other
    return best


def _validated(folds: Sequence[Fold]) -> dict[str, float]:
    """Case id -> its mean Dice, of the cases that the folds were validated on."""
    found: dict[str, float] = {}
    for fold in folds:
        path = fold.validation / "report.json"
        try:
            cases = Report.read(path).cases if path.exists() else ()
        except AutosegError as error:
            log.warning("%s counts as not validated: %s", fold.folder, str(error).splitlines()[0])
            continue
        found |= {case.case: case.mean_dice for case in cases if case.mean_dice is not None}
    return found


def chosen_model(places: DatasetPlaces, wish: Wish | None = None) -> "Model | None":
    """What find_best_configuration chose, the best of several plans; None where it did not choose.

    A choice whose folds were trained again since is told and left out.
    """
    from autoseg.models.members import Model

    wish = wish or Wish()
    found: list[tuple[float, Model]] = []
    for path in sorted(places.results.glob("*/final*/model.json")):
        spec = ModelSpec.read(path)
        key = (spec.members[0].plan, spec.members[0].run)
        if wish.plan not in (None, key[0]) or wish.run not in (None, key[1]):
            continue
        model = Model(spec, places.results)
        reason = outdated(model)
        if reason:
            log.warning("the choice in %s is not used: %s; run `autoseg find_best_configuration`",
                        path.parent, reason)  # fmt: skip
            continue
        score = spec.cross_validation.mean_dice if spec.cross_validation else None
        found.append((-1.0 if score is None else score, model))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def outdated(model: "Model") -> str:
    """Why a model no longer is what it was chosen as: a weight file that is gone or another one."""
    for member in model.spec.every_member():
        for weights in member.weights:
            path = model.path(weights)
            if not path.exists():
                return f"{path} is gone"
            if path.stat().st_size != weights.size or sha256_file(path) != weights.sha256:
                return f"fold {weights.fold} of {member.name} was trained again"
    return ""


@contextmanager
def packaged(workspace: Workspace, model: str) -> Iterator["Model"]:
    """The model in a package: a file, its unpacked folder, or the name of an installed one.

    A file is unpacked for as long as the block lasts.
    """
    from autoseg.models.members import Model
    from autoseg.stages.package import read_model, unpack

    path = Path(model).expanduser()
    if is_foreign(path):
        raise AutosegError(
            f"{model} is a model of nnU-Net; `autoseg import_nnunet {model} -o NAME` makes it one of "
            "ours, which `--model NAME` then finds"
        )
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="autoseg-") as scratch:
            folder = Path(scratch) / "model"
            yield Model(unpack(path, folder), folder)
        return
    for folder in (path, workspace.models / model):
        if (folder / "model.json").is_file():
            spec = read_model(folder)
            if is_onnx(spec):
                check_manifest(folder, spec)
            yield Model(spec, folder)
            return
    names = workspace.model_names()
    raise AutosegError(
        f"there is no model {model!r}: neither a file, nor a folder with a model.json, nor installed "
        f"in {workspace.models}" + nearest(model, names)
    )


@contextmanager
def wished(workspace: Workspace, wish: Wish, model: str | None) -> Iterator["Model"]:
    """The model in a package, else that of trained folds; raises AutosegError as they do."""
    if model is None:
        yield choose_model(workspace, wish)
        return
    from autoseg.models.members import narrowed

    if wish.configurations or wish.plan or wish.run:
        raise AutosegError(
            "a package is used as it is: --configuration, --plan and --run choose among trained "
            "folds, and do not go with --model"
        )
    with packaged(workspace, model) as found:
        yield narrowed(found, folds=wish.folds)
