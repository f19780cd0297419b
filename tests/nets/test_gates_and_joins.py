"""Wraps, joins and steps made of convolutions, each against its formula or an identity."""

import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.nets.cost import parameters
from autoseg.nets.joins import JOINS, ConvLSTM
from autoseg.nets.kit import Kit
from autoseg.nets.resize.words import DOWNS, UPS
from autoseg.nets.speech import spoken
from autoseg.nets.units.words import UNITS
from autoseg.nets.wraps.gates import neighbours
from autoseg.nets.wraps.words import WRAPS
from tests.nets.contract import check_recompute, part, sentence

GATES = ["squeeze_excite", "efficient_channel", "spatial_attention", "dual_attention"]
FLAT = Kit((3, 3))
CUBE = Kit((3, 3, 3))


def made(unit: str, kit: Kit, cin: int, cout: int, *wraps: str) -> nn.Module:
    torch.manual_seed(0)
    return spoken(part(unit, *wraps))(kit, cin, cout)


# wraps


@pytest.mark.parametrize("wrap", GATES)
@pytest.mark.parametrize("kit", [FLAT, CUBE])
def test_gates_lie_between_0_and_1_and_multiply(wrap, kit):
    module = made("plain", kit, 3, 8, wrap)
    x = 3 * torch.randn(2, 3, *(6, 5, 4)[: kit.ndim])
    y = want = module.unit(x)
    gates = [module.gate]
    if wrap == "dual_attention":  # its unit has the gate of the channels inside
        y = want = module.unit.unit(x)
        gates = [module.unit.gate, module.gate]
    for gate in gates:
        told = gate(want)
        assert told.min() > 0 and told.max() < 1 and told.std() > 0
        want = want * told
    torch.testing.assert_close(module(x), want)
    assert (module(x).abs() <= y.abs()).all()


def test_squeeze_excite_by_hand():
    module, x = made("plain", CUBE, 3, 8, "squeeze_excite"), torch.randn(2, 3, 6, 5, 4)
    first, _, last = module.gate.weigh
    assert first.weight.shape[:2] == (4, 8)
    y = module.unit(x)
    hidden = F.leaky_relu(y.mean((2, 3, 4)) @ first.weight.flatten(1).T + first.bias, 0.01)
    told = torch.sigmoid(hidden @ last.weight.flatten(1).T + last.bias)
    torch.testing.assert_close(module(x), y * told[:, :, None, None, None])


def test_channel_attention_takes_mean_and_maximum_through_the_same_layers():
    gate = made("plain", FLAT, 3, 8, "dual_attention").unit.gate
    y = torch.randn(2, 8, 5, 5)
    first, _, last = gate.weigh
    logits = 0
    for told in (y.mean((2, 3)), y.amax((2, 3))):
        hidden = F.leaky_relu(told @ first.weight.flatten(1).T + first.bias, 0.01)
        logits = logits + hidden @ last.weight.flatten(1).T + last.bias
    torch.testing.assert_close(gate(y)[..., 0, 0], torch.sigmoid(logits))


def test_spatial_attention_correlates_mean_and_maximum():
    gate = made("plain", FLAT, 3, 8, "spatial_attention").gate
    assert gate.conv.weight.shape == (1, 2, 7, 7)
    assert made("plain", Kit((1, 3, 3)), 3, 8, "spatial_attention").gate.conv.kernel_size == (
        1,
        7,
        7,
    )
    y = torch.randn(1, 8, 9, 9)
    kernel = gate.conv.weight.detach().numpy()[0]
    maps = (y.mean(1)[0].numpy(), y.amax(1)[0].numpy())
    logits = sum(
        ndimage.correlate(m, k, mode="constant") for m, k in zip(maps, kernel, strict=True)
    )
    want = torch.sigmoid(torch.from_numpy(logits) + gate.conv.bias.detach())
    torch.testing.assert_close(gate(y)[0, 0], want)


def test_the_kernel_of_efficient_channel_attention():
    sizes = {1: 1, 2: 1, 4: 1, 8: 3, 16: 3, 32: 3, 64: 3, 128: 5, 256: 5, 320: 5, 512: 5, 2048: 7}
    assert {c: neighbours(c) for c in sizes} == sizes
    gate = made("plain", FLAT, 3, 16, "efficient_channel").gate
    assert parameters(gate) == 3
    y = torch.randn(2, 16, 5, 5)
    mean = F.pad(y.mean((2, 3)), (1, 1))
    kernel = gate.conv.weight.flatten()
    logits = sum(kernel[i] * mean[:, i : i + 16] for i in range(3))
    torch.testing.assert_close(gate(y)[..., 0, 0], torch.sigmoid(logits))


@pytest.mark.parametrize("unit", ["pair", "bottleneck", "grouped", "pyramid_split"])
@pytest.mark.parametrize("wrap", [*GATES, "drop_path", None])
def test_a_fresh_residual_block_passes_its_input_on(unit, wrap):
    module = made(unit, FLAT, 6, 6, *([wrap] if wrap else []), "residual").train()
    x = torch.randn(2, 6, 7, 7)
    torch.testing.assert_close(module(x), F.leaky_relu(x, 0.01))


def test_drop_path_drops_samples_and_keeps_the_mean():
    unit = spoken(part("plain", {"word": "drop_path", "rate": 0.25}))(FLAT, 2, 3)
    x = torch.randn(1, 2, 4, 4).expand(4000, -1, -1, -1)
    y = unit.eval()(x[:1])
    assert torch.equal(y, unit.unit(x[:1]))
    torch.manual_seed(3)
    with torch.no_grad():
        got = unit.train()(x)
    dropped = (got == 0).flatten(1).all(1)
    torch.testing.assert_close(got[~dropped], (y / 0.75).expand(int((~dropped).sum()), -1, -1, -1))
    assert abs(dropped.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    torch.testing.assert_close(got.mean(0), y[0], rtol=0.05, atol=0)
    torch.manual_seed(3)
    assert torch.equal(unit(x), got)
    with pytest.raises(ValueError, match=r"\[0, 1\), found 1"):
        WRAPS["drop_path"](UNITS["plain"], rate=1.0)


def test_recomputing_drops_the_same_samples():
    check_recompute(
        sentence(2, part("pair", {"word": "drop_path", "rate": 0.5}, "residual")), (8, 16)
    )


# joins


def test_the_attention_gate():
    torch.manual_seed(0)
    gate = JOINS["attention_gate"](CUBE, 6, 4)
    kept, below = torch.randn(2, 6, 4, 5, 3), torch.randn(2, 4, 4, 5, 3, requires_grad=True)
    alpha = gate.alpha(kept, below)
    assert alpha.shape == (2, 1, 4, 5, 3) and alpha.min() > 0 and alpha.max() < 1
    wx, wg, psi = (m.weight.flatten(1) for m in (gate.from_kept, gate.from_below, gate.psi))
    assert wx.shape == (3, 6) and gate.from_kept.bias is None
    hidden = kept.movedim(1, -1) @ wx.T + below.movedim(1, -1) @ wg.T + gate.from_below.bias
    want = torch.sigmoid(torch.relu(hidden) @ psi.T + gate.psi.bias).movedim(-1, 1)
    torch.testing.assert_close(alpha, want)
    out = gate(kept, below)
    assert gate.width == out.shape[1] == 10
    torch.testing.assert_close(out, torch.cat([below, kept * want], 1))
    out[:, 4:].sum().backward()  # the gated half alone
    assert (below.grad.abs().sum(1) > 0).float().mean() > 0.5


def test_an_open_gate_is_a_concatenation():
    gate = JOINS["attention_gate"](FLAT, 3, 3)
    nn.init.constant_(gate.psi.bias, 100)
    kept, below = torch.randn(2, 1, 3, 4, 4)
    assert torch.equal(gate(kept, below), JOINS["concat"](FLAT, 3, 3)(kept, below))


def lstm_by_steps(cell: ConvLSTM, steps: list[Tensor], hidden: int) -> Tensor:
    """The textbook's loop, from a state and a cell of zeros."""
    pad = [k // 2 for k in cell.from_input.kernel_size]
    h = c = torch.zeros(len(steps[0]), hidden, *steps[0].shape[2:])
    for x in steps:
        gates = F.conv2d(torch.cat([x, h], 1), torch.cat([cell.from_input.weight, cell.from_state.weight], 1),
                         cell.from_input.bias, padding=pad)  # fmt: skip
        i, f, o, g = gates.split(hidden, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return h


@pytest.mark.parametrize(("kept_width", "below_width"), [(6, 6), (5, 3), (1, 2)])
def test_the_recurrent_join(kept_width, below_width):
    torch.manual_seed(0)
    join = JOINS["lstm"](FLAT, kept_width, below_width)
    kept, below = torch.randn(2, kept_width, 5, 4), torch.randn(2, below_width, 5, 4)
    as_wide, hidden = join.enter(below), max(1, kept_width // 2)
    forward = lstm_by_steps(join.down, [kept, as_wide], hidden)
    backward = lstm_by_steps(join.up, [as_wide, kept], hidden)
    want = torch.tanh(join.merge(torch.cat([forward, backward], 1)))
    torch.testing.assert_close(join(kept, below), want)
    assert join.width == want.shape[1] == kept_width
    torch.testing.assert_close(join.down(kept), lstm_by_steps(join.down, [kept], hidden))


# steps down and up


def test_pooling_steps():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 4, 6, 8)
    blocks = x.unflatten(4, (4, 2)).unflatten(3, (3, 2))  # stride (1, 2, 2)
    mean = DOWNS["mean_pooled"](CUBE, 4, 6, (1, 2, 2))
    torch.testing.assert_close(mean(x), mean[1:](blocks.mean((4, 6))))
    most = DOWNS["pooled_residual"](CUBE, 4, 4, (1, 2, 2))  # a fresh block passes its input on
    torch.testing.assert_close(most(x), F.leaky_relu(blocks.amax((4, 6)), 0.01))


def test_nearest_repeats():
    up = UPS["nearest"](FLAT, 3, 4, (1, 3))
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(up(x), up[1](x.repeat_interleave(3, 3)))
