"""A model where it lies: which weights belong to it, of trained folds or of a package's folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoseg import __version__
from autoseg.documents.model import Member, ModelSpec, Precision, Weights
from autoseg.documents.run import RunSpec, lines
from autoseg.errors import AutosegError, PlanError
from autoseg.files import explaining, sha256_file
from autoseg.workspace import Fold


@dataclass(frozen=True)
class Model:
    """What speaks, and the folder that its weights' files are relative to."""

    spec: ModelSpec
    folder: Path
    precision: Precision | None = None
    """What the networks are asked to compute in; None: as `models.precision` says."""

    @property
    def digest(self) -> str:
        """What identifies a label map's making."""
        if self.precision is None:
            return self.spec.digest
        document = self.spec.dump()
        for member in (*document["members"], *document["stages"]):
            member["precision"] = self.precision
        return ModelSpec.parse(document, "the model").digest

    def path(self, weights: Weights) -> Path:
        return self.folder / weights.file

    @property
    def title(self) -> str:
        """Its members and how many folds each has, in words."""
        return " + ".join(
            f"{m.title}, {len(m.weights)} fold{'s' if len(m.weights) > 1 else ''}"
            for m in self.spec.members
        )


def member_of(folds: Sequence[Fold], folder: Path) -> Member:
    """The trained folds of one configuration as a member of a model in `folder`.

    Raises AutosegError if one has no weights or they are not of one kind.
    """
    specs = [RunSpec.read(fold.run) for fold in folds]
    first = specs[0]
    for spec, fold in zip(specs, folds, strict=True):
        if not fold.weights.exists():
            raise AutosegError(f"{fold.folder} holds no trained weights; train this fold first")
        if spec.configuration.network != first.configuration.network or (
            spec.configuration.preparation != first.configuration.preparation
        ):
            raise AutosegError(
                f"fold {spec.fold} was trained with another network or preparation than fold "
                f"{first.fold}; predict with --fold {first.fold} alone, or train it again"
            )
    return Member(
        name=first.configuration_name,
        plan=first.plan,
        run=first.run,
        configuration=first.configuration,
        weights=tuple(
            _weights(spec.fold, fold.weights, folder)
            for spec, fold in zip(specs, folds, strict=True)
        ),
        layouts=_layouts(folds[0]),
        precision=_precision(folds[0]),
    )


def _weights(fold: str, path: Path, folder: Path) -> Weights:
    with explaining(path, "read"):
        size = path.stat().st_size
    if size == 0:
        raise AutosegError(f"{path} is damaged (it is empty); copy it again, or train with --redo")
    return Weights(
        fold=fold, file=path.relative_to(folder).as_posix(), sha256=sha256_file(path), size=size
    )


def _layouts(fold: Fold) -> dict[str, str]:
    """Device type -> the layout that was fastest in training on such a device."""
    return {
        entry["device"].split(":")[0]: entry["layout"]
        for entry in lines(fold.journal)
        if entry["event"] == "variant"
    }


def _precision(fold: Fold) -> Precision:
    """What a fold was trained in, by its journal."""
    trained: Iterator[Precision] = (
        entry["precision"] for entry in lines(fold.journal) if entry["event"] == "variant"
    )
    return next(trained, "float32")


def model_of(
    folder: Path,
    members: Sequence[Sequence[Fold]],
    stages: Sequence[Sequence[Fold]] = (),
    *,
    name: str = "model",
) -> Model:
    """The model of trained folds below `folder`: each group of `members` is a configuration,
    `stages` go before.

    Raises AutosegError if the groups cannot speak together.
    """
    groups = [list(group) for group in (*stages, *members)]
    specs = [RunSpec.read(group[0].run) for group in groups]
    first = specs[0]
    for one in specs:
        same = (one.dataset, one.channels, one.labels, one.configuration.preparation.axes)
        if same != (
            first.dataset, first.channels, first.labels, first.configuration.preparation.axes,
        ):  # fmt: skip
            raise PlanError(
                f"{one.configuration_name} of plan {one.plan!r} and {first.configuration_name} of "
                f"plan {first.plan!r} have other channels, labels or axes; they cannot speak together"
            )
    made = [member_of(group, folder) for group in groups]
    spec = ModelSpec(
        name=name,
        dataset=first.dataset,
        dimensions=3 if first.dimensions == 3 else 2,
        channels=first.channels,
        labels=first.labels,
        members=tuple(made[len(stages) :]),
        stages=tuple(made[: len(stages)]),
        intensity_ranges=first.intensity_ranges,
        spacing_ranges_mm=first.spacing_ranges_mm,
        version=__version__,
    )
    return Model(spec, folder)


def narrowed(
    model: Model,
    *,
    folds: Sequence[str] = (),
    fast: bool = False,
    precision: Precision | None = None,
) -> Model:
    """The model with fewer folds, in one piece less, or asked for another precision.

    `fast`: the first fold of the first member alone, without mirroring. Raises AutosegError naming
    the folds that there are.
    """
    document = model.spec.dump()
    if fast:
        document["members"] = document["members"][:1]
    for member in (*document["members"], *document["stages"]):
        there = [weights["fold"] for weights in member["weights"]]
        for asked in folds:
            if asked not in there:
                raise AutosegError(
                    f"fold {asked} of {member['name']} is not in the model; there is "
                    f"{', '.join(there)}"
                )
        if folds:
            member["weights"] = [w for w in member["weights"] if w["fold"] in folds]
        if fast:
            member["weights"] = member["weights"][:1]
            member["configuration"]["predict"]["mirror"] = False
    if fast:
        before = document["members"][0]["configuration"].get("previous")
        document["stages"] = [
            s for s in document["stages"] if before and s["name"] == before["configuration"]
        ]
    return Model(ModelSpec.parse(document, "the model"), model.folder, precision)
