"""MobileNetV3-Large as an encoder, and the inverted residual block that EfficientNet has as well."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from autoseg.documents.networks.classic import at_scale
from autoseg.documents.networks.network import accumulated
from autoseg.nets.families.encoders.encoder import (
    REDUCTIONS,
    Encoder,
    Grid,
    Steps,
    norm,
    reductions,
    sized,
)
from autoseg.nets.kit import Kit

Act = Callable[[], nn.Module]

EPS = 1e-3
"""Of the batch norm that the published weights were trained with."""

# kernel, expanded, out, squeeze-excite, hard swish, whether it steps (Howard et al. 2019, table 1)
ROWS = (
    (3, 16, 16, False, False, False),
    (3, 64, 24, False, False, True),
    (3, 72, 24, False, False, False),
    (5, 72, 40, True, False, True),
    (5, 120, 40, True, False, False),
    (5, 120, 40, True, False, False),
    (3, 240, 80, False, True, True),
    (3, 200, 80, False, True, False),
    (3, 184, 80, False, True, False),
    (3, 184, 80, False, True, False),
    (3, 480, 112, True, True, False),
    (3, 672, 112, True, True, False),
    (5, 672, 160, True, True, True),
    (5, 960, 160, True, True, False),
    (5, 960, 160, True, True, False),
)
STEM, LAST = 16, 960


class SqueezeExcite(nn.Module):
    """Each channel times a gate that all channels' means decide (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, kit: Kit, channels: int, squeezed: int, act: Act, gate: Act) -> None:
        super().__init__()
        self.fc1 = kit.conv(channels, squeezed, 1)
        self.fc2 = kit.conv(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        out: Tensor = x * self.gate(self.fc2(self.act(self.fc1(means))))
        return out


class Inverted(nn.Module):
    """1x1 up to `expanded`, one convolution a channel that steps, `excite`, 1x1 down to `cout`.

    With a shortcut where neither the grid nor the width changes (Sandler et al. 2018,
    arXiv:1801.04381). Stochastic depth is left out: it is a field of no document.
    """

    def __init__(
        self,
        kit: Kit,
        cin: int,
        expanded: int,
        cout: int,
        *,
        stride: Grid,
        rate: int,
        act: Act,
        excite: nn.Module | None,
        eps: float,
    ) -> None:
        super().__init__()
        wide = [] if expanded == cin else [conv_act(kit, cin, expanded, (1,) * kit.ndim, act, eps)]
        each = kit.conv(expanded, expanded, stride=stride, rate=rate, groups=expanded, bias=False)
        project = nn.Sequential(kit.conv(expanded, cout, 1, bias=False), norm(kit, cout, eps))
        self.block = nn.Sequential(
            *wide,
            nn.Sequential(each, norm(kit, expanded, eps), act()),
            *([] if excite is None else [excite]),
            project,
        )
        self.shortcut = cin == cout and set(stride) == {1}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return x + out if self.shortcut else out


def conv_act(
    kit: Kit, cin: int, cout: int, kernel: Grid, act: Act, eps: float, stride: Grid | None = None
) -> nn.Module:
    """Convolution, norm, activation."""
    conv = kit.conv(cin, cout, kernel, stride=stride or (1,) * kit.ndim, bias=False)
    return nn.Sequential(conv, norm(kit, cout, eps), act())


class Features(Encoder):
    """An encoder that is one sequence, `features`; each reduction begins at an index of `starts`."""

    first = 1

    def __init__(self, layers: Sequence[nn.Module], starts: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.starts = tuple(starts)

    def parts(self) -> list[nn.Module]:
        ends = (*self.starts[1:], len(self.features))
        return [self.features[a:b] for a, b in zip(self.starts, ends, strict=True)]


class MobileNetV3(Features):
    """MobileNetV3-Large without its classifier (Howard et al. 2019, arXiv:1905.02244).

    A stage's feature is its last; `rates` dilate the convolutions a channel of a stage. ReLU and
    hard swish are where they were published, whatever the kit's activation.
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
        taken = reductions(steps)
        cin = at_scale(STEM, scale)
        stem = sized(kit, kernels, 1, 3)
        layers = [conv_act(kit, in_channels, cin, stem, nn.Hardswish, EPS, taken[0])]
        starts, widths, stage = [0], [], 0
        for kernel, published, out, excited, swish, steps_here in ROWS:
            expanded, cout = at_scale(published, scale), at_scale(out, scale)
            if steps_here:
                starts.append(len(layers))
                widths.append(cin)
                stage += 1
            at = kit.at(sized(kit, kernels, stage + 1, kernel))
            excite = SqueezeExcite(at, expanded, _squeezed(expanded), nn.ReLU, nn.Hardsigmoid)
            layers.append(
                Inverted(
                    at, cin, expanded, cout,
                    stride=taken[stage] if steps_here else (1,) * kit.ndim, rate=rates[stage],
                    act=nn.Hardswish if swish else nn.ReLU, excite=excite if excited else None,
                    eps=EPS,
                )
            )  # fmt: skip
            cin = cout
        last = at_scale(LAST, scale)
        layers.append(conv_act(kit, cin, last, (1,) * kit.ndim, nn.Hardswish, EPS))
        super().__init__(layers, starts)
        self.widths, self.strides = (*widths, last), accumulated(taken)


def _squeezed(expanded: int) -> int:
    """A quarter, rounded to a multiple of 8 that is not more than a tenth smaller."""
    quarter = expanded // 4
    nearest = max(8, (quarter + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * quarter else nearest
