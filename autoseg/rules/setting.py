"""From what is one configuration decided? The dataset on its grid, the device, and the pins."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from autoseg.documents.fingerprint import Fingerprint
from autoseg.errors import PlanError
from autoseg.rules.card import Card, Case
from autoseg.rules.decision import Spacing
from autoseg.rules.draft import Draft, own_network
from autoseg.rules.world import FOLLOWS, Ask, Pins, World


@dataclass(frozen=True)
class Setting:
    """One configuration to be decided, and what it is decided from.

    `inputs` are the network's channels. `dataset_vox` are all training voxels where they are not
    those of as many median cases. `partial` says that patches see too little of a case for a Dice
    of each sample.
    """

    name: str
    fingerprint: Fingerprint
    ask: Ask
    pins: Pins
    world: World
    card: Card | None
    inputs: int
    dataset_vox: float | None = None
    partial: bool = False

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
    def cases(self) -> int:
        return len(self.fingerprint.cases)

    @property
    def case(self) -> Case:
        voxels = self.dataset_vox or prod(self.world.median_vox) * self.cases
        return Case(self.median_vox, voxels)

    @property
    def on_cores(self) -> bool:
        return self.ask.planner == "autoseg" and self.card is None

    def pinned(self, key: str) -> Any:
        return self.pins.of(self.name, key)

    def number(self, key: str) -> int | None:
        """A pinned whole number. Raises PlanError for anything else."""
        value = self.pinned(key)
        if value is None or (type(value) is int and value > 0):
            return value
        raise PlanError(f"{key} is pinned to {value!r}; give a whole number from 1 on")

    @property
    def draft(self) -> Draft:
        """The network, as far as it is known before its patch is."""
        changes = self.pins.network(self.name)
        whole = changes.pop("", None)
        network = None
        if whole is not None:
            if self.name in FOLLOWS:
                changes["in_channels"] = self.inputs
            if isinstance(whole, Mapping) and "recompute" in whole:
                changes.setdefault("recompute", whole["recompute"])
            network = own_network(whole, self.inputs, self.world.labels.outputs, changes)
            if network.dimensions != len(self.spacing_mm):
                if self.pins.by_name(self.name, "network"):
                    raise PlanError(
                        f"{self.name}.network has {network.dimensions} dimensions, but the "
                        f"configuration {len(self.spacing_mm)}"
                    )
                network = None
        return Draft(
            self.ask.network,
            self.inputs,
            self.world.labels.outputs,
            self.spacing_mm,
            self.number("width"),
            changes,
            network,
        )
