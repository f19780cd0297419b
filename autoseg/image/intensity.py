"""Intensity normalisation, one scheme a channel, as nnU-Net defines them.

A scheme changes one float32 channel in place; what it needs from the training set (`mean`, `std`,
`percentile_00_5`, `percentile_99_5` of the foreground) comes in as a mapping.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError

Channel = NDArray[np.float32]
Statistics = Mapping[str, float]
Mask = NDArray[np.bool_]
SMALLEST_SCALE = 1e-8


def _ct(channel: Channel, statistics: Statistics, _mask: Mask | None) -> None:
    """Clip to the foreground's 0.5 and 99.5 percentiles, then its mean to 0 and deviation to 1."""
    missing = {"mean", "std", "percentile_00_5", "percentile_99_5"} - set(statistics)
    if missing:
        raise ValueError(f"the ct scheme needs statistics that are missing: {sorted(missing)}")
    low, high = statistics["percentile_00_5"], statistics["percentile_99_5"]
    np.clip(channel, np.float32(low), np.float32(high), out=channel)
    channel -= np.float32(statistics["mean"])
    channel /= np.float32(max(statistics["std"], SMALLEST_SCALE))


def _zscore(channel: Channel, _statistics: Statistics, mask: Mask | None) -> None:
    """The image's own mean to 0 and deviation to 1; with a mask inside it alone."""
    if mask is not None:
        inside = channel[mask]
        if inside.size:
            _standardise(inside)
            channel[mask] = inside
    elif channel.size:
        _standardise(channel)


def _standardise(values: Channel) -> None:
    values -= np.float32(values.mean(dtype=np.float64))
    values /= np.float32(max(float(values.std()), SMALLEST_SCALE))


def _rescale_to_0_1(channel: Channel, _statistics: Statistics, _mask: Mask | None) -> None:
    """The image's own minimum to 0 and maximum to 1; a constant image to 0."""
    channel -= channel.min()
    channel /= np.float32(max(float(channel.max()), SMALLEST_SCALE))


def _rgb_to_0_1(channel: Channel, _statistics: Statistics, _mask: Mask | None) -> None:
    """0..255 to 0..1."""
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise AutosegError(
            f"a channel called rgb_to_0_1 holds {low:g} to {high:g} where 0 to 255 is expected; "
            "rename the channel to rescale_to_0_1 in dataset.json"
        )
    channel /= np.float32(255)


def _none(_channel: Channel, _statistics: Statistics, _mask: Mask | None) -> None:
    """Nothing."""


SCHEMES: dict[str, Callable[[Channel, Statistics, Mask | None], None]] = {
    "ct": _ct,
    "zscore": _zscore,
    "rescale_to_0_1": _rescale_to_0_1,
    "rgb_to_0_1": _rgb_to_0_1,
    "none": _none,
}


def normalise(
    image: NDArray[np.float32],
    schemes: Sequence[str],
    statistics: Sequence[Statistics],
    mask: Mask | None = None,
) -> NDArray[np.float32]:
    """The image (C, *S), changed in place: each channel by its scheme of SCHEMES.

    `statistics` has one mapping a channel, empty where the scheme needs none. `mask` (*S) confines
    the zscore channels; outside it they are left as they are. Pass it only where the plan says so.
    """
    if not len(image) == len(schemes) == len(statistics):
        raise ValueError(
            f"{len(image)} channels, {len(schemes)} schemes, {len(statistics)} statistics"
        )
    for channel, scheme, numbers in zip(image, schemes, statistics):
        if scheme not in SCHEMES:
            raise ValueError(f'scheme "{scheme}" is none of {", ".join(SCHEMES)}')
        SCHEMES[scheme](channel, numbers, mask)
    return image
