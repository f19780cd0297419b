"""DeepLab: a dilated encoder that keeps its grid fine, and heads with a large field of view."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.documents.networks.classic import DeepLabSpec
from autoseg.nets.families.encoders.encoder import Grid, sized
from autoseg.nets.families.encoders.table import encoder_of, kit_of
from autoseg.nets.kit import Kit, chain, initialise
from autoseg.nets.network import Network

FINER = 2
"""Reductions before the feature that the decoder adds: stride 4 where all step by two."""


class DeepLab(Network):
    """Scores on the encoder's last grid, or a finer one, interpolated to the image's.

    Version 1 (Chen et al. 2015, arXiv:1412.7062), 2 (2016, arXiv:1606.00915) and 3+ (2018,
    arXiv:1802.02611) differ in the head; one supervised output. Departures: poolings without step
    are left out, where version 1 pools with step 1; a norm stands in version 1's and 2's heads
    wherever it stands in the encoder; the decoder's convolutions are full, not depthwise separable;
    and the rates of the head are fitted to the grid (`Atrous`). The random field that
    version 1 and 2 smooth their result with is no part of the network.
    """

    def __init__(self, spec: DeepLabSpec) -> None:
        super().__init__(spec)
        self.encoder = encoder_of(spec)
        self.finer = FINER - self.encoder.first
        widths = self.encoder.widths
        self.head = HEADS[spec.head](kit_of(spec), spec, widths[-1], widths[self.finer])
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.encoder(x, self.run)
        scores = self.run(self.head, features[-1], features[self.finer])
        return [interpolated(scores, x.shape[2:])]


class Head(nn.Module):
    """(last feature, finer feature) -> scores, on the grid of either."""


class LargeFov(Head):
    """One dilated convolution, one 1x1, the scores: the layers that were the classifier's."""

    def __init__(self, kit: Kit, spec: DeepLabSpec, last: int, finer: int) -> None:  # noqa: ARG002
        super().__init__()
        width = spec.head_width
        at = _deepest(kit, spec)
        wide = atrous(at, last, width, spec.head_rates[0], spec.rates_grid)
        self.layers = chain(
            wide, kit.norm_act(width), kit.drop(),
            kit.conv(width, width, 1), kit.norm_act(width), kit.drop(),
            kit.conv(width, spec.classes, 1),
        )  # fmt: skip

    def forward(self, last: Tensor, finer: Tensor) -> Tensor:  # noqa: ARG002
        out: Tensor = self.layers(last)
        return out


class Summed(Head):
    """Scores of parallel dilated convolutions, one for each rate, added up."""

    def __init__(self, kit: Kit, spec: DeepLabSpec, last: int, finer: int) -> None:  # noqa: ARG002
        super().__init__()
        at = _deepest(kit, spec)
        self.branches = nn.ModuleList(
            atrous(at, last, spec.classes, rate, spec.rates_grid) for rate in spec.head_rates
        )

    def forward(self, last: Tensor, finer: Tensor) -> Tensor:  # noqa: ARG002
        first, *others = self.branches
        scores: Tensor = first(last)
        for branch in others:
            scores = scores + branch(last)
        return scores


class Decoder(Head):
    """Parallel branches concatenated; then, beside a finer feature, two convolutions more."""

    def __init__(self, kit: Kit, spec: DeepLabSpec, last: int, finer: int) -> None:
        super().__init__()
        width = spec.head_width
        self.pyramid = Pyramid(_deepest(kit, spec), last, width, spec)
        self.reduce = chain(kit.conv(finer, spec.finer_width, 1), kit.norm_act(spec.finer_width))
        at = kit.at(sized(kit, spec.kernels, FINER, 3))
        self.refine = nn.Sequential(
            at.conv(width + spec.finer_width, width), at.norm_act(width),
            at.conv(width, width), at.norm_act(width), at.conv(width, spec.classes, 1),
        )  # fmt: skip

    def forward(self, last: Tensor, finer: Tensor) -> Tensor:
        seen = interpolated(self.pyramid(last), finer.shape[2:])
        out: Tensor = self.refine(torch.cat([seen, self.reduce(finer)], 1))
        return out


HEADS: dict[str, Callable[[Kit, DeepLabSpec, int, int], Head]] = {
    "large_fov": LargeFov,
    "summed": Summed,
    "decoder": Decoder,
}
"""Built as head(kit, spec, channels of the last feature, channels of the finer one)."""


class Pyramid(nn.Module):
    """ASPP: a 1x1, one dilated convolution for each rate, and the mean of the whole, concatenated.

    The branch of the mean has no norm: over its single voxel an instance norm is undefined and a
    batch norm of two samples would leave only their order.
    """

    def __init__(self, kit: Kit, cin: int, width: int, spec: DeepLabSpec) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                chain(kit.conv(cin, width, 1), kit.norm_act(width)),
                *(
                    chain(atrous(kit, cin, width, rate, spec.rates_grid), kit.norm_act(width))
                    for rate in spec.head_rates
                ),
            ]
        )
        self.mean = nn.Sequential(kit.conv(cin, width, 1), kit.act())
        together = (len(self.branches) + 1) * width
        self.project = chain(kit.conv(together, width, 1), kit.norm_act(width), kit.drop())

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x.mean(tuple(range(2, x.ndim)), keepdim=True))
        seen = [*(branch(x) for branch in self.branches), mean.expand(-1, -1, *x.shape[2:])]
        out: Tensor = self.project(torch.cat(seen, 1))
        return out


class _Atrous:
    """A dilated convolution whose rate is fitted to the grid that it meets.

    Published rates were chosen for crops much larger than most patches of volumes. At a rate as
    large as the grid every tap but the middle one sees padding alone, and the convolution is a
    costly 1x1. So an axis of n voxels gets rate * n / grid, rounded, at least 1 and at most the
    published rate. The weights do not depend on it; a network predicts tiles of the size that it was
    trained on, and so with the same rates.
    """

    rate: int
    grid: int

    def fitted(self, sizes: Sequence[int]) -> Grid:
        """The rate on each axis of a grid."""
        return tuple(max(1, min(self.rate, round(self.rate * n / self.grid))) for n in sizes)

    def dilated(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rates = self.fitted(x.shape[2:])
        padding = [r * (k // 2) for r, k in zip(rates, weight.shape[2:], strict=True)]
        convolve = (F.conv2d, F.conv3d)[x.ndim - 4]
        return convolve(x, weight, bias, padding=padding, dilation=list(rates))


class Atrous2d(_Atrous, nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self.dilated(input, self.weight, self.bias)


class Atrous3d(_Atrous, nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return self.dilated(input, self.weight, self.bias)


def atrous(kit: Kit, cin: int, cout: int, rate: int, grid: int) -> nn.Module:
    """A convolution dilated by `rate` on grids of at least `grid` voxels, by less on smaller ones."""
    layer: Any = (Atrous2d, Atrous3d)[kit.ndim - 2]
    made: Atrous2d | Atrous3d = layer(cin, cout, kit.kernel)
    made.rate, made.grid = rate, grid
    return made


def _deepest(kit: Kit, spec: DeepLabSpec) -> Kit:
    return kit.at(sized(kit, spec.kernels, len(spec.kernels), 3))


def interpolated(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Linear interpolation to a grid."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    return F.interpolate(x, size=list(sizes), mode=mode, align_corners=False)
