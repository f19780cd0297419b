"""A whole volume through a network: overlapping tiles, mirrored copies and folds, their mean.

A network is any callable from a float32 batch (N, C, *patch) to a list of logits, finest first; its
precision and memory layout are its own affair. Tiles go along axis 0 last, so that the rows that
no later tile touches are finished and handed on: memory holds the sums of one patch's depth.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, islice, product
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.documents.plan import Configuration, Prediction
from autoseg.infer.meaning import Slab
from autoseg.infer.tiles import axis_total, positions, tile_weights

Speaker = Callable[[Tensor], Sequence[Tensor]]
Image = NDArray[np.float32] | Tensor

HANDED_BYTES = 64 << 20
"""Finished rows are handed on in pieces of at most so much, or single rows."""


def logit_slabs(
    nets: Sequence[Speaker],
    image: Image,
    patch_vox: Sequence[int],
    outputs: int,
    prediction: Prediction,
    mirror_axes: Sequence[int] = (),
    device: torch.device | str = "cpu",
    divisor: Sequence[int] = (1, 1, 1),
    *,
    apart: bool = False,
) -> Iterator[Slab]:
    """Mean logits (K, rows, Y, X) in main memory and their rows of axis 0, in order.

    `image` is a prepared image (C, Z, Y, X), which may be a memory map. With `apart` a slab is
    (F, K, rows, Y, X): each network's own mean over tiles and mirrored copies, and the sums take F
    times the memory. A patch of two numbers belongs to 2D networks: each slice of axis 0 is an image
    of its own. `mirror_axes` are axes of the patch, and are used where the prediction's `mirror` is
    set. The sums are kept on `device`, in main memory where the card has no room for them. `divisor`
    is what the edges of a tile must be multiples of, for volumes segmented in one piece.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    if not nets:
        raise ValueError("no network to predict with")
    flat = len(patch_vox) == 2
    patch = tile_for(image.shape[1:], patch_vox, divisor, prediction.whole_up_to)
    lead = (len(nets), outputs) if apart else (outputs,)
    padded, kept = pad_nd_image(image, patch, return_slicer=True)
    sums = _Sums(lead, padded.shape[1:], kept[1:], patch, prediction, device)
    flips = mirrored(mirror_axes if prediction.mirror else ())
    weights = torch.from_numpy(tile_weights(patch, prediction.sigma_scale)).to(device)
    for corners in _groups(
        corners_of(sums.shape, patch, prediction.tile_step), prediction.tile_batch
    ):
        tiles = torch.stack([_tile(padded, at, patch) for at in corners]).to(device)
        spoken = _weighted(nets, tiles.squeeze(2) if flat else tiles, flips, weights, apart=apart)
        if spoken.shape[1:-3] != lead:
            raise ValueError(f"{outputs} outputs are expected, a network gave {spoken.shape[-4]}")
        for corner, tile in zip(corners, spoken, strict=True):
            yield from sums.finished(corner[0])
            sums.add(corner, tile)
    yield from sums.finished(sums.shape[0])


class _Sums:
    """Weighted logits of the rows that tiles may still touch; row r lies at r modulo the depth.

    `shape` is that of the volume, enlarged to the patch where it was smaller; of it `kept` is the
    volume itself.
    """

    def __init__(
        self,
        lead: Sequence[int],
        shape: Sequence[int],
        kept: Sequence[slice],
        patch: Sequence[int],
        prediction: Prediction,
        device: torch.device | str,
    ) -> None:
        self.shape, self.kept, self.patch = tuple(shape), tuple(kept), tuple(patch)
        self.sums = _zeros((*lead, patch[0], *self.shape[1:]), device)
        self.totals = [
            torch.from_numpy(axis_total(n, p, prediction.tile_step, prediction.sigma_scale))
            .to(self.sums.device)
            .view(-1, *[1] * (2 - axis))
            for axis, (n, p) in enumerate(zip(self.shape, patch, strict=True))
        ]
        self.done = 0
        self.at_once = max(1, HANDED_BYTES // (4 * prod(lead) * prod(self.shape[1:])))

    def add(self, corner: Sequence[int], tile: Tensor) -> None:
        """Add a weighted tile (..., K, *patch), no row of which is finished."""
        tile = tile.to(self.sums.device)
        y, x = (slice(c, c + p) for c, p in zip(corner[1:], self.patch[1:], strict=True))
        first = 0
        for rows in self._places(corner[0], corner[0] + self.patch[0]):
            count = rows.stop - rows.start
            self.sums[..., rows, y, x] += tile[..., first : first + count, :, :]
            first += count

    def finished(self, stop: int) -> Iterator[Slab]:
        """The means of all rows before `stop` that were not handed on yet; their sums are cleared."""
        while self.done < stop:
            start, self.done = self.done, min(stop, self.done + self.at_once)
            low = max(start, self.kept[0].start)
            high = min(self.done, self.kept[0].stop)
            if low < high:
                shift = self.kept[0].start
                yield slice(low - shift, high - shift), self._mean(low, high)
            for rows in self._places(start, self.done):
                self.sums[..., rows, :, :] = 0

    def _mean(self, start: int, stop: int) -> Tensor:
        """Rows of the mean (..., K, rows, Y, X) without the padding, in main memory."""
        _, y, x = self.kept
        mean = torch.cat([self.sums[..., rows, y, x] for rows in self._places(start, stop)], -3)
        for total, part in zip(self.totals, (slice(start, stop), y, x), strict=True):
            mean /= total[part]
        return mean.cpu()

    def _places(self, start: int, stop: int) -> list[slice]:
        """Where rows of the volume lie: one piece, or two around the end."""
        depth = self.patch[0]
        low, high = start % depth, start % depth + stop - start
        if high <= depth:
            return [slice(low, high)]
        return [slice(low, depth), slice(0, high - depth)]


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


def patches_to_predict(shape: Sequence[int], configuration: Configuration) -> float:
    """How many patches' worth of voxels the tiles of a prepared volume (Z, Y, X) have together."""
    patch, predict = configuration.patch_vox, configuration.predict
    tile = tile_for(shape, patch, configuration.network.divisor, predict.whole_up_to)
    step = predict.tile_step
    tiles = (len(positions(max(n, t), t, step)) for n, t in zip(shape, tile, strict=True))
    return prod(tiles) * prod(tile) / prod(patch)


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


@torch.inference_mode()
def _weighted(
    nets: Sequence[Speaker],
    tiles: Tensor,
    flips: Sequence[tuple[int, ...]],
    weights: Tensor,
    *,
    apart: bool,
) -> Tensor:
    """What tiles (N, C, *patch) add to the sums (N, K, Z, Y, X), or (N, F, K, Z, Y, X) apart."""
    if apart:
        logits = torch.stack([mean_logits([net], tiles, flips) for net in nets], 1)
    else:
        logits = mean_logits(nets, tiles, flips)
    if tiles.ndim == 4:
        logits = logits.unsqueeze(-3)
    return logits.mul_(weights)


def _tile(image: Image, corner: Sequence[int], patch: Sequence[int]) -> Tensor:
    """One tile (C, *patch) of an image that has room for it."""
    box = (slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))
    tile = image[box]
    # a copy, for a memory map is read-only and torch warns of such arrays
    return tile if isinstance(tile, Tensor) else torch.from_numpy(np.array(tile))


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
