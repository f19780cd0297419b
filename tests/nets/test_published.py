"""The published networks: against MONAI's with mapped weights, and against their papers' numbers."""

from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoseg.documents.networks.sentence import Level, UNetSpec
from autoseg.documents.networks.word import word
from autoseg.documents.presets.published import MEDNEXT, PRESETS
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.nets.build import build
from autoseg.nets.cost import parameters
from autoseg.nets.kit import Kit
from autoseg.nets.resize import mednext as steps
from autoseg.nets.units.mednext import mednext
from autoseg.nets.units.preactivated import norm_act, preact
from tests.nets.contract import check_contract, check_recompute

BATCH_NORM_EPS = 1e-5


def spec_of(preset, dimensions, levels, width=8, channels=2, kernel=3):
    """A preset on a grid that halves on every axis."""
    features = [width * 2**i for i in range(levels)]
    strides = [[1] * dimensions, *[[2] * dimensions] * (levels - 1)]
    return network_spec(preset, channels, 3, features, strides, [[kernel] * dimensions] * levels)


def uneven(preset, dimensions, levels=3):
    """A preset on a grid with a flat first kernel and a stride that differs between axes."""
    cut, deeper = slice(3 - dimensions, None), levels - 2
    strides = [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * deeper][:levels]
    kernels = [[1, 3, 3], *[[3, 3, 3]] * (levels - 1)]
    features = [8, 16, 32][:levels]
    return network_spec(
        preset, 2, 3, features, [s[cut] for s in strides], [k[cut] for k in kernels]
    )


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_keeps_the_contract_on_an_uneven_grid(preset, dimensions):
    spec = uneven(preset, dimensions)
    assert type(spec).parse(spec.dump(), "the network") == spec
    check_contract(spec)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_works_with_two_levels_and_with_its_most(preset):
    check_contract(uneven(preset, 2, levels=2))
    most = PRESETS[preset].most_levels or 6
    spec = spec_of(preset, 2, most, width=2)
    assert len(spec.strides) == most
    check_contract(spec, (64, 64), batch=1)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_recomputed(preset):
    check_recompute(uneven(preset, 2), (16, 16))


# millions of parameters as published, kernel 3 (Roy et al. 2023, table 1)
@pytest.mark.parametrize(
    ("preset", "millions"),
    [("mednext_s", 5.6), ("mednext_b", 10.5), ("mednext_m", 17.6), ("mednext_l", 61.8)],
)
def test_mednext_is_as_large_as_published(preset, millions):
    with torch.device("meta"):
        net = build(spec_of(preset, 3, 5, width=32, channels=1))
    assert round(parameters(net) / 1e6, 1) == millions
    assert [b.shape[0] for n, b in net.named_parameters() if n.endswith("0.shortcut.bias")] == [
        64, 128, 256, 512,
    ]  # fmt: skip


def test_each_mednext_level_has_the_ratio_of_its_own():
    net = build(spec_of("mednext_l", 2, 5, width=2))
    wide = {
        name.removesuffix(".expand.weight"): len(p) // p.shape[1]
        for name, p in net.named_parameters()
        if name.endswith("expand.weight")
    }
    for level, ratio in enumerate((3, 4, 8, 8, 8)):
        here = (f"encode.{level}.", f"decode.{level}.")
        assert {r for name, r in wide.items() if name.startswith(here)} == {ratio}
    blocks = (3, 4, 8, 8, 8)
    assert len(wide) == sum(blocks) + sum(blocks[:-1]) + 2 * 4


def test_mednext_weights_begin_as_torch_has_them():
    torch.manual_seed(0)
    weight = build(spec_of("mednext_s", 2, 2, width=64)).encode[0][1][0].expand.weight
    assert 0.9 / 64**0.5 < float(weight.detach().abs().max()) <= 1 / 64**0.5


def test_a_step_of_its_own_is_written_only_where_there_is_one():
    spec = spec_of("mednext_b", 2, 3)
    assert [level.get("step", {}).get("ratio") for level in spec.dump()["encoder"]] == [None, 3]
    plain = spec_of("plain", 2, 3)
    assert all("step" not in level for level in plain.dump()["encoder"] + plain.dump()["decoder"])
    pooled = Level(**{**dict(plain.bottleneck), "step": word("pooled")})
    net = build(UNetSpec(**{**dict(plain), "bottleneck": pooled}))
    assert isinstance(net.encode[2][0][0], nn.MaxPool2d)
    assert isinstance(net.encode[1][0][0], nn.Conv2d)
    wrong = plain.dump()
    wrong["encoder"][0]["step"] = "pooled"
    with pytest.raises(PlanError, match="no step leads there"):
        UNetSpec.parse(wrong, "the network")


@pytest.mark.parametrize("widths", [(4, 4), (4, 6)])
def test_mednext_block_by_hand(widths):
    torch.manual_seed(0)
    cin, cout = widths
    block = mednext(Kit((1, 5, 3), "instance", "gelu"), cin, cout, ratio=3)
    state = dict(block.named_parameters())
    assert state["spread.weight"].shape == (cin, 1, 1, 5, 3)
    assert state["expand.weight"].shape == (3 * cin, cin, 1, 1, 1)
    x = torch.randn(2, cin, 4, 7, 6)
    y = F.conv3d(x, state["spread.weight"], state["spread.bias"], padding=(0, 2, 1), groups=cin)
    y = F.group_norm(y, cin, state["norm.weight"], state["norm.bias"])
    y = F.gelu(F.conv3d(y, state["expand.weight"], state["expand.bias"]))
    y = F.conv3d(y, state["compress.weight"], state["compress.bias"])
    short = x if cin == cout else F.conv3d(x, state["shortcut.weight"], state["shortcut.bias"])
    torch.testing.assert_close(block(x), y + short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", list(product((1, 2, 3), (1, 2))))
@pytest.mark.parametrize("kernel", [(3, 3), (1, 5)])
def test_mednext_steps_meet_on_one_grid(stride, kernel):
    kit, grid = Kit(kernel, "instance", "gelu"), (6, 4)
    up = steps.up(kit, 4, 3, stride)
    x = torch.randn(1, 4, *grid)
    y = up(x)
    assert y.shape[2:] == tuple(n * s for n, s in zip(grid, stride, strict=True))
    assert steps.down(kit, 3, 4, stride)(y).shape == x.shape
    # what the transposed convolution cannot reach lies in front and is empty
    for axis, step in enumerate(stride):
        assert step == 1 or not y.narrow(axis + 2, 0, step - 1).any()
        assert y.narrow(axis + 2, step - 1, 1).any()
    # the shortcut leaves each coarse voxel at the last of its block, nothing but bias elsewhere
    weight, bias = up.block.shortcut.weight, up.block.shortcut.bias
    sparse = up.block.shortcut(x)
    every = (..., *(slice(None, None, step) for step in stride))
    want = F.conv2d(x, weight.transpose(0, 1), bias)
    torch.testing.assert_close(sparse[every], want)
    assert float((sparse - bias.reshape(1, -1, 1, 1)).abs().gt(1e-6).sum()) <= want.numel()


def test_a_step_down_rounds_an_odd_grid_up():
    down = steps.down(Kit((3, 3), "instance", "gelu"), 2, 4, (2, 2))
    assert down(torch.randn(1, 2, 7, 5)).shape == (1, 4, 4, 3)


def test_a_preactivated_block_by_hand_and_leaves_its_input_alone():
    torch.manual_seed(0)
    for norm in ("group", "none"):
        block = preact(Kit((3, 3), norm, "relu"), 8, 8)
        weights = [p for p in block.parameters() if p.ndim == 4]
        x = torch.randn(2, 8, 5, 6)
        before, y = x.clone(), x
        for weight in weights:
            y = F.group_norm(y, 8) if norm == "group" else y
            y = F.conv2d(F.relu(y), weight, padding=1)
        torch.testing.assert_close(block(x), x + y, rtol=1e-4, atol=1e-5)
        assert torch.equal(x, before)
        torch.testing.assert_close(norm_act(Kit((3, 3), "none", "relu"), 8, 8)(x), F.relu(before))
        assert torch.equal(x, before)


def shaken(net: nn.Module) -> nn.Module:
    """Biases and norms away from their zeros and ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    return net


def carried(theirs: nn.Module, ours: nn.Module, names: dict[str, str], change=None, own=()) -> None:
    """Loads ours with theirs: `names` maps the beginning of each key; every key must be found.

    What ours has alone, the keys `own`, stays as it is.
    """
    state = {key: ours.state_dict()[key] for key in own}
    for key, value in theirs.state_dict().items():
        start = max((n for n in names if key.startswith(n + ".")), key=len, default=None)
        if start is None:
            continue
        name = names[start] + key[len(start) :]
        state[name] = value if change is None else change(name, value)
    ours.load_state_dict(state)


def mednext_names(levels: int, blocks) -> dict[str, str]:
    """From MONAI's names to ours; its up blocks stand coarsest first."""
    parts = {"conv1": "spread", "norm": "norm", "conv2": "expand", "conv3": "compress",
             "res_conv": "shortcut"}  # fmt: skip
    top = levels - 1
    modules = {f"down_blocks.{i}": f"encode.{i + 1}.0" for i in range(top)}
    for i in range(levels):
        stage, units = ("bottleneck" if i == top else f"enc_stages.{i}"), f"encode.{i}.1"
        modules |= {f"{stage}.{b}": f"{units}.{b}" for b in range(blocks)}
    for i in range(top):
        modules[f"up_blocks.{i}"] = f"decode.{top - 1 - i}.up.block"
        modules |= {f"dec_stages.{i}.{b}": f"decode.{top - 1 - i}.units.{b}" for b in range(blocks)}
    names = {f"{a}.{x}": f"{b}.{y}" for a, b in modules.items() for x, y in parts.items()}
    heads = {f"out_blocks.{i}.conv_out": f"head.{top - i}" for i in range(1, top)}
    return names | heads | {"stem": "encode.0.0", "out_0.conv_out": "head.0"}


def as_monai_steps(spec: UNetSpec) -> UNetSpec:
    """Each step down with the ratio of the level that it leaves.

    The published code gives it the ratio of the level that it enters, as the presets do; only so
    the numbers of parameters are the published ones.
    """
    levels = [spec.levels[0]]
    for above, level in zip(spec.levels, spec.levels[1:], strict=False):
        ratio = above.part.unit.options["ratio"]
        levels.append(Level(**{**dict(level), "step": word("mednext", ratio=ratio)}))
    return UNetSpec(**{**dict(spec), "encoder": levels[:-1], "bottleneck": levels[-1]})


@pytest.mark.parametrize(
    ("preset", "dimensions", "kernel"),
    [("mednext_s", 2, 3), ("mednext_s", 3, 3), ("mednext_b", 2, 5), ("mednext_m", 2, 3),
     ("mednext_l", 2, 3)],
)  # fmt: skip
def test_mednext_equals_monais(preset, dimensions, kernel):
    monai = pytest.importorskip("monai.networks.nets.mednext")
    size = MEDNEXT[preset]
    torch.manual_seed(0)
    theirs = shaken(
        monai.MedNeXt(
            spatial_dims=dimensions, init_filters=4, in_channels=2, out_channels=3,
            encoder_expansion_ratio=size.ratios, decoder_expansion_ratio=size.ratios[::-1],
            bottleneck_expansion_ratio=size.bottleneck_ratio, kernel_size=kernel,
            deep_supervision=True, use_residual_connection=True, blocks_down=size.blocks,
            blocks_bottleneck=size.bottleneck_blocks, blocks_up=size.blocks[::-1],
        )
    )  # fmt: skip
    spec = spec_of(preset, dimensions, 5, width=4, kernel=kernel)
    ours = build(as_monai_steps(spec))
    most = max(*size.blocks, size.bottleneck_blocks)
    carried(
        theirs, ours, mednext_names(5, most),
        lambda own, x: x.transpose(0, 1) if own.startswith("head") and x.ndim > 1 else x,
    )  # fmt: skip
    x = torch.randn(2, 2, *[32] * dimensions)
    wants, gots = theirs.train()(x), ours.train()(x)
    for want, got in zip(wants[:-1], gots, strict=True):  # they supervise the bottleneck too
        assert (want - got).abs().max() < 1e-5 * max(1.0, float(want.detach().abs().max()))
    wants[0].square().mean().backward()
    gots[0].square().mean().backward()
    want, got = theirs.stem.weight.grad, ours.encode[0][0].weight.grad
    assert (want - got).abs().max() < 1e-4 * float(want.abs().max())
    with torch.no_grad():
        want, got = theirs.eval()(x), ours.eval()(x)[0]
    assert (want - got).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_segresnet_equals_monais(dimensions):
    monai = pytest.importorskip("monai.networks.nets.segresnet")
    torch.manual_seed(0)
    theirs = shaken(
        monai.SegResNet(spatial_dims=dimensions, init_filters=8, in_channels=2, out_channels=3)
    )
    ours = build(spec_of("segresnet", dimensions, 4))
    block = {"norm1": "branch.0.0.0", "conv1.conv": "branch.0.1", "norm2": "branch.1.0.0",
             "conv2.conv": "branch.1.1"}  # fmt: skip
    names = {"convInit.conv": "encode.0.0", "conv_final.0": "decode.0.units.1.0",
             "conv_final.2.conv": "head.0"}  # fmt: skip
    for i, blocks in enumerate((1, 2, 2, 4)):
        names[f"down_layers.{i}.0.conv"] = f"encode.{i}.0"
        for b, (x, y) in product(range(blocks), block.items()):
            names[f"down_layers.{i}.{b + 1}.{x}"] = f"encode.{i}.1.{b}.{y}"
    for i in range(3):
        names[f"up_samples.{i}.0.conv"] = f"decode.{2 - i}.up.0"
        for x, y in block.items():
            names[f"up_layers.{i}.0.{x}"] = f"decode.{2 - i}.units.0.{y}"
    # what they have not: the bias of the 1x1 way up, zero to begin with, and the other heads
    biases = [f"decode.{i}.up.0.bias" for i in range(3)]
    assert not any(ours.state_dict()[key].any() for key in biases)
    heads = [f"head.{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
    carried(theirs, ours, names, own=biases + heads)
    x = torch.randn(2, 2, *(16, 32, 16)[3 - dimensions :])
    with torch.no_grad():
        for mode in (True, False):
            want, got = theirs.train(mode)(x), ours.train(mode)(x)[0]
            assert (want - got).abs().max() < 1e-5


@pytest.mark.parametrize("dimensions", [2, 3])
def test_unetpp_equals_monais(dimensions):
    monai = pytest.importorskip("monai.networks.nets.basic_unetplusplus")
    # theirs keeps the width of row 1 on the way up to row 0, so that both rows are equally wide
    widths = (6, 6, 12, 24, 48)
    torch.manual_seed(0)
    theirs = shaken(
        monai.BasicUNetPlusPlus(
            spatial_dims=dimensions, in_channels=2, out_channels=3, features=(*widths, 6),
            deep_supervision=True, act=("LeakyReLU", {"negative_slope": 0.01}),
        )
    )  # fmt: skip
    strides = [[1] * dimensions, *[[2] * dimensions] * 4]
    spec = network_spec("unetpp", 2, 3, widths, strides, [[3] * dimensions] * 5)
    ours = build(spec)
    layer, names = {"conv": "0", "adn.N": "1"}, {}
    for (x, y), c in product(layer.items(), range(2)):
        names[f"conv_0_0.conv_{c}.{x}"] = f"encode.0.0.{c}.{y}"
        for i in range(1, 5):
            place = f"encode.{i}.1.0" if c else f"encode.{i}.0.1"
            names[f"conv_{i}_0.convs.conv_{c}.{x}"] = f"{place}.{y}"
        for i, j in product(range(4), range(1, 5)):
            names[f"upcat_{i}_{j}.convs.conv_{c}.{x}"] = f"node.{i}_{j}.units.{c}.{y}"
            names[f"upcat_{i}_{j}.upsample.deconv"] = f"node.{i}_{j}.up"
    names |= {f"final_conv_0_{j}": f"head.{j - 1}" for j in range(1, 5)}

    def below_first(own: str, value: Tensor) -> Tensor:
        """They concatenate the row before what comes from below, we the other way round."""
        if not (own.startswith("node") and own.endswith("units.0.0.weight")):
            return value
        row, column = map(int, own.split(".")[1].split("_"))
        kept = widths[row] * column
        return torch.cat([value[:, kept:], value[:, :kept]], 1)

    carried(theirs, ours, names, below_first)
    x = torch.randn(2, 2, *[32] * dimensions)
    with torch.no_grad():
        wants, gots = theirs.train()(x), ours.train()(x)
        for want, got in zip(wants[::-1], gots, strict=True):
            assert (want - got).abs().max() < 1e-5
        got = ours.eval()(x)[0]
        assert (sum(theirs.eval()(x)) / 4 - got).abs().max() < 1e-5


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_gate_of_attention_unet_equals_monais(dimensions):
    """Their batch norms are folded into our 1x1 convolutions, which is what they are in evaluation.

    The whole networks differ: theirs has batch norm and transposed convolutions with kernel 3, ours
    is the plain sentence, so that one mechanism alone tells them apart from it.
    """
    monai = pytest.importorskip("monai.networks.nets.attentionunet")
    net = build(spec_of("attention_unet", dimensions, 3))
    gate = net.decode[1].skip.join
    theirs = shaken(monai.AttentionBlock(dimensions, f_int=8, f_g=16, f_l=16)).eval()
    for module in theirs.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)

    def folded(pair: nn.Sequential) -> tuple[Tensor, Tensor]:
        conv, norm = pair[0].conv, pair[1]
        scale = norm.weight / (norm.running_var + BATCH_NORM_EPS).sqrt()
        weight = conv.weight * scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
        return weight, (conv.bias - norm.running_mean) * scale + norm.bias

    with torch.no_grad():
        (kept, kept_bias), (below, below_bias) = folded(theirs.W_x), folded(theirs.W_g)
        gate.from_kept.weight.copy_(kept)
        gate.from_below.weight.copy_(below)
        gate.from_below.bias.copy_(below_bias + kept_bias)
        for own, value in zip((gate.psi.weight, gate.psi.bias), folded(theirs.psi), strict=True):
            own.copy_(value)
        x, g = torch.randn(2, 2, 16, *[6] * dimensions)
        got = gate(x, g)
        assert (got[:, 16:] - theirs(g=g, x=x)).abs().max() < 1e-5
    assert torch.equal(got[:, :16], g)


def test_attention_unet_is_the_plain_network_with_gates():
    with torch.device("meta"):
        plain, gated = (build(spec_of(p, 2, 3)) for p in ("plain", "attention_unet"))
    extra = {k: v for k, v in gated.state_dict().items() if k not in plain.state_dict()}
    assert {k.split(".skip.")[1].rpartition(".")[0] for k in extra} == {
        "join.from_kept", "join.from_below", "join.psi",
    }  # fmt: skip
    # at widths 8 and 16: two 1x1 convolutions to half the width with one bias, one to a single map
    want = sum(2 * w * (w // 2) + (w // 2) + (w // 2) + 1 for w in (8, 16))
    assert sum(prod(v.shape) for v in extra.values()) == want
