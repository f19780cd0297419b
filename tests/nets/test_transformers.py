"""Swin UNETR, UNETR and Primus: contracts, sizes as published, the same function as the originals."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from autoseg.documents.networks.family import parse_network
from autoseg.documents.networks.transformers import PrimusSpec, SwinUNETRSpec, UNETRSpec
from autoseg.documents.presets.table import network_spec
from autoseg.documents.presets.transformers import PRESETS
from autoseg.errors import PlanError
from autoseg.nets.build import build
from autoseg.nets.cost import parameters
from tests.nets.contract import check_contract, check_recompute

FULL = (32, 64, 128, 256, 320, 320)
SMALL = (4, 8, 16, 32, 32, 32)
STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)]
KERNELS = [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)]


def isotropic(name, dimensions, levels, features=SMALL, in_channels=1, classes=3):
    strides = [[1] * dimensions] + [[2] * dimensions] * (levels - 1)
    kernels = [[3] * dimensions] * levels
    return network_spec(name, in_channels, classes, features[:levels], strides, kernels)


def uneven(name, dimensions, levels):
    cut = slice(3 - dimensions, None)
    strides, kernels = ([x[cut] for x in some[:levels]] for some in (STRIDES, KERNELS))
    return network_spec(name, 2, 3, SMALL[:levels], strides, kernels)


def shortened(spec):
    """Two blocks instead of twelve and more."""
    if isinstance(spec, UNETRSpec):
        taps = tuple(1 + i % 2 for i in range(len(spec.taps)))
        return spec.model_copy(update={"depth": 2, "taps": tuple(sorted(taps))})
    return spec.model_copy(update={"depth": 2}) if isinstance(spec, PrimusSpec) else spec


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", ["swin_unetr", "swin_unetr_v2", "unetr", "primus_s", "swin_unet"])
def test_sound_on_uneven_grids(name, dimensions, levels):
    spec = shortened(uneven(name, dimensions, levels))
    check_contract(spec, (8, 24, 16)[3 - dimensions :])
    assert spec.widths[0] < 16 and len(spec.strides) == levels


@pytest.mark.parametrize("name", ["swin_unetr_v2", "unetr", "primus_s"])
def test_recomputing_changes_nothing(name):
    check_recompute(shortened(uneven(name, 3, 3)), (4, 16, 16))


# parameters for one channel: Swin UNETR with 14 classes, arXiv:2201.01266 and MONAI; UNETR,
# arXiv:2103.10504 (92.58 M at 96^3); Primus M, as nnU-Net's documentation has it (146.6 M)
@pytest.mark.parametrize(
    ("name", "levels", "features", "classes", "millions", "within"),
    [
        ("swin_unetr", 6, FULL, 14, 62.19, 0.02),
        ("swin_unetr", 6, (16, 32, 64, 128, 160, 160), 2, 15.70, 0.01),
        ("swin_unetr_v2", 6, (16, 32, 64, 128, 160, 160), 2, 18.35, 0.02),
        ("unetr", 5, FULL, 14, 92.58, 0.25),
        ("primus_m", 4, FULL, 2, 146.6, 0.2),
    ],
)
def test_as_large_as_published(name, levels, features, classes, millions, within):
    with torch.device("meta"):
        net = build(isotropic(name, 3, levels, features, classes=classes))
    assert abs(parameters(net) / 1e6 - millions) < within


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_document(name):
    spec = isotropic(name, 3, PRESETS[name].most_levels or 6)
    assert parse_network(spec.model_dump(mode="json"), "the network") == spec
    assert spec.preset == name
    assert spec.divisor == (2 ** (len(spec.strides) - 1),) * 3


@pytest.mark.parametrize("name", ["unetr", "primus_s"])
def test_one_network_takes_patches_of_any_size(name):
    net = build(shortened(isotropic(name, 2, 3))).eval()
    for size in [(16, 16), (56, 56), (24, 60)]:
        assert net(torch.randn(1, 1, *size))[0].shape == (1, 3, *size)


@pytest.mark.parametrize("name", ["swin_unetr", "unetr", "primus_s"])
@pytest.mark.filterwarnings("ignore:TF32")
def test_half_precision(name):
    net = build(shortened(isotropic(name, 3, 3))).eval()
    x = torch.randn(1, 1, 16, 16, 16)
    want = net(x)[0]
    # without the library that some processors announce bfloat16 for and then fail in
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        got = net(x)[0]
        net.train()(x)[0].float().square().mean().backward()
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.05 * want.norm()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", ["swin_unetr_v2", "unetr", "primus_s"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_channels_last_is_the_same(name, dimensions):
    last = (torch.channels_last, torch.channels_last_3d)[dimensions - 2]
    net = build(shortened(isotropic(name, dimensions, 3))).eval()
    x = torch.randn(2, 1, *[16] * dimensions)
    want = net(x)[0]
    got = net.to(memory_format=last)(x.to(memory_format=last))[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_faults_of_documents_are_told():
    swin = isotropic("swin_unetr", 3, 4).model_dump(mode="json")
    with pytest.raises(PlanError, match="4 levels have 2 stages of blocks, found 3 depths"):
        parse_network({**swin, "depths": [2, 2, 2]}, "the network")
    with pytest.raises(PlanError, match="must divide the widths"):
        parse_network({**swin, "heads": [5, 10]}, "the network")
    vit = isotropic("unetr", 3, 4).model_dump(mode="json")
    with pytest.raises(PlanError, match="4 levels need 2 taps"):
        parse_network({**vit, "taps": [3]}, "the network")
    with pytest.raises(PlanError, match="7 heads must divide"):
        parse_network({**vit, "heads": 7}, "the network")
    primus = isotropic("primus_s", 3, 4).model_dump(mode="json")
    primus["levels"][0]["width"] = 5
    with pytest.raises(PlanError, match="must be the 3 classes, found 5"):
        parse_network(primus, "the network")


def test_primus_ends_where_its_widths_say():
    spec = isotropic("primus_m", 3, 4, FULL, classes=14)
    # the published rule for 864 channels and 14 classes: a factor of (864 / 28)^(1/3) each step
    assert spec.widths == (14, 88, 272, 864)
    assert (spec.depth, spec.heads) == (16, 12)


# --- the originals, where they are installed ------------------------------------------------------


def copied(ours: nn.Module, theirs: dict[str, Tensor], names: dict[str, str]) -> None:
    """`names`: our prefix -> theirs, weight and bias each."""
    state = ours.state_dict()
    for mine, other in names.items():
        for kind in ("weight", "bias"):
            if f"{other}.{kind}" in theirs:
                state[f"{mine}.{kind}"] = theirs[f"{other}.{kind}"].clone()
    ours.load_state_dict(state)


def plainly_normed(net: nn.Module) -> None:
    """Norms of convolutions without weights, convolutions without biases, as MONAI has them."""
    with torch.no_grad():
        for module in net.modules():
            if type(module).__name__ == "InstanceNorm":
                module.weight.fill_(1)
                module.bias.zero_()


def residual_names(mine: str, other: str) -> dict[str, str]:
    return {
        f"{mine}.branch.0.0": f"{other}.conv1.conv",
        f"{mine}.branch.1.0": f"{other}.conv2.conv",
        f"{mine}.shortcut.0": f"{other}.conv3.conv",
    }


def shaken(net: nn.Module) -> nn.Module:
    """Weights that are no longer at their initial zeros and ones, in evaluation."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in net.named_parameters():
            # an unused norm of MONAI's, and the biases that it has none of, need no shaking
            p.add_(0.05 * torch.randn_like(p)) if "norm" in name or "bias" in name else None
    return net.eval()


def existing(names: dict[str, str], net: nn.Module) -> dict[str, str]:
    state = net.state_dict()
    return {mine: other for mine, other in names.items() if f"{mine}.weight" in state}


def swin_names(depth: int = 2) -> dict[str, str]:
    names = {"embed": "swinViT.patch_embed.proj", "head": "out.conv.conv"}
    for stage in range(4):
        for block in range(depth):
            # with a residual block first, what follows it moves by one
            mine, other = (
                f"stages.{stage}.AT.mixer.{block}",
                f"swinViT.layers{stage + 1}.0.blocks.{block}",
            )
            names |= {
                f"{mine}.mix.norm": f"{other}.norm1",
                f"{mine}.mix.part.out": f"{other}.attn.proj",
                f"{mine}.transform.norm": f"{other}.norm2",
                f"{mine}.transform.part.0": f"{other}.mlp.linear1",
                f"{mine}.transform.part.2": f"{other}.mlp.linear2",
            }
    for mine, other in {"enter": "encoder1", "keep.0": "encoder2", "keep.1": "encoder3",
                        "keep.2": "encoder4", "keep.4": "encoder10"}.items():  # fmt: skip
        names |= residual_names(mine, f"{other}.layer")
    for i in range(5):
        names[f"decode.{i}.up"] = f"decoder{i + 1}.transp_conv.conv"
        names |= residual_names(f"decode.{i}.units", f"decoder{i + 1}.conv_block")
    return names


@pytest.mark.parametrize(
    ("size", "window", "v2"),
    [((64, 64), 3, False), ((96, 64), 2, True), ((64, 32, 32), 2, False)],
)
def test_swin_unetr_is_monais(size, window, v2):
    dimensions = len(size)
    pytest.importorskip("einops")
    nets = pytest.importorskip("monai.networks.nets")
    theirs = shaken(nets.SwinUNETR(2, 3, feature_size=12, window_size=window, use_v2=v2,
                                   spatial_dims=dimensions))  # fmt: skip
    spec = isotropic("swin_unetr_v2" if v2 else "swin_unetr", dimensions, 6, (8, *SMALL[1:]), 2)
    assert isinstance(spec, SwinUNETRSpec)
    ours = build(spec.model_copy(update={"window": window})).eval()
    state, at = theirs.state_dict(), int(v2)
    plainly_normed(ours)
    copied(ours, state, {k.replace("AT", str(at)): v for k, v in swin_names().items()})
    if v2:
        for stage in range(4):
            names = residual_names(f"stages.{stage}.0", f"swinViT.layers{stage + 1}c.0.layer")
            copied(ours, state, existing(names, ours))
    with torch.no_grad():
        for stage in range(4):
            other = f"swinViT.layers{stage + 1}.0"
            for block in range(2):
                attention = ours.stages[stage][at].mixer[block].mix.part
                prefix = f"{other}.blocks.{block}.attn"
                for layer, w, b in zip(
                    (attention.query, attention.key, attention.value),
                    state[f"{prefix}.qkv.weight"].chunk(3), state[f"{prefix}.qkv.bias"].chunk(3),
                    strict=True,
                ):  # fmt: skip
                    layer.weight.copy_(w)
                    layer.bias.copy_(b)
                table = state[f"{prefix}.relative_position_bias_table"]
                attention.offsets.copy_(table.T)
            merging = ours.stages[stage][at + 1]
            order = merged_order(dimensions, 12 * 2**stage)
            merging.norm.weight.copy_(state[f"{other}.downsample.norm.weight"][order])
            merging.norm.bias.copy_(state[f"{other}.downsample.norm.bias"][order])
            merging.project.weight.copy_(state[f"{other}.downsample.reduction.weight"][:, order])
        x = torch.randn(1, 2, *size)
        want = theirs(x)
        assert (ours(x)[0] - want).abs().max() < 1e-5 * max(1, float(want.abs().max()))


def merged_order(dimensions: int, channels: int) -> list[int]:
    """Where each of our merged channels lies among MONAI's, which counts a block otherwise."""
    places = [(j, i) for i, j in product(range(2), repeat=2)]
    if dimensions == 3:
        places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1),
                  (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]  # fmt: skip
    return [
        places.index(place) * channels + c
        for place in product(range(2), repeat=dimensions)
        for c in range(channels)
    ]


@pytest.mark.parametrize(("dimensions", "size"), [(2, (48, 32)), (3, (32, 16, 48))])
def test_unetr_is_monais(dimensions, size):
    pytest.importorskip("einops")
    nets = pytest.importorskip("monai.networks.nets")
    theirs = shaken(nets.UNETR(2, 3, size, feature_size=4, hidden_size=48, mlp_dim=192,
                               num_heads=12, spatial_dims=dimensions))  # fmt: skip
    spec = isotropic("unetr", dimensions, 5, (8, *SMALL[1:]), 2)
    levels = (*spec.levels[:-1], spec.levels[-1].model_copy(update={"width": 48}))
    tokens = tuple(n // 16 for n in size)
    ours = build(
        spec.model_copy(update={"levels": levels, "positions": tokens, "taps": (4, 7, 10)})
    ).eval()
    plainly_normed(ours)
    state = theirs.state_dict()
    names = {
        "embed": "vit.patch_embedding.patch_embeddings",
        "norm": "vit.norm",
        "head": "out.conv.conv",
        **residual_names("enter", "encoder1.layer"),
    }
    for i in range(12):
        mine, other = f"blocks.{i}.mixer", f"vit.blocks.{i}"
        names |= {
            f"{mine}.mix.norm": f"{other}.norm1",
            f"{mine}.mix.part.out": f"{other}.attn.out_proj",
            f"{mine}.transform.norm": f"{other}.norm2",
            f"{mine}.transform.part.0": f"{other}.mlp.linear1",
            f"{mine}.transform.part.2": f"{other}.mlp.linear2",
        }
    for i in range(4):
        other = f"decoder{i + 2}"
        names[f"decode.{i}.up"] = f"{other}.transp_conv.conv"
        names |= residual_names(f"decode.{i}.units", f"{other}.conv_block")
    for i in range(3):
        mine, other = f"branches.{i}", f"encoder{i + 2}"
        names[f"{mine}.0" if i < 2 else mine + ".0"] = f"{other}.transp_conv_init.conv"
        for j in range(2 - i):
            names[f"{mine}.{1 + 2 * j}"] = f"{other}.blocks.{j}.0.conv"
            names |= residual_names(f"{mine}.{2 + 2 * j}", f"{other}.blocks.{j}.1")
    copied(ours, state, existing(names, ours))
    with torch.no_grad():
        for i, block in enumerate(ours.blocks):
            part = block.mixer.mix.part
            weights = state[f"vit.blocks.{i}.attn.qkv.weight"].chunk(3)
            for layer, w in zip((part.query, part.key, part.value), weights, strict=True):
                layer.weight.copy_(w)
        at = state["vit.patch_embedding.position_embeddings"]
        ours.positions.vectors.copy_(at.transpose(1, 2).reshape(ours.positions.vectors.shape))
        x = torch.randn(2, 2, *size)
        want = theirs(x)
        assert (ours(x)[0] - want).abs().max() < 1e-5 * max(1, float(want.abs().max()))


def test_primus_is_the_authors():
    pytest.importorskip("timm")
    primus = pytest.importorskip("dynamic_network_architectures.architectures.primus")
    size = (16, 24, 32)
    kept = {"drop_path_rate": 0.2, "init_values": 0.1, "scale_attn_inner": True}
    try:
        theirs = primus.Primus(2, 108, (8, 8, 8), 3, 3, 6, size, **kept)
    except RuntimeError:
        pytest.skip("newer versions of timm turn two axes only")
    shaken(theirs)
    spec = isotropic("primus_s", 3, 4, (8, *SMALL[1:]), 2)
    tokens = tuple(n // 8 for n in size)
    ours = build(spec.model_copy(update={"depth": 3, "positions": tokens})).eval()
    names = {"embed": "down_projection.proj", "norm": "eva.norm"}
    for i in range(3):
        mine, other = f"blocks.{i}.mixer", f"eva.blocks.{i}"
        names |= {
            f"{mine}.mix.norm": f"{other}.norm1",
            f"{mine}.mix.part.query": f"{other}.attn.q_proj",
            f"{mine}.mix.part.key": f"{other}.attn.k_proj",
            f"{mine}.mix.part.value": f"{other}.attn.v_proj",
            f"{mine}.mix.part.norm": f"{other}.attn.norm",
            f"{mine}.mix.part.out": f"{other}.attn.proj",
            f"{mine}.transform.norm": f"{other}.norm2",
            f"{mine}.transform.part.gate": f"{other}.mlp.fc1_g",
            f"{mine}.transform.part.value": f"{other}.mlp.fc1_x",
            f"{mine}.transform.part.norm": f"{other}.mlp.norm",
            f"{mine}.transform.part.out": f"{other}.mlp.fc2",
        }
    for i in range(3):
        names[f"up.{3 * i}"] = f"up_projection.decode.{i}" + (".0" if i < 2 else "")
        if i < 2:
            names[f"up.{3 * i + 1}"] = f"up_projection.decode.{i}.1"
    state = theirs.state_dict()
    copied(ours, state, names)
    with torch.no_grad():
        for i, block in enumerate(ours.blocks):
            for half, gamma in ((block.mixer.mix, "gamma_1"), (block.mixer.transform, "gamma_2")):
                half.scale.copy_(state[f"eva.blocks.{i}.{gamma}"])
        at = state["eva.pos_embed"]
        ours.positions.vectors.copy_(at.transpose(1, 2).reshape(ours.positions.vectors.shape))
        x = torch.randn(2, 2, *size)
        want = theirs(x)
        assert parameters(ours) == sum(p.numel() for p in theirs.parameters())
        assert (ours(x)[0] - want).abs().max() < 1e-5 * max(1, float(want.abs().max()))
