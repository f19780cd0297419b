"""Composed networks: what each path sees, how the paths meet, and what each output counts."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from autoseg.documents.networks.compound import NestedSpec, ParallelSpec, SerialSpec
from autoseg.documents.networks.family import parse_network
from autoseg.documents.networks.network import Network as Document
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.nets.build import build
from autoseg.nets.network import Network
from tests.nets.contract import check_contract, check_recompute, part

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 1], [1, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
FIELDS = {
    "unetpp": [{"vote": "last"}, {"columns": 1}, {"skip": "attention_gate"}],
    "serial_unet": [{"second_widths": [3, 5, 7], "stem": 5}, {"norm": "batch", "dropout": 0.2}],
    "parallel_unet": [{"merge": "concat"}, {"other": {"unit": "pair", "wraps": ["residual"]}}],
    "modality_unet": [{"fuse": "mean"}, {"stem": 4, "in_channels": 3}, {"in_channels": 1}],
    "hyperdense": [{"in_channels": 1}, {"in_channels": 3}, {"skip": "add"}],
}


def spec_of(preset: str, dimensions: int = 2, levels: int = 3, **fields) -> Document:
    """A small composed network on an uneven grid, some fields said differently."""
    cut = slice(3 - dimensions, None)
    made = network_spec(
        preset, 2, 3, [4, 6, 8, 10][:levels], [s[cut] for s in STRIDES[:levels]],
        [k[cut] for k in KERNELS[:levels]],
    )  # fmt: skip
    return parse_network(made.dump() | fields, "the network")


def trained(spec: Document, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build(spec).train()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("preset", "fields"), [(p, f) for p, fs in FIELDS.items() for f in fs])
def test_every_field_keeps_the_contract(preset, fields, dimensions):
    check_contract(spec_of(preset, dimensions, **fields))


@pytest.mark.parametrize("preset", FIELDS)
def test_recomputing_changes_nothing(preset):
    check_recompute(spec_of(preset, 3, dropout=0.2, norm="batch"), (4, 8, 8))


@pytest.mark.parametrize("preset", FIELDS)
def test_composed_networks_work_channels_last(preset):
    net = trained(spec_of(preset))
    x = torch.randn(2, 2, 8, 8)
    want = net(x)
    for w, g in zip(want, net(x.contiguous(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(w, g, rtol=1e-4, atol=1e-4)


# UNet++


def test_unetpp_supervises_every_column_at_full_resolution():
    spec = spec_of("unetpp", levels=4)
    assert spec.output_strides == ((1, 1),) * 3
    assert spec.output_weights == (1 / 3,) * 3
    assert len(build(spec).head) == 3
    # rows of 3, 2 and 1 nodes
    assert set(build(spec).node) == {
        f"{i}_{j}" for i, j in product(range(3), range(1, 4)) if i + j < 4
    }


def nodes(net: Network, x: Tensor) -> dict[tuple[int, int], Tensor]:
    """X[i][j] as the paper has it."""
    found: dict[tuple[int, int], Tensor] = {}
    levels = len(net.encode)
    for i, encode in enumerate(net.encode):
        x = found[i, 0] = encode(x)
    for j in range(1, levels):
        for i in range(levels - j):
            node = net.node[f"{i}_{j}"]
            row = [found[i, k] for k in range(j)]
            found[i, j] = node.units(torch.cat([node.up(found[i + 1, j - 1]), *row], 1))
    return found


def test_unetpp_by_its_formula_and_pruned():
    x = torch.randn(2, 2, 8, 16)
    net = trained(spec_of("unetpp", levels=4))
    found = nodes(net, x)
    want = [net.head[j - 1](found[0, j]) for j in (3, 2, 1)]
    for w, g in zip(want, net(x), strict=True):
        torch.testing.assert_close(w, g)
    torch.testing.assert_close(net.eval()(x)[0], sum(want) / 3)
    for columns, vote in product((1, 2, 3), ("mean", "last")):
        pruned = trained(spec_of("unetpp", levels=4, columns=columns, vote=vote)).eval()
        asked = want[3 - columns :]
        torch.testing.assert_close(
            pruned(x)[0], asked[0] if vote == "last" else sum(asked) / columns
        )


def test_pruning_leaves_the_rest_uncomputed():
    net = trained(spec_of("unetpp", levels=4, columns=1)).eval()
    ran: list[str] = []
    for name, module in net.named_modules():
        if name.startswith(("encode.", "node.")) and name.count(".") == 1:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    net(torch.randn(1, 2, 8, 16))
    assert ran == ["encode.0", "encode.1", "node.0_1"]


# in series


def test_the_second_network_sees_the_image_and_the_firsts_probabilities():
    net, x = trained(spec_of("serial_unet")), torch.randn(2, 2, 8, 8)
    outputs = net(x)
    first = net.first(x)
    assert first[0].shape == (2, 3, 8, 8)
    second = net.second(torch.cat([x, first[0].softmax(1)], 1))
    for got, want in zip(outputs, [second[0], first[0], second[1], first[1]], strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(net.eval()(x)[0], second[0])


def test_the_seconds_error_teaches_the_first():
    net = trained(spec_of("serial_unet"))
    net(torch.randn(2, 2, 8, 8))[0].square().mean().backward()
    reached = {name for name, p in net.first.named_parameters() if p.grad is not None}
    # all but the coarser head, which the second does not see
    assert reached == {n for n, _ in net.first.named_parameters() if not n.startswith("head.1")}
    assert all(
        p.grad.abs().sum() > 0 for p in net.first.parameters() if p.ndim > 1 and p.grad is not None
    )


def test_in_series_both_count_the_same_and_the_second_is_half_as_wide():
    spec = spec_of("serial_unet", levels=4)
    assert isinstance(spec, SerialSpec)
    assert spec.second.widths == (2, 3, 4, 5)
    assert spec.second.in_channels == 2 + 3
    assert spec.output_strides == ((1, 1),) * 2 + ((2, 2),) * 2 + ((4, 2),) * 2
    assert spec.output_weights == pytest.approx([1 / 3, 1 / 3, 1 / 6, 1 / 6, 0, 0])


# side by side


@pytest.mark.parametrize("merge", ["mean", "concat"])
def test_what_both_networks_come_to(merge):
    net, x = trained(spec_of("parallel_unet", merge=merge)), torch.randn(2, 2, 8, 8)
    merged, one, two, *coarser = net(x)
    assert [tuple(o.shape[2:]) for o in coarser] == [(4, 4)] * 2
    if merge == "mean":
        torch.testing.assert_close(merged, (one + two) / 2)
    else:
        assert net.merge.weight.shape == (3, 2 * spec_of("parallel_unet").widths[0], 1, 1)
    torch.testing.assert_close(net.eval()(x)[0], merged)
    spec = spec_of("parallel_unet", levels=4)
    assert isinstance(spec, ParallelSpec)
    assert spec.output_weights == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 12, 1 / 12, 0, 0])
    assert {m.dilation for m in trained(spec).second.modules() if isinstance(m, nn.Conv2d)
            and max(m.kernel_size) > 1 and max(m.stride) == 1} == {(2, 2)}  # fmt: skip


def test_parallel_networks_meet_in_their_skips_alone():
    spec = spec_of("parallel_unet")
    net, x = trained(spec), torch.randn(2, 2, 8, 8)
    for output, own, other in ((1, "first", "second"), (2, "second", "first")):
        net.zero_grad()
        net(x)[output].square().mean().backward()
        reached = {n for n, p in net.named_parameters() if p.grad is not None}
        # each one's finest logits: both encoders, but not the other's decoder
        assert any(name.startswith(f"{own}.decode") for name in reached)
        assert any(name.startswith(f"{other}.encode.0") for name in reached)
        assert not any(name.startswith((f"{other}.decode", f"{other}.head")) for name in reached)
        assert f"exchange.0.to_{own}.weight" in reached
    for p in net.exchange.parameters():
        nn.init.zeros_(p)
    alone = build(spec.first)
    alone.load_state_dict(net.first.state_dict())
    torch.testing.assert_close(net(x)[1], alone(x)[0])
    torch.testing.assert_close(net(x)[3], alone(x)[1])


# by modality


@pytest.mark.parametrize("fuse", ["mean", "concat"])
def test_one_modality_is_a_plain_network(fuse):
    spec = spec_of("modality_unet", in_channels=1, fuse=fuse)
    net, plain = trained(spec), trained(spec_of("attention_unet", in_channels=1, skip="concat"))
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 8, 8)
    for a, b in zip(net(x), plain(x), strict=True):
        assert torch.equal(a, b)


def test_each_encoder_sees_its_modality_alone():
    net, x = trained(spec_of("modality_unet", in_channels=3)), torch.randn(1, 3, 8, 8)
    assert len(net.encode) == 3 * 3
    base = [[encode(x[:, m : m + 1]) for m, encode in enumerate(net.encode[:3])]]
    got: list[Tensor] = []
    for encode in net.encode[:3]:
        encode.register_forward_hook(lambda _m, _x, y: got.append(y))
    net(x)
    for a, b in zip(got, base[0], strict=True):
        assert torch.equal(a, b)


def test_the_mean_of_modalities_knows_no_order():
    net, x = trained(spec_of("modality_unet", fuse="mean")), torch.randn(1, 2, 8, 8)
    want = net.eval()(x)[0]
    swapped = [net.encode[i] for i in (1, 0, 3, 2, 5, 4)]
    net.encode = nn.ModuleList(swapped)
    torch.testing.assert_close(net(x.flip(1))[0], want)
    assert not torch.allclose(net(x)[0], want)


# hyper-dense


def test_hyperdense_layers_see_all_earlier_layers_of_all_paths():
    spec = spec_of("hyperdense", in_channels=2)  # two layers a level; widths 4, 6, 8 over two paths
    net = trained(spec)
    seen, want = 0, []
    for level, width in zip(spec.levels, (4, 6, 8), strict=True):
        for _ in range(level.depth):
            want += [2 + seen if seen else 1] * 2
            seen += width
    convs = [m for level in net.encode for m in level.layers.modules() if isinstance(m, nn.Conv2d)]
    assert [m.in_channels for m in convs] == want
    assert [m.out_channels for m in convs] == [2] * 4 + [3] * 4 + [4] * 4


@pytest.mark.parametrize("modalities", [1, 2])
def test_hyperdense_by_its_formula(modalities):
    net = trained(spec_of("hyperdense", in_channels=modalities))
    x = torch.randn(2, modalities, 8, 8)
    pools = [(1, 1), (2, 2), (2, 1)]
    layers: list[Tensor] = [x]  # everything that any path has made
    for i, (level, pool) in enumerate(zip(net.encode, pools, strict=True)):
        layers = [nn.functional.max_pool2d(y, pool) for y in layers]
        for depth, layer in enumerate(level.layers):
            seen = torch.cat(layers, 1)
            new = [
                unit(x[:, m : m + 1] if i == depth == 0 else seen)
                for m, unit in enumerate(layer.units)
            ]
            layers += new
    met = net.encode[-1].fuse(*new)
    found: list[Tensor] = []
    net.encode[-1].register_forward_hook(lambda _m, _x, y: found.append(y[1]))
    net(x)
    torch.testing.assert_close(found[0], met)


# what cannot be


@pytest.mark.parametrize(
    ("preset", "fields", "said"),
    [
        ("unetpp", {"skip": "add"}, "not by 'add'"),
        ("unetpp", {"columns": 3}, "columns is 3, of 2 that there are"),
        ("serial_unet", {"second_widths": [4, 4]}, "second_widths has 2 numbers for 3 levels"),
        ("hyperdense", {"stem": 4}, "no stem"),
        ("hyperdense", {"down": "strided"}, "no way down but 'pooled'"),
        ("parallel_unet", {"merge": "sum"}, "merge"),
    ],
)
def test_what_cannot_be_is_explained(preset, fields, said):
    with pytest.raises(PlanError, match=said):
        spec_of(preset, **fields)


def test_families_are_told_apart_by_name():
    spec = spec_of("unetpp")
    assert type(parse_network(spec.dump(), "the network")) is NestedSpec
    with pytest.raises(PlanError, match="family"):
        parse_network(spec.dump() | {"family": "nesting"}, "the network")
    other = spec_of("parallel_unet", other={"unit": {"word": "dilated", "rates": [1, 3]}})
    assert other.other == part({"word": "dilated", "rates": (1, 3)})
