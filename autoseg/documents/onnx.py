"""The manifest of an ONNX export: what another program must do around the networks.

It is derived from the model, whose document lies beside it, and read only to see that both say the
same. `docs/onnx.md` tells what each of its fields means.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from autoseg.documents.document import Document, Frozen
from autoseg.documents.model import Member, ModelSpec
from autoseg.errors import AutosegError, PlanError

FORMAT: Literal["autoseg-onnx"] = "autoseg-onnx"
SCHEMA: Literal[1] = 1
MANIFEST, MODEL, CARD = "manifest.json", "model.json", "card.md"
ENDING = ".onnx"
AGAIN = "copy the folder again, or export it again"

INPUT, OUTPUT = "image", "logits"
AXES = ("z", "y", "x")
"""The names of a graph's axes that take any length; a 2D network has the last two."""
OPSET = 17
TOLERANCE = 1e-4
"""Most that logits may differ from torch's, as a share of the largest."""
LARGEST = (2 << 30) - (1 << 20)
"""Bytes of one file: protobuf ends at 2 GiB."""


class Network(Document):
    """One file: the network of one fold."""

    configuration: str
    fold: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: PositiveInt
    input: tuple[PositiveInt | str, ...]
    """The shape of `image`, (batch, channels, *axes): a name where any length will do."""
    difference: NonNegativeFloat
    """The largest from torch's logits when it was exported, as a share of the largest logit."""


class OnnxManifest(Document):
    """What is in the folder, and what is done before and after each network."""

    format_name: Literal["autoseg-onnx"] = Field(FORMAT, alias="format")
    schema_number: Literal[1] = Field(SCHEMA, alias="schema")
    autoseg: str
    """The version that wrote it."""
    source: str
    """The digest of the model that was exported."""
    opset: PositiveInt
    networks: Frozen[str, Network]
    """By the file's name."""
    description: Frozen[str, Any]

    def faults(self, spec: ModelSpec) -> str:
        """What of it is not as the model beside it says; empty if nothing."""
        held = {
            w.file: (member.name, w.fold, w.sha256, w.size)
            for member in spec.every_member()
            for w in member.weights
        }
        for file in sorted(held.keys() ^ self.networks.keys()):
            return f"{file} is named in only one of them"
        for file, n in self.networks.items():
            if (n.configuration, n.fold, n.sha256, n.size) != held[file]:
                return f"{file} is another file or belongs to another configuration"
        wanted = description(spec)
        told = dict(self.description)
        for key in sorted(wanted.keys() | told.keys()):
            if wanted.get(key) != told.get(key):
                return f"description.{key} differs"
        return ""


def is_onnx(spec: ModelSpec) -> bool:
    """Whether a model's networks are ONNX files."""
    return any(w.file.endswith(ENDING) for m in spec.every_member() for w in m.weights)


def check_manifest(folder: Path, spec: ModelSpec) -> None:
    """Raise AutosegError unless the manifest in the folder of an ONNX export agrees with its model."""
    path = folder / MANIFEST
    try:
        manifest = OnnxManifest.read(path)
    except PlanError as error:
        first = str(error).split("\n")[-1].strip()
        raise AutosegError(f"{path} is no manifest of an ONNX export ({first}); {AGAIN}") from error
    fault = manifest.faults(spec)
    if fault:
        raise AutosegError(f"{path} does not agree with the {MODEL} beside it: {fault}; {AGAIN}")


def description(spec: ModelSpec) -> dict[str, Any]:
    """What another program needs to know to give the label maps of a model."""
    labels = spec.labels.dump()
    return {
        "name": spec.name,
        "dataset": spec.dataset,
        "dimensions": spec.dimensions,
        "channels": list(spec.channels),
        "labels": labels,
        "outputs": "sigmoid, one a region" if spec.labels.regions else "softmax over classes",
        "stages": [_speaker(stage) for stage in spec.stages],
        "members": [_speaker(member) for member in spec.members],
        "postprocessing": [step.dump() for step in spec.postprocessing],
        "intensity_ranges": [None if r is None else list(r) for r in spec.intensity_ranges],
        "spacing_ranges_mm": [list(r) for r in spec.spacing_ranges_mm],
    }


def _speaker(member: Member) -> dict[str, Any]:
    """One configuration: what its networks are shown, and what is done with their logits."""
    c = member.configuration
    told = c.preparation.dump()
    return {
        "configuration": member.name,
        "networks": [w.file for w in member.weights],
        "inputs": c.inputs,
        "outputs": c.preparation.labels.outputs,
        "refines": None if c.previous is None else c.previous.configuration,
        "axes": told["axes"],
        "crop": told["crop"],
        "spacing_mm": told["spacing_mm"],
        "normalisation": told["channels"],
        "resampling": {
            "image_order": told["image_order"],
            "image_order_z": told["image_order_z"],
            "logits_order": 1,
            "logits_order_z": 0,
            "separate_z_above": c.preparation.separate_z_above,
        },
        "tiles": {
            "patch_vox": list(c.patch_vox),
            "step": c.predict.tile_step,
            "sigma_scale": c.predict.sigma_scale,
            "whole_up_to_patches": c.predict.whole_up_to,
            "divisor": list(c.network.divisor),
        },
        "mirror_axes": list(c.augmentation.mirror_axes) if c.predict.mirror else [],
    }  # fmt: skip
