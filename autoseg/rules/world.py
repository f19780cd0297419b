"""What is asked, and what the dataset looks like along the axes of the plan.

Axes, target spacing, typical size and intensity scales: the decisions that all configurations
share. Grids and scales that have hardly changed since an earlier plan keep its values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal

from autoseg.documents.fingerprint import CaseSummary, Fingerprint
from autoseg.documents.labels import LabelSet
from autoseg.documents.model import Precision
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Plan
from autoseg.errors import PlanError
from autoseg.rules import grid
from autoseg.rules.axes import STORED, in_axes, majority_axes, reordered
from autoseg.rules.decision import Decision, Size, Spacing, lengths

KEEP_WITHIN = 0.02
"""A new spacing or intensity statistic this near to the earlier plan's keeps the earlier value,
so that one more case among hundreds does not make every prepared case stale."""
GRID_PINS = ("axes", "spacing_mm")
RULE_PINS = ("patch_vox", "batch_size", "width", "steps", "patch_schedule")
CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
FOLLOWS = {"3d_cascade_fullres": "3d_fullres"}
"""Configuration -> the one whose pins it shares."""
OWN_GRID = ("spacing_mm", "patch_vox")
"""Pins that the low resolution takes only under its own name."""
SHORT = {
    "train.batch_size": "batch_size",
    "train.steps": "steps",
    "train.patch_schedule": "patch_schedule",
}
"""Dotted keys whose values decide others, and the pins that do so."""

StepCost = Callable[[NetworkSpec, Size, int], float]
"""(network, patch, batch) -> bytes at the peak, or seconds, of one training step."""
OperationsOf = Callable[[NetworkSpec, Size], int]
"""(network, patch) -> multiply-adds of one forward pass of one patch."""


@dataclass(frozen=True)
class Device:
    """What the plan must fit: a card's memory, or (None) this machine's cores.

    `bytes_of` is asked for a card, and counts in the precision that will be trained; for cores
    `seconds_of`, which measures, or where nobody can measure `operations_of`. On a card the two
    tell what a fold costs; infinite seconds: there was no room to measure.
    """

    memory_gb: float | None
    why: str
    bytes_of: StepCost | None = None
    operations_of: OperationsOf | None = None
    seconds_of: StepCost | None = None
    precision: Precision = "bfloat16"
    """The 16-bit floats that the card trains in; bfloat16 where no card is there to be asked."""
    card: str = ""
    """The card's own name; empty where the card that is planned for is not there."""
    place: str = "cpu"
    """The device that steps are measured on, as `--device` names it."""


def card_precision(device: Device, planner: str) -> Decision[Precision]:
    """The floats that a plan for a card is trained in, unless a person pins others, and why."""
    if not device.card:
        why = (
            "no card is there to be asked: cards from Ampere on (compute capability 8.0) train in "
            "bfloat16; an older one takes float16 with a scaled loss, at the same bytes."
        )
    elif device.precision == "bfloat16":
        why = f"{device.card} multiplies bfloat16, which has float32's range: the loss needs no scaling."
    else:
        why = (
            f"{device.card} is older than Ampere and does not multiply bfloat16: {device.precision}, "
            "with a scaled loss."
        )
    if planner == "nnunet":
        why += " nnU-Net itself trains in float16 with a scaled loss."
    return Decision(device.precision, f"{why} Memory is counted in it.")


@dataclass(frozen=True)
class Ask:
    """What is asked of the planner."""

    name: str = "default"
    planner: Literal["autoseg", "nnunet"] = "autoseg"
    network: str = "plain"
    minutes: float | None = None
    pins: Mapping[str, Any] = field(default_factory=dict)
    device: Device = Device(None, "no card is there")
    use_memory: bool = False
    """Fill a card's memory, at whatever cost of time, instead of keeping to nnU-Net's work."""


@dataclass(frozen=True)
class World:
    """The dataset as the rules see it: per-case numbers in plan axes."""

    axes: str
    spacings_mm: tuple[Spacing, ...]
    shapes_vox: tuple[Size, ...]
    spacing_mm: Spacing
    median_vox: tuple[float, ...]
    labels: LabelSet


class Pins:
    """The values that a person fixed, by configuration and key."""

    def __init__(self, pins: Mapping[str, Any]) -> None:
        self.pins = {_short(key): value for key, value in pins.items()}

    def of(self, configuration: str, key: str) -> Any:
        """The pinned value of `key`, for one configuration or for all; None if it is free."""
        for name in (configuration, FOLLOWS.get(configuration)):
            if f"{name}.{key}" in self.pins:
                return self.pins[f"{name}.{key}"]
        if configuration == "3d_lowres" and key in OWN_GRID:
            return None
        return self.pins.get(key)

    def by_name(self, configuration: str, key: str) -> bool:
        """Whether `key` is pinned for this configuration, and not for all."""
        names = (configuration, FOLLOWS.get(configuration))
        return any(f"{name}.{key}" in self.pins for name in names)

    def network(self, configuration: str) -> dict[str, Any]:
        """The pinned keys of the network; "" stands for the whole document."""
        found = self._all(configuration)
        return {
            key.removeprefix("network").removeprefix("."): value
            for key, value in found.items()
            if key.partition(".")[0] == "network"
        }

    def rest(self, configuration: str) -> dict[str, Any]:
        """The pins that no rule asks for, as keys of that configuration."""
        return {
            key: value
            for key, value in self._all(configuration).items()
            if key not in (*GRID_PINS, *RULE_PINS) and key.partition(".")[0] != "network"
        }

    def _all(self, configuration: str) -> dict[str, Any]:
        """What holds for a configuration; what was said for it alone comes last and wins."""
        heads = [FOLLOWS.get(configuration), configuration]
        found = {k: v for k, v in self.pins.items() if k.partition(".")[0] not in CONFIGURATIONS}
        for name in heads:
            for key, value in self.pins.items():
                head, _, tail = key.partition(".")
                if head == name:
                    found[tail] = value
        return found


def _short(key: str) -> str:
    head, dot, tail = key.partition(".")
    if head in CONFIGURATIONS:
        return head + dot + SHORT.get(tail, tail)
    return SHORT.get(key, key)


def see_world(fingerprint: Fingerprint, ask: Ask, pins: Pins) -> tuple[World, dict[str, str]]:
    """Axes, target spacing and the typical size, and why."""
    pinned_axes = pins.of("", "axes")
    if pinned_axes is not None:
        axes = Decision(str(pinned_axes), "pinned by you")
    elif ask.planner == "nnunet":
        axes = Decision(STORED, "nnU-Net keeps the order in which the files are stored.")
    elif fingerprint.dimensions == 2:
        axes = Decision(STORED, "a 2D image has no known side of the patient.")
    else:
        axes = majority_axes(fingerprint.orientation_counts)
    spacings, shapes = _along(fingerprint.cases, axes.value)
    target = grid.target_spacing(spacings, shapes)
    pinned = pins.of("3d_fullres", "spacing_mm") or pins.of("2d", "spacing_mm")
    if pinned is not None:
        if pinned_axes is None and ask.planner == "autoseg":
            # lengths are pinned in plan axes, so the axes must be those of the unpinned plan
            axes = _coarsest(axes, target.value)
            spacings, shapes = _along(fingerprint.cases, axes.value)
        target = Decision(three_lengths(pinned), "pinned by you")
    elif pinned_axes is None:
        axes = _coarsest(axes, target.value)
        spacings, shapes = _along(fingerprint.cases, axes.value)
        target = replace(target, value=grid.target_spacing(spacings, shapes).value)
    median = grid.median_shape(shapes, spacings, target.value)
    world = World(axes.value, spacings, shapes, target.value, median.value, fingerprint.label_set)
    return world, {
        "preparation.axes": axes.why,
        "preparation.spacing_mm": target.why,
        "median_shape_vox": median.why,
    }


def three_lengths(value: Any) -> Spacing:
    """A pinned spacing. Raises PlanError for anything but three lengths."""
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(v, (int, float)) and 0 < v < inf for v in value
    )
    if not numbers or len(value) != 3:
        raise PlanError(
            f"spacing_mm is pinned to {value!r}; give three lengths, as [3.0, 1.0, 1.0]"
        )
    return tuple(float(v) for v in value)


def _along(cases: Sequence[CaseSummary], axes: str) -> tuple[tuple[Spacing, ...], tuple[Size, ...]]:
    return (
        tuple(in_axes(c.spacing_mm, c.orientation, axes) for c in cases),
        tuple(in_axes(c.cropped_shape, c.orientation, axes) for c in cases),
    )


def _coarsest(axes: Decision[str], spacing_mm: Spacing) -> Decision[str]:
    order = grid.coarsest_first(spacing_mm)
    return Decision(reordered(axes.value, order.value), f"{axes.why} {order.why}")


def steady_spacing(name: str, world: World, ask: Ask, previous: Plan | None) -> tuple[World, str]:
    """The world on the earlier plan's grid for this configuration, if no axis moved by over 2 %."""
    if previous is None or ask.planner == "nnunet" or name not in previous.configurations:
        return world, ""
    old = previous.configurations[name].preparation
    kept = tuple(
        new if mm is None else mm for new, mm in zip(world.spacing_mm, old.spacing_mm, strict=True)
    )
    moved = max(abs(a / b - 1) for a, b in zip(world.spacing_mm, kept, strict=True))
    if old.axes != world.axes or kept == world.spacing_mm or moved > KEEP_WITHIN:
        return world, ""
    median = grid.median_shape(world.shapes_vox, world.spacings_mm, kept)
    said = f"The earlier plan's {lengths(kept)} is within 2 % of {lengths(world.spacing_mm)} and is kept."
    return replace(world, spacing_mm=kept, median_vox=median.value), said


def channel_scales(
    fingerprint: Fingerprint, ask: Ask, previous: Plan | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """How each channel is scaled, and why."""
    made, reasons = [], []
    for index, name in enumerate(fingerprint.channels):
        found = fingerprint.intensities[index]
        scheme = grid.normalisation(name, blanks_count=ask.planner == "nnunet")
        mask = grid.uses_mask(scheme.value, fingerprint.median_crop_share)
        channel: dict[str, Any] = {"scheme": scheme.value, "use_mask": mask.value}
        said = f"{name}: {scheme.why}"
        if scheme.value == "ct":
            keys = ("mean", "std", "percentile_00_5", "percentile_99_5")
            numbers = {key: getattr(found, key) for key in keys}
            if any(v is None for v in numbers.values()):
                raise PlanError(
                    f"channel {name!r} is CT, whose scale comes from the labelled voxels, but no "
                    "case has any; label something, or rename the channel in dataset.json"
                )
            kept = _steady_scale(numbers, index, previous) if ask.planner == "autoseg" else None
            channel |= kept or numbers
            said += " The earlier statistics are within 2 % and are kept." if kept else ""
        made.append(channel)
        reasons.append(said)
    return made, {"preparation.channels": " ".join(reasons)}


def _steady_scale(
    numbers: Mapping[str, float], index: int, previous: Plan | None
) -> dict[str, float] | None:
    """The earlier plan's statistics, if none moved by more than 2 % of the standard deviation."""
    if previous is None:
        return None
    channels = next(iter(previous.configurations.values())).preparation.channels
    if index >= len(channels) or channels[index].scheme != "ct":
        return None
    old = {key: getattr(channels[index], key) for key in numbers}
    limit = KEEP_WITHIN * max(numbers["std"], 1e-8)
    if any(v is None or abs(v - numbers[key]) > limit for key, v in old.items()):
        return None
    return old
