"""TransUNet and TransFuse: contracts, published sizes, and what their parts compute."""

import pytest
import torch
from torch.nn import functional as F

from autoseg.documents.networks.family import parse_network
from autoseg.documents.presets.hybrids import PRESETS
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.nets.build import build
from autoseg.nets.families.transfuse import BiFusion
from autoseg.nets.kit import Kit
from tests.nets.contract import check_contract, check_recompute

STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 2, 2), (1, 2, 2), (2, 2, 2)]
KERNELS = [(1, 3, 3), *[(3, 3, 3)] * 5]


def small(name, dimensions, levels, width=4):
    """A preset on flat kernels and uneven strides."""
    cut = slice(3 - dimensions, None)
    return network_spec(
        name, 2, 3, [width * 2**i for i in range(levels)], [s[cut] for s in STRIDES[:levels]],
        [k[cut] for k in KERNELS[:levels]],
    )  # fmt: skip


def published(name, in_channels, classes, dimensions=2):
    return network_spec(
        name, in_channels, classes, (32, 64, 128, 256, 320), [(1,) * dimensions]
        + [(2,) * dimensions] * 4, [(3,) * dimensions] * 5,
    )  # fmt: skip


def parameters(spec):
    with torch.device("meta"):
        return sum(p.numel() for p in build(spec).parameters())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("levels", [2, 3, 5])
def test_contract(name, dimensions, levels):
    spec = small(name, dimensions, levels)
    assert parse_network(spec.dump(), "a network") == spec
    check_contract(spec, ((16, 32, 32) if levels > 3 else (4, 8, 8))[3 - dimensions :])


@pytest.mark.parametrize("name", PRESETS)
def test_recomputing_changes_nothing(name):
    check_recompute(small(name, 3, 3), (4, 8, 8))


@pytest.mark.parametrize("name", PRESETS)
def test_no_more_than_five_levels(name):
    assert small(name, 3, 6).strides == small(name, 3, 5).strides


def test_published_sizes():
    # what both papers' followers report for nine classes of 224 x 224, and TransFuse-S's own 26.3 M
    assert parameters(published("transunet", 3, 9)) == pytest.approx(105.28e6, rel=1e-3)
    assert parameters(published("transfuse", 3, 1)) == pytest.approx(26.3e6, rel=5e-3)


def test_published_grids():
    spec = published("transunet", 3, 9)
    with torch.device("meta"):
        net = build(spec)
        seen = {}
        for name in ("encode", "transform", "rise.0", "rise.3", "enter"):
            net.get_submodule(name).register_forward_hook(
                lambda module, given, out, name=name: seen.update({name: out})
            )
        net(torch.empty(1, 3, 224, 224))
    assert [tuple(x.shape[1:]) for x in seen["encode"]] == [
        (64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14)
    ]  # fmt: skip
    assert seen["transform"].shape == (1, 768, 14, 14)
    assert seen["enter"].shape == (1, 512, 14, 14)
    assert seen["rise.3"].shape == (1, 256, 28, 28)
    assert seen["rise.0"].shape == (1, 16, 224, 224)
    assert len(net.transform.blocks) == 12
    assert (spec.divisor, spec.heads) == ((16, 16), 12)


def reach(net, size):
    """Along the long axis, whether the first output voxel depends on each input voxel."""
    x = torch.randn(1, 2, *size, requires_grad=True)
    net(x)[0][0, :, 0, 0].sum().backward()
    return x.grad.abs().sum((0, 1, 2)) > 0


@pytest.mark.parametrize("name", PRESETS)
def test_the_transformer_sees_the_whole_image(name):
    torch.manual_seed(0)
    # norms see everything too
    spec = small(name, 2, 2).model_copy(update={"norm": "none", "activation": "gelu"})
    net = build(spec).eval()
    assert reach(net, (8, 160))[-1]
    for block in net.transform.blocks:
        block.mixer.mix.part.value.weight.data.zero_()
    alone = reach(net, (8, 160))
    assert alone[0] or name == "transfuse"
    # TransFuse weights each channel of its tokens by their mean, which sees everything as well
    assert bool(alone[-1]) == (name == "transfuse")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_fusion_is_its_formula(dimensions):
    torch.manual_seed(0)
    kit = Kit((3,) * dimensions, norm_name="none", act_name="relu")
    fusion = BiFusion(kit, 4, 6, squeeze=2).double()
    local, broad = (torch.randn(2, c, *(5, 7, 4)[:dimensions]).double() for c in (4, 6))
    conv = (F.conv2d, F.conv3d)[dimensions - 2]

    def of(layer, x):
        return conv(x, layer.weight, layer.bias, padding=tuple(k // 2 for k in layer.kernel_size))

    mean = broad.flatten(2).mean(2)
    squeezed = torch.relu(mean @ fusion.channels[0].weight.flatten(1).T + fusion.channels[0].bias)
    channel = 1 / (
        1
        + torch.exp(-(squeezed @ fusion.channels[2].weight.flatten(1).T + fusion.channels[2].bias))
    )
    both = torch.stack([local.max(1).values, local.mean(1)], 1)
    voxel = 1 / (1 + torch.exp(-of(fusion.voxels, both)))
    projected = of(fusion.project_local, local) * of(fusion.project_broad, broad)
    product = torch.relu(of(fusion.product[0], projected))
    shape = (2, 6, *[1] * dimensions)
    joined = torch.cat([local * voxel, broad * channel.reshape(shape), product], 1)
    torch.testing.assert_close(fusion(local, broad), fusion.merge(joined))
    torch.testing.assert_close(fusion.weight_of_channels(broad), channel.reshape(shape))
    assert fusion.voxels.kernel_size == (7,) * dimensions
    assert fusion.channels[0].weight.shape[:2] == (3, 6)


def test_three_outputs_count_as_published():
    spec = small("transfuse", 2, 5)
    assert spec.output_weights == (0.5, 0.3, 0.2)
    net = build(spec)
    x = torch.randn(1, 2, 32, 32)
    fused, tokens, _ = net.train()(x)
    torch.testing.assert_close(net.eval()(x)[0], fused)
    # the second output is the transformer's alone
    torch.nn.init.zeros_(net.encode.conv1.weight)
    again = net.train()(x)
    torch.testing.assert_close(again[1], tokens)
    assert not torch.allclose(again[0], fused)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"heads": 5}, "multiple of heads"),
        ({"encoder_depths": [3]}, "need 3 encoder_depths, found 1"),
        ({"steps": [[1, 1], [2, 2], [1, 1], [2, 2], [2, 2]]}, "must make some axis coarser"),
        ({"decoder_widths": [4, 4]}, "need 4 decoder_widths, found 2"),
        ({"kernels": [[3, 3]] * 4}, "5 steps and 4 kernels"),
    ],
)
def test_faults_of_a_document_are_told(change, said):
    with pytest.raises(PlanError, match=said):
        parse_network(small("transunet", 2, 5).dump() | change, "a network")
