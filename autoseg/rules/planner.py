"""In which order are the rules asked, and what plan do their answers make?

The default planner starts from nnU-Net's rules and departs where measuring tells better: axes
follow anatomy, class imbalance decides sampling, the bytes of a step are computed for any network,
and without a card the network is fitted to the time and the cores. `planner="nnunet"` keeps
nnU-Net's values everywhere. What a person pins is fixed first, the rest is decided around it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from autoseg.documents.fingerprint import Fingerprint
from autoseg.documents.labels import LabelSet
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.plan import Cost, Plan, parse_plan
from autoseg.documents.presets.table import preset_named
from autoseg.errors import PlanError
from autoseg.rules.bound import element_budget, nnunet_exaflop, nnunet_preset, nnunet_work
from autoseg.rules.budget import fit_patch
from autoseg.rules.card import SMALLEST_BATCH, Card, largest_patch
from autoseg.rules.cascade import BELOW_SHARE, PatchAt, low_resolution
from autoseg.rules.configuration import document_for, gridded, recipe_for
from autoseg.rules.decision import Size, Spacing, sizes
from autoseg.rules.grid import median_shape
from autoseg.rules.recipe import Recipe
from autoseg.rules.setting import Setting
from autoseg.rules.work import fold_cost
from autoseg.rules.world import (
    CONFIGURATIONS,
    Ask,
    Pins,
    channel_scales,
    see_world,
    steady_spacing,
    three_lengths,
)

STRETCH = 1.5
"""A patch on a coarser grid is taken to hold at most so many times the voxels of the finer one's,
which spares the search where a low resolution is far from coarse enough."""
ON_CORES = (
    "no 3d_lowres: without a card 3d_fullres has so coarse a grid already that a patch sees enough "
    "of a case."
)


@dataclass(frozen=True)
class Decided:
    """One configuration: what it was decided from, and what was decided."""

    setting: Setting
    recipe: Recipe
    network: NetworkSpec
    reasons: dict[str, str]


def make_plan(fingerprint: Fingerprint, ask: Ask, previous: Plan | None = None) -> Plan:
    """The plan for a fingerprint. Raises PlanError if a pinned value or the target cannot work.

    `previous` is the plan that this one replaces: grids and intensity scales that have hardly
    changed keep its values.
    """
    preset_named(ask.network)
    if ask.planner == "nnunet":
        nnunet_preset(ask.network)
    pins = Pins(ask.pins)
    world, reasons = see_world(fingerprint, ask, pins)
    channels, scale_reasons = channel_scales(fingerprint, ask, previous)
    first = Setting("2d", fingerprint, ask, pins, world, _card(ask), len(channels), partial=True)
    decided, why = {"2d": _decide(first, previous)}, {}
    if fingerprint.dimensions == 3 and world.median_vox[0] > 1:
        volumes, cascade_why = _volumes(replace(first, name="3d_fullres"), previous)
        decided |= volumes
        why["configurations"] = cascade_why
    _check_pins(pins, decided, why)
    configurations: dict[str, Any] = {}
    for name in filter(decided.__contains__, CONFIGURATIONS):
        found = decided[name]
        made, said = document_for(found.setting, found.recipe, found.network, channels)
        said = {**reasons, **scale_reasons, **said, **found.reasons}
        if name == "3d_cascade_fullres":
            made["previous"] = "3d_lowres"
        cost = _cost(found, made["train"])
        if cost is not None:
            made["cost"] = cost.dump()
            said |= _cost_why(found, cost)
        configurations[name] = made
        why |= {f"configurations.{name}.{key}": text for key, text in said.items()}
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
        "why": why | _label_reasons(world.labels),
    }
    return parse_plan(document, f"the plan {ask.name!r}")


def _cost(found: Decided, train: dict[str, Any]) -> Cost | None:
    """What a fold of a configuration costs on the device that is planned for."""
    recipe, setting = found.recipe, found.setting
    patch, batch = recipe.topology.value, recipe.batch_size.value
    step_bytes = None
    if setting.card is not None:
        reckoner = setting.card.reckoner(setting.draft, recipe.recompute)
        step_bytes = reckoner.real(patch, batch)
    return fold_cost(
        found.network, patch.patch_vox, train, setting.ask.device,
        step_s=recipe.step_s, step_bytes=step_bytes,
    )  # fmt: skip


def _cost_why(found: Decided, cost: Cost) -> dict[str, str]:
    """On a card, how a fold's cost compares with that of nnU-Net's own plan for the same data."""
    if found.setting.ask.device.memory_gb is None:
        return {}
    work = nnunet_work(found.setting)
    theirs = None if work is None else nnunet_exaflop(found.setting, work)
    if work is None or not theirs:
        return {}
    return {
        "cost": f"{cost.exaflop / theirs:.2f} times the {theirs:.3g} exaFLOP of nnU-Net's own plan for "
        f"these data, {work.batch} patches of {sizes(work.patch_vox)} a step; {cost.source}."
    }


def _label_reasons(labels: LabelSet) -> dict[str, str]:
    """What regions and an ignore label change, where there are such."""
    said = []
    if labels.regions:
        names = ", ".join(region.name for region in labels.regions)
        over = " over ".join(region.name for region in reversed(labels.regions))
        said.append(
            f"one output a region ({names}) with a sigmoid, since regions overlap and a voxel may "
            f"belong to several of them; label maps are painted {over}. Patches are placed on the "
            f"{labels.count - 1} values that the regions are made of."
        )
    if labels.ignore is not None:
        said.append(
            f"voxels of the value {labels.ignore} are labelled by nobody and count neither in the "
            "loss nor in scores; volumes and pieces were measured in what is labelled, and may be "
            "larger."
        )
    return {"labels": " ".join(said)} if said else {}


def _card(ask: Ask) -> Card | None:
    """The card that the default planner fits to, if there is one."""
    device = ask.device
    if ask.planner == "nnunet" or device.memory_gb is None:
        return None
    if device.bytes_of is None:
        raise ValueError("a plan for a card needs bytes_of")
    return Card(device.memory_gb, device.bytes_of)


def _decide(setting: Setting, previous: Plan | None) -> Decided:
    setting, reasons = gridded(setting, previous)
    recipe, network = recipe_for(setting)
    return Decided(setting, recipe, network, reasons)


def _volumes(setting: Setting, previous: Plan | None) -> tuple[dict[str, Decided], str]:
    """The 3D configurations, and why there is a low resolution or none."""
    full = _decide(replace(setting, partial=False), previous)
    if setting.on_cores:
        return {"3d_fullres": full}, ON_CORES
    low, why = _low_setting(full, previous)
    if low is None:
        return {"3d_fullres": full}, why
    # patches that see little of a case are what nnU-Net takes Dice over the batch for
    full = replace(full, setting=replace(full.setting, partial=True))
    recipe, network = recipe_for(low)
    lowered = Decided(low, recipe, network, {"preparation.spacing_mm": why})
    return {"3d_lowres": lowered, "3d_fullres": full, "3d_cascade_fullres": _cascade(full)}, why


def _low_setting(full: Decided, previous: Plan | None) -> tuple[Setting | None, str]:
    """The low resolution as a configuration to be decided, or None; and why."""
    setting = full.setting
    low = replace(setting, name="3d_lowres")
    pinned = low.pinned("spacing_mm")
    if pinned is not None:
        spacing = three_lengths(pinned)
        median = median_shape(setting.world.shapes_vox, setting.world.spacings_mm, spacing).value
        world = replace(setting.world, spacing_mm=spacing, median_vox=median)
        return replace(low, world=world), "pinned by you"
    found, why = low_resolution(
        setting.spacing_mm,
        setting.median_vox,
        full.recipe.topology.value.patch_vox,
        _patch_at(low, full),
    )
    if found is None:
        return None, why
    world = replace(
        setting.world,
        spacing_mm=found.spacing_mm,
        median_vox=tuple(float(n) for n in found.median_vox),
    )
    world, kept = steady_spacing("3d_lowres", world, setting.ask, previous)
    low = replace(low, world=world, dataset_vox=found.voxels * setting.cases)
    return low, f"{why} {kept}".strip()


def _patch_at(low: Setting, full: Decided) -> PatchAt:
    """The patch that a coarser grid would get."""
    if low.card is None:
        budget = element_budget(low, nnunet_preset(low.ask.network), low.ask.device.memory_gb)
        return lambda spacing, median: fit_patch(spacing, median, budget).value.patch_vox
    card, patch = low.card, full.recipe.topology.value.patch_vox
    batch = low.number("batch_size") or SMALLEST_BATCH

    def patch_at(spacing_mm: Spacing, median_vox: Size) -> Size:
        if STRETCH * prod(patch) < BELOW_SHARE * prod(median_vox):
            return patch
        world = replace(low.world, spacing_mm=spacing_mm, median_vox=median_vox)
        there = replace(low, world=world)
        pinned = there.pinned("patch_vox")
        if pinned is not None:
            return tuple(pinned)
        work = None if low.ask.use_memory else nnunet_work(there)
        found = largest_patch(there.draft, there.case, card, batch, full.recipe.recompute, work)
        return patch if found is None else found.patch_vox

    return patch_at


def _cascade(full: Decided) -> Decided:
    """Full resolution once more, with the low resolution's answer as further channels."""
    setting = full.setting
    said = setting.world.labels.count - 1
    setting = replace(setting, name="3d_cascade_fullres", inputs=setting.inputs + said)
    patch, batch = full.recipe.topology, full.recipe.batch_size
    draft = setting.draft
    recipe = full.recipe
    if setting.card is not None and not _pinned_both(setting):
        reckoner = setting.card.reckoner(draft, recipe.recompute)
        if reckoner.real(patch.value, batch.value) > reckoner.limit:
            recipe, _ = recipe_for(setting)
    network = draft.network(
        recipe.topology.value, recipe.features.value, recompute=recipe.recompute
    )
    reasons = {
        "previous": f"3d_fullres on {sizes(recipe.topology.value.patch_vox)} voxels, which is also "
        f"shown what 3d_lowres says: a channel for each of {said} classes.",
    }
    return Decided(setting, recipe, network, reasons | full.reasons)


def _pinned_both(setting: Setting) -> bool:
    return setting.pinned("patch_vox") is not None and setting.pinned("batch_size") is not None


def _check_pins(pins: Pins, decided: dict[str, Decided], why: dict[str, str]) -> None:
    """Raise PlanError for a pin of a low resolution or a cascade that is not planned."""
    for name in _named(pins):
        if name not in decided and name in ("3d_lowres", "3d_cascade_fullres"):
            told = why.get("configurations", "the images are flat.")
            raise PlanError(f"a value of {name} is pinned, but the plan has none: {told}")


def _named(pins: Pins) -> Iterator[str]:
    """The configurations that pins name."""
    for key in pins.pins:
        head = key.partition(".")[0]
        if head in CONFIGURATIONS:
            yield head
