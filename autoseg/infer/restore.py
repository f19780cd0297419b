"""From logits on the prepared grid back to the grid of the arranged image, before it was cropped.

Logits are resampled linearly, along a coarse axis by the nearest slice, as nnU-Net exports them;
but row by row of axis 0, from slabs that come one after another, so that memory never holds more
than a few rows of all classes. Every voxel is a mean of its neighbours whatever rows are asked for
together, so that the same logits give the same bits. Logits on a card are worked on there; where
its memory ends, from that row on in main memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.device import out_of_memory, release_card_memory
from autoseg.documents.labels import LabelSet
from autoseg.image.resample import separate_axis
from autoseg.infer.meaning import EVEN, Slab
from autoseg.infer.rows import Mixing, Source
from autoseg.infer.together import NoRoom
from autoseg.infer.winners import Winners

SLAB_BYTES = 64 << 20

Box = Sequence[tuple[int, int]]


def rows_at_once(outputs: int, full_shape: Sequence[int], slab_bytes: int = SLAB_BYTES) -> int:
    """How many rows of axis 0 of all outputs on the full grid fit into `slab_bytes`, at least 1.

    It depends on nothing else, so that chunks of several networks can be taken together.
    """
    return max(1, slab_bytes // (4 * outputs * full_shape[1] * full_shape[2]))


def restored(
    slabs: Iterable[Slab],
    shape_vox: Sequence[int],
    box: Box,
    full_shape: Sequence[int],
    spacing_mm: Sequence[float],
    full_spacing_mm: Sequence[float],
    *,
    rows: int,
    outside: Sequence[float],
    separate_z_above: float | None = 3.0,
) -> Iterator[Slab]:
    """Logits (..., K, rows, Y, X) on the full grid and their rows of axis 0, in order and complete.

    `slabs` are pieces (..., K, n, *shape_vox[1:]) of the logits in the order of axis 0, pulled when
    a row needs them and dropped when none does. `box` holds (start, stop) of each axis of the crop
    on the full grid; outside of it are the K values `outside`. `spacing_mm` is that of the logits.
    Raises ValueError if the slabs do not make up `shape_vox`.
    """
    crop = [stop - start for start, stop in box]
    apart = separate_axis(spacing_mm, full_spacing_mm, separate_z_above)
    source = Source(slabs, shape_vox)
    if source.lead[-1] != len(outside):
        raise ValueError(f"{len(outside)} values outside of the box, {source.lead[-1]} outputs")
    mixing = Mixing(shape_vox, crop, apart, source.device)
    elsewhere = torch.tensor(outside, dtype=torch.float32, device=source.device)
    (top, bottom), (y0, y1), (x0, x1) = box
    whole = (y1 - y0, x1 - x0) == tuple(full_shape[1:])

    def in_main_memory() -> Mixing:
        _leave_card(source)
        return Mixing(shape_vox, crop, apart, source.device)

    def begun(start: int, stop: int) -> Tensor:
        chunk = torch.empty((*source.lead, stop - start, *full_shape[1:]), device=source.device)
        if not whole or start < top or stop > bottom:
            chunk[...] = elsewhere.to(chunk.device).view(-1, 1, 1, 1)
        return chunk

    def mixed(row: int) -> Tensor:
        low, high = source.pair(*mixing.needed(row - top))
        return mixing.plane(low, high, row - top)

    for start in range(0, full_shape[0], rows):
        stop = min(start + rows, full_shape[0])
        chunk = _made(lambda: begun(start, stop))  # noqa: B023
        while chunk is None:
            mixing = in_main_memory()
            chunk = _made(lambda: begun(start, stop))  # noqa: B023
        for row in range(max(start, top), min(stop, bottom)):
            plane = _made(lambda: mixed(row))  # noqa: B023
            while plane is None:
                mixing, chunk = in_main_memory(), chunk.cpu()
                plane = _made(lambda: mixed(row))  # noqa: B023
            chunk[..., row - start, y0:y1, x0:x1] = plane
        yield slice(start, stop), chunk
        del chunk  # the caller alone decides how long it lives


def classes_on(
    slabs: Iterable[Slab],
    shape_vox: Sequence[int],
    box: Box,
    full_shape: Sequence[int],
    spacing_mm: Sequence[float],
    full_spacing_mm: Sequence[float],
    *,
    labels: LabelSet,
    separate_z_above: float | None = 3.0,
) -> NDArray[np.int16]:
    """Class indices (*full_shape) of logits on the prepared grid; background outside of `box`.

    Voxel for voxel what nnU-Net makes of the same logits: all outputs resampled by skimage, of equal
    float32 values the lower class. `slabs` are pieces (K, n, Y, X), other arguments as `restored`
    takes them. Raises ValueError if the slabs do not make up `shape_vox`, or for another K than the
    labels have outputs.
    """
    source = Source(slabs, shape_vox)
    if source.lead != (labels.outputs,):
        raise ValueError(f"logits {source.lead} a voxel, the labels have {labels.outputs} outputs")
    crop = [stop - start for start, stop in box]
    apart = separate_axis(spacing_mm, full_spacing_mm, separate_z_above)

    def winners(region: int | None) -> Winners:
        def read(low: int, high: int) -> tuple[Tensor, Tensor]:
            one, other = source.pair(low, high)
            return (one, other) if region is None else (_held(one[region]), _held(other[region]))

        return Winners(read, shape_vox, crop, apart, source.device)

    def competitions() -> list[Winners]:
        # a region is a competition of its own, against what is no more than one half
        count = len(labels.regions)
        return [winners(at) for at in range(count)] if count else [winners(None)]

    def highest(row: int) -> Tensor:
        won = [one.row(row) for one in each]
        classes = won[0]
        if labels.regions:
            classes = torch.zeros_like(classes)
            for inside, region in zip(won, labels.regions, strict=True):
                classes[inside > 0] = region.paint
        return classes

    each = competitions()
    found = np.zeros(tuple(full_shape), np.int16)
    (top, bottom), (y0, y1), (x0, x1) = box
    for row in range(top, bottom):
        classes = _made(lambda: highest(row - top))  # noqa: B023
        while classes is None:
            each.clear()
            _leave_card(source)
            each = competitions()
            classes = _made(lambda: highest(row - top))  # noqa: B023
        found[row, y0:y1, x0:x1] = classes.cpu().numpy()
    return found


def _made(make: Callable[[], Tensor]) -> Tensor | None:
    """What is made on a card, or None where its memory ends; what was half made is gone by then."""
    try:
        return make()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None


def _leave_card(source: Source) -> None:
    """Go on in main memory. Raises NoRoom if that was done already."""
    if not source.leave_card():
        raise NoRoom("there is no room to bring logits to the grid of the scan")
    release_card_memory()


def _held(logits: Tensor) -> Tensor:
    """One half, as a logit, and the logits (Y, X) of a region: two classes."""
    return torch.stack([torch.full_like(logits, EVEN), logits])
