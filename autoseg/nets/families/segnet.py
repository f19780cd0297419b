"""SegNet: an encoder whose poolings tell its mirror image where each largest voxel stood."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.documents.networks.classic import SegNetSpec
from autoseg.nets.families.encoders.encoder import Grid, Steps, reductions, sized
from autoseg.nets.families.encoders.table import kit_of, vgg16
from autoseg.nets.families.encoders.vgg import DEPTHS
from autoseg.nets.kit import Kit, initialise
from autoseg.nets.network import Network
from autoseg.nets.units.plain import plain


class SegNet(Network):
    """VGG-16 and its mirror (Badrinarayanan et al. 2017, arXiv:1511.00561), one supervised output.

    Each block of the decoder begins with a sparse map: every value of the grid below is put where
    its pooling found it, all else is zero. Nothing is concatenated. A reduction without step has
    neither pooling nor unpooling.
    """

    def __init__(self, spec: SegNetSpec) -> None:
        super().__init__(spec)
        kit = kit_of(spec)
        self.encoder = vgg16(
            kit, spec.in_channels, spec.steps, spec.kernels, scale=spec.scale, rates=spec.rates
        )
        self.steps = reductions(spec.steps)
        widths = self.encoder.widths[:-1]
        self.decode = nn.ModuleList(
            _mirror(kit, spec.kernels, i, widths[i], narrower)
            for i, narrower in enumerate((widths[0], *widths[:-1]))
        )
        self.head = kit.conv(widths[0], spec.classes, 1)
        initialise(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        places: list[tuple[Tensor | None, tuple[int, ...]]] = []
        for block, step in zip(self.encoder.blocks(), self.steps, strict=True):
            x = self.run(block, x)
            size = tuple(x.shape[2:])
            x, where = pool(x, step)
            places.append((where, size))
        for i in reversed(range(len(self.decode))):
            where, size = places.pop()
            x = self.run(self.decode[i], unpool(x, where, self.steps[i], size))
        return [self.head(x)]


def _mirror(kit: Kit, kernels: Steps, block: int, cin: int, cout: int) -> nn.Module:
    """As many units as the encoder's block has; the last gives the width of the block above."""
    at = kit.at(sized(kit, kernels, block, 3))
    widths = [cin] * DEPTHS[block] + [cout]
    return nn.Sequential(*(plain(at, a, b) for a, b in pairwise(widths)))


def pool(x: Tensor, step: Grid) -> tuple[Tensor, Tensor | None]:
    """The largest of each block of `step`, and where in its channel it stood."""
    if set(step) == {1}:
        return x, None
    pooled, where = (F.max_pool2d_with_indices, F.max_pool3d_with_indices)[x.ndim - 4](
        x, step, step
    )
    return pooled, where


def unpool(x: Tensor, where: Tensor | None, step: Grid, size: tuple[int, ...]) -> Tensor:
    """Every value put where `pool` found it, on a grid of `size`, all else zero."""
    if where is None:
        return x
    spread: Tensor = (F.max_unpool2d, F.max_unpool3d)[x.ndim - 4](
        x, where, list(step), list(step), output_size=list(size)
    )
    return spread
