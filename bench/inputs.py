"""The arrays that both programs are given: deterministic, smooth as images and logits are.

numpy alone, so that it runs under either's interpreter.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

COARSE = 7
"""Random values along each axis of a field, which are then joined by straight lines."""


def smooth(shape: Sequence[int], seed: int, coarse: int = COARSE) -> NDArray[np.float32]:
    """A random field (*shape), float32, about standard normal at its nodes, linear between them."""
    knots = [min(n, coarse) for n in shape]
    field = np.random.default_rng(seed).standard_normal(knots).astype(np.float32)
    for axis, (n, k) in enumerate(zip(shape, knots, strict=True)):
        field = np.moveaxis(np.tensordot(_lines(n, k), field, (1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def _lines(n: int, knots: int) -> NDArray[np.float32]:
    """The (n, knots) matrix of linear interpolation between evenly spread knots."""
    at = np.linspace(0, knots - 1, n)
    low = np.minimum(at.astype(int), max(knots - 2, 0))
    weights = np.zeros((n, knots), np.float32)
    weights[np.arange(n), low] = 1 - (at - low)
    if knots > 1:
        weights[np.arange(n), low + 1] = at - low
    return weights


def image(shape: Sequence[int], seed: int = 0) -> NDArray[np.float32]:
    """A smooth image with fine noise (*shape)."""
    noise = np.random.default_rng(seed + 1).standard_normal(tuple(shape), np.float32)
    return smooth(shape, seed, 12) + 0.1 * noise


def label_map(shape: Sequence[int], labels: int, seed: int = 0) -> NDArray[np.int16]:
    """Nested structures (*shape): classes 0 … labels - 1 by the height of a smooth field."""
    field = smooth(shape, seed, 12)
    steps = np.quantile(field[::4, ::4, ::4], np.linspace(0.5, 0.98, labels - 1))
    return np.digitize(field, steps).astype(np.int16)


def logits(shape: Sequence[int], labels: int, seed: int = 0) -> NDArray[np.float32]:
    """Logits (labels, *shape) as of a network: a smooth field a class, the background's higher."""
    found = np.empty((labels, *shape), np.float32)
    for index in range(labels):
        found[index] = smooth(shape, seed + 31 * index, COARSE + index % 5)
        found[index] *= 5
    found[0] += 8
    return found
