"""FCN, SegNet, the DeepLabs and the U-Nets on classifiers, in 2D and 3D."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoseg.documents.networks.classic import EncoderUNetSpec
from autoseg.documents.networks.family import parse_network
from autoseg.documents.presets.classic import PRESETS
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.nets.build import build
from autoseg.nets.families.deeplab import Pyramid, atrous
from autoseg.nets.families.encoders.table import kit_of
from autoseg.nets.families.fcn import interpolation_kernel
from autoseg.nets.families.segnet import pool, unpool
from autoseg.nets.kit import Kit
from tests.nets.contract import KERNELS, STRIDES, check_contract, check_recompute


def spec_of(name, dimensions=2, features=(8, 16, 32), strides=STRIDES, kernels=KERNELS, channels=2):
    cut = slice(3 - dimensions, None)
    return network_spec(
        name, channels, 3, features, [s[cut] for s in strides], [k[cut] for k in kernels]
    )


def halving(name, levels=6, dimensions=2, width=4, channels=1):
    twos = [(1, 1, 1)] + [(2, 2, 2)] * (levels - 1)
    return spec_of(name, dimensions, (width,) * levels, twos, [(3, 3, 3)] * levels, channels)


# --- the contract of every network -----------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_contract_with_three_uneven_levels(name, dimensions):
    spec = spec_of(name, dimensions)
    check_contract(spec)
    assert parse_network(spec.dump(), "plan") == spec


@pytest.mark.parametrize(("levels", "size"), [(2, (4, 6)), (7, (32, 64))])
@pytest.mark.parametrize("name", PRESETS)
def test_contract_with_few_and_with_too_many_levels(name, levels, size):
    spec = halving(name, levels)
    assert len(spec.steps) == min(levels, PRESETS[name].most_levels)
    # one voxel a sample is left of the smaller side at the end, or two
    check_contract(spec, size)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize("name", ["segnet", "deeplab", "unet_mobilenet_v3"])
def test_contract_with_other_norms(name, norm):
    check_contract(
        spec_of(name).model_copy(update={"norm": norm, "dropout": 0.3, "activation": "prelu"})
    )


@pytest.mark.parametrize("name", ["fcn8s", "segnet", "deeplab", "unet_efficientnet_b0"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_recomputing_changes_nothing(name, dimensions):
    check_recompute(spec_of(name, dimensions), (8, 16, 16)[3 - dimensions :])


@pytest.mark.parametrize("name", PRESETS)
def test_channels_last_changes_nothing(name):
    torch.manual_seed(0)
    net = build(spec_of(name, 3)).eval()
    x = torch.randn(1, 2, 4, 8, 8)
    with torch.no_grad():
        wanted = net(x)[0]
        net.to(memory_format=torch.channels_last_3d)
        found = net(x.to(memory_format=torch.channels_last_3d))[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


# --- documents -------------------------------------------------------------------------------------


def test_published_width_is_scale_one():
    spec = halving("unet_resnet34", width=32)
    assert spec.scale == 1
    assert spec.widths == (32, 64, 64, 128, 256, 512)
    assert spec.norm == "batch"
    assert halving("deeplab_v1", width=32).head_width == 1024
    assert halving("deeplab", width=8).head_width == 64


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("unet")])
def test_the_document_says_the_encoders_widths(name):
    spec = halving(name, 5)
    net = build(spec)
    widths = dict(zip(net.encoder.strides, net.encoder.widths, strict=True))
    below = [(2**level,) * 2 for level in range(1, 5)]
    assert spec.widths[1:] == tuple(widths[s] for s in below)
    assert spec.widths[0] == widths.get((1, 1), spec.decoder[0])


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"steps": [[2, 2], [2, 2], [2, 2]]}, "finest level's step must be all ones"),
        ({"steps": [[1, 1], [2, 2]]}, "2 steps need as many kernels, found 3"),
        ({"kernels": [[3, 3], [3, 3], [2, 3]]}, "kernels must be odd"),
        ({"kernels": [[3, 3], [3, 3], [3, 3, 3]]}, "must all have 2 or all have 3"),
        ({"decoder": [8]}, "3 levels need 2 widths of the decoder, found 1"),
        ({"encoder": "resnet35"}, "resnet34"),
        ({"rates": [1, 1]}, "rates"),
    ],
)
def test_faults_of_a_document_are_told(change, saying):
    with pytest.raises(PlanError, match=saying):
        EncoderUNetSpec.parse(spec_of("unet_resnet34").dump() | change, "plan.json")


# --- FCN -------------------------------------------------------------------------------------------


def test_the_kernel_of_interpolation():
    assert interpolation_kernel((2,)).tolist() == [0.25, 0.75, 0.75, 0.25]
    assert interpolation_kernel((1, 3)).shape == (1, 5)
    assert torch.allclose(interpolation_kernel((3,)), torch.tensor([1, 2, 3, 2, 1]) / 3)


@pytest.mark.parametrize("step", [(2, 2), (1, 2), (2, 3), (1, 2, 2), (4, 2, 2)])
def test_fcn_begins_with_linear_interpolation(step):
    levels = [(1,) * len(step), step, step, step, step, step]
    kernels = [(3,) * len(step)] * 6
    net = build(network_spec("fcn8s", 1, 3, (4,) * 6, levels, kernels))
    x = torch.randn(1, 3, *(5,) * len(step))
    mode = "bilinear" if len(step) == 2 else "trilinear"
    scale = tuple(float(s) for s in step)
    wanted = F.interpolate(x, scale_factor=scale, mode=mode, align_corners=False)
    found = net.up[0](x)
    assert found.shape == wanted.shape
    inner = (..., *(slice(s, -s) for s in step))
    torch.testing.assert_close(found[inner], wanted[inner])


def test_fcn_sums_the_scores_of_three_grids():
    net = build(halving("fcn8s")).eval()
    x = torch.randn(1, 1, 64, 64)
    grids = []
    for score in net.score:
        score.register_forward_hook(lambda module, given, made: grids.append(given[0].shape[-1]))
    with torch.no_grad():
        first = net(x)[0]
        assert grids == [2, 4, 8]
        assert all(p.abs().max() == 0 for i in (0, 1) for p in net.score[i].parameters())
        # a constant score on a finer grid moves every logit by as much
        net.score[0][0].bias += 0.5
        torch.testing.assert_close(net(x)[0], first + 0.5, rtol=1e-4, atol=1e-5)


# --- SegNet ----------------------------------------------------------------------------------------


def naive_round_trip(x, step):
    """Each block's first largest value where it stood, all else zero."""
    out = torch.zeros_like(x)
    starts = [range(0, n, s) for n, s in zip(x.shape[2:], step, strict=True)]
    for b, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for start in itertools.product(*starts):
            at = (b, c, *(slice(i, i + s) for i, s in zip(start, step, strict=True)))
            block = x[at]
            out[at] = torch.where(block == block.max(), block, 0)
    return out


@pytest.mark.parametrize("step", [(2, 2), (1, 2), (2, 2, 2), (1, 2, 2), (2, 4, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_unpooling_puts_values_where_pooling_found_them(step, last):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *(4,) * len(step))
    if last:
        form = torch.channels_last if len(step) == 2 else torch.channels_last_3d
        x = x.contiguous(memory_format=form)
    pooled, where = pool(x, step)
    assert pooled.is_contiguous() != last
    back = unpool(pooled, where, step, tuple(x.shape[2:]))
    assert torch.equal(back, naive_round_trip(x, step))
    again, _ = pool(back.clamp(min=0), step)
    assert torch.equal(again, pooled.clamp(min=0))


def test_segnet_concatenates_nothing_and_mirrors_its_encoder():
    net = build(halving("segnet"))
    assert [len(part) for part in net.decode] == [2, 2, 3, 3, 3]
    first = [part[0][0] for part in net.decode]
    assert [conv.in_channels for conv in first] == list(net.encoder.widths[:-1])
    last = [part[-1][0].out_channels for part in net.decode]
    assert last == [net.encoder.widths[0], *net.encoder.widths[:4]]
    # without any step there is nothing to put back
    x = torch.randn(1, 2, 3, 3)
    assert pool(x, (1, 1)) == (x, None)
    assert unpool(x, None, (1, 1), (3, 3)) is x


# --- DeepLab ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stride", "rates"),
    [("deeplab_v1", 8, {1, 2}), ("deeplab_v2", 8, {1, 2, 4}), ("deeplab", 16, {1, 2})],
)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_output_stride_and_dilations(name, stride, rates, dimensions):
    spec = halving(name, 6, dimensions)
    net = build(spec)
    assert spec.divisor == net.encoder.strides[-1] == (stride,) * dimensions
    kind = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
    assert {m.dilation[0] for m in net.encoder.modules() if isinstance(m, kind)} == rates
    seen = []
    net.head.register_forward_hook(
        lambda module, given, made: seen.append([x.shape[-1] for x in given])
    )
    with torch.no_grad():
        net.eval()(torch.zeros(1, 1, *(32,) * dimensions))
    assert seen == [[32 // stride, 8]]


def reach(net, size, channels, axis=-1):
    """The width along an axis of what the middle voxel of the first output depends on."""
    x = torch.randn(1, channels, *size, requires_grad=True)
    out = net(x)
    out[(0, slice(None), *(n // 2 for n in size))].sum().backward()
    moved = (x.grad[0].abs().sum(0) > 0).nonzero()[:, axis]
    return int(moved.max() - moved.min()) + 1


def test_the_large_field_of_view():
    spec = halving("deeplab_v1")
    head = build(spec).eval().head
    width = spec.widths[-1]
    assert reach(lambda x: head(x, x), (61, 61), width) == 2 * 12 + 1
    # on a grid of a third of the published one, a third of the rate
    assert reach(lambda x: head(x, x), (15, 41), width, axis=-2) == 2 * round(12 * 15 / 41) + 1
    assert reach(lambda x: head(x, x), (15, 41), width, axis=-1) == 2 * 12 + 1


def test_the_pyramid_of_version_two_reaches_as_far_as_its_largest_rate():
    spec = halving("deeplab_v2")
    head = build(spec).eval().head
    x = torch.randn(1, spec.widths[-1], 61, 61)
    assert reach(lambda x: head(x, x), (61, 61), spec.widths[-1]) == 2 * 24 + 1
    wanted = sum(
        F.conv2d(x, branch.weight, branch.bias, padding=rate, dilation=rate)
        for branch, rate in zip(head.branches, (6, 12, 18, 24), strict=True)
    )
    torch.testing.assert_close(head(x, x), wanted, rtol=1e-4, atol=1e-4)


def test_rates_fit_the_grid_and_are_never_degenerate():
    conv = atrous(Kit((3, 3, 3)), 1, 1, rate=18, grid=33)
    assert conv.fitted((33, 64, 16)) == (18, 18, 9)
    assert conv.fitted((1, 2, 4)) == (1, 1, 2)
    # at least one tap beside the middle one lies on any grid of more than a voxel
    assert all(conv.fitted((n, n, n))[0] < n for n in range(2, 70))
    x = torch.randn(1, 1, 4, 8, 40)
    wanted = F.conv3d(x, conv.weight, conv.bias, padding=(2, 4, 18), dilation=(2, 4, 18))
    torch.testing.assert_close(conv(x), wanted)


def test_a_flat_plan_has_flat_dilated_convolutions():
    strides = [(1, 1, 1), (1, 2, 2), (1, 2, 2)]
    spec = spec_of("deeplab", 3, strides=strides, kernels=[(1, 3, 3)] * 3)
    net = check_contract(spec, (1, 8, 8))
    kernels = {m.kernel_size[0] for m in net.modules() if isinstance(m, nn.Conv3d)}
    assert kernels == {1}


def test_the_pyramid_concatenates_and_knows_the_whole():
    spec = halving("deeplab")
    pyramid = Pyramid(kit_of(spec), 6, 8, spec).eval()
    assert len(pyramid.branches) == 4
    assert pyramid.project[0].in_channels == 5 * 8
    x = torch.randn(1, 6, 64, 64)
    far = x.clone()
    far[..., 60, 60] += 5
    with torch.no_grad():
        here, there = pyramid(x)[..., 5, 5], pyramid(far)[..., 5, 5]
    # only the mean sees so far
    assert not torch.equal(here, there)
    with torch.no_grad():
        pyramid.mean[0].weight.zero_()
        assert torch.equal(pyramid(x)[..., 5, 5], pyramid(far)[..., 5, 5])
    assert torch.isfinite(Pyramid(Kit((3, 3)), 6, 8, spec).mean(torch.randn(1, 6, 1, 1))).all()


# --- U-Nets on classifiers -------------------------------------------------------------------------


def test_every_level_of_the_decoder_is_supervised():
    spec = spec_of("unet_resnet34", 3)
    assert spec.output_strides == ((1, 1, 1), (1, 2, 2))
    assert build(spec).supervision_weights == (1.0, 0.0)
    assert spec_of("segnet").output_strides == ((1, 1),)


@pytest.mark.parametrize(("name", "own"), [("unet_vgg16", False), ("unet_resnet34", True)])
def test_the_finest_skip_is_vggs_or_a_unit_of_our_own(name, own):
    net = build(halving(name))
    assert (net.finest is not None) == own
    assert net.kept[1:] == ([0, 1, 2, 3, 4] if own else [1, 2, 3, 4, 5])
