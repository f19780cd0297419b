"""Units in which scans stand beside convolutions.

Here belong the blocks that were published as a mixture of the two; the scans stand in `mamba`.
"""

import torch
from torch import Tensor, nn

from autoseg.nets.kit import Kit, chain
from autoseg.nets.units.mamba import Precise, Way, normed_cross_scan, on_tokens, widened


class HybridHalves(nn.Module):
    """Channels in two halves, each through its own branch, put together again and shuffled."""

    def __init__(self, first: nn.Module, second: nn.Module, halves: tuple[int, int]) -> None:
        super().__init__()
        self.first, self.second, self.halves = first, second, halves

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.narrow(1, 0, self.halves[0]), x.narrow(1, *self.halves)
        a, b = self.first(a), self.second(b)
        shuffled = torch.stack([a, b[:, : a.shape[1]]], 2).flatten(1, 2)
        # of an odd number of channels the last has no partner
        return x + torch.cat([shuffled, b[:, a.shape[1] :]], 1)


def hc_mamba(
    kit: Kit, cin: int, cout: int, *, rates: tuple[int, ...] = (1, 2, 3), state: int = 16,
    expand: int = 2, kernel: str = "torch",
) -> nn.Module:  # fmt: skip
    """Half of the channels through dilated separable convolutions, half through SS2D, shuffled.

    HC-Mamba's block (Xu 2024, arXiv:2405.05007), with the sum around it that its encoder has. Its code
    is not public; `rates` rise like a saw's tooth, without a common factor, as hybrid dilated
    convolution asks (Wang et al. 2018, arXiv:1702.08502). One channel alone goes through SS2D.
    """
    halves = (cout // 2, cout - cout // 2)
    scan = normed_cross_scan(kit, halves[1], state=state, expand=expand, kernel=kernel)
    if not halves[0]:
        return chain(widened(kit, cin, cout), Precise(scan, True))
    convolved = chain(
        *(
            chain(
                kit.conv(halves[0], halves[0], rate=rate, groups=halves[0]),
                kit.conv(halves[0], halves[0], 1),
                kit.drop(),
                kit.norm_act(halves[0]),
            )
            for rate in rates
        )
    )
    return chain(widened(kit, cin, cout), HybridHalves(convolved, Precise(scan, False), halves))


class GatedSpatial(nn.Module):
    """x + fuse(convolved(x) + pointwise(x)): SegMamba's gated spatial convolution."""

    def __init__(self, kit: Kit, width: int) -> None:
        super().__init__()
        one, two, three, four = (
            chain(kit.conv(width, width, kernel), kit.norm_act(width))
            for kernel in (None, None, 1, 1)
        )
        self.convolved, self.pointwise, self.fuse = nn.Sequential(one, two), three, four

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fuse(self.convolved(x) + self.pointwise(x))
        return out


def gated_spatial(kit: Kit, cin: int, cout: int) -> nn.Module:
    """Two convolutions beside a 1x1, summed, a 1x1 behind, and the input added.

    Xing et al. 2024, arXiv:2401.13560. It gates by addition, as the authors' code does, where
    the paper's formula multiplies; norm and activation are the document's, theirs instance and ReLU.
    """
    return chain(widened(kit, cin, cout), GatedSpatial(kit, cout))


def seg_mamba(
    kit: Kit, cin: int, cout: int, *, gated: bool = True, state: int = 16, size: int = 4,
    expand: int = 2, kernel: str = "torch",
) -> nn.Module:  # fmt: skip
    """SegMamba's block: gated spatial convolution, then x + Mamba(layer norm(x)) three ways.

    Forward, back, and from slice to slice, the first axis running fastest (Xing et al. 2024,
    arXiv:2401.13560). `gated` false leaves the convolution out, for the further blocks of a
    stage, which has it once.
    """
    ways = (Way(), Way(reverse=True), Way(fastest=0))
    scanned = on_tokens(
        kit, cout, cout, ways, True, state=state, size=size, expand=expand, kernel=kernel
    )
    first = gated_spatial(kit, cin, cout) if gated else widened(kit, cin, cout)
    return chain(first, scanned)
