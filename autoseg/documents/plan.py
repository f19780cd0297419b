"""The plan: everything the later stages need to know, decided once, with a reason for each.

Frozen, schema-numbered and readable. Only the planner makes one; a change is dump, patch, parse,
under another name. It names things of the vocabularies ("plain", "strided"), never import paths.
Tuples follow `axes`; lengths are mm; a 2D network's patch has two numbers, those of axes 1 and 2.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from autoseg.documents.document import Document, Frozen
from autoseg.documents.labels import LabelSet
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.networks.network import Spatial
from autoseg.documents.patch_stages import PatchStage, check_shares, wrong_stages
from autoseg.errors import PlanError, nearest
from autoseg.files import read_json, sha256_json

SCHEMA: Literal[1] = 1
SEPARATE_Z_ABOVE = 3.0
"""nnU-Net's rule for coarse slices."""
AXES = re.compile(r"^(stored(:[ijk]{3})?|[RLAPSI]{3})$")


class ChannelScale(Document):
    """How one channel's intensities are brought to a common scale (statistics of the foreground)."""

    scheme: Literal["ct", "zscore", "rescale_to_0_1", "rgb_to_0_1", "none"]
    use_mask: bool = False
    mean: float | None = None
    std: NonNegativeFloat | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None

    @model_validator(mode="after")
    def _sound(self) -> "ChannelScale":
        numbers = (self.mean, self.std, self.percentile_00_5, self.percentile_99_5)
        if self.scheme == "ct" and None in numbers:
            raise ValueError("the scheme ct needs mean, std, percentile_00_5 and percentile_99_5")
        return self


class Preparation(Document):
    """All that a prepared case depends on; plans and configurations with one spec share the cases.

    `spacing_mm[0]` is None where each case keeps its own through-plane spacing (2D); all three are
    None where nothing is resampled.
    """

    version: PositiveInt = 1
    axes: str
    spacing_mm: tuple[PositiveFloat | None, PositiveFloat | None, PositiveFloat | None]
    crop: Literal["nonzero", "none"] = "nonzero"
    channels: tuple[ChannelScale, ...]
    labels: LabelSet
    image_order: Literal[0, 1, 3] = 3
    image_order_z: Literal[0, 1, 3] = 0
    label_order: Literal[0, 1] = 1
    label_order_z: Literal[0] = 0
    separate_z_above: NonNegativeFloat | None = SEPARATE_Z_ABOVE
    """Slices are resampled apart where they are more than so many times as thick as pixels are
    wide (images, labels and logits); None: never."""

    @model_validator(mode="after")
    def _sound(self) -> "Preparation":
        if not AXES.match(self.axes):
            raise ValueError(
                f'axes must be three letters such as "SAR", or "stored": {self.axes!r}'
            )
        if None in self.spacing_mm[1:] and any(self.spacing_mm):
            raise ValueError("spacing_mm is null for the first axis, for all three, or for none")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what was prepared before this field existed keeps its key
        said: dict[str, Any] = write(self)
        if self.separate_z_above == SEPARATE_Z_ABOVE:
            del said["separate_z_above"]
        return said

    @property
    def key(self) -> str:
        """12 hex digits: the folder name of the cases prepared so."""
        return sha256_json(self.dump())[:12]


class Sampling(Document):
    """Which patches are shown. Class weights follow the foreground classes 1, 2, …; they sum to 1."""

    foreground_share: float = Field(ge=0.0, le=1.0)
    class_weights: tuple[NonNegativeFloat, ...]
    class_first: bool = True
    """Each sample is placed on foreground with the probability `foreground_share`: a class is drawn
    by the weights, then a case that holds it. False is nnU-Net's way: the case is drawn first, and
    a fixed number of the batch's samples is placed on a class that it has."""

    @model_serializer(mode="wrap")
    def _plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what was trained before this field existed keeps its stamp
        fields: dict[str, Any] = write(self)
        if self.class_first:
            del fields["class_first"]
        return fields


class Augmentation(Document):
    """Probabilities and ranges of the random changes of a patch (nnU-Net's defaults, reference §1.17).

    `dummy_2d` rotates and scales in the plane of axes 1 and 2 only.
    """

    rotation_p: float = 0.2
    rotation_degrees: tuple[NonNegativeFloat, ...]
    scale_p: float = 0.2
    scale: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.4)
    dummy_2d: bool = False
    noise_p: float = 0.1
    noise_sigma: tuple[NonNegativeFloat, NonNegativeFloat] = (0.0, 0.1)
    blur_p: float = 0.2
    blur_channel_p: float = 0.5
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0)
    brightness_p: float = 0.15
    brightness: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25)
    contrast_p: float = 0.15
    contrast: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.25)
    low_resolution_p: float = 0.25
    low_resolution_channel_p: float = 0.5
    low_resolution_zoom: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.0)
    gamma_inverted_p: float = 0.1
    gamma_p: float = 0.3
    gamma: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.5)
    mirror_axes: tuple[NonNegativeInt, ...]
    """Axes of the patch that are flipped with probability 1/2 each, and at prediction."""

    @model_validator(mode="after")
    def _sound(self) -> "Augmentation":
        for name, value in self:
            if name.endswith("_p") and not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability, found {value}")
            if isinstance(value, tuple) and name in {
                "scale", "noise_sigma", "blur_sigma", "brightness", "contrast",
                "low_resolution_zoom", "gamma",
            } and value[0] > value[1]:  # fmt: skip
                raise ValueError(f"{name} runs from {value[0]} down to {value[1]}")
        return self


class Training(Document):
    """How a fold is trained. One step is one batch; durations are steps."""

    steps: PositiveInt
    batch_size: PositiveInt
    seed: NonNegativeInt = 12345
    optimiser: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: float = Field(0.99, ge=0.0, lt=1.0)
    """SGD's and Muon's Nesterov momentum, or AdamW's first beta."""
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    weight_decay: NonNegativeFloat = 3e-5
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup_share: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the steps over which the rate rises before the schedule begins."""
    clip_norm: PositiveFloat | None = 12.0
    dice_weight: NonNegativeFloat = 1.0
    ce_weight: NonNegativeFloat = 1.0
    batch_dice: bool = False
    dice_smooth: PositiveFloat = 1e-5
    supervision: tuple[NonNegativeFloat, ...]
    """Weight of the loss at each output of the network, finest first; they sum to 1."""
    ema_share: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the steps that the moving average of the weights reaches back, which validation and
    prediction use; 0: no average."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    layout: Literal["auto", "contiguous", "channels_last"] = "auto"
    threads: PositiveInt | None = None
    """CPU threads; None: chosen by measurement at the start of a run and kept in its journal."""
    validate_every: PositiveInt = 250
    validation_batches: PositiveInt = 10
    save_every_s: PositiveFloat = 60.0
    early_stop: PositiveInt | None = None
    """Stop after this many validations without a better score; None: never."""
    patch_schedule: tuple[PatchStage, ...] = ()
    """Progressive growing of the patch (Fischer et al. 2025, arXiv:2510.23241): what is shown before
    the configuration's own patch and batch; empty: those from the first step on."""

    @model_validator(mode="after")
    def _sound(self) -> "Training":
        check_shares(self.patch_schedule)
        return self

    @model_serializer(mode="wrap")
    def _plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what was trained before this field existed keeps its stamp
        written: dict[str, Any] = write(self)
        if not self.patch_schedule:
            del written["patch_schedule"]
        return written


class Prediction(Document):
    """How a whole volume is segmented."""

    tile_step: float = Field(0.5, gt=0.0, le=1.0)
    sigma_scale: PositiveFloat = 0.125
    mirror: bool = True
    tile_batch: PositiveInt = 1
    whole_up_to: NonNegativeFloat = 0.0
    """A volume of no more voxels than so many patches is segmented in one piece; 0: never. Saves
    cores most of the time (5x on lung nodules) and costs what overlapping tiles gain (0.007 Dice)."""


class Previous(Document):
    """What a cascade refines, and how the earlier answer is spoilt while training (reference §1.17).

    Spoilt, so that the second network does not simply repeat the first, which is more often right
    on the cases that both were trained on than on new ones.
    """

    configuration: str
    morphology_p: float = Field(0.4, ge=0.0, le=1.0)
    """Chance that structures are eroded, dilated, opened or closed with a ball."""
    morphology_class_p: float = Field(0.5, ge=0.0, le=1.0)
    morphology_radius_vox: tuple[PositiveInt, PositiveInt] = (1, 8)
    drop_p: float = Field(0.2, ge=0.0, le=1.0)
    """Chance that connected pieces are left out."""
    drop_class_p: float = Field(0.5, ge=0.0, le=1.0)
    drop_share: float = Field(0.15, ge=0.0, le=1.0)
    """Only pieces of at most this share of their structure are left out."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"configuration": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sound(self) -> "Previous":
        low, high = self.morphology_radius_vox
        if low > high:
            raise ValueError(f"morphology_radius_vox runs from {low} down to {high}")
        return self


class Cost(Document):
    """What training one fold costs. For information: nothing is made from it, no stamp holds it."""

    multiply_adds: PositiveInt
    """Of one step: three times those of going forward, four times where activations are computed
    twice."""
    exaflop: PositiveFloat
    """10^18 floating-point operations of all steps; a multiply-add is two."""
    step_bytes: PositiveInt | None = None
    """Peak bytes of a step on a card, as computed; None where they were not."""
    step_s: PositiveFloat
    hours_per_fold: PositiveFloat
    """Of its steps and their scores, without segmenting the held-out cases."""
    source: str
    """Where the seconds are from: measured on what, or estimated for what and how."""


class Configuration(Document):
    """One network on one grid: `2d`, `3d_fullres`, `3d_lowres`, `3d_cascade_fullres`."""

    preparation: Preparation
    patch_vox: Spatial
    median_shape_vox: tuple[PositiveInt, PositiveInt, PositiveInt]
    network: NetworkSpec
    sampling: Sampling
    augmentation: Augmentation
    train: Training
    predict: Prediction = Prediction()
    previous: Previous | None = None
    """The configuration whose label maps this one refines (cascade): its network is shown them too,
    a channel for each class but background."""
    cost: Cost | None = None
    """What a fold costs on the device that the plan was made for."""

    @model_serializer(mode="wrap")
    def _plain(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what was made before this field existed keeps its digests
        made: dict[str, Any] = write(self)
        if self.cost is None:
            del made["cost"]
        return made

    @property
    def dimensions(self) -> int:
        return len(self.patch_vox)

    @property
    def inputs(self) -> int:
        """The network's channels: the image's, and in a cascade one a class but background."""
        image = len(self.preparation.channels)
        return image + (self.preparation.labels.count - 1 if self.previous else 0)

    @model_validator(mode="after")
    def _sound(self) -> "Configuration":
        net = self.network
        if net.dimensions != self.dimensions:
            raise ValueError(
                f"patch_vox has {self.dimensions} numbers, the network {net.dimensions} dimensions"
            )
        wrong = [
            f"patch_vox[{axis}]={size} is not a multiple of {by}, the product of its strides"
            for axis, (size, by) in enumerate(zip(self.patch_vox, net.divisor, strict=True))
            if size % by
        ]
        batch = self.train.batch_size
        wrong += wrong_stages(self.train.patch_schedule, self.patch_vox, batch, net.divisor)
        if len(self.train.supervision) != len(net.output_strides):
            wrong.append(
                f"train.supervision has {len(self.train.supervision)} weights for the "
                f"{len(net.output_strides)} outputs of the network"
            )
        if self.inputs != net.in_channels:
            wrong.append(f"network.in_channels must be {self.inputs}")
        if net.classes != self.preparation.labels.outputs:
            wrong.append(f"network.classes must be {self.preparation.labels.outputs}")
        if len(self.sampling.class_weights) != self.preparation.labels.count - 1:
            wrong.append("sampling.class_weights needs one weight for each foreground class")
        angles = 1 if self.dimensions == 2 or self.augmentation.dummy_2d else 3
        if len(self.augmentation.rotation_degrees) != angles:
            wrong.append(f"augmentation.rotation_degrees needs {angles} numbers here")
        if any(axis >= self.dimensions for axis in self.augmentation.mirror_axes):
            wrong.append(f"augmentation.mirror_axes must be below {self.dimensions}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Plan(Document):
    """Everything the later stages need to know, decided once."""

    schema_number: Literal[1] = Field(1, alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    dataset: str
    planner: Literal["autoseg", "nnunet"]
    dimensions: Literal[2, 3]
    channels: tuple[str, ...]
    labels: LabelSet
    gpu_memory_gb: PositiveFloat | None
    """The card's memory that the patches were fitted to; None: planned for CPU cores."""
    train_minutes: PositiveFloat | None
    """The training time that the recipe was made for; None: the full schedule."""
    pinned: Frozen[str, Any] = Field(default_factory=dict, validate_default=True)
    """Keys that a person fixed before the rules ran, and their values."""
    configurations: Frozen[str, Configuration]
    why: Frozen[str, str]
    """Dotted key -> the reason of its value, in a sentence."""

    @model_validator(mode="after")
    def _sound(self) -> "Plan":
        wrong = [
            f"why[{key!r}] explains no key of the plan" for key in self.why if not self.has(key)
        ]
        wrong += [
            f"configurations.{name}.previous names {c.previous.configuration!r}, which is not in the "
            "plan"
            for name, c in self.configurations.items()
            if c.previous is not None and c.previous.configuration not in self.configurations
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def has(self, dotted: str) -> bool:
        """Whether a dotted key such as `configurations.2d.patch_vox` names a value."""
        here: Any = self
        for step in dotted.split("."):
            if isinstance(here, Mapping) and step in here:
                here = here[step]
            elif isinstance(here, Document) and step in type(here).model_fields:
                here = getattr(here, step)
            elif isinstance(here, tuple) and step.isdigit() and int(step) < len(here):
                here = here[int(step)]
            else:
                return False
        return True

    def configuration(self, name: str) -> Configuration:
        """Raises PlanError naming the configurations that there are."""
        if name not in self.configurations:
            raise PlanError(
                f"plan {self.name!r} of {self.dataset} has no configuration {name!r}"
                + nearest(name, list(self.configurations))
            )
        return self.configurations[name]


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema number -> the function that makes a decoded document of it one of the next."""


def parse_plan(value: Mapping[str, Any], what: str) -> Plan:
    """The plan in a decoded document of this or any older schema. Raises PlanError."""
    document = dict(value)
    schema = document.get("schema")
    if not isinstance(schema, int):
        raise PlanError(f"{what} has no schema number; it is no plan of autoseg")
    if schema > SCHEMA:
        raise PlanError(
            f"{what} has schema {schema}, this autoseg knows up to {SCHEMA}; install a newer autoseg"
        )
    while document["schema"] < SCHEMA:
        document = UPGRADES[document["schema"]](document)
    return Plan.parse(document, what)


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises AutosegError if it is missing, damaged or cannot work."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise PlanError(
            f"{path} holds no JSON object; restore it, or plan again under a new --name"
        )
    plan = parse_plan(value, str(path))
    if plan.name != path.parent.name:
        raise PlanError(
            f"{path} calls itself {plan.name!r}; a copy needs a name of its own: write "
            f'"name": "{path.parent.name}" into it'
        )
    return plan
