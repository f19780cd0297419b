"""Which patches a step shows: a pure function of (seed, step) and the cases.

Follows nnU-Net's sampling (cases uniformly with replacement, a fixed share of each batch placed on
foreground, the rest on what is labelled at all) with two changes, written down at `lower_around`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autoseg.documents.plan import Sampling

SAMPLING, AUGMENTATION, VALIDATION, PREVIOUS = 0, 1, 2, 3
"""Streams of random numbers that must not share their draws."""


class Sampled(Protocol):
    """What sampling needs to know of a case."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def classes_present(self) -> tuple[int, ...]: ...
    def places_of(self, index: int) -> NDArray[np.int32]: ...


class Cases(Protocol):
    """Cases by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


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

    A batch of one is placed on foreground with probability `foreground_share`. A case without
    foreground gives a patch anywhere.
    """
    forced = forced_samples(batch_size, sampling.foreground_share)
    draws = []
    for j in range(batch_size):
        rng = generator(seed, stream, step, j)
        index = int(rng.integers(len(cases)))
        chance = rng.random()
        wanted = chance < sampling.foreground_share if batch_size == 1 else j >= batch_size - forced
        draws.append(_draw(cases[index], index, box_of(patch_vox), sampling, wanted, rng))
    return tuple(draws)


def _draw(
    case: Sampled,
    index: int,
    box: tuple[int, int, int],
    sampling: Sampling,
    wanted: bool,
    rng: np.random.Generator,
) -> Draw:
    bounds = [_bounds(extent, n) for extent, n in zip(case.shape, box, strict=True)]
    if wanted and case.classes_present:
        forced = _choose_class(case.classes_present, sampling.class_weights, rng)
        places = case.places_of(forced)
        voxel = places[int(rng.integers(len(places)))]
        return Draw(index, lower_around(voxel.tolist(), box, bounds, rng), forced)
    labelled = case.places_of(0)
    if len(labelled):
        # where only slices or strokes are labelled, most patches would hold nothing to learn from
        voxel = labelled[int(rng.integers(len(labelled)))]
        return Draw(index, lower_around(voxel.tolist(), box, bounds, rng), None)
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
