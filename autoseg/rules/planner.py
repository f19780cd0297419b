"""In which order are the rules asked, and what plan do their answers make?

The default planner starts from nnU-Net's rules and departs where measuring tells better: axes
follow anatomy, class imbalance decides sampling, and without a card the network is fitted to the
time and the cores. `planner="nnunet"` keeps nnU-Net's values everywhere. What a person pins is
fixed first, the rest is decided around it.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Plan, parse_plan
from autoseg.documents.presets.table import network_spec, preset_named
from autoseg.documents.settings import patched
from autoseg.errors import PlanError
from autoseg.rules import grid, nnunet
from autoseg.rules.budget import Budget, batch_size, fit_patch
from autoseg.rules.decision import Decision, Size, Spacing
from autoseg.rules.network import features
from autoseg.rules.recipe import (
    Fixed,
    Recipe,
    StepSeconds,
    augmentation_for,
    core_features,
    cpu_recipe,
    formula_seconds,
    gpu_recipe,
    spacing_for_cores,
)
from autoseg.rules.sampling import ClassStatistics, Scene, sampling
from autoseg.rules.topology import Topology, topology_for
from autoseg.rules.world import (
    CONFIGURATIONS,
    Ask,
    Pins,
    World,
    channel_scales,
    see_world,
    steady_spacing,
)


def make_plan(fingerprint: Fingerprint, ask: Ask, previous: Plan | None = None) -> Plan:
    """The plan for a fingerprint. Raises PlanError if a pinned value or the target cannot work.

    `previous` is the plan that this one replaces: grids and intensity scales that have hardly
    changed keep its values.
    """
    preset_named(ask.network)
    pins, why = Pins(ask.pins), {}
    world, reasons = see_world(fingerprint, ask, pins)
    channels, scale_reasons = channel_scales(fingerprint, ask, previous)
    configurations: dict[str, Any] = {}
    for name in CONFIGURATIONS if fingerprint.dimensions == 3 else ("2d",):
        setting = Setting(name, fingerprint, ask, pins, world)
        made, said = _configuration(setting, channels, previous)
        configurations[name] = made
        shared = {**reasons, **scale_reasons}
        why.update({f"configurations.{name}.{key}": text for key, text in (shared | said).items()})
        why.update({f"configurations.{name}.{key}": "pinned by you" for key in pins.rest(name)})
    if ask.device.memory_gb is not None:
        why["gpu_memory_gb"] = ask.device.why
    document = {
        "schema": 1,
        "name": ask.name,
        "dataset": fingerprint.dataset,
        "planner": ask.planner,
        "dimensions": fingerprint.dimensions,
        "channels": fingerprint.channels,
        "labels": world.labels.dump(),
        "gpu_memory_gb": ask.device.memory_gb,
        "train_minutes": ask.minutes,
        "pinned": dict(ask.pins),
        "configurations": configurations,
        "why": why,
    }
    return parse_plan(document, f"the plan {ask.name!r}")


@dataclass(frozen=True)
class Setting:
    """One configuration to be decided, and what it is decided from."""

    name: str
    fingerprint: Fingerprint
    ask: Ask
    pins: Pins
    world: World

    @property
    def flat(self) -> bool:
        return self.name == "2d"

    @property
    def spacing_mm(self) -> Spacing:
        """Of the network's axes: two for a 2D one."""
        return self.world.spacing_mm[1:] if self.flat else self.world.spacing_mm

    @property
    def median_vox(self) -> tuple[float, ...]:
        return self.world.median_vox[1:] if self.flat else self.world.median_vox

    @property
    def on_cores(self) -> bool:
        return self.ask.planner == "autoseg" and self.ask.device.memory_gb is None

    def pinned(self, key: str) -> Any:
        return self.pins.of(self.name, key)


def _configuration(
    setting: Setting, channels: list[dict[str, Any]], previous: Plan | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """One configuration as a document, and its reasons by key."""
    setting, grid_why = _gridded(setting, previous)
    world = setting.world
    recipe = _recipe(setting)
    topology, batch = recipe.topology.value, recipe.batch_size.value
    sampled, batch_dice, sampled_why = _sampling(setting, topology.patch_vox, batch)
    augmentation, augmentation_why = augmentation_for(topology.patch_vox)
    network = _network(setting, topology, recipe.features.value)
    document: dict[str, Any] = {
        "preparation": {
            "axes": world.axes,
            "spacing_mm": [None if setting.flat else world.spacing_mm[0], *world.spacing_mm[1:]],
            "channels": channels,
            "labels": world.labels.dump(),
        },
        "patch_vox": topology.patch_vox,
        "median_shape_vox": [max(1, round(n)) for n in world.median_vox],
        "network": network.dump(),
        "sampling": sampled,
        "augmentation": augmentation,
        "train": {
            **recipe.training,
            "batch_size": batch,
            "batch_dice": batch_dice.value,
            "supervision": network.output_weights,
        },
        "predict": recipe.prediction,
    }
    reasons = {
        "patch_vox": recipe.topology.why,
        "train.batch_size": recipe.batch_size.why,
        "train.batch_dice": batch_dice.why,
        "network.encoder": recipe.features.why,
        "augmentation": augmentation_why,
        **sampled_why,
        **recipe.why,
        **grid_why,
    }
    return patched(document, setting.pins.rest(setting.name)), reasons


def _network(setting: Setting, topology: Topology, channels: Size) -> NetworkSpec:
    """The sentence of the asked network on a topology, `channels` wide at its levels."""
    return network_spec(
        setting.ask.network,
        len(setting.fingerprint.channels),
        setting.world.labels.count,
        channels,
        topology.strides,
        topology.kernels,
    )


def _gridded(setting: Setting, previous: Plan | None) -> tuple[Setting, dict[str, str]]:
    """The setting on its own grid: coarser where cores must train it, steady where it was before."""
    if setting.pinned("spacing_mm") is not None:
        return setting, {}
    world, reasons = setting.world, []
    if setting.on_cores and not setting.flat:
        world, why = _coarser(world, setting.fingerprint)
        reasons.append(why)
    world, why = steady_spacing(setting.name, world, setting.ask, previous)
    told = " ".join(filter(None, [*reasons, why]))
    return replace(setting, world=world), {"preparation.spacing_mm": told} if told else {}


def _coarser(world: World, fingerprint: Fingerprint) -> tuple[World, str]:
    """The world on a grid that cores can train, and why it is coarser; empty if it is not."""
    pieces = [
        x.median_component_mm3 for x in fingerprint.labels if x.median_component_mm3 is not None
    ]
    fine = Decision(world.spacing_mm, "")
    found = spacing_for_cores(fine, world.median_vox, min(pieces, default=None))
    if found.value == world.spacing_mm:
        return world, ""
    median = grid.median_shape(world.shapes_vox, world.spacings_mm, found.value)
    return replace(world, spacing_mm=found.value, median_vox=median.value), found.why.strip()


def _recipe(setting: Setting) -> Recipe:
    """Patch, batch, width and schedule: by nnU-Net's budget on a card, by time on cores."""
    ask, spacing, median = setting.ask, setting.spacing_mm, setting.median_vox
    fixed = Fixed(
        topology=_pinned_patch(setting),
        batch_size=setting.pinned("batch_size"),
        width=setting.pinned("width"),
        steps=setting.pinned("steps"),
    )
    cases = len(setting.fingerprint.cases)
    if setting.on_cores:
        return cpu_recipe(
            spacing,
            median,
            cases,
            fixed=fixed,
            minutes=ask.minutes,
            seconds_of=_step_seconds(setting),
        )
    preset = nnunet.PRESETS[ask.network]
    inputs, outputs = len(setting.fingerprint.channels), setting.world.labels.count
    memory = ask.device.memory_gb or preset.memory_gb
    budget = nnunet.element_budget(preset, len(spacing), inputs, outputs, memory)
    topology = (
        Decision(fixed.topology, "pinned by you")
        if fixed.topology
        else fit_patch(spacing, median, budget)
    )
    dataset_vox = prod(setting.world.median_vox) * cases
    batch = _batch(fixed.batch_size, topology.value, budget, dataset_vox, preset)
    width = features(topology.value.levels, len(spacing), fixed.width)
    return gpu_recipe(topology, batch, width, planner=ask.planner, fixed=fixed)


def _step_seconds(setting: Setting) -> StepSeconds:
    """What a step costs here: measured where the device can be asked, else by formula."""
    measured = setting.ask.device.seconds_of
    if measured is None:
        preset = nnunet.PRESETS[setting.ask.network]
        inputs, outputs = len(setting.fingerprint.channels), setting.world.labels.count
        return formula_seconds(preset, inputs, outputs)

    def seconds(topology: Topology, width: int, batch: int) -> float:
        channels = core_features(topology.levels, len(topology.patch_vox), width).value
        return measured(_network(setting, topology, channels), topology.patch_vox, batch)

    return seconds


def _pinned_patch(setting: Setting) -> Topology | None:
    """The topology of a pinned patch. Raises PlanError with the nearest patch that works."""
    name, spacing, pinned = setting.name, setting.spacing_mm, setting.pinned("patch_vox")
    if pinned is None:
        return None
    if not isinstance(pinned, list) or not all(isinstance(n, int) and n > 0 for n in pinned):
        raise PlanError(f"patch_vox is pinned to {pinned!r}; give whole numbers, as [32,64,64]")
    if len(pinned) != len(spacing):
        if f"{name}.patch_vox" in setting.pins.pins:
            raise PlanError(f"{name}.patch_vox needs {len(spacing)} numbers, found {pinned}")
        return None
    topology = topology_for(tuple(pinned), spacing)
    if topology.patch_vox != tuple(pinned):
        raise PlanError(
            f"patch_vox={pinned} does not suit {name}: the nearest that its levels divide is "
            f"{list(topology.patch_vox)}"
        )
    if topology.levels < 2:
        raise PlanError(f"patch_vox={pinned} is too small for {name}: no axis can be halved")
    return topology


def _sampling(
    setting: Setting, patch_vox: Size, batch: int
) -> tuple[dict[str, Any], Decision[bool], dict[str, str]]:
    """Which patches are shown and over what Dice is taken, and why."""
    world, fingerprint, general = setting.world, setting.fingerprint, setting.flat
    structures = world.labels.foreground
    if setting.ask.planner == "nnunet":
        why = "nnU-Net's value for every dataset."
        return (
            {"foreground_share": 1 / 3, "class_weights": [1 / len(structures)] * len(structures)},
            Decision(general, "nnU-Net takes Dice over the batch in 2D, else per sample."),
            {"sampling.foreground_share": why, "sampling.class_weights": why},
        )
    growth = [prod(own) / prod(world.spacing_mm) for own in world.spacings_mm]
    shapes = tuple(
        tuple(
            max(1, round(n * a / b)) for n, a, b in zip(shape, own, world.spacing_mm, strict=True)
        )
        for shape, own in zip(world.shapes_vox, world.spacings_mm, strict=True)
    )
    classes = {}
    for index, structure in enumerate(structures):
        voxels, pieces = [], []
        for case, factor in zip(fingerprint.cases, growth, strict=True):
            voxels.append(round(case.label_voxels[index] * factor))
            size = case.label_component_vox[index]
            if size is not None:
                pieces += [size * factor] * case.label_components[index]
        classes[structure] = ClassStatistics(tuple(voxels), tuple(pieces))
    whole = (1, *patch_vox) if setting.flat else patch_vox
    scene = Scene(whole, world.spacing_mm, shapes, classes, batch, general)
    chosen = sampling(scene)
    return (
        {
            "foreground_share": chosen.foreground_share.value,
            "class_weights": [chosen.class_weights.value[s] for s in structures],
        },
        chosen.batch_dice,
        {
            "sampling.foreground_share": chosen.foreground_share.why,
            "sampling.class_weights": chosen.class_weights.why,
        },
    )


def _batch(
    pinned: Any,
    topology: Topology,
    budget: Budget,
    dataset_vox: float,
    preset: nnunet.Preset,
) -> Decision[int]:
    if pinned is None:
        return batch_size(topology, budget, dataset_vox, preset.largest_share)
    cost = budget.cost_of(topology, pinned)
    over = (
        f"; it exceeds the budget of {budget.limit:.3g} {budget.unit}"
        if cost > budget.limit
        else ""
    )
    return Decision(int(pinned), f"pinned by you{over}")
