"""Changes of grey values: noise, blur, brightness, contrast, low resolution, gamma.

Every function changes a batch (B, C, *patch) in place, on any device, channel by channel where the
drawn parameters say so: a channel at a time stays near the processor's caches, and a card is not
made to wait, since no value is read back. Call outside autocast.
"""

from collections.abc import Callable, Iterator, Sequence
from math import pi, prod
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.data.augment_draw import SampleParameters
from autoseg.data.augment_memory import kept
from autoseg.data.augment_space import on_device

BLUR_REACH = 3.0
"""The Gaussian is cut at this many sigmas on each side."""

BLOCK_VOX = 32
"""Rows of a banded matrix that a processor multiplies at once."""

PIECE_VOX = 65536
"""Voxels that a processor takes through several steps before the next: they fit its caches."""

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


def _pieces(x: Tensor) -> Sequence[Tensor]:
    """Views of all voxels: of a processor's channel piece by piece, of a card's as a whole."""
    flat = x.view(-1)
    return torch.split(flat, PIECE_VOX) if x.device.type == "cpu" else (flat,)


def _mean_and_range(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, lowest, highest) of a channel, read once."""
    found = [(piece.sum(), *_range(piece)) for piece in _pieces(x)]
    sums, lows, highs = (torch.stack(numbers) for numbers in zip(*found, strict=True))
    return sums.sum() / x.numel(), lows.amin(), highs.amax()


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """(lowest, highest); NumPy finds both sooner than torch does in one go."""
    if x.device.type == "cpu":
        array = x.numpy()
        return torch.as_tensor(array.min()), torch.as_tensor(array.max())
    low, high = x.aminmax()
    return low, high


def _stretch(x: Tensor, factor: Tensor | float, shift: Tensor) -> None:
    """Let `x` be factor * x + shift; on a processor, which knows its numbers, in one step."""
    if x.device.type == "cpu":
        torch.add(shift, x, alpha=float(factor), out=x)
    else:
        x.mul_(factor).add_(shift)


def add_noise(images: Tensor, parameters: Drawn) -> None:
    """Add Gaussian noise, from the sample's own seed; a card's noise differs from a processor's."""
    for image, p in zip(images, parameters, strict=True):
        if p.noise_sigma is None:
            continue
        if image.device.type == "cpu":
            _add_noise_here(image, p.noise_sigma, p.noise_seed)
            continue
        source = torch.Generator(image.device).manual_seed(p.noise_seed)
        noise = torch.randn(image.shape, generator=source, device=image.device)
        image.add_(noise, alpha=p.noise_sigma)


def _add_noise_here(image: Tensor, sigma: float, seed: int) -> None:
    """The same for a processor: two normal numbers from a radius and an angle (Box and Muller).

    Faster than either library's own numbers: a quick source of bits, and vectorised functions.
    """
    source, half = np.random.SFC64(seed), PIECE_VOX // 2
    radius, angle, wave = (kept(f"noise {k}", (half,), np.float32) for k in range(3))
    for channel in image:
        pieces = _pieces(channel)
        bits = source.random_raw(len(pieces) * half).view(np.uint32).reshape(len(pieces), 2, half)
        for piece, pair in zip(pieces, bits, strict=True):
            # the radius from 0 … 2^32 - 1: it goes up to sqrt(-2 log(2^-33)) = 6.8; angles of -pi … pi
            np.copyto(radius, pair[0], casting="unsafe")
            np.copyto(angle, pair[1].view(np.int32), casting="unsafe")
            _add_pairs(piece, sigma, *(torch.from_numpy(x) for x in (radius, angle, wave)))


def _add_pairs(piece: Tensor, sigma: float, radius: Tensor, angle: Tensor, wave: Tensor) -> None:
    """Add sigma * sqrt(-2 log u) * (cos v to the first half, sin v to the second)."""
    radius.mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2.0 * sigma**2).sqrt_()
    angle.mul_(2.0 * pi * 2.0**-32)
    first, second = piece[: len(radius)], piece[len(radius) :]
    first.addcmul_(radius[: len(first)], torch.cos(angle, out=wave)[: len(first)])
    second.addcmul_(radius[: len(second)], angle.sin_()[: len(second)])


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
        mean, low, high = _mean_and_range(x)
        shift = mean * (1 - factor)
        for piece in _pieces(x):
            _stretch(piece, factor, shift)
            _clamp(piece, low, high)


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> None:
    if x.device.type == "cpu":
        x.clamp_(low.item(), high.item())
    else:
        # clamping to tensors is slow
        torch.maximum(x, low, out=x)
        torch.minimum(x, high, out=x)


def bend_gamma(images: Tensor, parameters: Drawn, *, inverted: bool) -> None:
    """Raise channels, scaled to 0 … 1, to a power; mean and spread are put back afterwards.

    `inverted` does so to the negative image: bright values are spread where dark ones were.
    """
    flat = _rows(images)
    chosen = _chosen(parameters, lambda p: p.gamma_inverted if inverted else p.gamma)
    for row, power in chosen:
        _bend(flat[row], power, inverted)


def _bend(x: Tensor, power: float, inverted: bool) -> None:
    """Gamma of one channel, in place.

    Spreads are summed about a value near the mean: sums about zero lose a small one. The range need
    not be put back: mean and spread are, and they fix scale and offset.
    """
    mean, low, high = _mean_and_range(x)
    sign = -1.0 if inverted else 1.0
    scale = sign / (high - low).clamp(min=TINY)
    start = (high if inverted else low) - mean
    # where the power takes the mean: the new mean is not far
    near = (-start * scale).clamp(0.0, 1.0).pow(power)
    least = 10.0 ** (-30.0 / max(power, 1.0))
    squares, sums, new_squares = [], [], []
    for piece in _pieces(x):
        piece.sub_(mean)
        squares.append(_squares(piece))
        # in this order the lowest becomes 0 exactly: a small power of what rounding leaves is large
        piece.sub_(start).mul_(scale)
        # a power as the exponential of a multiple: three quick steps, but slow ones near 0
        piece.clamp_(min=least).log_().mul_(power).exp_().sub_(near)
        sums.append(piece.sum())
        new_squares.append(_squares(piece))
    off = torch.stack(sums).sum() / x.numel()
    spread = (torch.stack(squares).sum() / x.numel()).sqrt()
    spread_now = (torch.stack(new_squares).sum() / x.numel() - off * off).clamp(min=0.0).sqrt()
    factor = sign * spread / spread_now.clamp(min=TINY)
    shift = mean - off * factor
    for piece in _pieces(x):
        _stretch(piece, factor, shift)


def _squares(x: Tensor) -> Tensor:
    """The sum of squares, added up in pairs: one large square would swallow many small ones."""
    return x.square().sum()


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

    Dense matrices beat convolutions of single channels here.
    """
    made = [matrix_of(n, value) for n, value in zip(image.shape, values, strict=True)]
    steps = [(axis, matrix) for axis, matrix in enumerate(made) if matrix is not None]
    x = image
    for k, (axis, matrix) in enumerate(steps):
        # the last writes into the image, unless it is what it reads
        out = image if 0 < k == len(steps) - 1 else _another(x, f"blurred {k % 2}")
        _along_axis(x, axis, matrix, out)
        x = out
    if x is not image:
        image.copy_(x)


def _another(x: Tensor, name: str) -> Tensor:
    """Memory for a channel like `x`; a processor's is used again for the next."""
    if x.device.type == "cpu":
        return torch.from_numpy(kept(name, x.shape, np.float32))
    return torch.empty_like(x)


def _along_axis(x: Tensor, axis: int, matrix: NDArray[np.float32], out: Tensor) -> None:
    """Fill `out` with `matrix` (n, n) times one axis of `x`.

    Both are contiguous, in different memory.

    Most of such a matrix is empty: a processor leaves that out, block by block, a card takes the
    whole as one piece of work.
    """
    before, last = prod(x.shape[:axis]), axis == x.ndim - 1
    x, out = (t.view(before, t.shape[axis], *([] if last else [-1])) for t in (x, out))
    whole = on_device(matrix, x.device)
    for rows, seen in _blocks(matrix, BLOCK_VOX if x.device.type == "cpu" else len(matrix)):
        part = whole[rows, seen]
        if last:
            torch.mm(x[:, seen], part.T, out=out[:, rows])
        elif before == 1:
            torch.mm(part, x[0, seen], out=out[0, rows])
        else:
            out[:, rows] = part @ x[:, seen]


def _blocks(matrix: NDArray[np.float32], count: int) -> Iterator[tuple[slice, slice]]:
    """Each `count` rows, and the columns between the first and the last that they use."""
    used = matrix != 0
    first, last = used.argmax(axis=1), matrix.shape[1] - used[:, ::-1].argmax(axis=1)
    for start in range(0, len(matrix), count):
        rows = slice(start, min(start + count, len(matrix)))
        yield rows, slice(int(first[rows].min()), int(last[rows].max()))


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
