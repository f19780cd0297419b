"""Contracts over the whole vocabulary: whatever the words, a sentence is a sound network."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoseg.nets.build import build
from autoseg.nets.joins import JOINS
from autoseg.nets.kit import ACTIVATIONS, NORMS, Kit
from autoseg.nets.norm import InstanceNorm
from autoseg.nets.resize.words import DOWNS, UPS
from autoseg.nets.speech import spoken
from autoseg.nets.units.words import UNITS
from autoseg.nets.wraps.words import WRAPS
from tests.nets.contract import check_contract, check_recompute, part, sentence

ACROSS = {"down": DOWNS, "up": UPS, "skip": JOINS}


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("unit", UNITS)
def test_every_unit(dimensions, unit):
    check_contract(sentence(dimensions, part(unit)))


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_inside_a_residual_wrap(unit):
    check_contract(sentence(3, part(unit, "residual"), activation="relu"))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("wraps", list(product(WRAPS, ["", *WRAPS])))
def test_every_wrap_and_pair_of_wraps(dimensions, wraps):
    check_contract(sentence(dimensions, part("pair", *filter(None, wraps))))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("position", "word"), [(where, name) for where, words in ACROSS.items() for name in words]
)
def test_every_way_down_up_and_across(dimensions, position, word):
    check_contract(sentence(dimensions, part("plain"), stem=5, **{position: word}))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_norm_and_activation(norm, activation):
    check_contract(sentence(2, part("pair", "residual"), norm=norm, activation=activation))


@pytest.mark.parametrize("unit", UNITS)
def test_units_leave_the_grid_alone(unit):
    module = spoken(part(unit))(Kit((1, 3, 5)), 3, 4)
    assert module(torch.randn(1, 3, 3, 7, 5)).shape == (1, 4, 3, 7, 5)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_recomputing_changes_nothing(dimensions):
    spec = sentence(dimensions, part("plain"), norm="batch", dropout=0.2)
    check_recompute(spec, (8, 16, 16)[3 - dimensions :])


def test_dropout_drops_only_while_training():
    net = build(sentence(2, part("plain"), dropout=0.5))
    x = torch.randn(1, 2, 8, 8)
    net.train()
    assert not torch.equal(net(x)[0], net(x)[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])
    assert sum(isinstance(m, nn.Dropout2d) for m in net.modules()) == 7


@pytest.mark.parametrize("slope", [None, 0.0, 0.01])
@pytest.mark.parametrize("size", [(5, 4), (3, 5, 4)])
def test_channels_last_norm_equals_torchs(size, slope):
    torch.manual_seed(0)
    form = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    norm = InstanceNorm(6, 1e-5, slope)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = torch.randn(3, 6, *size, dtype=torch.float64) + 3
    toward = torch.randn_like(x)
    exact = x.clone().requires_grad_()
    weight, bias = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
    want = F.instance_norm(exact, weight=weight, bias=bias, eps=1e-5)
    want = want if slope is None else F.leaky_relu(want, slope)
    want.backward(toward)
    fast = x.float().contiguous(memory_format=form).requires_grad_()
    got = norm(fast)
    got.backward(toward.float())  # a contiguous gradient must serve as well
    assert got.grad_fn.name() == "ChannelsLastNormBackward"
    for a, b in ((got, want), (fast.grad, exact.grad), (norm.weight.grad, weight.grad),
                 (norm.bias.grad, bias.grad)):  # fmt: skip
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (2, 2, 1)])
def test_a_pointwise_convolution_is_torchs_in_any_layout(stride):
    torch.manual_seed(0)
    ndim = len(stride)
    form = torch.channels_last if ndim == 2 else torch.channels_last_3d
    ours = Kit((3,) * ndim).conv(8, 6, 1, stride=stride)
    exact = (F.conv2d, F.conv3d)[ndim - 2]
    x = torch.randn(2, 8, *(7, 9, 4)[:ndim])
    found = []
    for call, image in (
        (lambda v: exact(v, ours.weight, ours.bias, stride), x.clone()),
        (ours, x.contiguous(memory_format=form)),
    ):
        image.requires_grad_()
        y = call(image)
        gradient = torch.autograd.grad(y.square().sum(), [image, ours.weight, ours.bias])
        found.append([y, *gradient])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
