"""Changes of grey values: noise, blur, brightness, contrast, low resolution, gamma.

Every function changes a batch (B, C, *patch) in place, on any device, channel by channel where the
drawn parameters say so: a channel at a time stays near the processor's caches, and a card is not
made to wait, since no value is read back. Call outside autocast.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.data.augment_draw import SampleParameters

BLUR_REACH = 3.0
"""The Gaussian is cut at this many sigmas on each side."""

TINY = 1e-7

T = TypeVar("T")
Drawn = Sequence[SampleParameters]


def change_intensities(images: Tensor, parameters: Drawn) -> None:
    """All grey value changes of a batch, in nnU-Net's order."""
    add_noise(images, parameters)
    blur(images, parameters)
    scale_brightness(images, parameters)
    scale_contrast(images, parameters)
    lower_resolution(images, parameters)
    bend_gamma(images, parameters, inverted=True)
    bend_gamma(images, parameters, inverted=False)


def _chosen(
    parameters: Drawn, pick: Callable[[SampleParameters], Sequence[T | None]]
) -> Iterator[tuple[int, T]]:
    """The rows of the batch seen as (B * C, …) that a change touches, each with its value."""
    for sample, p in enumerate(parameters):
        drawn = pick(p)
        for channel, value in enumerate(drawn):
            if value is not None:
                yield sample * len(drawn) + channel, value


def _rows(images: Tensor) -> Tensor:
    return images.view(images.shape[0] * images.shape[1], *images.shape[2:])


def add_noise(images: Tensor, parameters: Drawn) -> None:
    """Add Gaussian noise, from the sample's own seed; a card's noise differs from a processor's."""
    for image, p in zip(images, parameters, strict=True):
        if p.noise_sigma is not None:
            source = torch.Generator(image.device).manual_seed(p.noise_seed)
            noise = torch.randn(image.shape, generator=source, device=image.device)
            image.add_(noise, alpha=p.noise_sigma)


def scale_brightness(images: Tensor, parameters: Drawn) -> None:
    """Multiply channels by their factors."""
    flat = _rows(images)
    for row, factor in _chosen(parameters, lambda p: p.brightness):
        flat[row].mul_(factor)


def scale_contrast(images: Tensor, parameters: Drawn) -> None:
    """Stretch channels about their mean, then cut to the range that they had."""
    flat = _rows(images)
    for row, factor in _chosen(parameters, lambda p: p.contrast):
        x = flat[row]
        mean, low, high = x.mean(), x.amin(), x.amax()
        x.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def bend_gamma(images: Tensor, parameters: Drawn, *, inverted: bool) -> None:
    """Raise channels, scaled to 0 … 1, to a power; mean and spread are put back afterwards.

    `inverted` does so to the negative image: bright values are spread where dark ones were.
    """
    flat = _rows(images)
    chosen = _chosen(parameters, lambda p: p.gamma_inverted if inverted else p.gamma)
    for row, power in chosen:
        x = flat[row].neg_() if inverted else flat[row]
        mean, low, high = x.mean(), x.amin(), x.amax()
        spread = torch.linalg.vector_norm(x.sub_(mean))
        x.sub_(low - mean).div_((high - low).clamp(min=TINY)).clamp_(min=0.0).pow_(power)
        # the range need not be put back: mean and spread are, and they fix scale and offset
        spread_now = torch.linalg.vector_norm(x.sub_(x.mean()))
        x.mul_(spread / spread_now.clamp(min=TINY)).add_(mean)
        if inverted:
            x.neg_()


def blur(images: Tensor, parameters: Drawn) -> None:
    """Gaussian blur with a sigma an axis, mirrored about the outermost voxels' centres."""
    flat = _rows(images)
    for row, sigmas in _chosen(parameters, lambda p: p.blur_sigma_vox):
        _along_axes(flat[row], sigmas, blur_matrix)


def lower_resolution(images: Tensor, parameters: Drawn) -> None:
    """Sample down to the nearest voxels and back up linearly."""
    flat = _rows(images)
    for row, zooms in _chosen(parameters, lambda p: p.low_resolution):
        _along_axes(flat[row], zooms, low_resolution_matrix)


def _along_axes(
    image: Tensor,
    values: Sequence[float],
    matrix_of: Callable[[int, float], NDArray[np.float32] | None],
) -> None:
    """Multiply each axis of one channel with its own small matrix, in place.

    Dense matrices beat convolutions of single channels here: a 128-cube takes 8 ms an axis.
    """
    x = image
    for axis, (n, value) in enumerate(zip(image.shape, values, strict=True)):
        made = matrix_of(n, value)
        if made is None:
            continue
        matrix = torch.from_numpy(made).to(image.device)
        if axis == image.ndim - 1:
            x = x.reshape(-1, n) @ matrix.T
        else:
            x = matrix @ x.reshape(prod(image.shape[:axis]), n, -1)
        x = x.view(image.shape)
    image.copy_(x)


def blur_matrix(n: int, sigma_vox: float) -> NDArray[np.float32]:
    """(n, n): a Gaussian of `sigma_vox`, cut at 3 sigma, the border mirrored without repetition."""
    reach = int(BLUR_REACH * sigma_vox + 0.5)
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (taps / sigma_vox) ** 2)
    weights /= weights.sum()
    places = np.arange(n)[:, None] + taps
    if n == 1:
        places = np.zeros_like(places)
    else:
        places = np.abs(places) % (2 * (n - 1))
        places = np.minimum(places, 2 * (n - 1) - places)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], places), weights)
    return matrix.astype(np.float32)


def low_resolution_matrix(n: int, zoom: float) -> NDArray[np.float32] | None:
    """(n, n): nearest sampling to round(n * zoom) voxels, then linear back to n; None for zoom 1.

    Voxel centres stay aligned (torch's "nearest-exact" and "linear", corners not aligned).
    """
    small = max(1, round(n * zoom))
    if zoom == 1.0:
        return None
    nearest = np.minimum(((np.arange(small) + 0.5) * n / small).astype(int), n - 1)
    place = np.maximum((np.arange(n) + 0.5) * small / n - 0.5, 0.0)
    below = np.minimum(place.astype(int), small - 1)
    above = np.minimum(below + 1, small - 1)
    weight = place - below
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n), nearest[below]), 1 - weight)
    np.add.at(matrix, (np.arange(n), nearest[above]), weight)
    return matrix.astype(np.float32)
