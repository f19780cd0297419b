"""One configuration: what is decided for one network on one grid, as a document with its reasons.

Three ways lead to patch, batch and width: bytes on a card, time on cores, and nnU-Net's element
counts. What follows from them is decided alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.model import Precision
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Plan
from autoseg.documents.presets.table import preset_named
from autoseg.documents.settings import patched
from autoseg.errors import PlanError
from autoseg.rules import grid, nnunet
from autoseg.rules.bound import element_budget, nnunet_preset, nnunet_work, reference_batch
from autoseg.rules.budget import Budget, batch_size, fit_patch
from autoseg.rules.card import fit_card
from autoseg.rules.decision import Decision, Size
from autoseg.rules.draft import Draft
from autoseg.rules.growing import patch_schedule
from autoseg.rules.network import features
from autoseg.rules.recipe import (
    CORE_MACS_PER_S,
    Anatomy,
    Fixed,
    Recipe,
    StepSeconds,
    augmentation_for,
    core_features,
    cpu_recipe,
    gpu_recipe,
    spacing_for_cores,
)
from autoseg.rules.sampling import ClassStatistics, Scene, sampling
from autoseg.rules.setting import Setting
from autoseg.rules.timed import MOST_MEASURED, Speed, within_minutes
from autoseg.rules.topology import Topology
from autoseg.rules.work import estimated_seconds
from autoseg.rules.world import World, card_precision, steady_spacing


def gridded(setting: Setting, previous: Plan | None) -> tuple[Setting, dict[str, str]]:
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


def recipe_for(setting: Setting) -> tuple[Recipe, NetworkSpec]:
    """Patch, batch, width and schedule, and the network that was reckoned with."""
    draft = setting.draft
    fixed = Fixed(
        topology=_pinned_patch(setting, draft),
        batch_size=setting.number("batch_size"),
        width=setting.number("width"),
        steps=setting.number("steps"),
    )
    if setting.on_cores:
        found = cpu_recipe(
            draft,
            setting.median_vox,
            setting.cases,
            fixed=fixed,
            minutes=setting.ask.minutes,
            seconds_of=_step_seconds(setting, draft),
        )
    elif setting.ask.planner == "nnunet":
        found = _nnunet_recipe(setting, draft, fixed)
    else:
        found = _within_minutes(setting, draft, fixed, _card_recipe(setting, draft, fixed))
    channels = found.features.value
    return found, draft.network(found.topology.value, channels, recompute=found.recompute)


def _card_recipe(setting: Setting, draft: Draft, fixed: Fixed) -> Recipe:
    """nnU-Net's patch and batch, or what of them fits the card; all that fits where that is asked."""
    if setting.card is None:
        raise ValueError("a plan for a card needs a card")
    work = nnunet_work(setting)
    fit = fit_card(
        draft, setting.case, setting.card, patch=fixed.topology, batch=fixed.batch_size,
        work=None if setting.ask.use_memory else work,
    )  # fmt: skip
    width = features(fit.topology.value.levels, draft.axes, fixed.width)
    authors = preset_named(setting.ask.network).training
    reference = None
    if work is not None:
        reference = reference_batch(work, fit.topology.value.patch_vox)
    recipe = gpu_recipe(
        fit.topology, fit.batch_size, width, fixed=fixed, authors=authors, reference=reference
    )
    why = {**recipe.why, "network.recompute": fit.recompute.why}
    return replace(recipe, why=why, recompute=fit.recompute.value)


def _within_minutes(setting: Setting, draft: Draft, fixed: Fixed, full: Recipe) -> Recipe:
    """What of a card's recipe the time holds, where a time was given."""
    device, minutes = setting.ask.device, setting.ask.minutes
    if minutes is None or device.operations_of is None:
        return full
    precision = setting.pinned("train.precision") or device.precision
    most = max(1, min(MOST_MEASURED, int(minutes)))
    speed = Speed(device, lambda work: estimated_seconds(work, device, precision)[0], most)
    authors = preset_named(setting.ask.network).training
    return within_minutes(
        full, draft, setting.case, minutes, fixed=fixed, speed=speed, authors=authors
    )


def _nnunet_recipe(setting: Setting, draft: Draft, fixed: Fixed) -> Recipe:
    """What fits the card by nnU-Net's counts of convolution elements."""
    preset = nnunet_preset(setting.ask.network)
    budget = element_budget(setting, preset, setting.ask.device.memory_gb)
    topology = (
        Decision(fixed.topology, "pinned by you")
        if fixed.topology
        else fit_patch(setting.spacing_mm, setting.median_vox, budget)
    )
    batch = _nnunet_batch(fixed.batch_size, topology.value, budget, setting, preset)
    width = features(topology.value.levels, draft.axes, fixed.width)
    return gpu_recipe(topology, batch, width, fixed=fixed)


def _nnunet_batch(
    pinned: int | None,
    topology: Topology,
    budget: Budget,
    setting: Setting,
    preset: nnunet.Preset,
) -> Decision[int]:
    if pinned is None:
        return batch_size(topology, budget, setting.case.dataset_vox, preset.largest_share)
    cost = budget.cost_of(topology, pinned)
    over = (
        f"; it exceeds the budget of {budget.limit:.3g} {budget.unit}"
        if cost > budget.limit
        else ""
    )
    return Decision(pinned, f"pinned by you{over}")


def _step_seconds(setting: Setting, draft: Draft) -> StepSeconds:
    """What a step costs on cores: measured where the device can be asked, else by operations."""
    device = setting.ask.device

    def of(cost: Callable[[NetworkSpec, Size, int], float]) -> StepSeconds:
        def seconds(topology: Topology, width: int, batch: int) -> float:
            channels = core_features(topology.levels, draft.axes, width).value
            return cost(draft.network(topology, channels), topology.patch_vox, batch)

        return seconds

    if device.seconds_of is not None:
        return of(device.seconds_of)
    operations_of = device.operations_of
    if operations_of is None:
        raise ValueError("a plan for cores needs operations_of or seconds_of")
    return of(lambda net, patch, batch: 3 * operations_of(net, patch) * batch / CORE_MACS_PER_S)


def _pinned_patch(setting: Setting, draft: Draft) -> Topology | None:
    """The topology of a pinned patch. Raises PlanError with the nearest patch that works."""
    name, pinned = setting.name, setting.pinned("patch_vox")
    if pinned is None:
        return None
    if not isinstance(pinned, (list, tuple)) or not all(type(n) is int and n > 0 for n in pinned):
        raise PlanError(f"patch_vox is pinned to {pinned!r}; give whole numbers, as [32,64,64]")
    pinned = tuple(pinned)
    if len(pinned) != draft.axes:
        if setting.pins.by_name(name, "patch_vox"):
            raise PlanError(f"{name}.patch_vox needs {draft.axes} numbers, found {list(pinned)}")
        return None
    topology = draft.exactly(pinned, f"the patch pinned for {name}")
    if topology.patch_vox != pinned:
        found = [
            list(near)
            for near in (_rounded_down(draft, pinned, topology), topology.patch_vox)
            if near is not None
        ]
        raise PlanError(
            f"patch_vox={list(pinned)} does not suit {name}: the nearest that its levels divide is "
            f"{' or '.join(map(str, found))}"
        )
    return topology


def _rounded_down(draft: Draft, patch_vox: Size, above: Topology) -> Size | None:
    """The next smaller patch that suits its levels, or None where there is none."""
    axes = zip(patch_vox, above.divisor, strict=True)
    smaller = tuple(edge // by * by for edge, by in axes)
    if not all(smaller):
        return None
    found = draft.on(smaller)
    return smaller if found.patch_vox == smaller and found.levels > 1 else None


def document_for(
    setting: Setting, recipe: Recipe, network: NetworkSpec, channels: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration as a document, and its reasons by key."""
    world, topology = setting.world, recipe.topology.value
    batch = recipe.batch_size.value
    sampled, batch_dice, sampled_why = _sampling(setting, topology.patch_vox, batch)
    anatomy = Anatomy.of(world, setting.ask, flat=setting.fingerprint.dimensions == 2)
    augmentation, augmentation_why = augmentation_for(topology.patch_vox, anatomy)
    precision = _precision(setting)
    growing = _growing(setting, network, topology.patch_vox, batch)
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
            **({} if precision is None else {"precision": precision.value}),
            **({"patch_schedule": growing.value} if growing.value else {}),
        },
        "predict": {},
    }
    widths = "network.encoder" if "encoder" in type(network).model_fields else "network"
    reasons = {
        "patch_vox": recipe.topology.why,
        "train.batch_size": recipe.batch_size.why,
        "train.batch_dice": batch_dice.why,
        **({} if precision is None else {"train.precision": precision.why}),
        widths: recipe.features.why if setting.draft.whole is None else "pinned by you",
        **augmentation_why,
        **sampled_why,
        **recipe.why,
        **({"train.patch_schedule": growing.why} if growing.why else {}),
        **pinned_reasons(setting),
    }
    return patched(document, setting.pins.rest(setting.name)), reasons


def _precision(setting: Setting) -> Decision[Precision] | None:
    """What a card trains in; None on cores, where the variants are timed."""
    if setting.ask.device.memory_gb is None:
        return None
    return card_precision(setting.ask.device, setting.ask.planner)


def _growing(
    setting: Setting, network: NetworkSpec, patch_vox: Size, batch: int
) -> Decision[list[Any]]:
    """The smaller patches that training begins with, if there are any."""
    name, pinned = setting.name, setting.pinned("patch_schedule")
    if isinstance(pinned, (list, tuple)) and not setting.pins.by_name(name, "patch_schedule"):
        patches = [stage.get("patch_vox") for stage in pinned if isinstance(stage, Mapping)]
        if any(isinstance(p, list) and len(p) != len(patch_vox) for p in patches):
            # stages of three numbers do not touch `2d`, nor of two the others
            pinned = None
    card = setting.card
    return patch_schedule(
        pinned, network, patch_vox, batch, None if card is None else card.bytes_of
    )


def pinned_reasons(setting: Setting) -> dict[str, str]:
    """The keys that a person fixed and that no rule gives a reason for."""
    keys = list(setting.pins.rest(setting.name))
    for key in setting.pins.network(setting.name):
        first = key.partition(".")[0]
        keys.append(f"network.{first}" if first else "network")
    if setting.draft.whole is None:
        keys = [key for key in keys if key != "network"]
    return dict.fromkeys(keys, "pinned by you")


def _sampling(
    setting: Setting, patch_vox: Size, batch: int
) -> tuple[dict[str, Any], Decision[bool], dict[str, str]]:
    """Which patches are shown and over what Dice is taken, and why."""
    world, fingerprint, general = setting.world, setting.fingerprint, setting.partial
    structures = world.labels.foreground
    if setting.ask.planner == "nnunet":
        why = "nnU-Net's value for every dataset."
        return (
            {
                "foreground_share": 1 / 3,
                "class_weights": [1 / len(structures)] * len(structures),
                "class_first": False,
            },
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
