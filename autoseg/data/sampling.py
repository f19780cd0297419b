"""Which patches a step shows: a pure function of (seed, step) and the cases.

Two ways: nnU-Net's (cases uniformly with replacement, a fixed share of each batch placed on a class
that the case has), and class first, where the plan's weights are the chances with which classes are
shown, in however few cases they are. Where patches lie follows nnU-Net with two changes, written down
at `lower_around`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autoseg.documents.plan import Sampling

SAMPLING, AUGMENTATION, VALIDATION, PREVIOUS = 0, 1, 2, 3
"""Streams of random numbers that must not share their draws."""


class Sampled(Protocol):
    """What sampling needs to know of a case."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def classes_present(self) -> tuple[int, ...]: ...
    def count_of(self, index: int) -> int: ...
    def place_of(self, index: int, number: int) -> tuple[int, int, int]: ...


class Cases(Protocol):
    """Cases by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    @property
    def holders(self) -> Mapping[int, Sequence[int]]:
        """Foreground class -> the indices of the cases that hold it, ascending."""
        ...


@dataclass(frozen=True)
class Draw:
    """One sample of a batch: the box [lower, lower + patch) of a case; `lower` may be negative."""

    case: int
    lower: tuple[int, int, int]
    forced: int | None
    """The foreground class that the patch was placed on; None: placed anywhere, or in a case that
    is labelled in part anywhere on what is labelled."""


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on (seed, key) alone, and are independent between keys."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def box_of(patch_vox: Sequence[int]) -> tuple[int, int, int]:
    """The patch as a box of three axes: a 2D patch is one slice of axis 0."""
    z, y, x = (1, *patch_vox) if len(patch_vox) == 2 else tuple(patch_vox)
    return z, y, x


def forced_samples(batch_size: int, foreground_share: float) -> int:
    """How many samples, the last ones, of a batch of two or more are placed on foreground.

    Sample j is forced iff j >= round(batch_size * (1 - share)): 1 of 2 and 3 of 9 for a third.
    """
    return batch_size - round(batch_size * (1 - foreground_share))


def draw_batch(
    cases: Cases,
    patch_vox: Sequence[int],
    batch_size: int,
    sampling: Sampling,
    seed: int,
    step: int,
    stream: int = SAMPLING,
) -> tuple[Draw, ...]:
    """The samples of one step, a function of (seed, step) and the cases.

    With `class_first` every sample is placed on foreground with probability `foreground_share`: the
    class is drawn by its weight among those that any case holds, then one of these cases uniformly.
    Otherwise a case is drawn first, and a fixed number of samples is placed on foreground (with that
    probability in a batch of one); a case without foreground gives a patch anywhere.
    """
    box = box_of(patch_vox)
    if sampling.class_first:
        return tuple(
            _class_first(cases, box, sampling, generator(seed, stream, step, j))
            for j in range(batch_size)
        )
    forced = forced_samples(batch_size, sampling.foreground_share)
    draws = []
    for j in range(batch_size):
        rng = generator(seed, stream, step, j)
        index = int(rng.integers(len(cases)))
        chance = rng.random()
        wanted = chance < sampling.foreground_share if batch_size == 1 else j >= batch_size - forced
        case = cases[index]
        shown = None
        if wanted and case.classes_present:
            shown = _choose_class(case.classes_present, sampling.class_weights, rng)
        draws.append(_placed(case, index, box, shown, rng))
    return tuple(draws)


def _class_first(
    cases: Cases, box: tuple[int, int, int], sampling: Sampling, rng: np.random.Generator
) -> Draw:
    """One sample: on a class, then in a case that holds it; else anywhere in any case."""
    if rng.random() < sampling.foreground_share and cases.holders:
        shown = _choose_class(sorted(cases.holders), sampling.class_weights, rng)
        holders = cases.holders[shown]
        index = holders[int(rng.integers(len(holders)))]
        return _placed(cases[index], index, box, shown, rng)
    index = int(rng.integers(len(cases)))
    return _placed(cases[index], index, box, None, rng)


def _placed(
    case: Sampled,
    index: int,
    box: tuple[int, int, int],
    forced: int | None,
    rng: np.random.Generator,
) -> Draw:
    """A patch of a case: around a voxel of the class `forced`, or, if None, anywhere."""
    bounds = [_bounds(extent, n) for extent, n in zip(case.shape, box, strict=True)]
    if forced is not None:
        voxel = case.place_of(forced, int(rng.integers(case.count_of(forced))))
        return Draw(index, lower_around(voxel, box, bounds, rng), forced)
    if labelled := case.count_of(0):
        # where only slices or strokes are labelled, most patches would hold nothing to learn from
        voxel = case.place_of(0, int(rng.integers(labelled)))
        return Draw(index, lower_around(voxel, box, bounds, rng), None)
    z, y, x = (int(rng.integers(low, high + 1)) for low, high in bounds)
    return Draw(index, (z, y, x), None)


def _bounds(extent: int, patch: int) -> tuple[int, int]:
    """The lowest and highest start of a patch along one axis; a short case lies in the middle."""
    pad = max(0, patch - extent)
    return -(pad // 2), extent - patch + pad - pad // 2


def _choose_class(
    present: Sequence[int], weights: Sequence[float], rng: np.random.Generator
) -> int:
    """One of the present classes by their weights (class c has weights[c - 1]); uniform if all 0."""
    mass = np.array([weights[c - 1] if c <= len(weights) else 0.0 for c in present])
    if mass.sum() <= 0:
        mass = np.ones(len(present))
    chosen = np.searchsorted(np.cumsum(mass), rng.random() * mass.sum(), side="right")
    return int(present[min(int(chosen), len(present) - 1)])


def lower_around(
    voxel: Sequence[int],
    box: tuple[int, int, int],
    bounds: Sequence[tuple[int, int]],
    rng: np.random.Generator,
) -> tuple[int, int, int]:
    """The start of a patch that shows `voxel`.

    Unlike nnU-Net, which centres the patch on the voxel and clamps only its lower side, the voxel
    may lie anywhere in the central half of the patch, since a network that only ever sees
    foreground in the middle learns the place too, and the patch leaves the case on neither side
    where it fits, since tiles do not leave it at prediction either.
    """
    lower = []
    for v, n, (low, high) in zip(voxel, box, bounds, strict=True):
        jitter = int(rng.integers(-(n // 4), n // 4 + 1))
        lower.append(min(max(v - n // 2 + jitter, low), high))
    z, y, x = lower
    return z, y, x
