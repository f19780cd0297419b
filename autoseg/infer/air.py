"""Which tiles hold nothing but air, so that no network need look at them (`predict --skip-air`).

Asked of the scan as it was read, before values are clipped and scaled: what counts as air depends
on what the numbers mean. One voxel above the limit, or near the tile, and the tile is looked at.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

AIR_HU = -900.0
"""Lungs are about -850, fat is -100; only air and the table's foam are below."""
DARK_SHARE = 0.01
"""Of the way from the least value to the 99.9th percentile, for scales that each image has anew."""
BLOCK_VOX = 4
MARGIN_VOX = 2.0
"""How far cubic interpolation reaches."""


class Air:
    """Where a scan (Z, Y, X) may hold anything: blocks with a voxel above the limit."""

    def __init__(self, array: NDArray[np.float32], schemes: Sequence[str]) -> None:
        """`array` is the scan (C, Z, Y, X) as read, `schemes` how each channel is normalised.

        A voxel is air if it is so in all channels.
        """
        self.shape = array.shape[1:]
        starts = [np.arange(0, size, BLOCK_VOX) for size in self.shape]
        self.filled = np.zeros([len(at) for at in starts], np.bool_)
        for channel, scheme in zip(array, schemes, strict=True):
            most = channel
            for axis, at in enumerate(starts):
                most = np.maximum.reduceat(most, at, axis=axis)
            self.filled |= most > air_limit(channel, scheme)

    def only(self, low: Sequence[float], high: Sequence[float]) -> bool:
        """Whether all voxels from `low` to before `high` of the scan's arranged grid are air."""
        box = tuple(
            slice(max(0, int(np.floor(a))) // BLOCK_VOX, int(np.ceil(max(b, 0.0))) // BLOCK_VOX + 1)
            for a, b in zip(low, high, strict=True)
        )
        return not self.filled[box].any()


def air_limit(channel: NDArray[np.float32], scheme: str) -> float:
    """The highest value of a channel that is surely air, by what its numbers mean.

    `ct`: -900 HU. `zscore` and `rescale_to_0_1`, whose scale is each image's own: a hundredth of
    the way from the least to the 99.9th percentile. Else nobody can tell: the least value alone.
    """
    if scheme == "ct":
        return AIR_HU
    least = float(channel.min())
    if scheme not in ("zscore", "rescale_to_0_1"):
        return least
    step = max(1, channel.size // 1_000_000)
    bright = float(np.percentile(channel.reshape(-1)[::step], 99.9))
    return least + DARK_SHARE * (bright - least)


class Skipped:
    """The tiles of one prepared image that need not be looked at, and how many there were."""

    def __init__(
        self,
        air: Air,
        image: NDArray[np.float32],
        info: Mapping[str, Any],
        channels: int,
        background: Sequence[float],
    ) -> None:
        """`info` is what preparing said of the scan; `background` what is said of air, (K,).

        Channels of the image after the first `channels` show an earlier stage's answer: where
        that found something there is no air.
        """
        self.air, self.background = air, tuple(background)
        self.shown = image[channels:]
        self.start = [a for a, _ in info["box"]]
        self.scale = [(b - a) / n for (a, b), n in zip(info["box"], image.shape[1:], strict=True)]
        self.tiles = self.skipped = 0

    def skip(self, box: Sequence[slice]) -> bool:
        """Whether a box of the prepared image is air alone; it is counted."""
        reach = [MARGIN_VOX + scale for scale in self.scale]
        places = list(zip(self.start, self.scale, box, reach, strict=True))
        low = [start + scale * part.start - far for start, scale, part, far in places]
        high = [start + scale * part.stop + far for start, scale, part, far in places]
        empty = self.air.only(low, high) and not self.shown[(slice(None), *box)].any()
        self.tiles += 1
        self.skipped += empty
        return empty
