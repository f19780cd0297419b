"""FCN-8s: a classifier made convolutional, its scores on three grids summed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoseg.documents.networks.classic import FCNSpec
from autoseg.nets.families.encoders.encoder import reductions, sized
from autoseg.nets.families.encoders.table import kit_of, vgg16
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.network import Network
from autoseg.nets.resize.plain import Linear

SUMMED = (3, 4, 5)
"""The poolings after which scores are taken, strides 8, 16 and 32 where all step by two."""


class FCN(Network):
    """FCN-8s on VGG-16 (Long et al. 2015, arXiv:1411.4038), one supervised output.

    1x1 scores of the last three poolings; the coarser are brought up by transposed convolutions that
    begin as linear interpolation, and added to the finer, whose scores begin at zero. The rest of
    the way is linear interpolation. Departures: convolutions keep the grid instead of a padding
    of 100 and a crop; a norm stands where VGG's weights have one; and the two layers that were
    the classifier's have 3x3 kernels and 1024 channels, not 7x7 and 4096, as Chen et al. (2015,
    arXiv:1412.7062) found to do as well, since in 3D they would hold 720 million weights.
    """

    def __init__(self, spec: FCNSpec) -> None:
        super().__init__(spec)
        kit = kit_of(spec)
        self.encoder = vgg16(
            kit, spec.in_channels, spec.steps, spec.kernels, scale=spec.scale, rates=spec.rates
        )
        steps = reductions(spec.steps)
        widths = self.encoder.widths
        deep = kit.at(sized(kit, spec.kernels, len(SUMMED) + 2, 3))
        self.classifier = nn.Sequential(
            *_layer(deep, deep.conv(widths[-1], spec.head), spec.head),
            *_layer(deep, deep.conv(spec.head, spec.head, 1), spec.head),
        )
        coarse, fine = kit.conv(spec.head, spec.classes, 1), [2, 3]
        self.score = nn.ModuleList([*(_zero(kit, widths[i], spec.classes) for i in fine), coarse])
        self.up = nn.ModuleList(_upsampling(kit, spec.classes, steps[i]) for i in SUMMED[:-1])
        self.rest = Linear(self.encoder.strides[SUMMED[0]])
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.encoder(x, self.run)
        pools = self.encoder.pools()
        scores = self.score[2](self.run(self.classifier, features[5]))
        for i in (1, 0):
            # a feature is the block's before its pooling
            pooled = pools[i + 2](features[i + 2])
            scores = self.up[i](scores) + self.score[i](pooled)
        return [self.rest(scores)]


def _layer(kit: Kit, conv: nn.Module, width: int) -> list[nn.Module]:
    return [conv, kit.norm_act(width), kit.drop()]


class _OwnInit(nn.Sequential):
    """Layers whose first weights are part of their definition."""

    own_init = True


def _zero(kit: Kit, cin: int, cout: int) -> nn.Module:
    """A score that begins at zero, so that the finer grids at first change nothing."""
    conv = kit.conv(cin, cout, 1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return _OwnInit(conv)


def _upsampling(kit: Kit, channels: int, step: Sequence[int]) -> nn.Module:
    """A transposed convolution that begins as linear interpolation, channel by channel."""
    if set(step) == {1}:
        return nn.Identity()
    size = tuple(2 * s - s % 2 for s in step)
    padding = tuple((k - s) // 2 for k, s in zip(size, step, strict=True))
    layer: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[kit.ndim - 2]
    conv: nn.Module = layer(channels, channels, size, tuple(step), padding, bias=False)
    with torch.no_grad():
        weight = conv.get_parameter("weight").zero_()
        for i in range(channels):
            weight[i, i] = interpolation_kernel(step)
    return _OwnInit(conv)


def interpolation_kernel(step: Sequence[int]) -> Tensor:
    """The kernel of linear interpolation by `step`, 2 * step - step % 2 long on each axis."""
    kernel = torch.ones(())
    for s in step:
        size = 2 * s - s % 2
        middle = (size - 1) / 2
        axis = 1 - (torch.arange(size) - middle).abs() / s
        kernel = kernel[..., None] * axis
    return kernel
