"""How does class imbalance decide what a batch shows and how its Dice is taken?

nnU-Net forces foreground into a third of the samples whatever the dataset looks like. Here the
share, the class that is forced and the kind of Dice follow from two measured numbers of each
class: `met`, the chance that a patch placed at random shows it, and `fill`, its share of all
voxels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10, prod, sqrt

import numpy as np

from autoseg.rules.decision import Decision, Size, Spacing

LEAST_SHARE = 1 / 3
LARGEST_SHARE = 3 / 4
COMMON_FILL = 1e-1
RARE_FILL = 1e-4
BALANCED_WITHIN = 2.0
LARGEST_WEIGHT = 4.0
TINY_VOX = 200.0
UNSTABLE_ABSENCE = 0.5


@dataclass(frozen=True)
class ClassStatistics:
    """Where one foreground class lies, on the training grid.

    `voxels` has one entry a case, 0 where the class is absent; `components_vox` the sizes of the
    connected components of all cases together.
    """

    voxels: tuple[int, ...]
    components_vox: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """What is sampled: the patch, the cases (one shape each) and the classes, on one grid.

    Patch and shapes have three axes; a 2D patch is one slice thick. `batch_dice` says whether
    the plan's general rule already takes Dice over the batch.
    """

    patch_vox: Size
    spacing_mm: Spacing
    shapes_vox: tuple[Size, ...]
    classes: Mapping[str, ClassStatistics]
    batch_size: int
    batch_dice: bool


@dataclass(frozen=True)
class Exposure:
    """How easily random sampling shows a class: `met` in [0, 1], `fill` in [0, 1]."""

    met: float
    fill: float

    @property
    def hardness(self) -> float:
        """0 where random patches suffice, 1 where they never do.

        The mean of two shortfalls: 1 - met, and how far `fill` lies between 1:10 (none) and
        1:10,000 (full), counted in decades.
        """
        return (1 - self.met + self._scarcity()) / 2

    def _scarcity(self) -> float:
        if self.fill <= 0:
            return 1.0
        decades = log10(COMMON_FILL / self.fill) / log10(COMMON_FILL / RARE_FILL)
        return min(1.0, max(0.0, decades))


def exposure(scene: Scene, name: str) -> Exposure:
    """`met` and `fill` of a class, as means over all cases, those without the class included.

    A component is taken as a cube in mm that lies anywhere in its case, as does the patch. The
    product over the axes of the chances that the two overlap is the chance for one component; the
    components of a case are taken as independent.
    """
    found = scene.classes[name]
    if len(found.voxels) != len(scene.shapes_vox):
        raise ValueError(
            f"{name}: {len(found.voxels)} cases counted, {len(scene.shapes_vox)} shapes given"
        )
    present = sum(n > 0 for n in found.voxels)
    if not present:
        return Exposure(0.0, 0.0)
    volumes = [prod(shape) for shape in scene.shapes_vox]
    fill = float(np.mean([n / v for n, v in zip(found.voxels, volumes, strict=True)]))
    # Without component sizes each case is taken to hold one component.
    typical = float(np.median(found.components_vox)) if found.components_vox else 0.0
    met = []
    for n, shape in zip(found.voxels, scene.shapes_vox, strict=True):
        components = max(1, len(found.components_vox) / present)
        chance = _meets(scene, shape, typical or float(n))
        met.append(1 - (1 - chance) ** components if n else 0.0)
    return Exposure(float(np.mean(met)), fill)


def _meets(scene: Scene, shape_vox: Size, component_vox: float) -> float:
    """The chance that a random patch of a case of this shape meets one component."""
    axes = [axis for axis, n in enumerate(shape_vox) if n > 1]
    spacing = [scene.spacing_mm[axis] for axis in axes]
    edge_mm = (component_vox * prod(spacing)) ** (1 / max(1, len(axes)))
    return prod(
        _overlaps(shape_vox[axis], scene.patch_vox[axis], max(1, round(edge_mm / mm)))
        for axis, mm in zip(axes, spacing, strict=True)
    )


def _overlaps(edge: int, patch: int, component: int) -> float:
    """The chance that a patch and a component share a voxel of an axis of `edge` voxels.

    Both lie anywhere inside with equal chance at each start: the mean, over the starts of the
    component, of the share of the starts of the patch that reach it.
    """
    patch, component = min(patch, edge), min(component, edge)
    begin = np.arange(edge - component + 1)
    first = np.maximum(begin - patch + 1, 0)
    last = np.minimum(begin + component - 1, edge - patch)
    return float(np.mean(last - first + 1) / (edge - patch + 1))


def class_weights(exposures: Mapping[str, Exposure]) -> Decision[dict[str, float]]:
    """The chance of each class to be the one that a forced sample is centred on; sums to 1.

    The raw weight is sqrt(best met / own met / 2), at least 1 and at most 4: classes that chance
    shows within a factor of 2 are equal, rarer ones are drawn more often, but never over 4 times
    as often. Draw the class first, then a case that holds it. A class with no voxel gets 0.
    """
    present = {name: e for name, e in exposures.items() if e.met > 0}
    if not present:
        return Decision(dict.fromkeys(exposures, 0.0), "no training case has a foreground voxel.")
    best = max(present, key=lambda name: present[name].met)
    worst = min(present, key=lambda name: present[name].met)
    ratio = present[best].met / present[worst].met
    raw = {
        name: min(LARGEST_WEIGHT, max(1.0, sqrt(present[best].met / e.met / BALANCED_WITHIN)))
        for name, e in present.items()
    }
    value = {name: raw.get(name, 0.0) / sum(raw.values()) for name in exposures}
    if len(present) == 1:
        return Decision(
            value,
            f"{best!r}, which fills 1:{1 / present[best].fill:,.0f} of the voxels and which "
            f"{present[best].met:.0%} of random patches show, "
            "is the only foreground class.",
        )
    if ratio <= BALANCED_WITHIN:
        return Decision(
            value,
            f"random patches show each class with a chance of {present[worst].met:.2%} to "
            f"{present[best].met:.2%}, within a factor of 2: all are drawn alike.",
        )
    seen = (
        f"a random patch shows {best!r} with a chance of {present[best].met:.2%} and {worst!r} "
        f"with {present[worst].met:.2%}"
    )
    return Decision(
        value,
        f"{seen}, so {worst!r} is drawn {raw[worst] / raw[best]:.1f} times as often, "
        "however few cases hold it.",
    )


def foreground_share(
    exposures: Mapping[str, Exposure], weights: Mapping[str, float]
) -> Decision[float]:
    """The share of the samples of a batch that are forced onto a foreground voxel.

    nnU-Net's 1/3 plus (3/4 - 1/3) times the hardness of the classes, weighted as they are drawn:
    1/3 where every patch shows classes that fill a tenth of it, 3/4 where chance never shows a
    lesion of 1:10,000. A quarter of the samples stays random, or false alarms go unpunished.
    """
    if not any(weights.values()):
        return Decision(0.0, "no training case has a foreground voxel to force.")
    hardness = sum(weights[name] * e.hardness for name, e in exposures.items())
    value = LEAST_SHARE + (LARGEST_SHARE - LEAST_SHARE) * hardness
    hardest = max(
        (name for name in exposures if weights[name] > 0), key=lambda name: exposures[name].hardness
    )
    rarest = exposures[hardest]
    shown = 1 - absence(rarest, value * weights[hardest])
    return Decision(
        value,
        f"{hardest!r} fills 1:{1 / rarest.fill:,.0f} of the voxels and "
        f"{rarest.met:.0%} of random patches show it, so {value:.0%} of the samples are "
        f"forced onto foreground ({LEAST_SHARE:.0%} where it is common and always "
        f"seen, {LARGEST_SHARE:.0%} at most), each sample by chance; {hardest!r} is then in "
        f"{shown:.0%} of all samples.",
    )


def absence(found: Exposure, forced: float) -> float:
    """The share of all samples that lack a class, of which `forced` are placed on it."""
    return (1 - forced) * (1 - found.met)


def batch_dice(
    scene: Scene,
    exposures: Mapping[str, Exposure],
    weights: Mapping[str, float],
    share: float,
) -> Decision[bool]:
    """Whether Dice is taken over the batch as a whole rather than sample by sample.

    True by the plan's general rule; where the classes are absent from most samples, forced ones
    included, since the Dice of an absent class is 0 for a single false voxel; and where a typical
    component is so small that most of its voxels lie on its surface.
    """
    if scene.batch_dice:
        return Decision(
            True,
            "by nnU-Net's rule: slices, and patches that see little of a case, often lack a class, "
            "whose Dice would be 0 for a single false voxel.",
        )
    present = [name for name, e in exposures.items() if e.met > 0]
    if not present:
        return Decision(False, "no training case has a foreground voxel.")
    absent = {name: absence(exposures[name], share * weights[name]) for name in present}
    rarest = max(present, key=lambda name: absent[name])
    if absent[rarest] > UNSTABLE_ABSENCE:
        return Decision(
            True,
            f"{absent[rarest]:.0%} of the samples but only "
            f"{absent[rarest] ** scene.batch_size:.0%} of the batches of {scene.batch_size} do not "
            f"show {rarest!r}, so its Dice is taken over the batch.",
        )
    small = {name: _typical_size(scene.classes[name]) for name in present}
    tiniest = min(present, key=lambda name: small[name])
    if small[tiniest] < TINY_VOX:
        return Decision(
            True,
            f"a typical piece of {tiniest!r} has {small[tiniest]:.0f} voxels, "
            f"under {TINY_VOX:.0f}: the Dice of a single sample would jump with each "
            "of them.",
        )
    return Decision(
        False,
        f"at most {absent[rarest]:.0%} of the samples lack a class and the "
        f"smallest typical piece has {small[tiniest]:.0f} voxels: the Dice of each "
        "sample is stable.",
    )


def _typical_size(found: ClassStatistics) -> float:
    """The median size of a component, or of what a case holds where none were measured."""
    sizes: Sequence[float] = found.components_vox or [n for n in found.voxels if n > 0]
    return float(np.median(sizes))


@dataclass(frozen=True)
class Sampling:
    """What class imbalance decides for one configuration."""

    foreground_share: Decision[float]
    class_weights: Decision[dict[str, float]]
    batch_dice: Decision[bool]


def sampling(scene: Scene) -> Sampling:
    """The three decisions for one scene."""
    exposures = {name: exposure(scene, name) for name in scene.classes}
    weights = class_weights(exposures)
    share = foreground_share(exposures, weights.value)
    return Sampling(share, weights, batch_dice(scene, exposures, weights.value, share.value))
