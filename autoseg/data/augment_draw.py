"""The random numbers of one augmented sample, drawn on the CPU from (seed, step, sample) alone.

Nothing here touches an image; `augment.apply` does, and decides nothing. Probabilities and ranges
are those of the plan's `Augmentation`, the meaning of each number follows nnU-Net's defaults.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from autoseg.data.sampling import AUGMENTATION, generator
from autoseg.documents.plan import Augmentation

T = TypeVar("T")
Matrix = tuple[tuple[float, ...], ...]
PerChannel = tuple[float | None, ...]
"""One number a channel, None where the channel is left alone; () where the sample is."""


@dataclass(frozen=True)
class SampleParameters:
    """What happens to one sample, in this order; the defaults leave it as it is.

    The mirroring is done together with the matrix, before the grey values change: these changes
    know no direction, so only the order of the noise differs from mirroring last.
    """

    matrix: Matrix | None = None
    """Maps offsets from the patch's centre to offsets in the source (voxels), over the last
    `len(matrix)` axes: 2 of 3 where rotation stays in the plane of axes 1 and 2."""
    noise_sigma: float | None = None
    noise_seed: int = 0
    blur_sigma_vox: tuple[tuple[float, ...] | None, ...] = ()
    """One sigma an axis, for each channel."""
    brightness: PerChannel = ()
    contrast: PerChannel = ()
    low_resolution: tuple[tuple[float, ...] | None, ...] = ()
    """One zoom an axis, for each channel."""
    gamma_inverted: PerChannel = ()
    gamma: PerChannel = ()
    mirror: tuple[int, ...] = ()
    """Axes of the patch that are flipped."""


UNCHANGED = SampleParameters()


def draw(
    augmentation: Augmentation,
    patch_vox: Sequence[int],
    channels: int,
    seed: int,
    step: int,
    sample: int,
) -> SampleParameters:
    """The parameters of one sample.

    All numbers are drawn whether they are used or not, so a changed probability of one change
    leaves the others' numbers as they were.
    """
    a, axes = augmentation, len(patch_vox)
    rng = generator(seed, AUGMENTATION, step, sample)
    matrix = _draw_matrix(a, axes, rng)
    noisy, sigma = rng.random() < a.noise_p, float(rng.uniform(*a.noise_sigma))
    noise_seed = int(rng.integers(2**62))
    blur = _draw_channels(rng, a.blur_p, a.blur_channel_p, channels, _sigmas(a, axes))
    brightness = _draw_channels(rng, a.brightness_p, 1.0, channels, _balanced(a.brightness))
    contrast = _draw_channels(rng, a.contrast_p, 1.0, channels, _balanced(a.contrast))
    low = _draw_channels(
        rng, a.low_resolution_p, a.low_resolution_channel_p, channels, _zooms(a, axes)
    )
    inverted = _draw_channels(rng, a.gamma_inverted_p, 1.0, channels, _balanced(a.gamma))
    gamma = _draw_channels(rng, a.gamma_p, 1.0, channels, _balanced(a.gamma))
    flips = rng.random(axes) < 0.5
    return SampleParameters(
        matrix=matrix,
        noise_sigma=sigma if noisy else None,
        noise_seed=noise_seed,
        blur_sigma_vox=blur,
        brightness=brightness,
        contrast=contrast,
        low_resolution=low,
        gamma_inverted=inverted,
        gamma=gamma,
        mirror=tuple(axis for axis in range(axes) if axis in a.mirror_axes and flips[axis]),
    )


def _draw_channels(
    rng: np.random.Generator,
    p: float,
    channel_p: float,
    channels: int,
    value: Callable[[np.random.Generator], T],
) -> tuple[T | None, ...]:
    """With probability `p` one value for each channel that `channel_p` picks, else ()."""
    chosen = rng.random() < p
    picked = rng.random(channels) < channel_p
    values = tuple(value(rng) for _ in range(channels))
    if not (chosen and picked.any()):
        return ()
    return tuple(v if pick else None for v, pick in zip(values, picked, strict=True))


def _balanced(bounds: tuple[float, float]) -> Callable[[np.random.Generator], float]:
    """Half of the draws below 1, half above, uniform in each half, as nnU-Net draws factors."""
    low, high = bounds

    def one(rng: np.random.Generator) -> float:
        below, u = rng.random() < 0.5, rng.random()
        if (below and low < 1) or high <= 1:
            return low + u * (min(high, 1.0) - low)
        return max(low, 1.0) + u * (high - max(low, 1.0))

    return one


def _sigmas(a: Augmentation, axes: int) -> Callable[[np.random.Generator], tuple[float, ...]]:
    return lambda rng: tuple(rng.uniform(*a.blur_sigma, size=axes).tolist())


def _zooms(a: Augmentation, axes: int) -> Callable[[np.random.Generator], tuple[float, ...]]:
    """One zoom for all axes, 1 along axis 0 where slices are apart (dummy 2D)."""

    def one(rng: np.random.Generator) -> tuple[float, ...]:
        zoom = float(rng.uniform(*a.low_resolution_zoom))
        return ((1.0,) if a.dummy_2d else (zoom,)) + (zoom,) * (axes - 1)

    return one


def _draw_matrix(a: Augmentation, axes: int, rng: np.random.Generator) -> Matrix | None:
    """Rotation and scaling as one matrix; None where the sample has neither."""
    rotated, scaled = rng.random() < a.rotation_p, rng.random() < a.scale_p
    turns = rng.uniform(-1.0, 1.0, size=3)
    factor = float(rng.uniform(*a.scale))
    if not (rotated or scaled):
        return None
    planar = axes == 2 or a.dummy_2d
    limits = a.rotation_degrees
    if len(limits) not in (1, 3):
        raise ValueError(f"rotation_degrees needs one or three numbers, found {limits}")
    if planar:
        # the rotation in the plane of the last two axes is the one about axis 0
        angles = np.radians(limits[0]) * turns[:1]
    else:
        angles = np.radians(limits * 3 if len(limits) == 1 else limits) * turns
    matrix = (factor if scaled else 1.0) * rotation(angles if rotated else angles * 0)
    return tuple(tuple(row) for row in matrix.tolist())


def rotation(angles: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix that turns by `angles` (radians): one in the plane, or three, axis 0 first."""

    def plane(size: int, i: int, j: int, angle: float) -> NDArray[np.float64]:
        matrix = np.eye(size)
        matrix[i, i] = matrix[j, j] = np.cos(angle)
        matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
        return matrix

    if len(angles) == 1:
        return plane(2, 0, 1, float(angles[0]))
    a, b, c = (float(angle) for angle in angles)
    return plane(3, 0, 1, c) @ plane(3, 2, 0, b) @ plane(3, 1, 2, a)


def needed_box(
    parameters: SampleParameters, patch_vox: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shift, size) of the smallest box that this sample reads; `shift` is from the patch's start.

    Axes that are not rotated or scaled have shift 0 and the patch's size.
    """
    shift, size = [0] * len(patch_vox), list(patch_vox)
    if parameters.matrix is not None:
        matrix = np.abs(np.array(parameters.matrix))
        centre = (np.array(patch_vox[-len(matrix) :]) - 1) / 2
        reach = matrix @ centre
        still = len(patch_vox) - len(matrix)
        for axis, (c, r) in enumerate(zip(centre, reach, strict=True), still):
            # rounding first: a neighbour whose weight is below 1e-3 voxel is not worth reading
            shift[axis] = floor(round(c - r, 3))
            size[axis] = ceil(round(c + r, 3)) - shift[axis] + 1
    return tuple(shift), tuple(size)
