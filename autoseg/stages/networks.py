"""Presets × grid → what each network costs: parameters, operations, memory, seconds a step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from autoseg.costs import (
    StepBytes,
    labels_for,
    operations,
    parameter_count,
    prediction_bytes,
    timed_step,
)
from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.presets.table import PRESETS, network_spec, preset_named
from autoseg.errors import AutosegError, PlanError
from autoseg.pool import over_units
from autoseg.rules.decision import Size, Spacing, sizes
from autoseg.rules.memory import GB, target_for
from autoseg.rules.network import features
from autoseg.rules.recipe import NNUNET_STEPS
from autoseg.rules.throughput import throughput_of
from autoseg.rules.topology import topology_for
from autoseg.rules.work import estimated_seconds, step_operations
from autoseg.rules.world import Device


@dataclass(frozen=True)
class Grid:
    """What a network is asked to segment: patches of so many voxels, in plan axes."""

    patch_vox: Size
    spacing_mm: Spacing
    batch: int
    in_channels: int
    classes: int
    width: int | None = None
    """Channels of the finest level; None: 32, where a preset has its published size."""
    steps: int = NNUNET_STEPS
    """Of a fold, whose hours are told."""


@dataclass(frozen=True)
class NetworkCost:
    """One preset on a grid; `fault` says why it has no numbers.

    `patch_vox` is the grid's, enlarged to what the preset's levels divide. Bytes are those of one
    step in 16-bit floats on a card.
    """

    name: str
    about: str
    patch_vox: Size = ()
    parameters: int = 0
    multiply_adds: int = 0
    training_bytes: int = 0
    prediction_bytes: int = 0
    card_gb: float = 0.0
    """The least memory of a card on which such a step fits, with what a card needs for itself."""
    exaflop: float = 0.0
    """Of a fold."""
    hours: float = 0.0
    """Of a fold on a card, as expected by its kind."""
    seconds: float | None = None
    """Of a training step in float32 on this machine's cores, where it was measured."""
    fault: str = ""


@dataclass(frozen=True)
class Networks:
    """The costs of several networks on one grid."""

    grid: Grid
    networks: tuple[NetworkCost, ...]
    card: str = ""
    """The card that hours are expected of; empty: none is there, and a typical one is taken."""

    def lines(self) -> Iterator[str]:
        """The costs as aligned text."""
        grid = self.grid
        yield (
            f"a batch of {grid.batch} patches of {sizes(grid.patch_vox)} voxels, "
            f"{grid.in_channels} channels, {grid.classes} classes, {grid.width or 32} features at "
            "the finest level; bytes in 16-bit floats on a card"
        )
        yield f"hours are of a fold of {grid.steps} steps, {throughput_of(self.card).source}"
        timed = any(n.seconds is not None for n in self.networks)
        head = ["network", "parameters", "GMAC", "train GiB", "card GB", "predict GiB", "hours"]
        rows = [[*head, *(["s/step here"] if timed else []), "patch", "what"]]
        for n in self.networks:
            if n.fault:
                rows.append([n.name, *[""] * (len(rows[0]) - 2), n.fault])
                continue
            seconds = [""] if n.seconds is None else [f"{n.seconds:.3g}"]
            rows.append(
                [n.name, f"{n.parameters / 1e6:.2f} M", f"{n.multiply_adds / 1e9:.4g}",
                 f"{n.training_bytes / GB:.2f}", f"{n.card_gb:.1f}",
                 f"{n.prediction_bytes / GB:.2f}", f"{n.hours:.3g}", *(seconds if timed else []),
                 "" if n.patch_vox == grid.patch_vox else sizes(n.patch_vox), n.about]
            )  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(head) + timed + 1)]
        for row in rows:
            cells = (c.ljust(w) for c, w in zip(row, widths, strict=False))
            yield "  ".join([*cells, row[-1]]).rstrip()


def costs(
    grid: Grid, names: Sequence[str], measure: Sequence[str], workers: int, card: str = ""
) -> Iterator[NetworkCost]:
    """What each preset costs on the grid; those of `measure` are timed, one after the other.

    Hours are those that a card of the name `card` is expected to take.

    Raises PlanError for an unknown preset.
    """
    for name in (*names, *measure):
        preset_named(name)
    found: dict[str, NetworkCost] = {}
    for name, cost in over_units(partial(cost_of, grid, card=card), list(names), workers=workers):
        if isinstance(cost, AutosegError):
            cost = NetworkCost(name, PRESETS[name].about, fault=str(cost))
        found[name] = cost
    for name in names:
        yield timed(grid, found[name]) if name in measure else found[name]


def network_on(grid: Grid, name: str) -> tuple[NetworkSpec, Size]:
    """The document of a preset on a grid, and the patch that its levels divide."""
    axes = len(grid.patch_vox)
    topology = topology_for(grid.patch_vox, grid.spacing_mm, preset_named(name).most_levels)
    if topology.levels < 2:
        raise PlanError(f"a patch of {sizes(grid.patch_vox)} is too small: no axis can be halved")
    spec = network_spec(
        name,
        grid.in_channels,
        grid.classes,
        features(topology.levels, axes, grid.width).value,
        topology.strides,
        topology.kernels,
    )
    return spec, topology.patch_vox


def cost_of(grid: Grid, name: str, card: str = "") -> NetworkCost:
    """What one preset costs on a grid."""
    spec, patch = network_on(grid, name)
    training = StepBytes(recipe=preset_named(name).training)(spec, patch, grid.batch)
    forward = operations(spec, patch)
    work = step_operations(spec, forward, grid.batch)
    seconds, _ = estimated_seconds(work, Device(1.0, "", card=card), "bfloat16")
    return NetworkCost(
        name,
        PRESETS[name].about,
        patch,
        parameter_count(spec),
        forward,
        int(training),
        prediction_bytes(spec, patch, 1),
        target_for(training),
        2 * work * grid.steps / 1e18,
        seconds * grid.steps / 3600,
    )


def timed(grid: Grid, cost: NetworkCost) -> NetworkCost:
    """The cost with the seconds of a step, measured on this machine's cores."""
    if cost.fault:
        return cost
    spec, patch = network_on(grid, cost.name)
    return replace(cost, seconds=timed_step(spec, patch, grid.batch, labels_for(spec)))
