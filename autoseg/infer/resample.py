"""Images to another grid on a card: the numbers of `image.resample`, where the networks work.

The matrices are the same; a channel goes through whole, since a card that holds a network has room
for one channel of a scan. Products are in full float32, whatever precision is set for networks.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.device import free_card_bytes, is_card, out_of_memory
from autoseg.image import resample
from autoseg.image.resample import (
    ANISOTROPY_THRESHOLD,
    Resampling,
    blocks_of,
    checked_shape,
)
from autoseg.infer.exact import exact_products
from autoseg.infer.together import ALONE

COPIES = 3
"""Of a channel on both grids: what comes in, what goes out, and one between."""
SHARE = 0.25
"""Of the card's free memory that a channel may take while networks run there."""


def resample_image(
    image: Tensor,
    shape: Sequence[int],
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    order: int = 3,
    order_z: int = 0,
    separate_z_above: float | None = ANISOTROPY_THRESHOLD,
) -> Tensor:
    """The image (C, *S) on a grid of `shape`, as float32 on its device; a new tensor.

    What `image.resample.resample_image` says of orders and ranges holds here. Raises ValueError
    unless there are three spatial axes.
    """
    new_shape = checked_shape(image.shape[1:], shape)
    apart = resample.separate_axis(spacing_mm, target_mm, separate_z_above)
    out = torch.empty((len(image), *new_shape), dtype=torch.float32, device=image.device)
    with torch.no_grad(), exact_products(image.device):
        for channel, result in zip(image, out):
            if tuple(channel.shape) == new_shape:
                result.copy_(channel)
            elif apart is None:
                result.copy_(_resized(channel.float(), new_shape, order, (0, 1, 2)))
            else:
                ahead, there = channel.float().movedim(apart, 0), result.movedim(apart, 0)
                there.copy_(_resized_apart(ahead, tuple(there.shape), order, order_z))
    return out


def resampling_on(device: torch.device) -> Resampling:
    """How scans get to their grid where networks run on `device`: there, if it is a card."""
    return OnDevice(device) if is_card(device) else resample.resample_image


class OnDevice:
    """Resamples arrays on a device; on the processor where the device has no room for a channel."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(
        self,
        image: NDArray[np.float32],
        shape: Sequence[int],
        *,
        spacing_mm: Sequence[float],
        target_mm: Sequence[float],
        order: int = 3,
        order_z: int = 0,
        separate_z_above: float | None = ANISOTROPY_THRESHOLD,
    ) -> NDArray[np.float32]:
        """The array (C, *S) on a grid of `shape`; channel by channel, to be small on the device."""
        new_shape = checked_shape(image.shape[1:], shape)
        out = np.empty((len(image), *new_shape), np.float32)
        needed = COPIES * 4 * (prod(image.shape[1:]) + prod(new_shape))
        for index in range(len(image)):
            channel = image[index : index + 1]
            try:
                with ALONE:
                    self._make_sure_of(needed)
                    sent = torch.from_numpy(np.ascontiguousarray(channel, np.float32))
                    made = resample_image(
                        sent.to(self.device), shape, spacing_mm=spacing_mm, target_mm=target_mm,
                        order=order, order_z=order_z, separate_z_above=separate_z_above,
                    )  # fmt: skip
                    out[index] = made[0].cpu().numpy()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                out[index] = resample.resample_image(
                    channel, shape, spacing_mm=spacing_mm, target_mm=target_mm,
                    order=order, order_z=order_z, separate_z_above=separate_z_above,
                )[0]  # fmt: skip
        return out

    def _make_sure_of(self, needed_bytes: int) -> None:
        """Raises OutOfMemoryError where networks that run meanwhile would be left too little."""
        if is_card(self.device) and needed_bytes > SHARE * free_card_bytes(self.device):
            raise torch.OutOfMemoryError("the card is left to the networks")


def _resized(source: Tensor, shape: tuple[int, ...], order: int, clip: tuple[int, ...]) -> Tensor:
    """All axes resized, then clipped to the source's range over the axes `clip`."""
    low, high = source.amin(clip, keepdim=True), source.amax(clip, keepdim=True)
    # Shrinking axes first: the tensors in between stay small.
    for axis in sorted(range(3), key=lambda a: shape[a] / source.shape[a]):
        if source.shape[axis] != shape[axis]:
            source = _applied(source, shape[axis], order, axis)
    return torch.minimum(torch.maximum(source, low), high)


def _resized_apart(source: Tensor, shape: tuple[int, ...], order: int, order_z: int) -> Tensor:
    """In-plane by slices of axis 0, each within its own range, then along axis 0."""
    n_in, n_out = len(source), shape[0]
    if n_in == n_out:
        return _resized(source, shape, order, (1, 2))
    if order_z != 0:
        flat = _resized(source, (n_in, *shape[1:]), order, (1, 2))
        return _applied(flat, n_out, order_z, 0)
    picked = resample.nearest_slices(n_in, n_out)
    different, at = np.unique(picked, return_inverse=True)
    chosen = source[torch.from_numpy(different).to(source.device)]
    flat = _resized(chosen, (len(different), *shape[1:]), order, (1, 2))
    return flat[torch.from_numpy(at.reshape(-1)).to(source.device)]


def _applied(source: Tensor, n_out: int, order: int, axis: int) -> Tensor:
    """One axis resized."""
    shape = [n_out if a == axis else n for a, n in enumerate(source.shape)]
    out = torch.empty(shape, dtype=torch.float32, device=source.device)
    for rows, columns, weights in blocks_of(source.shape[axis], n_out, order):
        matrix = torch.from_numpy(weights).to(source.device)
        part = source.narrow(axis, columns.start, columns.stop - columns.start)
        there = out.narrow(axis, rows.start, rows.stop - rows.start)
        if axis == 2:
            there.copy_(part @ matrix.T)
        elif axis == 1:
            there.copy_(matrix @ part)
        else:
            there.copy_((matrix @ part.flatten(1)).view(there.shape))
    return out
