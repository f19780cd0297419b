"""State-space mixers, units and presets: against mambapy, by symmetry, and by the networks' contract."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from autoseg.documents.presets.mamba import PRESETS
from autoseg.documents.presets.table import network_spec
from autoseg.errors import PlanError
from autoseg.nets.build import build
from autoseg.nets.kit import Kit
from autoseg.nets.speech import spoken
from autoseg.nets.units.hybrid_mamba import HybridHalves
from autoseg.nets.units.mamba import CrossScan, Mamba, Scanned, States, Way, gated, mamba_cross
from tests.nets.contract import check_contract, check_recompute, part

BOTH = (Way(), Way(reverse=True))
UNITS = ["mamba", "mamba_both", "mamba_cross", "hc_mamba", "seg_mamba"]


def small(name, dimensions=3, **changed):
    """A preset with four levels, the second one flat."""
    cut = slice(3 - dimensions, None)
    given = {
        "in_channels": 2, "classes": 3, "features": (4, 6, 8, 10),
        "strides": [s[cut] for s in ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))],
        "kernels": [k[cut] for k in ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))],
    }  # fmt: skip
    return network_spec(name, **{**given, **changed})


def follow(ours, theirs, suffix=""):
    """Give the weights of a mambapy block to one direction of ours."""

    def of(name):
        return getattr(theirs, name + suffix)

    with torch.no_grad():
        ours.local.weight.copy_(of("conv1d").weight.squeeze(1))
        ours.local.bias.copy_(of("conv1d").bias)
        ours.states.x_proj.weight.copy_(of("x_proj").weight)
        ours.states.dt_proj.weight.copy_(of("dt_proj").weight)
        ours.states.dt_proj.bias.copy_(of("dt_proj").bias)
        ours.states.A_log.copy_(of("A_log"))
        ours.states.D.copy_(of("D"))


@pytest.mark.parametrize("both", [False, True])
def test_block_and_its_gradients_equal_mambapy(both):
    torch.manual_seed(0)
    if both:
        library = pytest.importorskip("mambapy.vim")
        config = library.MambaConfig(d_model=20, n_layers=1, divide_output=False)
        theirs = library.VMambaBlock(config)
    else:
        library = pytest.importorskip("mambapy.mamba")
        theirs = library.MambaBlock(library.MambaConfig(d_model=20, n_layers=1))
    ours = Mamba(20, BOTH if both else (Way(),))
    follow(ours.scanned[0], theirs)
    if both:
        follow(ours.scanned[1], theirs, "_b")
    with torch.no_grad():
        ours.in_proj.weight.copy_(theirs.in_proj.weight)
        ours.out_proj.weight.copy_(theirs.out_proj.weight)
    x = torch.randn(2, 150, 20, requires_grad=True)
    toward = torch.randn(2, 150, 20)
    mine, wanted = ours(x, (150,)), theirs(x)
    assert (mine - wanted).abs().max() < 1e-5
    pairs = zip(
        torch.autograd.grad(mine, [x, ours.in_proj.weight, ours.scanned[-1].states.A_log], toward),
        torch.autograd.grad(
            wanted, [x, theirs.in_proj.weight, theirs.A_log_b if both else theirs.A_log], toward
        ),
        strict=True,
    )
    for a, b in pairs:
        assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max())


def test_fresh_parameters_are_those_of_the_paper():
    torch.manual_seed(0)
    block = Mamba(32)
    states = block.scanned[0].states
    assert states.x_proj.weight.shape == (2 + 2 * 16, 64)
    assert torch.allclose(states.A_log.exp(), torch.arange(1.0, 17).expand(64, 16))
    assert torch.equal(states.D, torch.ones(64))
    steps = nn.functional.softplus(states.dt_proj.bias)
    assert 1e-3 * 0.999 < steps.min() < 3e-3 and 3e-2 < steps.max() < 1e-1 * 1.001
    free = {name for name, p in block.named_parameters() if getattr(p, "no_decay", False)}
    assert free == {"scanned.0.states.A_log", "scanned.0.states.D"}


def test_building_leaves_the_mixers_own_weights():
    net = build(small("umamba_bot"))
    layers = [m for m in net.modules() if isinstance(m, States)]
    assert all((m.dt_proj.bias < -2).all() for m in layers)  # He's would have zeros
    assert len(layers) == 1


def test_one_way_sees_only_what_came_before():
    torch.manual_seed(0)
    unit = spoken(part("mamba"))(Kit((3, 3)), 4, 4)
    x = torch.randn(1, 4, 3, 5, requires_grad=True)
    unit(x)[0, :, 1, 2].sum().backward()
    seen = x.grad[0].abs().sum(0).flatten() > 0
    assert seen.tolist() == [True] * 8 + [False] * 7


def test_local_convolution_looks_back_and_reversed_ahead():
    layer = Mamba(2).scanned[0].local
    x = torch.randn(1, 9, 4)
    conv = nn.Conv1d(4, 4, 4, groups=4)
    with torch.no_grad():
        conv.weight.copy_(layer.weight[:, None])
        conv.bias.copy_(layer.bias)
    want = conv(nn.functional.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2)
    torch.testing.assert_close(layer(x, False), want)
    torch.testing.assert_close(layer(x, True).flip(1), layer(x.flip(1), False))


def test_the_gate_keeps_its_inputs_alone():
    given = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: kept.append(z) or z, lambda z: z):
        y = gated(*given)
    assert torch.equal(y, given[0] * nn.functional.silu(given[1]))
    assert [z.data_ptr() for z in kept] == [z.data_ptr() for z in given]
    assert torch.autograd.gradcheck(gated, given)


def test_a_block_keeps_nine_numbers_a_token_and_inner_channel():
    with FakeTensorMode():
        block, x = Mamba(64), torch.empty(1, 10**5, 64)
        kept = {}

        def keep(z):
            kept[StorageWeakRef(z.untyped_storage()).cdata] = z.untyped_storage().nbytes()
            return z

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda z: z):
            y = block(x, (10**5,))
    assert y.shape == x.shape
    # input, projections in, convolved, activated, steps, scanned, gated, the states of chunks
    assert sum(kept.values()) < 9 * 4 * 10**5 * 128


def test_presets_train_on_fake_tensors():
    with FakeTensorMode():
        net = build(small("segmamba")).train()
        outputs = net(torch.empty(2, 2, 64, 128, 128))
        sum(o.mean() for o in outputs).backward()
    assert outputs[0].shape == (2, 3, 64, 128, 128)
    assert all(p.grad.shape == p.shape for p in net.parameters())


def tied(unit):
    """The unit with each way back given the weights of the way forward, its convolution symmetric."""
    with torch.no_grad():
        for block in unit.modules():
            if isinstance(block, nn.ModuleList) and isinstance(block[0], Scanned | States):
                for forth, back in zip(block[::2], block[1::2], strict=True):
                    back.load_state_dict(forth.state_dict())
            if isinstance(block, CrossScan):
                weight = block.local.weight
                weight.copy_(weight + weight.flip(*range(2, weight.ndim)))
    return unit


@pytest.mark.parametrize("word", ["mamba_both", "mamba_cross"])
@pytest.mark.parametrize("grid", [(4, 5), (3, 4, 5)])
def test_a_mirrored_image_gives_the_mirrored_output(word, grid):
    torch.manual_seed(0)
    unit = tied(spoken(part(word))(Kit((3,) * len(grid)), 6, 6))
    x = torch.randn(2, 6, *grid)
    axes = list(range(2, x.ndim))
    torch.testing.assert_close(unit(x.flip(axes)), unit(x).flip(axes), rtol=1e-5, atol=1e-5)
    assert (unit(x) - unit(x).flip(axes)).abs().max() > 0.1


def test_turning_the_axes_turns_the_cross_scan():
    torch.manual_seed(0)
    unit = mamba_cross(Kit((3, 3)), 4, 4)
    cross = next(m for m in unit.modules() if isinstance(m, CrossScan))
    x = torch.randn(1, 4, 5, 7)
    want = unit(x).transpose(2, 3)
    with torch.no_grad():
        cross.local.weight.copy_(cross.local.weight.transpose(2, 3).clone())
    scans = cross.states.mixer.scanned
    cross.states.mixer.scanned = nn.ModuleList([scans[i] for i in (2, 3, 0, 1)])
    torch.testing.assert_close(unit(x.transpose(2, 3)), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "ways"), [((3, 3), 4), ((3, 3, 3), 6), ((1, 3, 3), 4)])
def test_the_cross_scan_has_two_ways_along_each_axis_that_mixes(kernel, ways):
    unit = mamba_cross(Kit(kernel), 4, 4)
    assert sum(isinstance(m, States) for m in unit.modules()) == ways


def test_the_third_way_goes_from_slice_to_slice():
    torch.manual_seed(0)
    block = Mamba(4, (Way(fastest=0),))
    along = Mamba(4, (Way(),))
    along.load_state_dict(block.state_dict())
    x = torch.randn(1, 3 * 2 * 5, 4)
    on_grid = x.reshape(1, 3, 2, 5, 4)
    turned = on_grid.permute(0, 2, 3, 1, 4).flatten(1, 3)
    want = along(turned, (2, 5, 3)).reshape(1, 2, 5, 3, 4).permute(0, 3, 1, 2, 4).flatten(1, 3)
    torch.testing.assert_close(block(x, (3, 2, 5)), want)


@pytest.mark.parametrize("word", UNITS)
def test_slices_of_a_flat_level_do_not_meet(word):
    torch.manual_seed(0)
    settings = {"word": word, "gated": False} if word == "seg_mamba" else word
    unit = spoken(part(settings))(Kit((1, 3, 3), "none"), 4, 4)
    x = torch.randn(1, 4, 3, 4, 5)
    changed = x.clone()
    changed[:, :, 1] += 1
    apart = (unit(x) - unit(changed)).abs().amax((0, 1, 3, 4))
    assert apart[1] > 1e-3 and apart[0] == apart[2] == 0


@pytest.mark.parametrize("word", UNITS)
def test_units_keep_float32_inside_autocast(word):
    torch.manual_seed(0)
    kinds = set()
    unit = spoken(part(word))(Kit((3, 3)), 4, 6)
    for module in unit.modules():
        if isinstance(module, States):
            module.register_forward_hook(
                lambda m, args, out: kinds.update({args[0].dtype, out.dtype})
            )
    x = torch.randn(1, 4, 6, 5)
    want = unit(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = unit(x)
    assert kinds == {torch.float32}
    assert (found - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_halves_are_shuffled(channels):
    unit = spoken(part("hc_mamba"))(Kit((3, 3)), channels, channels)
    assert unit(torch.randn(1, channels, 4, 3)).shape == (1, channels, 4, 3)
    first = channels // 2
    if first:
        halves = HybridHalves(nn.Identity(), nn.Identity(), (first, channels - first))
        x = torch.arange(channels, dtype=torch.float32).view(1, channels, 1, 1)
        order = [
            i for pair in zip(range(first), range(first, 2 * first), strict=True) for i in pair
        ]
        order += list(range(2 * first, channels))
        assert (halves(x) - x).flatten().tolist() == order


def test_the_fused_kernel_is_asked_for_by_name(monkeypatch):
    monkeypatch.setattr("autoseg.nets.units.mamba.find_spec", lambda name: None)
    with pytest.raises(PlanError, match="needs the package mamba-ssm"):
        spoken(part({"word": "mamba", "kernel": "mamba_ssm"}))(Kit((3, 3)), 4, 4)
    with pytest.raises(PlanError, match=r"no scan kernel 'mamba_sm'.*mamba_ssm"):
        spoken(part({"word": "mamba", "kernel": "mamba_sm"}))(Kit((3, 3)), 4, 4)


def published(name, dimensions):
    """The network of a preset at its published widths, without its numbers."""
    levels = 6
    with torch.device("meta"):
        return build(
            network_spec(
                name, 1, 2, (32, 64, 128, 256, 320, 320),
                [(1,) * dimensions, *[(2,) * dimensions] * (levels - 1)],
                [(3,) * dimensions] * levels,
            )
        )  # fmt: skip


@pytest.mark.parametrize("dimensions", [2, 3])
def test_hc_mamba_has_fewer_parameters_than_its_plain_twin(dimensions):
    hybrid, twin = (
        sum(p.numel() for p in published(name, dimensions).parameters())
        for name in ("hc_mamba", "plain")
    )
    assert hybrid < 0.6 * twin


def test_where_umamba_has_its_layers():
    bottom, whole = small("umamba_bot"), small("umamba_enc")
    assert [len(level.then) for level in bottom.levels] == [0, 0, 0, 1]
    assert [len(level.then) for level in whole.levels] == [1, 1, 1, 1]
    assert [level.depth for level in whole.levels] == [2, 2, 1, 1]
    assert [level.depth for level in whole.decoder] == [1, 2, 2]
    assert bottom.bottleneck.then[0].unit.options == {"residual": False}
    six = published("umamba_bot", 2)
    assert sum(isinstance(m, Mamba) for m in six.modules()) == 1
    assert sum(isinstance(m, Mamba) for m in published("umamba_enc", 2).modules()) == 6


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_the_contract(name, dimensions):
    check_contract(small(name, dimensions), (4, 8, 16)[3 - dimensions :], batch=1)


@pytest.mark.parametrize("name", ["umamba_enc", "hc_mamba"])
def test_recomputing_changes_nothing(name):
    check_recompute(small(name, 2), (8, 16))


def test_a_preset_adapts_to_two_levels():
    spec = small("umamba_bot", 2, features=(4, 5), strides=[(1, 1), (2, 2)], kernels=[(3, 3)] * 2)
    assert [level.depth for level in spec.levels] == [2, 1]
    check_contract(spec, (6, 6))
