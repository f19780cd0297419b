"""The preset sentences are nnU-Net's networks: the same numbers, the same function."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.nets.build import build
from autoseg.nets.cost import multiply_adds, parameters
from tests.nets.contract import worded

TWOS_3D = [[1, 1, 1], *[[2, 2, 2]] * 3]
LIVER = [[1, 1, 1], *[[2, 2, 2]] * 5]

# (preset, in, classes, features, strides, kernel of every level, parameters that nnU-Net 2.8.1 has)
GOLDEN = [
    ("plain", 1, 3, [32, 64, 128, 256], [[1, 1], *[[2, 2]] * 3], [3, 3], 1928489),
    ("plain", 1, 3, [32, 64, 128, 256], TWOS_3D, [3, 3, 3], 5603177),
    ("resenc_m", 1, 3, [32, 64, 128, 256], [[1, 1], *[[2, 2]] * 3], [3, 3], 8728681),
    ("resenc_l", 1, 3, [32, 64, 128, 256], TWOS_3D, [3, 3, 3], 25895593),
    ("plain", 1, 3, [32, 64, 128, 256, 320, 320], LIVER, [3, 3, 3], 31196399),
    ("resenc_xl", 1, 3, [32, 64, 128, 256, 320, 320], LIVER, [3, 3, 3], 102350575),
]


@pytest.mark.parametrize(
    ("preset", "cin", "classes", "widths", "strides", "kernel", "count"), GOLDEN
)
def test_as_many_parameters_as_nnunet(preset, cin, classes, widths, strides, kernel, count):
    spec = network_spec(preset, cin, classes, widths, strides, [kernel] * len(widths))
    with torch.device("meta"):
        assert parameters(build(spec)) == count


def small(preset: str, dimensions: int) -> NetworkSpec:
    """Three levels, the first with a flat kernel, one stride that differs between axes."""
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    kernels = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    cut = slice(3 - dimensions, None)
    return network_spec(
        preset, 2, 3, [6, 8, 10], [s[cut] for s in strides], [k[cut] for k in kernels]
    )


def shaken(spec: NetworkSpec) -> torch.nn.Module:
    """A network whose biases and norms are not at their initial zeros and ones."""
    torch.manual_seed(1)
    net = build(spec).train()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    return net


class Reference:
    """nnU-Net's forward pass, written with torch's functions from its description alone."""

    def __init__(self, net: torch.nn.Module, spec: NetworkSpec) -> None:
        self.state, self.spec = dict(net.named_parameters()), spec
        self.conv = F.conv3d if spec.dimensions == 3 else F.conv2d
        self.transposed = (
            F.conv_transpose3d if spec.dimensions == 3 else F.conv_transpose2d
        )  # fmt: skip
        self.pool = F.avg_pool3d if spec.dimensions == 3 else F.avg_pool2d

    def unit(self, x: Tensor, name: str, stride=1, act: bool = True) -> Tensor:
        w, b = self.state[f"{name}.0.weight"], self.state.get(f"{name}.0.bias")
        x = self.conv(x, w, b, stride, tuple(k // 2 for k in w.shape[2:]))
        x = F.instance_norm(
            x, weight=self.state[f"{name}.1.weight"], bias=self.state[f"{name}.1.bias"], eps=1e-5
        )
        return F.leaky_relu(x, 0.01) if act else x

    def block(self, x: Tensor, name: str, stride) -> Tensor:
        y = self.unit(self.unit(x, f"{name}.branch.0", stride), f"{name}.branch.1", act=False)
        short = self.pool(x, stride, stride) if max(stride) > 1 else x
        if x.shape[1] != y.shape[1]:
            place = f"{name}.shortcut"
            if f"{place}.0.weight" in self.state:
                short = self.unit(short, place, act=False)
            else:  # the pool stands first
                w = self.state[f"{place}.1.weight"]
                norm = {k: self.state[f"{place}.2.{k}"] for k in ("weight", "bias")}
                short = F.instance_norm(self.conv(short, w), **norm, eps=1e-5)
        return F.leaky_relu(y + short, 0.01)

    def __call__(self, x: Tensor) -> list[Tensor]:
        spec = self.spec
        residual = spec.down.word == "residual"
        one = self.block if residual else self.unit
        ones = (1,) * spec.dimensions
        if spec.stem is not None:
            x = self.unit(x, "encode.0.0")
        for d in range(spec.encoder[0].depth):
            x = one(x, f"encode.0.{int(spec.stem is not None)}.{d}", ones)
        kept = [x]
        for i, (_, level) in enumerate(pairwise(spec.levels)):
            x = one(x, f"encode.{i + 1}.0", level.stride)
            for d in range(level.depth - 1):
                x = one(x, f"encode.{i + 1}.1.{d}", ones)
            kept.append(x)
        x, logits = kept[-1], []
        for i in reversed(range(len(spec.encoder))):
            stride = spec.levels[i + 1].stride
            x = self.transposed(
                x, self.state[f"decode.{i}.up.weight"], self.state[f"decode.{i}.up.bias"], stride
            )
            x = torch.cat([x, kept[i]], 1)
            for d in range(spec.decoder[i].depth):
                x = self.unit(x, f"decode.{i}.units.{d}")
            logits.insert(
                0, self.conv(x, self.state[f"head.{i}.weight"], self.state[f"head.{i}.bias"])
            )
        return logits


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("preset", ["plain", "resenc_m"])
def test_logits_and_gradients_are_those_of_torchs_own_layers(preset, dimensions):
    spec = small(preset, dimensions)
    net = shaken(spec)
    reference = Reference(net, spec)
    x = torch.randn(2, 2, *(4, 16, 16)[3 - dimensions :])
    want, got = reference(x), net(x)
    assert [w.shape for w in want] == [g.shape for g in got]
    for w, g in zip(want, got, strict=True):
        assert (w - g).abs().max() < 1e-5
    weights = [p for p in net.parameters() if p.ndim > 1]
    want_grad = torch.autograd.grad(sum(w.square().mean() for w in want), weights)
    form = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    lasting = net(x.contiguous(memory_format=form))
    assert lasting[0].is_contiguous(memory_format=form)
    for w, g in zip(want, lasting, strict=True):
        assert (w - g).abs().max() < 5e-5
    got_grad = torch.autograd.grad(sum(g.square().mean() for g in lasting), weights)
    for w, g in zip(want_grad, got_grad, strict=True):
        assert (w - g).abs().max() < 1e-5 * max(1.0, float(w.abs().max()))


def test_a_fresh_residual_block_passes_its_input_on():
    net = build(small("resenc_m", 2))
    block = net.encode[2][1][0]
    x = torch.rand(1, 10, 4, 4)
    assert torch.equal(block(x), x)


def test_weights_begin_as_he_has_it():
    torch.manual_seed(0)
    net = build(network_spec("plain", 1, 2, [32, 64], [[1, 1], [2, 2]], [[3, 3], [3, 3]]))
    weight = net.state_dict()["decode.0.units.0.0.weight"]
    assert float(weight.std()) == pytest.approx((2 / (1 + 0.01**2) / (64 * 9)) ** 0.5, rel=0.02)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


def test_multiply_adds_by_hand():
    spec = network_spec("plain", 2, 3, [4, 6], [[1, 1], [2, 2]], [[3, 3], [3, 3]])
    fine, coarse = 8 * 8, 4 * 4
    want = 9 * (fine * (2 * 4 + 4 * 4) + coarse * (4 * 6 + 6 * 6))  # the way down
    want += 4 * coarse * 6 * 4 + 9 * fine * (8 * 4 + 4 * 4) + fine * 4 * 3  # up, decoder, head
    assert multiply_adds(spec, (8, 8)) == want


def test_unknown_names_say_what_there_is():
    with pytest.raises(PlanError, match="no network 'resenc_n'; did you mean 'resenc_"):
        network_spec("resenc_n", 1, 2, [4, 8], [[1, 1], [2, 2]], [[3, 3], [3, 3]])
    wrong = small("plain", 2).model_copy(update={"up": worded("teleport")})
    with pytest.raises(PlanError, match=r"an? up 'teleport', which there is not"):
        build(wrong)
    wrong = small("plain", 2).model_copy(update={"up": worded("linear", growht=3)})
    with pytest.raises(PlanError, match="the up 'linear' has no setting 'growht'"):
        build(wrong)
