"""Label maps cleaned after the network: loose pieces taken away, holes filled.

A structure is a set of classes. What a structure loses becomes what the structures around it would
paint there, else background; what it gains is taken from no other structure. Arrays are class
indices (*plan axes), 0 background; below 0 are voxels outside the scan, which stay as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, label

from autoseg.image.components import drop_small, holes, largest_component, touching

EVERYTHING = "*"

Classes = NDArray[np.integer[Any]]
Integer = TypeVar("Integer", bound=np.integer[Any])
Mask = NDArray[np.bool_]
Box = tuple[slice, ...]


class Step(Protocol):
    """A step as the documents describe it: `keep_largest` or `fill_holes`."""

    @property
    def kind(self) -> Literal["keep_largest", "fill_holes"]: ...
    @property
    def of(self) -> str: ...


class SizedStep(Protocol):
    """The step that has a limit."""

    @property
    def kind(self) -> Literal["minimum_size"]: ...
    @property
    def of(self) -> str: ...
    @property
    def mm3(self) -> float: ...


class Region(Protocol):
    """A structure made of several classes, and the class that its voxels are painted with."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[int, ...]: ...
    @property
    def paint(self) -> int: ...


class Labels(Protocol):
    """The names of the classes, background first, and regions in the order of painting."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def regions(self) -> Sequence[Region]: ...


@dataclass(frozen=True)
class Structure:
    """How one structure is cleaned, as tables over the classes 0, 1, …

    `held` are its classes, `instead` is what each of them becomes when it is taken away, and
    `fillable` are the classes that may become `paint` (None: that of the nearest voxel) in a hole.
    """

    held: Mask
    instead: NDArray[np.int16]
    fillable: Mask
    paint: int | None


def cleaned(
    classes: NDArray[Integer],
    spacing_mm: Sequence[float],
    steps: Iterable[Step | SizedStep],
    labels: Labels,
) -> NDArray[Integer]:
    """A cleaned copy of a map of class indices (*plan axes): the steps one after the other.

    Raises ValueError for a step of a kind that needs more than the label map (a dense CRF), and
    for an unknown structure or class.
    """
    known = structures(labels)
    if classes.size and int(classes.max()) >= len(labels.names):
        raise ValueError(
            f"class index {classes.max()}, where there are {len(labels.names)} classes"
        )
    found = classes.copy()
    for step in steps:
        if step.kind not in ("keep_largest", "minimum_size", "fill_holes"):
            raise ValueError(f"a label map alone is not enough for the step {step.kind!r}")
        if step.of not in known:
            raise ValueError(f"no structure {step.of!r} among {', '.join(known)}")
        one = known[step.of]
        box = _box(found, one.held)
        if box is None:
            continue
        part = found[box]
        mask = _held(part, one.held)
        if step.kind == "fill_holes":
            _fill(part, mask, one, spacing_mm)
            continue
        keep = (
            drop_small(mask, step.mm3, spacing_mm)
            if step.kind == "minimum_size"
            else largest_component(mask)
        )
        gone = mask & ~keep
        part[gone] = one.instead[part[gone]]
    return found


def structures(labels: Labels) -> Mapping[str, Structure]:
    """What can be cleaned, by name: all foreground together, then each region or class."""
    count = len(labels.names)
    foreground = np.arange(count) > 0
    nothing = np.zeros(count, np.int16)
    found = {EVERYTHING: Structure(foreground, nothing, ~foreground, None)}
    if not labels.regions:
        for index, name in enumerate(labels.names[1:], 1):
            found[name] = Structure(np.arange(count) == index, nothing, ~foreground, index)
        return found
    sets = [frozenset(region.classes) for region in labels.regions]
    for region, own in zip(labels.regions, sets):
        # a filled voxel gets this paint and stays in every region that it was in
        fillable = [all(own <= s for s in sets if c in s) and c not in own for c in range(count)]
        instead = nothing.copy()
        for index in own:
            # painted in order, the last one that is more than a part of this region stays
            for other, around in zip(labels.regions, sets):
                if index in around and not around <= own and other.paint not in own:
                    instead[index] = other.paint
        held = np.isin(np.arange(count), region.classes)
        found[region.name] = Structure(held, instead, np.array(fillable), region.paint)
    return found


def _held(part: Classes, held: Mask) -> Mask:
    """Where the part of a label map has one of the held classes."""
    if held[1:].all():
        return np.asarray(part > 0)
    mask = np.zeros(part.shape, bool)
    for index in np.flatnonzero(held):
        mask |= part == index
    return mask


def _box(classes: Classes, held: Mask) -> Box | None:
    """The box one voxel wider than all voxels of the held classes; None where there is none.

    With the margin it has length one only where the whole array has.
    """
    boxes = find_objects(classes, max_label=len(held) - 1)
    found = [box for box, own in zip(boxes, held[1:]) if own and box is not None]
    if not found:
        return None
    return tuple(
        slice(max(min(b[axis].start for b in found) - 1, 0), max(b[axis].stop for b in found) + 1)
        for axis in range(classes.ndim)
    )


def _fill(part: Classes, mask: Mask, one: Structure, spacing_mm: Sequence[float]) -> None:
    """Paint the holes of a structure in its own box, in place.

    A hole that other structures line all around (the cavity of a tumour in an organ) is theirs.
    """
    inside = holes(mask)
    enclosed = part[inside]
    inside[inside] = one.fillable[np.maximum(enclosed, 0)] & (enclosed >= 0)
    if not inside.any():
        return
    inside = touching(inside, mask)
    if one.paint is not None:
        part[inside] = one.paint
        return
    numbered, _ = label(inside)
    for number, hole in enumerate(find_objects(numbered), 1):
        # what is nearest to a voxel of a hole lines the hole
        box = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in hole)
        here, around = numbered[box] == number, part[box]
        nearest = distance_transform_edt(
            ~mask[box], sampling=spacing_mm, return_distances=False, return_indices=True
        )
        around[here] = around[tuple(index[here] for index in nearest)]
