"""ResNet as an encoder: residual blocks, plain or with a bottleneck (He et al. 2016, arXiv:1512.03385)."""

from collections.abc import Sequence

from torch import Tensor, nn

from autoseg.documents.networks.network import accumulated
from autoseg.nets.families.encoders.encoder import (
    REDUCTIONS,
    Encoder,
    Grid,
    Steps,
    norm,
    norm_act,
    reductions,
    sized,
)
from autoseg.nets.kit import Kit

EXPANSION = 4
DEPTHS_34 = DEPTHS_50 = (3, 4, 6, 3)
DEPTHS_101 = (3, 4, 23, 3)


class Block(nn.Module):
    """Two convolutions beside a shortcut; the first steps, both are dilated."""

    def __init__(
        self, kit: Kit, cin: int, width: int, stride: Grid, rates: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv1 = kit.conv(cin, width, stride=stride, rate=rates[0], bias=False)
        self.bn1, self.act1 = norm_act(kit, width)
        self.conv2 = kit.conv(width, width, rate=rates[1], bias=False)
        self.bn2 = norm(kit, width)
        self.downsample = _downsample(kit, cin, width, stride)
        self.act2 = kit.act()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        out: Tensor = self.act2(y + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1 down to `width`, a convolution that steps and is dilated, 1x1 up to four times `width`."""

    def __init__(
        self, kit: Kit, cin: int, width: int, stride: Grid, rates: tuple[int, int]
    ) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.conv1 = kit.conv(cin, width, 1, bias=False)
        self.bn1, self.act1 = norm_act(kit, width)
        self.conv2 = kit.conv(width, width, stride=stride, rate=rates[0], bias=False)
        self.bn2, self.act2 = norm_act(kit, width)
        self.conv3 = kit.conv(width, wide, 1, bias=False)
        self.bn3 = norm(kit, wide)
        self.downsample = _downsample(kit, cin, wide, stride)
        self.act3 = kit.act()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(y)))))
        out: Tensor = self.act3(y + self.downsample(x))
        return out


def _downsample(kit: Kit, cin: int, cout: int, stride: Grid) -> nn.Module:
    if cin == cout and set(stride) == {1}:
        return nn.Identity()
    return nn.Sequential(kit.conv(cin, cout, 1, stride=stride, bias=False), norm(kit, cout))


class ResNet(Encoder):
    """One feature for the first convolution and for each of `depths`, the blocks of a layer.

    `first_width` is that of the first convolution and of the first layer's blocks, doubled at each
    later layer; `rates` are the dilations of the layers (Chen et al. 2016, arXiv:1606.00915). The
    stepping convolution of a bottleneck is the middle one, as in torchvision and not as published.
    """

    first = 1

    def __init__(
        self,
        kit: Kit,
        in_channels: int,
        steps: Steps,
        kernels: Steps,
        *,
        first_width: int = 64,
        depths: Sequence[int] = DEPTHS_34,
        bottleneck: bool = False,
        rates: Sequence[int] = (1,) * REDUCTIONS,
    ) -> None:
        super().__init__()
        taken = reductions(steps)[: len(depths) + 1]
        block, wide = (Bottleneck, EXPANSION) if bottleneck else (Block, 1)
        stem = sized(kit, kernels, 1, 7)
        self.conv1 = kit.conv(in_channels, first_width, stem, stride=taken[0], bias=False)
        self.bn1, self.act1 = norm_act(kit, first_width)
        self.maxpool = _pool(kit, kernels, taken[1])
        self.count = len(depths)
        widths, cin = [first_width], first_width
        for i, depth in enumerate(depths):
            width = first_width * 2**i
            at = kit.at(sized(kit, kernels, i + 2, 3))
            stride = taken[i + 1] if i else (1,) * kit.ndim
            # the first convolution of a dilated layer still sees the grid that the layer before made
            first = [block(at, cin, width, stride, (rates[i] if i else 1, rates[i + 1]))]
            cin = wide * width
            rest = [
                block(at, cin, width, (1,) * kit.ndim, (rates[i + 1],) * 2)
                for _ in range(depth - 1)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*first, *rest))
            widths.append(cin)
        self.widths, self.strides = tuple(widths), accumulated(taken)

    def parts(self) -> list[nn.Module]:
        layers: list[nn.Module] = [getattr(self, f"layer{i + 1}") for i in range(self.count)]
        stem = nn.Sequential(self.conv1, self.bn1, self.act1)
        return [stem, nn.Sequential(self.maxpool, layers[0]), *layers[1:]]


def _pool(kit: Kit, kernels: Steps, step: Grid) -> nn.Module:
    """The largest of three voxels on the axes that step, overlapping; the others are left alone."""
    if set(step) == {1}:
        return nn.Identity()
    wide = sized(kit, kernels, 2, 3)
    size = tuple(1 if s == 1 else max(k, s) for k, s in zip(wide, step, strict=True))
    # an even window has no middle: blocks side by side
    padding = tuple(k // 2 if k % 2 else 0 for k in size)
    return (nn.MaxPool2d, nn.MaxPool3d)[kit.ndim - 2](size, step, padding)
