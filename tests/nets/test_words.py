"""The words made of convolutions, each against its formula or against an identity that it keeps."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from autoseg.documents.networks.family import parse_network
from autoseg.documents.presets.nnunet import PRESETS as NNUNET
from autoseg.documents.presets.shape import Shape
from autoseg.documents.presets.words import PRESETS
from autoseg.nets.build import build
from autoseg.nets.cost import parameters
from autoseg.nets.kit import Kit
from autoseg.nets.speech import spoken
from autoseg.nets.units import branches, chains, light
from autoseg.nets.units.branches import Fitting2d, shares
from autoseg.nets.units.words import UNITS
from tests.nets.contract import check_contract, part

WORDS = [
    name
    for name, unit in UNITS.items()
    if unit.__module__ in (chains.__name__, branches.__name__, light.__name__)
]
GATES = ["squeeze_excite", "efficient_channel", "spatial_attention", "dual_attention"]
FLAT = Kit((3, 3))
BARE = Kit((3, 3), norm_name="none")
CUBE = Kit((3, 3, 3))


def made(unit: str, kit: Kit, cin: int, cout: int, *wraps: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return spoken(part({"word": unit, **settings}, *wraps))(kit, cin, cout)


def weights(module: nn.Module) -> int:
    """Numbers in the kernels, without biases and norms."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


# what holds for all of them


@pytest.mark.parametrize("unit", WORDS)
def test_any_width_will_do(unit):
    for cin, cout in ((1, 1), (1, 5), (5, 1), (3, 2), (7, 7)):
        module = made(unit, Kit((1, 3), norm_name="none"), cin, cout)
        out = module(torch.randn(2, cin, 5, 4))
        out.sum().backward()
        assert out.shape == (2, cout, 5, 4)
        assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("unit", WORDS)
def test_channels_lying_together_change_nothing(unit):
    module, x = made(unit, CUBE, 4, 6), torch.randn(2, 4, 5, 6, 7)
    got = module(x.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(got, module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", WORDS)
def test_words_run_in_half_precision_and_on_shapes_alone(unit):
    module, x = made(unit, FLAT, 4, 4, "dual_attention"), torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(x)
    whole = module(x)
    assert (half - whole).norm() < 0.05 * whole.norm()
    with FakeTensorMode():
        fake = made(unit, FLAT, 4, 4, "efficient_channel", "drop_path", "residual")
        out = fake(torch.empty(2, 4, 8, 8))
        out.sum().backward()
        assert out.shape == x.shape and all(p.grad is not None for p in fake.parameters())


# how far each sees


def footprint(module: nn.Module, cin: int, size: int) -> Tensor:
    """Where the input matters to the centre of the output, (size, size) of bool."""
    x = torch.randn(1, cin, size, size, dtype=torch.float64, requires_grad=True)
    module.double()(x)[:, :, size // 2, size // 2].sum().backward()
    return x.grad.abs().sum((0, 1)) > 0


def extent(seen: Tensor) -> tuple[int, ...]:
    return tuple(int(at.max() - at.min()) + 1 for at in seen.nonzero(as_tuple=True))


@pytest.mark.parametrize(
    ("unit", "settings", "sees"),
    [
        ("bottleneck", {}, 3),
        ("grouped", {}, 3),
        ("dense", {"layers": 3}, 7),
        ("dilated", {}, 17),
        ("dilated", {"rates": (1, 2)}, 7),
        ("csp", {}, 5),
        ("csp", {"layers": 3}, 7),
        ("inception", {}, 5),
        ("inception_dilated", {}, 11),
        ("dense_atrous", {}, 19),
        ("multi_scale_residual", {}, 7),
        ("residual_path", {"steps": 3}, 7),
        ("separable", {}, 3),
        ("convnext", {"scale": 1.0}, 7),
    ],
)
def test_each_sees_as_far_as_its_paper_says(unit, settings, sees):
    assert extent(footprint(made(unit, BARE, 4, 6, **settings), 4, 25)) == (sees, sees)
    flat = Kit((3, 1), norm_name="none")
    assert extent(footprint(made(unit, flat, 4, 6, **settings), 4, 25)) == (sees, 1)


def test_rates_without_a_common_divisor_leave_no_holes():
    assert footprint(made("dilated", BARE, 2, 3, rates=(1, 2, 5)), 2, 25).sum() == 17 * 17
    holed = footprint(made("dilated", BARE, 2, 3, rates=(2, 4)), 2, 25)
    assert extent(holed) == (13, 13) and holed.sum() == 7 * 7


def test_the_cascades_of_dense_atrous_see_3_7_9_19():
    module = made("dense_atrous", BARE, 3, 3)
    for i, sees in enumerate((3, 7, 9, 19)):
        one = nn.Sequential(module, nn.Identity())  # a module of its own for each cascade
        one.forward = lambda x, i=i: module.double().cascades(x)[i]
        assert extent(footprint(one, 3, 25)) == (sees, sees)


def test_the_pyramid_sees_everything():
    assert footprint(made("pyramid", BARE, 3, 4, rates=(2,)), 3, 15).all()


def test_rates_are_cut_to_half_of_the_axis():
    torch.manual_seed(0)
    conv = Fitting2d(2, 3, (3, 3), dilation=6)
    x = torch.randn(1, 2, 5, 40)
    want = F.conv2d(x, conv.weight, conv.bias, 1, (2, 6), (2, 6))
    torch.testing.assert_close(conv(x), want, rtol=0, atol=0)
    x = torch.randn(1, 2, 1, 1)  # nothing but the centre of the kernel is left
    want = F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias)
    torch.testing.assert_close(conv(x), want)
    big = made("pyramid", CUBE, 3, 4)[0].branches[2][0]
    assert big.dilation == (12, 12, 12) and big(torch.randn(1, 3, 2, 7, 26)).shape[2:] == (2, 7, 26)


# how much each costs


def test_parameters_are_those_of_the_formulas():
    k, c, d = 27, 8, 12
    assert weights(made("separable", CUBE, c, d)) == k * c + c * d
    assert weights(made("bottleneck", CUBE, c, d)) == c * 3 + k * 3 * 3 + 3 * d
    assert weights(made("grouped", CUBE, c, d, cardinality=3)) == c * 6 + k * 6 * 6 // 3 + 6 * d
    assert weights(made("dilated", CUBE, c, d)) == k * (c * d + 2 * d * d)
    dense = sum(k * (c + i * 5) * 5 for i in range(3)) + (c + 15) * d
    assert weights(made("dense", CUBE, c, d, growth=5, layers=3)) == dense
    assert weights(made("csp", CUBE, d, d)) == 2 * k * 6 * 6 + d * d
    gate = 2 * 6 * c * 2
    assert weights(made("mbconv", CUBE, c, d, expand=6)) == 6 * c * (c + k + d) + gate
    assert weights(made("convnext", CUBE, c, c)) == 7**3 * c + 2 * 4 * c * c
    assert weights(made("dense_atrous", CUBE, c, c)) == (3 * k + 1) * c * c


@pytest.mark.parametrize(
    ("width", "groups"), [(64, [1, 4, 8, 16]), (16, [1, 4, 4, 4]), (6, [1, 2, 2, 2])]
)
def test_groups_of_large_kernels_adapt(width, groups):
    convs = made("pyramid_split", CUBE, width, width)[0].branches
    assert [conv.groups for conv in convs] == groups
    assert [conv.kernel_size for conv in convs] == [(k, k, k) for k in (3, 5, 7, 9)]


def test_cardinality_is_the_largest_that_divides():
    groups = [made("grouped", FLAT, 4, w)[1][0].groups for w in (32, 24, 20, 14, 2)]
    assert groups == [8, 6, 5, 7, 1]


@pytest.mark.parametrize("whole", range(1, 12))
def test_shares_sum_to_the_whole(whole):
    widths = shares(whole, 4)
    assert sum(widths) == whole and max(widths) - min(widths) <= 1
    module = made("inception", FLAT, 3, whole)
    x = torch.randn(2, 3, 5, 5)
    assert [branch(x).shape[1] for branch in module.branches] == [w for w in widths if w]


# each against its formula


def test_a_dense_unit_by_hand():
    module = made("dense", FLAT, 3, 5, growth=2, layers=3)
    x = torch.randn(2, 3, 6, 7)
    seen = [x]
    for one in module.layers:
        seen.append(one(torch.cat(seen, 1)))
    torch.testing.assert_close(module(x), module.transition(torch.cat(seen, 1)))


def test_csp_passes_one_half_untouched():
    module = made("csp", FLAT, 7, 7)
    x = torch.randn(2, 7, 6, 6)
    crossed = module.crossed(x)
    assert torch.equal(crossed[:, :3], x[:, :3])
    torch.testing.assert_close(crossed[:, 3:], module.part(x[:, 3:]))
    torch.testing.assert_close(module(x), module.merge(crossed))


def test_the_pooling_branch_of_inception():
    module = made("inception", FLAT, 3, 8)
    x = torch.randn(1, 3, 6, 6)
    pooled = np.stack(
        [ndimage.maximum_filter(c, 3, mode="constant", cval=-np.inf) for c in x[0].numpy()]
    )
    want = module.branches[3][1](torch.from_numpy(pooled)[None])
    torch.testing.assert_close(module(x)[:, 6:], want)


def test_dense_atrous_by_hand():
    module = made("dense_atrous", BARE, 3, 3)
    one, three, five, point = module.one, module.three, module.five, module.point
    x = torch.randn(1, 3, 20, 20)
    ends = [one(x), point(three(x)), point(three(one(x))), point(five(three(one(x))))]
    torch.testing.assert_close(module(x), x + sum(F.leaky_relu(y, 0.01) for y in ends))


def test_the_image_branch_says_the_same_everywhere():
    module = made("pyramid", FLAT, 3, 8)[0]
    x = torch.randn(2, 3, 9, 9)
    image = module.branches[-1]
    want = F.leaky_relu(
        F.conv2d(x.mean((2, 3), keepdim=True), image.conv.weight, image.conv.bias), 0.01
    )
    torch.testing.assert_close(module(x)[:, -2:], want.expand(-1, -1, 9, 9))


def test_pooled_pyramid_by_hand():
    module = made("pooled_pyramid", FLAT, 3, 4, sizes=(2, 30))[0]
    x = torch.randn(2, 3, 6, 4)
    got = module(x)
    assert torch.equal(got[:, :3], x)
    whole = module.convs[1](x.amax((2, 3), keepdim=True))  # the window is cut to the image
    torch.testing.assert_close(got[:, 4:], whole.expand(-1, -1, 6, 4))
    halves = module.convs[0](F.max_pool2d(x, 2))
    want = F.interpolate(halves, size=(6, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got[:, 3:4], want)


def test_multi_scale_residual_keeps_all_three():
    module = made("multi_scale_residual", FLAT, 3, 12)
    growing, x = module.branches[0][0], torch.randn(2, 3, 6, 6)
    assert [step[0].out_channels for step in growing.steps] == [2, 4, 6]
    a = growing.steps[0](x)
    b = growing.steps[1](a)
    want = module.branches[0][1](torch.cat([a, b, growing.steps[2](b)], 1)) + module.branches[1](x)
    torch.testing.assert_close(module(x), F.leaky_relu(want, 0.01))


def test_a_residual_path_has_a_convolution_as_shortcut():
    module = made("residual_path", BARE, 3, 3, steps=1)[0]
    long, short = module.branches
    x = torch.randn(2, 3, 6, 6)
    want = F.conv2d(x, long.weight, long.bias, padding=1) + F.conv2d(x, short.weight, short.bias)
    torch.testing.assert_close(module(x), F.leaky_relu(want, 0.01))


def test_convnext_by_hand():
    module = made("convnext", CUBE, 4, 4, scale=0.5)
    wide, norm, expand, _, back, *_ = module.branch
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = torch.randn(2, 4, 5, 6, 7)
    y = F.conv3d(x, wide.weight, wide.bias, padding=3, groups=4).permute(0, 2, 3, 4, 1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    y = F.gelu((y * norm.weight + norm.bias) @ expand.weight.flatten(1).T + expand.bias)
    y = y @ back.weight.flatten(1).T + back.bias
    torch.testing.assert_close(module(x), x + 0.5 * y.permute(0, 4, 1, 2, 3), rtol=1e-4, atol=1e-5)
    fresh = made("convnext", CUBE, 4, 4)
    torch.testing.assert_close(fresh(x), x, rtol=0, atol=1e-4)


def test_mbconv_adds_its_input_where_the_width_stays():
    same, other = made("mbconv", FLAT, 4, 4), made("mbconv", FLAT, 4, 6)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for module in (same.branch, other):
            module[-1].weight.zero_()
    assert torch.equal(same(x), x)
    assert torch.equal(other(x), torch.zeros(2, 6, 6, 6))
    assert same.branch[1].unit[0].groups == 16 and len(made("mbconv", FLAT, 4, 6, expand=1)) == 3


def test_split_attention_mixes_with_weights_that_sum_to_one():
    module = made("split_attention", FLAT, 3, 6, rates=(1, 2, 3))
    assert [b[0].dilation for b in module.branches] == [(1, 1), (2, 2), (3, 3)]
    x = torch.randn(2, 3, 8, 8)
    seen = [b(x) for b in module.branches]
    told = module.weights(sum(seen))
    assert told.shape == (2, 3, 6, 1, 1)
    torch.testing.assert_close(told.sum(1), torch.ones(2, 6, 1, 1))
    mean = sum(seen).mean((2, 3))
    first, _, last = module.weigh
    hidden = F.leaky_relu(mean @ first.weight.flatten(1).T + first.bias, 0.01)
    logits = (hidden @ last.weight.flatten(1).T + last.bias).reshape(2, 3, 6)
    torch.testing.assert_close(told[..., 0, 0], logits.softmax(1))
    want = torch.einsum("brc,rbchw->bchw", logits.softmax(1), torch.stack(seen))
    torch.testing.assert_close(module(x), want)


def test_split_attention_of_equal_branches_is_one_branch():
    module = made("split_attention", FLAT, 3, 6, rates=(2, 2))
    module.branches[1].load_state_dict(module.branches[0].state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(module(x), module.branches[0](x))


def test_pyramid_split_weighs_branches_against_each_other():
    module = made("pyramid_split", FLAT, 8, 8)[0]
    x = torch.randn(2, 8, 8, 8)
    seen = [b(x) for b in module.branches]
    told = module.weights(seen)
    torch.testing.assert_close(told.sum(0), torch.ones(2, 2, 1, 1))
    torch.testing.assert_close(
        module(x), torch.cat([y * w for y, w in zip(seen, told, strict=True)], 1)
    )
    gates = torch.stack([g(y) for g, y in zip(module.gates, seen, strict=True)])
    torch.testing.assert_close(told, gates.exp() / gates.exp().sum(0))


# presets


def shape_of(dimensions: int) -> Shape:
    return Shape(
        2, 3, (4, 6, 8), *(
            tuple(x[3 - dimensions :] for x in each)
            for each in (((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)))
        )
    )  # fmt: skip


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_sound_sentence(name, dimensions):
    spec = PRESETS[name].make(name, shape_of(dimensions))
    assert parse_network(spec.model_dump(mode="json"), "a test") == spec
    assert spec.preset == name and spec.widths == (4, 6, 8)
    check_contract(spec)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_differs_from_the_plain_one_by_its_mechanism(name):
    spec = PRESETS[name].make(name, shape_of(2)).model_dump_json()
    plain = NNUNET["plain"].make("plain", shape_of(2)).model_dump_json()
    said = {
        "res_unet": ("pair", "residual"), "dense_unet": ("dense",), "inception_unet": ("inception",),
        "dilated_unet": ("dilated",), "ce_net": ("dense_atrous", "pooled_pyramid"),
        "aspp_unet": ("pyramid",), "se_unet": ("squeeze_excite", "residual"),
        "eca_unet": ("efficient_channel", "residual"),
        "dual_attention_unet": ("dual_attention", "residual"),
        "split_attention_unet": ("split_attention",), "psa_unet": ("pyramid_split", "residual"),
        "csp_unet": ("csp",), "multires_unet": ("multi_scale_residual", "residual_path"),
        "mobile_unet": ("mbconv", "separable"), "convnext_unet": ("convnext",),
        "lstm_unet": ("lstm", "dense"),
    }[name]  # fmt: skip
    assert all(f'"{word}"' in spec and f'"{word}"' not in plain for word in said)


def test_published_sizes():
    """Parameters of some presets at nnU-Net's widths, in millions."""
    strides = ((1, 1, 1), *[(2, 2, 2)] * 5)
    shape = Shape(1, 3, (32, 64, 128, 256, 320, 320), strides, ((3, 3, 3),) * 6)
    with torch.device("meta"):
        sizes = {n: parameters(build(PRESETS[n].make(n, shape))) / 1e6 for n in
                 ("dense_unet", "csp_unet", "mobile_unet", "lstm_unet")}  # fmt: skip
    assert {n: round(s, 1) for n, s in sizes.items()} == {
        "dense_unet": 32.1, "csp_unet": 15.3, "mobile_unet": 11.7, "lstm_unet": 58.2,
    }  # fmt: skip
