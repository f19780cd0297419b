"""What would nnU-Net plan for this dataset?

The decisions of nnU-Net 2.8's planners (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; the
residual presets: Isensee et al. 2024, arXiv:2404.09556), number for number: configurations, patch
and batch sizes, topology, and whether a low resolution and a cascade are worth their time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

from autoseg.rules import grid
from autoseg.rules.budget import Budget, batch_size, fit_patch
from autoseg.rules.cascade import low_resolution
from autoseg.rules.decision import Decision, Size, Spacing, lengths
from autoseg.rules.network import Architecture, Kind, conv_elements, features, parameters
from autoseg.rules.topology import Topology


@dataclass(frozen=True)
class Preset:
    """A family of networks and what its convolutions may put out.

    A step is full when one sample puts out `elements[axes]` values at a batch of
    `batch[axes]` on a card of `memory_gb`. The residual presets shrink the patch until that batch
    fits, the plain one only until a batch of 2 does.
    """

    kind: Kind
    memory_gb: float
    elements: Mapping[int, float]
    largest_share: float

    def encoder_blocks(self, levels: int) -> Size:
        return (2,) * levels if self.kind == "plain" else (1, 3, 4, *(6,) * levels)[:levels]

    def decoder_convs(self, levels: int) -> Size:
        return (2 if self.kind == "plain" else 1,) * (levels - 1)


PRESETS: dict[str, Preset] = {
    "plain": Preset("plain", 8, {2: 85e6, 3: 560e6}, 0.05),
    "resenc_m": Preset("residual", 8, {2: 135e6, 3: 680e6}, 1.0),
    "resenc_l": Preset("residual", 24, {2: 380e6, 3: 2.1e9}, 1.0),
    "resenc_xl": Preset("residual", 40, {2: 560e6, 3: 3.6e9}, 1.0),
}
REFERENCE_BATCH = {2: 12, 3: 2}


@dataclass(frozen=True)
class Dataset:
    """The numbers of a dataset that decide: one spacing and one cropped shape a case.

    `outputs` counts the labels that dataset.json names, as nnU-Net reckons: background, regions and
    an ignore label count one each. `relative_size` is the median of voxels after the crop to the
    nonzero box / voxels before.
    """

    spacings_mm: tuple[Spacing, ...]
    shapes_vox: tuple[Size, ...]
    channel_names: tuple[str, ...]
    outputs: int
    cases: int
    relative_size: float


@dataclass(frozen=True)
class Configuration:
    """One network on one grid; tuples are in the plan's order of axes, two of them for 2d."""

    spacing_mm: Decision[Spacing]
    median_vox: tuple[float, ...]
    topology: Decision[Topology]
    batch_size: Decision[int]
    features: Decision[Size]
    batch_dice: Decision[bool]
    architecture: Architecture
    elements: int
    parameters: int


@dataclass(frozen=True)
class Plan:
    """All that nnU-Net decides before training; `configurations` are in nnU-Net's order."""

    spacing_mm: Decision[Spacing]
    axis_order: Decision[Size]
    schemes: tuple[Decision[str], ...]
    uses_mask: tuple[Decision[bool], ...]
    configurations: dict[str, Configuration]
    cascade: Decision[bool]


BudgetFor = Callable[[int], Budget]


@dataclass(frozen=True)
class _Question:
    """What stays the same while the configurations of one dataset are tried."""

    dataset: Dataset
    preset: Preset
    budget_for: BudgetFor


def architecture(
    preset: Preset,
    topology: Topology,
    inputs: int,
    outputs: int,
    first: int | None = None,
    most: int | None = None,
) -> Architecture:
    """The network that a preset puts on a topology; `first` and `most` as in `features`."""
    levels = topology.levels
    width = features(levels, len(topology.patch_vox), first, most).value
    return Architecture(
        preset.kind,
        topology,
        width,
        preset.encoder_blocks(levels),
        preset.decoder_convs(levels),
        inputs,
        outputs,
    )


def element_budget(
    preset: Preset, axes: int, inputs: int, outputs: int, gpu_memory_gb: float
) -> Budget:
    """nnU-Net's measure of memory: convolution elements, in proportion to the card's size."""
    limit = preset.elements[axes] * (gpu_memory_gb / preset.memory_gb)
    reference = REFERENCE_BATCH[axes]

    def elements(topology: Topology) -> int:
        return conv_elements(architecture(preset, topology, inputs, outputs))

    return Budget(
        limit,
        f"convolution elements that {gpu_memory_gb:g} GB allow",
        lambda topology, batch: elements(topology) * batch / reference,
        lambda topology: round(limit / elements(topology) * reference),
        2 if preset.kind == "plain" else reference,
    )


def plan(
    dataset: Dataset,
    network: str = "plain",
    gpu_memory_gb: float | None = None,
    *,
    target_mm: Spacing | None = None,
) -> Plan:
    """nnU-Net's plan for a dataset; `network` is a key of PRESETS, which also sets the memory.

    `target_mm` replaces the target spacing, in the order of the dataset's axes.
    """
    preset = PRESETS[network]
    memory = preset.memory_gb if gpu_memory_gb is None else gpu_memory_gb
    spacing = grid.target_spacing(dataset.spacings_mm, dataset.shapes_vox)
    if target_mm is not None:
        spacing = Decision(target_mm, f"{lengths(target_mm)} was set by hand.")
    order = grid.coarsest_first(spacing.value)
    median = grid.median_shape(dataset.shapes_vox, dataset.spacings_mm, spacing.value).value
    ordered = Decision(tuple(spacing.value[axis] for axis in order.value), spacing.why)
    inputs = len(dataset.channel_names)
    asked = _Question(
        dataset,
        preset,
        lambda axes: element_budget(preset, axes, inputs, dataset.outputs, memory),
    )
    found, cascade = _configurations(asked, ordered, tuple(median[axis] for axis in order.value))
    schemes = tuple(grid.normalisation(name, blanks_count=True) for name in dataset.channel_names)
    masks = tuple(grid.uses_mask(scheme.value, dataset.relative_size) for scheme in schemes)
    return Plan(spacing, order, schemes, masks, found, cascade)


def _configurations(
    asked: _Question, spacing: Decision[Spacing], median_vox: tuple[float, ...]
) -> tuple[dict[str, Configuration], Decision[bool]]:
    """The configurations that are worth training, and whether a cascade is one of them."""
    dataset_vox = prod(median_vox) * asked.dataset.cases
    in_plane = Decision(spacing.value[1:], f"within the slices of the 3D grid; {spacing.why}")
    flat = _configuration(
        asked,
        in_plane,
        median_vox[1:],
        dataset_vox,
        Decision(True, "2D patches often lack a label, so Dice is taken over the whole batch."),
    )
    if median_vox[0] == 1:
        return {"2d": flat}, Decision(False, "the images have a single slice.")
    unsure = Decision(False, "decided when it is known whether a low resolution is needed.")
    full = _configuration(asked, spacing, median_vox, dataset_vox, unsure)
    low, why = _low_resolution(asked, full)
    full = replace(full, batch_dice=_full_batch_dice(low is not None))
    if low is None:
        return {"2d": flat, "3d_fullres": full}, Decision(False, why)
    return {"2d": flat, "3d_lowres": low, "3d_fullres": full}, Decision(True, why)


def _full_batch_dice(has_lowres: bool) -> Decision[bool]:
    if has_lowres:
        return Decision(
            True,
            "a patch shows under a quarter of a typical case and often lacks a "
            "label, so Dice is taken over the whole batch.",
        )
    return Decision(False, "a patch shows most of a typical case, so Dice is taken per sample.")


def _configuration(
    asked: _Question,
    spacing: Decision[Spacing],
    median_vox: tuple[float, ...],
    dataset_vox: float,
    batch_dice: Decision[bool],
) -> Configuration:
    """Patch, batch and network on one grid."""
    axes = len(spacing.value)
    budget = asked.budget_for(axes)
    topology = fit_patch(spacing.value, median_vox, budget)
    dataset = asked.dataset
    net = architecture(asked.preset, topology.value, len(dataset.channel_names), dataset.outputs)
    return Configuration(
        spacing,
        median_vox,
        topology,
        batch_size(topology.value, budget, dataset_vox, asked.preset.largest_share),
        features(topology.value.levels, axes),
        batch_dice,
        net,
        conv_elements(net),
        parameters(net),
    )


def _low_resolution(asked: _Question, full: Configuration) -> tuple[Configuration | None, str]:
    """A configuration on a grid so coarse that its patch sees a quarter of a case, or None; why."""
    budget = asked.budget_for(3)

    def patch_at(spacing_mm: Spacing, median_vox: Size) -> Size:
        return fit_patch(spacing_mm, median_vox, budget).value.patch_vox

    patch = full.topology.value.patch_vox
    grid_of, why = low_resolution(full.spacing_mm.value, full.median_vox, patch, patch_at)
    if grid_of is None:
        return None, why
    low = _configuration(
        asked,
        Decision(grid_of.spacing_mm, why),
        grid_of.median_vox,
        grid_of.voxels * asked.dataset.cases,
        Decision(
            False,
            "a low resolution patch shows a quarter of a case or more, so Dice is taken per sample.",
        ),
    )
    return low, why
