"""A whole volume through a network: overlapping tiles, mirrored copies and folds, their mean.

A network is any callable from a float32 batch (N, C, *patch) to a list of logits, finest first; its
precision and memory layout are its own affair. Tiles go along axis 0 last, so that the rows that
no later tile touches are finished and handed on: memory holds the sums of one patch's depth.
On a card they stay there, to be brought to the scan's grid; where its memory ends, they go to main
memory, then fewer tiles are looked at together.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.device import out_of_memory, release_card_memory
from autoseg.documents.plan import Configuration, Prediction
from autoseg.infer.air import Skipped
from autoseg.infer.meaning import Slab
from autoseg.infer.tiles import axis_total, positions, tile_weights
from autoseg.infer.together import NoRoom, Speaker, Together
from autoseg.timing import part

Image = NDArray[np.float32] | Tensor

HANDED_BYTES = 64 << 20
"""Finished rows are handed on in pieces of at most so much, or single rows."""
AHEAD = 2
"""A card is given so many groups of tiles before the first of them is waited for."""


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
    together: Together | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Slab]:
    """Mean logits (K, rows, Y, X) on the device and their rows of axis 0, in order.

    `image` is a prepared image (C, Z, Y, X), which may be a memory map. With `apart` a slab is
    (F, K, rows, Y, X): each network's own mean over tiles and mirrored copies, and the sums take F
    times the memory. A patch of two numbers belongs to 2D networks: each slice of axis 0 is an image
    of its own. `mirror_axes` are axes of the patch, and are used where the prediction's `mirror` is
    set. The sums, and so the logits, lie in main memory where the card has no room for them. `divisor`
    is what the edges of a tile must be multiples of, for volumes segmented in one piece. `together`
    says how many samples the networks are shown at once, and remembers it from scan to scan; of
    what is `skipped` its background is said. Raises NoRoom where not even one tile fits.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image

    if not nets:
        raise ValueError("no network to predict with")
    patch = tile_for(image.shape[1:], patch_vox, divisor, prediction.whole_up_to)
    lead = (len(nets), outputs) if apart else (outputs,)
    padded, kept = pad_nd_image(image, patch, return_slicer=True)
    sums = _Sums(lead, padded.shape[1:], kept[1:], patch, prediction, device)
    flips = mirrored(mirror_axes if prediction.mirror else ())
    weights = torch.from_numpy(tile_weights(patch, prediction.sigma_scale)).to(device)
    together = together or Together(device)
    air = None if skipped is None else torch.tensor(skipped.background, device=device)
    shape = (len(image), *(patch[1:] if len(patch_vox) == 2 else patch))
    places = _every_tile(sums, patch, prediction.tile_step, skipped)
    at_least = prediction.tile_batch
    send = _Sender(torch.device(device))

    def weighed(some: Sequence[Tensor]) -> Tensor:
        tiles = send(torch.stack(list(some))).view(-1, *shape)
        return _weighted(nets, tiles, flips, together, at_least, weights, lead)

    while group := _group(places, max(at_least, -(-together.size(shape) // len(flips)))):
        asked = [_tile(padded, place.corner, patch) for place in group if not place.air]
        spoken = _within_memory(weighed, asked, sums)
        for corner, empty in group:
            yield from sums.finished(corner[0])
            with part("accumulate"):
                sums.add(corner, _of_air(air, weights, lead) if empty else next(spoken))
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
        self.sums, self.in_main_memory = _zeros((*lead, patch[0], *self.shape[1:]), device)
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

    def leave_card(self) -> bool:
        """Go on in main memory; False if the sums lie there already."""
        if self.in_main_memory:
            return False
        self.sums, self.totals = self.sums.cpu(), [total.cpu() for total in self.totals]
        self.in_main_memory = True
        release_card_memory()
        return True

    def _mean(self, start: int, stop: int) -> Tensor:
        """Rows of the mean (..., K, rows, Y, X) without the padding."""
        try:
            return self._mean_there(start, stop)
        except RuntimeError as error:
            if not out_of_memory(error) or not self.leave_card():
                raise
        return self._mean_there(start, stop)

    def _mean_there(self, start: int, stop: int) -> Tensor:
        _, y, x = self.kept
        mean = torch.cat([self.sums[..., rows, y, x] for rows in self._places(start, stop)], -3)
        for total, kept in zip(self.totals, (slice(start, stop), y, x), strict=True):
            mean /= total[kept]
        return mean

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


def mean_logits(
    nets: Sequence[Speaker],
    tiles: Tensor,
    flips: Sequence[tuple[int, ...]],
    together: Together,
    at_least: int = 1,
) -> Tensor:
    """The float32 mean over networks and mirrored copies of the finest logits (N, K, *patch).

    Copies of all tiles go through a network as many at once as there is room for.
    """
    total: Tensor | None = None
    samples = [(index, axes) for axes in flips for index in range(len(tiles))]
    for net in nets:
        done = 0
        while done < len(samples):
            some = samples[done : done + max(at_least, together.size(tiles.shape[1:]))]
            with part("forward"):
                logits = together.said(net, _copies(tiles, some))
            if logits is None:
                at_least = 1  # a plan cannot ask for more than fits
                continue
            if total is None:
                total = logits.new_zeros((len(tiles), *logits.shape[1:]))
            with part("accumulate"):
                for (index, axes), one in zip(some, logits, strict=True):
                    total[index] += one.flip([axis - 1 for axis in axes]) if axes else one
            done += len(some)
    if total is None:
        raise ValueError("no network to predict with")
    return total.div_(len(nets) * len(flips))


def _copies(tiles: Tensor, samples: Sequence[tuple[int, tuple[int, ...]]]) -> Tensor:
    """A batch of tiles (N, C, *patch), each mirrored along its axes of a batch."""
    if len(samples) == len(tiles) and not any(axes for _, axes in samples):
        return tiles
    batch = tiles.new_empty((len(samples), *tiles.shape[1:]))
    for place, (index, axes) in zip(batch, samples, strict=True):
        place.copy_(tiles[index].flip([axis - 1 for axis in axes]) if axes else tiles[index])
    return batch


class _Sender:
    """Sends tiles to a device; to a card without waiting for the tiles before, but AHEAD of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.under_way: deque[torch.cuda.Event] = deque()

    def __call__(self, tiles: Tensor) -> Tensor:
        if self.device.type != "cuda" or tiles.device.type != "cpu":
            return tiles.to(self.device)
        stream = torch.cuda.current_stream(self.device)
        self.under_way.append(stream.record_event())
        while len(self.under_way) > AHEAD:
            self.under_way.popleft().synchronize()
        # a copy out of memory that is not pinned would wait for all that the card has to do
        return tiles.pin_memory().to(self.device, non_blocking=True)


def _within_memory(
    weighed: Callable[[Sequence[Tensor]], Tensor], asked: Sequence[Tensor], sums: _Sums
) -> Iterator[Tensor]:
    """What tiles add to the sums, one after another; as many together as the memory holds.

    Where it ends, first the sums leave the card, then the tiles are halved. Raises NoRoom where one
    tile does not fit.
    """
    waiting = [asked] if asked else []
    while waiting:
        some, found, reason = waiting.pop(0), None, ""
        try:
            found = weighed(some)
        except NoRoom as error:
            reason = error.what
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            reason = "the card has no room for one tile and what is made of it"
        if found is not None:
            yield from found
        elif sums.leave_card():
            waiting.insert(0, some)
        elif len(some) > 1:
            release_card_memory()
            waiting[:0] = [some[: len(some) // 2], some[len(some) // 2 :]]
        else:
            raise NoRoom(reason)


@torch.inference_mode()
def _weighted(
    nets: Sequence[Speaker],
    tiles: Tensor,
    flips: Sequence[tuple[int, ...]],
    together: Together,
    at_least: int,
    weights: Tensor,
    lead: tuple[int, ...],
) -> Tensor:
    """What tiles (N, C, *patch) add to the sums (N, *lead, Z, Y, X)."""
    if len(lead) == 1:
        logits = mean_logits(nets, tiles, flips, together, at_least)
    else:
        each = [mean_logits([net], tiles, flips, together, at_least) for net in nets]
        logits = torch.stack(each, 1)
    if tuple(logits.shape[1 : len(lead) + 1]) != lead:
        found = logits.shape[len(lead)]
        raise ValueError(f"{lead[-1]} outputs are expected, a network gave {found}")
    return logits.view(len(tiles), *lead, *weights.shape).mul_(weights)


def _of_air(air: Tensor | None, weights: Tensor, lead: Sequence[int]) -> Tensor:
    """What a tile of air adds to the sums (*lead, Z, Y, X)."""
    if air is None:
        raise ValueError("a tile was skipped, and nothing is known to be said of it")
    return (air.view(-1, 1, 1, 1) * weights).expand(*lead, *weights.shape)


class _Place(NamedTuple):
    """A tile of a volume that was enlarged to the patch: its first voxel, and if it is skipped."""

    corner: tuple[int, ...]
    air: bool


def _every_tile(
    sums: _Sums, patch: Sequence[int], step: float, skipped: Skipped | None
) -> Iterator[_Place]:
    """The tiles of a volume, those of later rows later."""
    for corner in corners_of(sums.shape, patch, step):
        if skipped is None:
            yield _Place(corner, False)
            continue
        box = [
            slice(max(0, c - k.start), min(k.stop, c + p) - k.start)
            for c, p, k in zip(corner, patch, sums.kept, strict=True)
        ]
        yield _Place(corner, skipped.skip(box))


def _group(places: Iterator[_Place], size: int) -> list[_Place]:
    """The next tiles, of which up to `size` are not skipped; empty at the end."""
    found: list[_Place] = []
    for place in places:
        found.append(place)
        size -= not place.air
        if size <= 0:
            break
    return found


def _tile(image: Image, corner: Sequence[int], patch: Sequence[int]) -> Tensor:
    """One tile (C, *patch) of an image that has room for it."""
    box = (slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))
    tile = image[box]
    # a copy, for a memory map is read-only and torch warns of such arrays
    return tile if isinstance(tile, Tensor) else torch.from_numpy(np.array(tile))


def _zeros(shape: Sequence[int], device: torch.device | str) -> tuple[Tensor, bool]:
    """Sums of zero on the device, or in main memory where it has no room; whether they are there."""
    try:
        return torch.zeros(shape, dtype=torch.float32, device=device), False
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return torch.zeros(shape, dtype=torch.float32), True
