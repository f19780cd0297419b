"""A dense conditional random field over a segmentation: mean field with Gaussian kernels in a window.

Neighbours within a radius vote for their own class, near ones more than far ones, and in a second
kernel those of a like intensity more than others (Krähenbühl & Koltun 2011, arXiv 1210.5644; cut
off as by Teichmann & Cipolla 2018, arXiv 1805.04777). Each kernel's votes at a voxel are shares that
sum to its weight W, so that no voxel is moved further than W nats in all.

What stands far from every doubt costs nothing: a voxel whose best class leads by more than W keeps
its label whatever its neighbours say, and keeps its probabilities here; the others get exactly what
they would in the whole volume.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.documents.postprocessing import DenseCRF
from autoseg.infer.meaning import Slab

ROUNDING = 1e-3
"""A lead over W of less than so many nats is not relied on."""

NOBODY = 1e-30
"""Where a kernel sums to less, no neighbour is like the voxel at all, and none of them votes."""

Box = tuple[slice, ...]


class Pair(NamedTuple):
    """Two neighbours: where both lie in a volume, and how near they are to each kernel."""

    here: Box
    there: Box
    smooth: float
    bilateral: float


@torch.no_grad()
def mean_field(
    probabilities: Tensor,
    image: Tensor | NDArray[np.float32],
    spacing_mm: Sequence[float],
    settings: DenseCRF,
    *,
    regional: bool = False,
) -> Tensor:
    """The probabilities (K, Z, Y, X) after the field's iterations; a new tensor on their device.

    `image` is the normalised image (C, Z, Y, X) on the same grid. With `regional` each of the K is a
    region, a field of its own against its complement. It takes four times the memory of the
    probabilities, less where doubtful voxels are close together. Raises ValueError if the image lies
    on another grid.
    """
    shape = tuple(probabilities.shape[1:])
    if tuple(image.shape[1:]) != shape:
        raise ValueError(f"probabilities of {shape} and an image of {tuple(image.shape[1:])}")
    out = probabilities.clone()
    doubtful = _doubtful(probabilities, settings, regional=regional)
    if not doubtful.any():
        return out
    reach = reach_vox(shape, spacing_mm, settings.radius_mm)
    inner = _around(doubtful)
    # one step back for each iteration: what lies further cannot be heard here
    outer = tuple(
        slice(
            max(0, s.start - settings.iterations * n), min(size, s.stop + settings.iterations * n)
        )
        for s, n, size in zip(inner, reach, shape, strict=True)
    )
    guide = image[(slice(None), *outer)]
    if not isinstance(guide, Tensor):
        guide = torch.from_numpy(np.array(guide, np.float32))
    field = _iterated(
        probabilities[(slice(None), *outer)].float(),
        guide.to(probabilities.device),
        list(_pairs([s.stop - s.start for s in outer], reach, spacing_mm, settings)),
        settings,
        regional=regional,
    )
    part = out[(slice(None), *outer)]
    part.copy_(torch.where(doubtful[outer], field, part))
    return out


def refined(
    chunks: Iterable[Slab],
    image: Tensor | NDArray[np.float32],
    spacing_mm: Sequence[float],
    settings: DenseCRF,
    *,
    regional: bool = False,
) -> Iterator[Slab]:
    """`mean_field` of a volume whose probabilities come in chunks of rows of axis 0, in order.

    The same numbers as of the whole; memory holds as many rows as the iterations reach, and rows are
    handed on in other numbers than they came. `image` (C, Z, Y, X) may be a memory map. Raises
    ValueError if the chunks end before it does.
    """
    depth = int(image.shape[1])
    margin = reach_vox(image.shape[1:], spacing_mm, settings.radius_mm)[0] * settings.iterations
    start = done = seen = 0
    held: list[Tensor] = []
    for rows, chunk in chunks:
        held.append(chunk)
        seen = rows.stop
        ready = seen if seen == depth else seen - margin
        if ready - done < min(max(1, margin), depth - done):
            continue
        held = [torch.cat(held, 1)]
        found = mean_field(held[0], image[:, start:seen], spacing_mm, settings, regional=regional)
        yield slice(done, ready), found[:, done - start : ready - start].clone()
        del found
        first = max(start, ready - margin)
        held = [held[0][:, first - start :].clone()]
        start, done = first, ready
    if done != depth:
        raise ValueError(f"the image has {depth} rows, chunks came for {seen}")


def reach_vox(
    shape: Sequence[int], spacing_mm: Sequence[float], radius_mm: float
) -> tuple[int, ...]:
    """How many voxels of each axis a radius reaches: at least the next one, where there is one."""
    return tuple(
        min(size - 1, max(1, math.floor(radius_mm / mm + 1e-6)))
        for size, mm in zip(shape, spacing_mm, strict=True)
    )


def _pairs(
    shape: Sequence[int], reach: Sequence[int], spacing_mm: Sequence[float], settings: DenseCRF
) -> Iterator[Pair]:
    """Every pair of neighbours once: those within the radius, and always the next of each axis."""
    for offset in product(*(range(-n, n + 1) for n in reach)):
        if offset <= (0, 0, 0) or any(abs(o) >= n for o, n in zip(offset, shape, strict=True)):
            continue
        squared = sum((o * mm) ** 2 for o, mm in zip(offset, spacing_mm, strict=True))
        beside = sum(map(abs, offset)) == 1
        if squared > settings.radius_mm**2 * (1 + 1e-6) and not beside:
            continue
        ends = list(zip(offset, shape, strict=True))
        yield Pair(
            tuple(slice(max(0, -o), n - max(0, o)) for o, n in ends),
            tuple(slice(max(0, o), n - max(0, -o)) for o, n in ends),
            math.exp(-squared / (2 * settings.smooth_mm**2)),
            math.exp(-squared / (2 * settings.bilateral_mm**2)),
        )


def _iterated(
    probabilities: Tensor,
    guide: Tensor,
    pairs: Sequence[Pair],
    settings: DenseCRF,
    *,
    regional: bool,
) -> Tensor:
    """All iterations, everywhere; volumes are held for each class, never for each neighbour."""
    smooth, bilateral, everyone = _shares(guide, pairs, settings)
    unary = torch.logit(probabilities) if regional else probabilities.log()
    field, votes = probabilities.clone(), torch.empty_like(probabilities)
    for _ in range(settings.iterations):
        votes.zero_()
        for pair in pairs:
            alike = _alike(guide, pair, settings)
            for one, other in ((pair.here, pair.there), (pair.there, pair.here)):
                share = (alike * bilateral[one]).add_(smooth[one], alpha=pair.smooth)
                votes[(slice(None), *one)].addcmul_(share, field[(slice(None), *other)])
        if regional:
            # votes against are what is left of all: for - against = 2 for - all
            field = votes.mul_(2).sub_(everyone).add_(unary).sigmoid()
        else:
            field = votes.add_(unary).softmax(0)
    return field


def _alike(guide: Tensor, pair: Pair, settings: DenseCRF) -> Tensor:
    """The bilateral kernel of a pair of neighbours, for all voxels that have both."""
    differ = guide[(slice(None), *pair.here)] - guide[(slice(None), *pair.there)]
    squared = differ.square_().sum(0)
    return squared.mul_(-0.5 / settings.bilateral_intensity**2).exp_().mul_(pair.bilateral)


def _shares(
    guide: Tensor, pairs: Sequence[Pair], settings: DenseCRF
) -> tuple[Tensor, Tensor, Tensor]:
    """What each kernel's value at a neighbour is multiplied by (Z, Y, X), and the sum of all votes."""
    sums = torch.zeros((2, *guide.shape[1:]), device=guide.device)
    for pair in pairs:
        alike = _alike(guide, pair, settings)
        for place in (pair.here, pair.there):
            sums[0][place] += pair.smooth
            sums[1][place] += alike
    smooth, bilateral = sums.clamp(min=NOBODY)
    smooth, bilateral = settings.smooth_weight / smooth, settings.bilateral_weight / bilateral
    return smooth, bilateral, smooth * sums[0] + bilateral * sums[1]


def _doubtful(probabilities: Tensor, settings: DenseCRF, *, regional: bool) -> Tensor:
    """Where votes may change the label (Z, Y, X): the best leads by no more than all of them."""
    most = settings.smooth_weight + settings.bilateral_weight + ROUNDING
    if regional:
        return (torch.logit(probabilities).abs() <= most).any(0)
    best, second = probabilities.topk(2, 0).values
    found: Tensor = second * math.exp(most) >= best
    return found


def _around(mask: Tensor) -> Box:
    """The smallest box around everything that is true."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        used = mask.any(others).nonzero().flatten()
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)
