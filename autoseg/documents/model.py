"""A model: everything that segmenting needs but the weights themselves, which lie beside it.

The same document describes trained folds where they lie, the ensemble that was chosen, and a
package on another machine. It names no case.
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from autoseg.documents.document import Document, Frozen
from autoseg.documents.labels import LabelSet
from autoseg.documents.package import DEVICES
from autoseg.documents.plan import Configuration
from autoseg.documents.postprocessing import DenseCRF, Step
from autoseg.documents.report import Summary
from autoseg.files import sha256_json

MOST_CLASSES = 4096
MOST_BYTES = 64 << 30
LEAST_STEP = 0.05
MOST_ENLARGED = 100.0
MOST_ITERATIONS, MOST_RADIUS = 100, 64.0
"""Far beyond what any model needs: see `ModelSpec.beyond_reason`. The radius is in voxels."""

Precision = Literal["float32", "bfloat16", "float16"]


class Weights(Document):
    """The weights of one fold: a safetensors file below the model's folder."""

    fold: str
    file: str
    """Relative, with `/` between folders."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: PositiveInt
    """Bytes."""

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value:
            raise ValueError(f"{value!r} leaves the folder of the model")
        return value


class Member(Document):
    """The trained folds of one configuration; they average their logits."""

    name: str
    """The configuration's name in its plan."""
    plan: str
    run: str
    configuration: Configuration
    weights: tuple[Weights, ...] = Field(min_length=1)
    layouts: Frozen[str, Literal["contiguous", "channels_last"]] = Field(
        default_factory=dict, validate_default=True
    )
    """Device type -> the memory layout that was the fastest in training; others: channels_last."""
    precision: Precision = "float32"
    """What its networks were trained in, and are computed in where a device can."""

    @property
    def title(self) -> str:
        return f"{self.name} ({self.plan}/{self.run})"

    @property
    def speaks(self) -> dict[str, Any]:
        """All that its logits depend on."""
        c = self.configuration
        return {
            "preparation": c.preparation.dump(), "network": c.network.dump(),
            "patch_vox": c.patch_vox, "predict": c.predict.dump(),
            "mirror_axes": c.augmentation.mirror_axes, "layouts": dict(self.layouts),
            "precision": self.precision, "weights": [w.sha256 for w in self.weights],
        }  # fmt: skip


class ModelSpec(Document):
    """What speaks together: members average their probabilities on the scan's own grid."""

    schema_number: Literal[1] = Field(1, alias="schema")
    name: str
    dataset: str
    dimensions: Literal[2, 3]
    channels: tuple[str, ...]
    labels: LabelSet
    members: tuple[Member, ...] = Field(min_length=1)
    stages: tuple[Member, ...] = ()
    """What members of a cascade refine, by the name of the configuration."""
    postprocessing: tuple[Step, ...] = ()
    intensity_ranges: tuple[tuple[float, float] | None, ...]
    """Of each channel over the training set, to tell a foreign image."""
    spacing_ranges_mm: tuple[tuple[float, float], ...]
    """Of each plan axis over the training set."""
    cross_validation: Summary | None = None
    held_out_dice: float | None = None
    """The mean Dice of the cross-validation where each case was postprocessed by steps that were
    chosen without it; None where it is not known, or nothing is postprocessed."""
    version: str
    """The autoseg that made it."""

    @model_validator(mode="after")
    def _sound(self) -> "ModelSpec":
        if len(self.intensity_ranges) != len(self.channels) or len(self.spacing_ranges_mm) != 3:
            raise ValueError("it needs an intensity range a channel and three spacing ranges")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("two stages have one name")
        for member in self.every_member():
            preparation = member.configuration.preparation
            if preparation.labels != self.labels:
                raise ValueError(f"{member.name} has other labels than the model")
            if len(preparation.channels) != len(self.channels):
                raise ValueError(f"{member.name} takes other channels than the model")
            self._chain_of(member)
        return self

    def _chain_of(self, member: Member) -> None:
        """Raise ValueError unless what a member refines is there, back to a first stage."""
        stages, passed = {stage.name: stage for stage in self.stages}, 0
        while member.configuration.previous is not None:
            name = member.configuration.previous.configuration
            if name not in stages:
                raise ValueError(f"{member.name} refines {name}, which is not there")
            passed += 1
            if passed > len(stages):
                raise ValueError(f"{member.name} refines itself")
            member = stages[name]

    @property
    def beyond_reason(self) -> str:
        """What of it would take a machine's whole time or memory to predict; empty if nothing.

        A document of a stranger can be sound and yet ask for a patch of a cubic kilometre.
        """
        if self.labels.count > MOST_CLASSES or max(map(abs, self.labels.allowed)) >= 2**31:
            return f"{self.labels.count} classes, or label values beyond 32 bits"
        for member in self.every_member():
            c = member.configuration
            wide = max(c.network.widths[0], c.network.classes, c.network.in_channels)
            tiles = max(c.predict.tile_batch, c.predict.whole_up_to)
            held = 4 * prod(c.patch_vox) * wide * tiles
            if held > MOST_BYTES:
                return f"{member.name} would need {held / 2**30:.4g} GiB for one batch of tiles"
            if c.predict.tile_step < LEAST_STEP:
                return f"{member.name} has a tile_step of {c.predict.tile_step:g}"
            target = c.preparation.spacing_mm
            for mm, (least, _) in zip(target, self.spacing_ranges_mm, strict=True):
                if mm is not None and mm * MOST_ENLARGED < least:
                    return f"{member.name} would enlarge scans of {least:g} mm to {mm:g} mm"
        for step in self.postprocessing:
            if isinstance(step, DenseCRF) and (
                step.iterations > MOST_ITERATIONS
                or step.radius_mm > MOST_RADIUS * max(high for _, high in self.spacing_ranges_mm)
            ):
                return f"a CRF of {step.iterations} iterations within {step.radius_mm:g} mm"
        return ""

    def every_member(self) -> Iterator[Member]:
        """Stages first, then those that speak."""
        yield from self.stages
        yield from self.members

    def stage(self, name: str) -> Member:
        """The stage that a cascade refines."""
        return next(stage for stage in self.stages if stage.name == name)

    def packed(self) -> tuple["ModelSpec", dict[str, str]]:
        """The model with its weights where a package holds them, and where each lies before.

        A stage that speaks for itself too is there once.
        """
        by_hash: dict[str, str] = {}
        sources: dict[str, str] = {}
        document = self.dump()
        for member in (*document["stages"], *document["members"]):
            for weights in member["weights"]:
                name = by_hash.get(weights["sha256"])
                if name is None:
                    name = _free_name(member["name"], weights["fold"], sources)
                    by_hash[weights["sha256"]] = name
                    sources[name] = weights["file"]
                weights["file"] = name
        return ModelSpec.parse(document, "the model"), sources

    @property
    def digest(self) -> str:
        """What identifies a label map's making: equal for a model and its package."""
        return sha256_json([
            [m.speaks for m in self.members], [m.speaks for m in self.stages],
            [step.dump() for step in self.postprocessing],
        ])  # fmt: skip


def _free_name(member: str, fold: str, taken: Container[str]) -> str:
    """`weights/3d_fullres/fold_0.safetensors`, or with a number where that is taken.

    In small letters, so that no two names differ by case alone.
    """
    group, part = (re.sub(r"[^a-z0-9_-]", "_", text.lower())[:60] for text in (member, fold))
    if DEVICES.fullmatch(group) or not group.strip("-_"):
        group = f"_{group}"
    group = group.lstrip("-")
    for number in count(1):
        folder = group if number == 1 else f"{group}-{number}"
        name = f"weights/{folder}/fold_{part}.safetensors"
        if name not in taken:
            break
    return name


@dataclass(frozen=True)
class Installed:
    """One model on this machine; `fault` says why it cannot be used."""

    name: str
    folder: Path
    dataset: str = ""
    structures: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    """Each configuration with the number of its folds; the stages of a cascade among them."""
    mean_dice: float | None = None
    """Cross-validated."""
    size: int = 0
    """Bytes of the weights."""
    version: str = ""
    fault: str = ""

    def lines(self) -> Iterator[str]:
        """The model as text."""
        yield self.name
        if self.fault:
            yield f"  cannot be used: {self.fault}"
            return
        dice = "not known" if self.mean_dice is None else f"{self.mean_dice:.4f}"
        yield f"  segments  {', '.join(self.structures)}"
        yield f"  from      {', '.join(self.channels)}"
        yield f"  trained   on {self.dataset}, autoseg {self.version}"
        yield f"  networks  {', '.join(self.members)}; {size_text(self.size)}"
        yield f"  Dice      {dice} (cross-validated mean of the structures)"


@dataclass(frozen=True)
class Models:
    """Every model in a folder, by name."""

    folder: Path
    models: tuple[Installed, ...]

    def lines(self) -> Iterator[str]:
        """The models as text."""
        if not self.models:
            yield f"no model in {self.folder}; `autoseg install FILE.autoseg` puts one there"
        for model in self.models:
            yield from model.lines()


def size_text(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
