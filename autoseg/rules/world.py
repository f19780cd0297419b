"""What is asked, and what the dataset looks like along the axes of the plan.

Axes, target spacing, typical size and intensity scales: the decisions that all configurations
share. Grids and scales that have hardly changed since an earlier plan keep its values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from autoseg.documents.fingerprint import CaseSummary, Fingerprint
from autoseg.documents.labels import LabelSet
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
RULE_PINS = ("patch_vox", "batch_size", "width", "steps")
CONFIGURATIONS = ("2d", "3d_fullres")
LATER_CONFIGURATIONS = ("3d_lowres", "3d_cascade_fullres")


SecondsOf = Callable[[NetworkSpec, Size, int], float]
"""(network, patch, batch) -> seconds of one training step."""


@dataclass(frozen=True)
class Device:
    """What the plan must fit: a card's memory, or (None) this machine's cores."""

    memory_gb: float | None
    why: str
    seconds_of: SecondsOf | None = None
    """Seconds of a training step of a configuration, measured; None where nobody can measure."""


@dataclass(frozen=True)
class Ask:
    """What is asked of the planner."""

    name: str = "default"
    planner: Literal["autoseg", "nnunet"] = "autoseg"
    network: str = "plain"
    minutes: float | None = None
    pins: Mapping[str, Any] = field(default_factory=dict)
    device: Device = Device(None, "no card is there")


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
    """The values that a person fixed, by configuration and key; remembers which were used."""

    def __init__(self, pins: Mapping[str, Any]) -> None:
        self.pins = dict(pins)

    def of(self, configuration: str, key: str) -> Any:
        """The pinned value of `key`, for one configuration or for all; None if it is free."""
        return self.pins.get(f"{configuration}.{key}", self.pins.get(key))

    def rest(self, configuration: str) -> dict[str, Any]:
        """The pins that no rule asks for, as keys of that configuration."""
        found = {}
        for key, value in self.pins.items():
            head, _, tail = key.partition(".")
            name = tail if head == configuration else key
            foreign = head in {*CONFIGURATIONS, *LATER_CONFIGURATIONS}
            if (foreign and head != configuration) or name in (*GRID_PINS, *RULE_PINS):
                continue
            found[name] = value
        return found


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
        target = Decision(_three(pinned), "pinned by you")
    elif pinned_axes is None:
        axes = _coarsest(axes, target.value)
        spacings, shapes = _along(fingerprint.cases, axes.value)
        target = replace(target, value=grid.target_spacing(spacings, shapes).value)
    median = grid.median_shape(shapes, spacings, target.value)
    labels = LabelSet(
        names=("background", *(x.name for x in fingerprint.labels)),
        values=(0, *(x.value for x in fingerprint.labels)),
    )
    world = World(axes.value, spacings, shapes, target.value, median.value, labels)
    return world, {
        "preparation.axes": axes.why,
        "preparation.spacing_mm": target.why,
        "median_shape_vox": median.why,
    }


def _three(value: Any) -> Spacing:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
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
