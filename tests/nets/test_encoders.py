"""Encoders: the publishers' names, shapes, sizes and responses; uneven and few steps."""

import pytest
import torch
from torch.nn import functional as F

from autoseg.documents.networks.classic import ONES, PUBLISHED, STAGES, at_scale
from autoseg.nets.families.encoders.encoder import reductions
from autoseg.nets.families.encoders.resnet import ResNet
from autoseg.nets.families.encoders.table import ENCODERS
from autoseg.nets.kit import Kit, initialise

# numbers of parameters of torchvision's models less their classifiers: 21,797,672 - 513,000;
# 25,557,032 - 2,049,000; 44,549,160 - 2,049,000; 138,357,544 - 123,642,856; 5,288,548 - 1,281,000;
# 5,483,032 - 2,511,080
PARAMETERS = {
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "vgg16": 14_714_688,
    "efficientnet_b0": 4_007_548,
    "mobilenet_v3_large": 2_971_952,
}
# and of entries of their state dicts, with batch norm (VGG: without)
ENTRIES = {
    "resnet34": 216,
    "resnet50": 318,
    "resnet101": 624,
    "vgg16": 26,
    "efficientnet_b0": 358,
    "mobilenet_v3_large": 308,
}


def encoder(name, dimensions=2, channels=3, scale=1.0, norm="batch", levels=6, rates=ONES, **steps):
    ones, twos, threes = (1,) * dimensions, (2,) * dimensions, (3,) * dimensions
    strides = steps.get("strides", [ones] + [twos] * (levels - 1))
    kernels = steps.get("kernels", [threes] * len(strides))
    kit = Kit(kernels[-1], norm, "relu")
    return ENCODERS[name](kit, channels, strides, kernels, scale=scale, rates=rates)


def lived_in(net):
    """The network in evaluation with weights and statistics that are not those of the start."""
    torch.manual_seed(0)
    initialise(net)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if key.endswith(("running_var", "bias")) or tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
            if key.endswith("running_mean"):
                tensor.normal_()
    return net.eval()


def norm_for(name):
    return "none" if name == "vgg16" else "batch"


# --- the facts of the published models ------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_size_is_the_published_one(name):
    with torch.device("meta"):
        net = encoder(name, norm=norm_for(name))
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    assert len(net.state_dict()) == ENTRIES[name]


def batch_norm(name, width):
    return {
        f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")
    }


def resnet34_shapes():
    shapes = {"conv1.weight": (64, 3, 7, 7), **batch_norm("bn1", 64)}
    before = 64
    for layer, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(depth):
            at = f"layer{layer}.{block}"
            shapes[f"{at}.conv1.weight"] = (width, before, 3, 3)
            shapes[f"{at}.conv2.weight"] = (width, width, 3, 3)
            shapes |= batch_norm(f"{at}.bn1", width) | batch_norm(f"{at}.bn2", width)
            if block == 0 and layer > 1:
                shapes[f"{at}.downsample.0.weight"] = (width, before, 1, 1)
                shapes |= batch_norm(f"{at}.downsample.1", width)
            before = width
    return shapes


def vgg16_shapes():
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    shapes = {}
    for index, cin, cout in zip(indices, widths, widths[1:], strict=False):
        shapes[f"features.{index}.weight"] = (cout, cin, 3, 3)
        shapes[f"features.{index}.bias"] = (cout,)
    return shapes


def inverted_shapes(at, cin, expanded, cout, kernel, squeezed):
    shapes, index = {}, 0
    if expanded != cin:
        shapes[f"{at}.0.0.weight"] = (expanded, cin, 1, 1)
        shapes |= batch_norm(f"{at}.0.1", expanded)
        index = 1
    shapes[f"{at}.{index}.0.weight"] = (expanded, 1, kernel, kernel)
    shapes |= batch_norm(f"{at}.{index}.1", expanded)
    if squeezed:
        index += 1
        shapes[f"{at}.{index}.fc1.weight"] = (squeezed, expanded, 1, 1)
        shapes[f"{at}.{index}.fc1.bias"] = (squeezed,)
        shapes[f"{at}.{index}.fc2.weight"] = (expanded, squeezed, 1, 1)
        shapes[f"{at}.{index}.fc2.bias"] = (expanded,)
    shapes[f"{at}.{index + 1}.0.weight"] = (cout, expanded, 1, 1)
    return shapes | batch_norm(f"{at}.{index + 1}.1", cout)


def efficientnet_b0_shapes():
    shapes = {"features.0.0.weight": (32, 3, 3, 3), **batch_norm("features.0.1", 32)}
    cin = 32
    rows = [(1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3), (6, 5, 112, 3),
            (6, 5, 192, 4), (6, 3, 320, 1)]  # fmt: skip
    for stage, (expansion, kernel, width, depth) in enumerate(rows, start=1):
        for block in range(depth):
            at = f"features.{stage}.{block}.block"
            shapes |= inverted_shapes(at, cin, expansion * cin, width, kernel, cin // 4)
            cin = width
    shapes["features.8.0.weight"] = (1280, 320, 1, 1)
    return shapes | batch_norm("features.8.1", 1280)


def mobilenet_v3_large_shapes():
    shapes = {"features.0.0.weight": (16, 3, 3, 3), **batch_norm("features.0.1", 16)}
    rows = [(16, 16, 3, 0), (64, 24, 3, 0), (72, 24, 3, 0), (72, 40, 5, 24), (120, 40, 5, 32),
            (120, 40, 5, 32), (240, 80, 3, 0), (200, 80, 3, 0), (184, 80, 3, 0), (184, 80, 3, 0),
            (480, 112, 3, 120), (672, 112, 3, 168), (672, 160, 5, 168), (960, 160, 5, 240),
            (960, 160, 5, 240)]  # fmt: skip
    cin = 16
    for index, (expanded, width, kernel, squeezed) in enumerate(rows, start=1):
        at = f"features.{index}.block"
        shapes |= inverted_shapes(at, cin, expanded, width, kernel, squeezed)
        cin = width
    shapes["features.16.0.weight"] = (960, 160, 1, 1)
    return shapes | batch_norm("features.16.1", 960)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet34", resnet34_shapes()),
        ("vgg16", vgg16_shapes()),
        ("efficientnet_b0", efficientnet_b0_shapes()),
        ("mobilenet_v3_large", mobilenet_v3_large_shapes()),
    ],
)
def test_names_and_shapes_are_torchvisions(name, wanted):
    with torch.device("meta"):
        net = encoder(name, norm=norm_for(name))
    found = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert {k: v for k, v in found.items() if not k.endswith("num_batches_tracked")} == wanted


def test_vgg_with_norm_has_the_names_of_vgg16_bn():
    with torch.device("meta"):
        net = encoder("vgg16")
    convolutions = [k for k, v in net.state_dict().items() if v.ndim == 4]
    indices = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    assert convolutions == [f"features.{i}.weight" for i in indices]
    assert "features.41.running_var" in net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS["vgg16"] + 2 * 4224


def test_resnet50_has_the_names_of_a_bottleneck():
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in encoder("resnet50").state_dict().items()}
    assert found["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert found["layer2.0.conv1.weight"] == (128, 256, 1, 1)
    assert found["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert found["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert found["layer4.2.bn3.running_mean"] == (2048,)


def test_mobilenet_has_the_epsilon_of_its_weights():
    nets = {name: encoder(name, scale=0.25) for name in ("mobilenet_v3_large", "efficientnet_b0")}
    found = {
        name: {m.eps for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)}
        for name, net in nets.items()
    }
    assert found == {"mobilenet_v3_large": {1e-3}, "efficientnet_b0": {1e-5}}


# --- the responses, against the definitions written out over the state dict ------------------------


class Written:
    """Layers by their names in a state dict."""

    def __init__(self, net, eps):
        self.state, self.eps = net.state_dict(), eps

    def norm(self, x, at):
        found = (self.state[f"{at}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *found, eps=self.eps)

    def conv(self, x, at, stride=1, groups=1):
        weight = self.state[f"{at}.weight"]
        bias = self.state.get(f"{at}.bias")
        return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, 1, groups)


def written_resnet34(net, x):
    w = Written(net, 1e-5)
    x = w.norm(w.conv(x, "conv1", 2), "bn1").relu()
    kept = [x]
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            at, stride = f"layer{layer}.{block}", 2 if block == 0 and layer > 1 else 1
            y = w.norm(w.conv(x, f"{at}.conv1", stride), f"{at}.bn1").relu()
            y = w.norm(w.conv(y, f"{at}.conv2"), f"{at}.bn2")
            if f"{at}.downsample.0.weight" in w.state:
                short = F.conv2d(x, w.state[f"{at}.downsample.0.weight"], stride=stride)
                x = w.norm(short, f"{at}.downsample.1")
            x = (x + y).relu()
        kept.append(x)
    return kept


def written_vgg16(net, x):
    w, kept, index = Written(net, 1e-5), [], 0
    for depth in (2, 2, 3, 3, 3):
        for _ in range(depth):
            x = w.conv(x, f"features.{index}").relu()
            index += 2
        kept.append(x)
        x, index = F.max_pool2d(x, 2), index + 1
    return [*kept, x]


def written_inverted(w, x, at, stride, act, gate, squeeze_act):
    y, index = x, 0
    last = max(int(k[len(at) + 1 :].split(".")[0]) for k in w.state if k.startswith(f"{at}."))
    while index < last:
        if f"{at}.{index}.fc1.weight" in w.state:
            s = squeeze_act(w.conv(y.mean((2, 3), keepdim=True), f"{at}.{index}.fc1"))
            y = y * gate(w.conv(s, f"{at}.{index}.fc2"))
        else:
            weight = w.state[f"{at}.{index}.0.weight"]
            each = weight.shape[1] == 1 and weight.shape[0] > 1
            groups = weight.shape[0] if each else 1
            y = w.conv(y, f"{at}.{index}.0", stride if each else 1, groups)
            y = act(w.norm(y, f"{at}.{index}.1"))
        index += 1
    y = w.norm(w.conv(y, f"{at}.{last}.0"), f"{at}.{last}.1")
    return x + y if x.shape == y.shape else y


def written_efficientnet(net, x):
    w, kept = Written(net, 1e-5), []
    x = F.silu(w.norm(w.conv(x, "features.0.0", 2), "features.0.1"))
    for stage, (depth, stride) in enumerate(
        [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)], start=1
    ):
        if stride == 2:
            kept.append(x)
        for block in range(depth):
            at = f"features.{stage}.{block}.block"
            x = written_inverted(
                w, x, at, stride if block == 0 else 1, F.silu, torch.sigmoid, F.silu
            )
    return [*kept, F.silu(w.norm(w.conv(x, "features.8.0"), "features.8.1"))]


def written_mobilenet(net, x):
    w, kept = Written(net, 1e-3), []
    x = F.hardswish(w.norm(w.conv(x, "features.0.0", 2), "features.0.1"))
    for index in range(1, 16):
        stride = 2 if index in (2, 4, 7, 13) else 1
        if stride == 2:
            kept.append(x)
        act = F.hardswish if index >= 7 else F.relu
        x = written_inverted(w, x, f"features.{index}.block", stride, act, F.hardsigmoid, F.relu)
    return [*kept, F.hardswish(w.norm(w.conv(x, "features.16.0"), "features.16.1"))]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("resnet34", written_resnet34),
        ("vgg16", written_vgg16),
        ("efficientnet_b0", written_efficientnet),
        ("mobilenet_v3_large", written_mobilenet),
    ],
)
def test_features_are_those_of_the_definition(name, written):
    net = lived_in(encoder(name, scale=0.25, norm=norm_for(name)))
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        found, wanted = net(x), written(net, x)
    assert len(found) == len(wanted) == STAGES + 1 - net.first
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


# --- grids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "resnet101"])
@pytest.mark.parametrize(
    ("strides", "kernels"),
    [
        ([(1, 1, 1), (1, 2, 2)], [(1, 3, 3), (1, 3, 3)]),
        ([(1, 1, 1), (1, 2, 2), (2, 2, 1)], [(1, 3, 3), (3, 3, 3), (3, 3, 3)]),
        ([(1, 1, 1), (1, 2, 2), (1, 2, 4), (3, 1, 1)], [(1, 3, 3)] * 2 + [(3, 3, 3)] * 2),
        ([(1, 1), (2, 2), (2, 2), (2, 2), (2, 1), (2, 1)], [(3, 3)] * 6),
    ],
)
def test_each_reduction_takes_the_plans_step_and_says_so(name, strides, kernels):
    net = encoder(name, len(strides[0]), channels=2, scale=0.125, strides=strides, kernels=kernels)
    size = (32, 8) if len(strides[0]) == 2 else (3 * 2, 8, 8)
    with torch.no_grad():
        features = net.train()(torch.randn(2, 2, *size))
    assert len(net.widths) == len(net.strides) == len(features)
    for feature, width, stride in zip(features, net.widths, net.strides, strict=True):
        grid = tuple(n // s for n, s in zip(size, stride, strict=True))
        assert tuple(feature.shape) == (2, width, *grid)
    assert net.widths == tuple(at_scale(w, 0.125) for w in PUBLISHED[name] if w)
    total = torch.tensor(strides).prod(0)
    assert net.strides[-1] == tuple(total.tolist())


def test_flat_kernels_let_no_plane_see_another():
    net = lived_in(encoder(
        "resnet34", 3, 1, 0.125, strides=[(1, 1, 1), (1, 2, 2), (1, 2, 2)], kernels=[(1, 3, 3)] * 3
    ))  # fmt: skip
    x = torch.randn(1, 1, 4, 16, 16)
    changed = x.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        a, b = net(x)[-1], net(changed)[-1]
    moved = (a - b).abs().amax((0, 1, 3, 4)) > 0
    assert moved.tolist() == [False, False, True, False]


def test_a_resnet_of_fewer_layers_stops_early():
    net = ResNet(
        Kit((3, 3), "group"), 1, [(1, 1)] + [(2, 2)] * 5, [(3, 3)] * 6, first_width=8,
        depths=(1, 1, 2), bottleneck=True,
    )  # fmt: skip
    assert net.widths == (8, 32, 64, 128)
    assert net.strides[-1] == (16, 16)
    assert [tuple(f.shape[1:]) for f in net(torch.randn(1, 1, 32, 32))][-1] == (128, 2, 2)


def test_more_levels_than_reductions_are_refused():
    assert reductions([(1, 1), (2, 1)]) == ((2, 1), (1, 1), (1, 1), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="5 reductions has no 7 levels"):
        reductions([(2, 2)] * 7)


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_a_dilated_encoder_is_the_strided_one_on_a_finer_grid(name):
    """The algorithme à trous: at every fourth voxel the dilated layers tell what the strided do."""
    # in double precision: processors differ in how they round sums of thirty layers
    coarse = lived_in(encoder(name, channels=1, scale=0.125)).double()
    fine = encoder(name, channels=1, scale=0.125, levels=4, rates=(1, 1, 1, 2, 4)).double()
    fine.load_state_dict(coarse.state_dict())
    x = torch.randn(1, 1, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        strided, dilated = coarse(x), fine.eval()(x)
    assert fine.strides[-1] == (8, 8)
    for a, b, step in zip(strided, dilated, (1, 1, 1, 2, 4), strict=True):
        torch.testing.assert_close(a, b[..., ::step, ::step], rtol=1e-4, atol=1e-4)
    dilations = [fine.get_submodule(f"layer{at}.conv2").dilation[0] for at in ("3.1", "4.0", "4.1")]
    assert dilations == ([2, 4, 4] if name == "resnet34" else [2, 2, 4])
