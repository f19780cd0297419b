"""EfficientNet-B0 as an encoder (Tan and Le 2019, arXiv:1905.11946)."""

from collections.abc import Sequence

from torch import nn

from autoseg.documents.networks.classic import at_scale
from autoseg.documents.networks.network import accumulated
from autoseg.nets.families.encoders.encoder import (
    REDUCTIONS,
    Steps,
    reductions,
    sized,
)
from autoseg.nets.families.encoders.mobilenet import Features, Inverted, SqueezeExcite, conv_act
from autoseg.nets.kit import NORM_EPS, Kit

# expansion, kernel, out, depth, whether it steps (table 1)
ROWS = (
    (1, 3, 16, 1, False),
    (6, 3, 24, 2, True),
    (6, 5, 40, 2, True),
    (6, 3, 80, 3, True),
    (6, 5, 112, 3, False),
    (6, 5, 192, 4, True),
    (6, 3, 320, 1, False),
)
STEM, LAST = 32, 1280


class EfficientNet(Features):
    """EfficientNet-B0 without its classifier.

    A stage's feature is its last; `rates` dilate the convolutions a channel of a stage. The
    activation is SiLU, as published, whatever the kit's.
    """

    def __init__(
        self,
        kit: Kit,
        in_channels: int,
        steps: Steps,
        kernels: Steps,
        *,
        scale: float = 1.0,
        rates: Sequence[int] = (1,) * REDUCTIONS,
    ) -> None:
        taken, ones = reductions(steps), (1,) * kit.ndim
        cin = at_scale(STEM, scale)
        stem = sized(kit, kernels, 1, 3)
        layers = [conv_act(kit, in_channels, cin, stem, nn.SiLU, NORM_EPS, taken[0])]
        starts, widths, stage = [0], [], 0
        for expansion, kernel, out, depth, steps_here in ROWS:
            if steps_here:
                starts.append(len(layers))
                widths.append(cin)
                stage += 1
            at, cout = kit.at(sized(kit, kernels, stage + 1, kernel)), at_scale(out, scale)
            blocks = []
            for i in range(depth):
                wide = expansion * cin
                stride = taken[stage] if steps_here and i == 0 else ones
                excite = SqueezeExcite(at, wide, max(1, cin // 4), nn.SiLU, nn.Sigmoid)
                blocks.append(
                    Inverted(
                        at, cin, wide, cout, stride=stride, rate=rates[stage], act=nn.SiLU,
                        excite=excite, eps=NORM_EPS,
                    )
                )  # fmt: skip
                cin = cout
            layers.append(nn.Sequential(*blocks))
        last = at_scale(LAST, scale)
        layers.append(conv_act(kit, cin, last, ones, nn.SiLU, NORM_EPS))
        super().__init__(layers, starts)
        self.widths, self.strides = (*widths, last), accumulated(taken)
