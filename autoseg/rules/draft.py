"""Which network stands on a patch?

A draft is what is known of a network before its patch is: the preset and the keys of it that a
person pinned, or a whole sentence of theirs. It answers what a patch must look like and what the
network on it is, so that costs are reckoned of the network that will be trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from autoseg.documents.networks.family import NetworkSpec, parse_network
from autoseg.documents.presets.table import network_spec, preset_named
from autoseg.documents.settings import patched
from autoseg.errors import PlanError
from autoseg.rules.decision import Size, Spacing, sizes
from autoseg.rules.network import features
from autoseg.rules.topology import Topology, topology_for

OWN = "own"
"""The preset's name in a sentence that a person wrote without giving it one."""


@dataclass(frozen=True)
class Draft:
    """A network before its patch is known; `spacing_mm` has the network's axes.

    `changes` are pinned keys of the network's document; `whole` is a pinned document, in which they
    stand already and which takes the place of the preset. `width` is the pinned number of channels of the finest level.
    """

    preset: str
    inputs: int
    outputs: int
    spacing_mm: Spacing
    width: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    whole: NetworkSpec | None = None
    made: dict[tuple[object, ...], NetworkSpec] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def axes(self) -> int:
        return len(self.spacing_mm)

    @property
    def recomputes(self) -> bool | None:
        """Whether a person asked to compute activations again; None: nobody said."""
        pinned = self.changes.get("recompute")
        return None if pinned is None else bool(pinned)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal where the networks of two drafts are equal on equal strides and kernels."""
        whole = None if self.whole is None else repr(self.whole)
        fixed = repr(sorted(self.changes.items()))
        return self.preset, self.inputs, self.outputs, self.axes, self.width, fixed, whole

    def on(self, patch_vox: tuple[float, ...]) -> Topology:
        """The least patch that holds `patch_vox` and suits the network, and its levels."""
        if self.whole is not None:
            every = (3,) * self.axes
            levels = self.whole.strides
            padded = multiples(patch_vox, self.whole.divisor)
            return Topology(padded, levels, (every,) * len(levels))
        found = topology_for(
            tuple(patch_vox), self.spacing_mm, preset_named(self.preset).most_levels
        )
        if found.levels < 2:
            return found
        padded = multiples(found.patch_vox, self.network(found).divisor)
        return Topology(padded, found.strides, found.kernels)

    def exactly(self, patch_vox: tuple[float, ...], what: str) -> Topology:
        """As `on`, for a patch that must have levels. Raises PlanError where it has none."""
        found = self.on(patch_vox)
        if found.levels < 2:
            raise PlanError(
                f"{what} of {sizes(patch_vox)} voxels is too small: no axis of it can be halved"
            )
        return found

    def network(
        self, topology: Topology, channels: Size | None = None, *, recompute: bool = False
    ) -> NetworkSpec:
        """The document on a topology; `channels` are the widths of its levels, finest first.

        A pinned `recompute` outweighs the argument. Raises PlanError for keys or values that a
        network cannot have.
        """
        if self.whole is not None and (self.recomputes is not None or not recompute):
            return self.whole
        key = (topology.strides, topology.kernels, channels, recompute)
        if key not in self.made:
            self.made[key] = self._network(topology, channels, recompute)
        return self.made[key]

    def _network(self, topology: Topology, channels: Size | None, recompute: bool) -> NetworkSpec:
        if self.whole is not None:
            return parse_network(self.whole.dump() | {"recompute": recompute}, "the pinned network")
        widths = channels or features(topology.levels, self.axes, self.width).value
        spec = network_spec(
            self.preset, self.inputs, self.outputs, widths, topology.strides, topology.kernels
        )
        changes = ({"recompute": True} if recompute else {}) | dict(self.changes)
        if not changes:
            return spec
        return parse_network(
            patched(spec.dump(), changes), f"the network {self.preset!r} as pinned"
        )


def multiples(patch_vox: tuple[float, ...], divisor: Size) -> Size:
    """The least whole multiples of `divisor` that are no smaller, axis by axis."""
    return tuple(by * ceil(n / by) for n, by in zip(patch_vox, divisor, strict=True))


def own_network(value: Any, inputs: int, outputs: int, changes: Mapping[str, Any]) -> NetworkSpec:
    """A pinned sentence, changed, as a document; its name, inputs and classes may be left out."""
    if not isinstance(value, Mapping):
        raise PlanError(f"network is pinned to {value!r}; give a whole sentence as a JSON object")
    given = {"preset": OWN, "in_channels": inputs, "classes": outputs, "family": "unet", **value}
    return parse_network(patched(given, changes), "the pinned network")
