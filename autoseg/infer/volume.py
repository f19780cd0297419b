"""A whole volume through a network: overlapping tiles, mirrored copies and folds, their mean.

A network is any callable from a float32 batch (N, C, *patch) to a list of logits, finest first; its
precision and memory layout are its own affair.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, islice, product
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.documents.plan import Prediction
from autoseg.infer.tiles import axis_total, positions, tile_weights

Speaker = Callable[[Tensor], Sequence[Tensor]]


@torch.inference_mode()
def predict_logits(
    nets: Sequence[Speaker],
    image: NDArray[np.float32] | Tensor,
    patch_vox: Sequence[int],
    classes: int,
    prediction: Prediction,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    divisor: Sequence[int] = (1, 1, 1),
) -> NDArray[np.float32]:
    """The mean logits (K, Z, Y, X) of all `nets` for a prepared image (C, Z, Y, X).

    A patch of two numbers belongs to 2D networks: each slice of axis 0 is an image of its own.
    `mirror_axes` are axes of the patch, and are used where the prediction's `mirror` is set. The
    sums are kept on `device`, in main memory where the card has no room for them. `divisor` is what
    the edges of a tile must be multiples of, for volumes that are segmented in one piece.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    if not nets:
        raise ValueError("no network to predict with")
    source = torch.as_tensor(image)
    flat = len(patch_vox) == 2
    patch = tile_for(source.shape[1:], patch_vox, divisor, prediction.whole_up_to)
    padded, kept = pad_nd_image(source, patch, return_slicer=True)
    shape = tuple(padded.shape[1:])
    flips = mirrored(mirror_axes if prediction.mirror else ())
    weights = torch.from_numpy(tile_weights(patch, prediction.sigma_scale)).to(device)
    total = _zeros((classes, *shape), device)
    for corners in _groups(corners_of(shape, patch, prediction.tile_step), prediction.tile_batch):
        boxes = [tuple(slice(c, c + p) for c, p in zip(at, patch, strict=True)) for at in corners]
        tiles = torch.stack([padded[(slice(None), *box)] for box in boxes]).to(device)
        logits = mean_logits(nets, tiles.squeeze(2) if flat else tiles, flips)
        weighted = (logits.unsqueeze(2) if flat else logits) * weights
        for box, tile in zip(boxes, weighted.to(total.device), strict=True):
            total[(slice(None), *box)] += tile
    for axis, (size, p) in enumerate(zip(shape, patch, strict=True)):
        by = axis_total(size, p, prediction.tile_step, prediction.sigma_scale)
        view = [1] * 4
        view[axis + 1] = size
        total /= torch.from_numpy(by).to(total.device).view(view)
    return np.ascontiguousarray(total[(slice(None), *kept[1:])].cpu().numpy())


def tile_for(
    shape: Sequence[int], patch_vox: Sequence[int], divisor: Sequence[int], whole_up_to: float
) -> tuple[int, ...]:
    """The tile (Z, Y, X) that a volume is segmented with: the patch, or the volume as a whole.

    It is the whole, enlarged to multiples of `divisor` and no smaller than the patch, where that has
    no more voxels than `whole_up_to` patches. A 2D patch becomes one slice thick.
    """
    flat = len(patch_vox) == 2
    patch = (1, *patch_vox) if flat else tuple(patch_vox)
    by = (1, *divisor) if len(divisor) == 2 else tuple(divisor)
    inner = [1, *shape[1:]] if flat else list(shape)
    whole = tuple(max(p, -(-n // d) * d) for n, p, d in zip(inner, patch, by, strict=True))
    return whole if prod(whole) <= whole_up_to * prod(patch) else patch


def corners_of(
    shape: Sequence[int], patch: Sequence[int], step: float
) -> Iterator[tuple[int, ...]]:
    """The first voxel of every tile, the last axis fastest."""
    return product(*(positions(n, p, step) for n, p in zip(shape, patch, strict=True)))


def mirrored(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every combination of the axes of a patch, none first, as axes of a batch (N, C, *patch)."""
    return [
        tuple(axis + 2 for axis in chosen)
        for count in range(len(axes) + 1)
        for chosen in combinations(axes, count)
    ]


def mean_logits(nets: Sequence[Speaker], tiles: Tensor, flips: Sequence[tuple[int, ...]]) -> Tensor:
    """The float32 mean over networks and mirrored copies of the finest logits (N, K, *patch)."""
    total: Tensor | None = None
    for net, axes in product(nets, flips):
        logits = net(tiles.flip(axes) if axes else tiles)[0].float()
        logits = logits.flip(axes) if axes else logits
        total = logits.clone() if total is None else total.add_(logits)
    if total is None:
        raise ValueError("no network to predict with")
    return total.div_(len(nets) * len(flips))


def _groups(corners: Iterable[tuple[int, ...]], size: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The corners in tuples of `size`, the last one may be shorter."""
    rest = iter(corners)
    while group := tuple(islice(rest, size)):
        yield group


def _zeros(shape: Sequence[int], device: torch.device | str) -> Tensor:
    """Sums of zero on the device, or in main memory where it has no room."""
    try:
        return torch.zeros(shape, dtype=torch.float32, device=device)
    except torch.OutOfMemoryError:
        return torch.zeros(shape, dtype=torch.float32)
