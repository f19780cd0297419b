"""What networks cost: by hand, by invariants, and against the allocations of real steps."""

import statistics

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autoseg.nets.build import build
from autoseg.nets.cost import inference_bytes, multiply_adds, parameters, training_bytes
from autoseg.nets.cost.cards import GRANULE, CardRules
from autoseg.nets.cost.storages import Storages, go_back
from bench.memory import PRESETS, SIZES, WIDTHS, alone, job, predicted, recipe, small_spec

FEATURES = WIDTHS["cpu"]
QUICK = {"plain", "resenc_l", "attention_unet", "mednext_s", "swin_unet", "umamba_bot", "segnet"}


def bytes_of(spec, patch, batch=2, precision="float32", rules="cuda", **rest):
    return predicted(spec, patch, recipe(spec, batch, **rest), precision, rules)


def again(work):
    """The job with activations recomputed going back."""
    return {**work, "network": {**work["network"], "recompute": True}}


def blank_net(spec):
    with torch.device("meta"):
        return build(spec)


def test_predicted_peaks_are_those_of_real_steps():
    jobs = [job(name, p, FEATURES) for name in ("plain", "resenc_l") for p in ((64, 64), (32,) * 3)]
    jobs += [
        job("umamba_bot", (32, 32), FEATURES),
        job("plain", (64, 64), FEATURES, train={"optimiser": "adamw", "ema_share": 0.5}),
        again(job("resenc_l", (64, 64), FEATURES)),
    ]
    rows = alone(jobs)
    errors = [abs(r["error"]) for r in rows]
    assert len(errors) == len(jobs) and all(r["tensors"] > 1e6 for r in rows)
    assert max(errors) <= 0.02 and statistics.median(errors) <= 0.005, rows


@pytest.mark.slow
def test_predicted_peaks_of_other_recipes():
    rows = alone(
        [
            job("plain", (16, 16), FEATURES, train={"optimiser": "muon"}),
            again(job("unetr", (32, 32), FEATURES)),
            again(job("swin_unetr", (64, 64), FEATURES)),
        ]
    )
    assert len(rows) == 3 and max(abs(r["error"]) for r in rows) <= 0.03, rows


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_predicted_peaks_of_every_preset(preset):
    patches = [patch for pair in SIZES["cpu"].values() for patch in pair]
    rows = alone([job(preset, patch, FEATURES) for patch in patches])
    errors = [abs(r["error"]) for r in rows]
    assert len(errors) == len(patches) and max(errors) <= 0.08, rows


@pytest.mark.parametrize(
    "preset",
    [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PRESETS],
)
def test_every_preset_is_counted_under_a_cards_rules(preset):
    spec = small_spec(preset, 2, FEATURES)
    step = bytes_of(spec, (64, 64), precision="bfloat16")
    spoken = inference_bytes(spec, (64, 64), 2, precision="bfloat16")
    assert step > spoken > 0 and step % GRANULE == spoken % GRANULE == 0


def test_multiply_adds_count_products_attention_and_scans():
    for name in ("unetr", "umamba_bot"):
        spec = small_spec(name, 2, FEATURES)
        one, four = (multiply_adds(spec, (n, n)) for n in (64, 128))
        # attention alone grows faster than voxels
        assert 3.9 < four / one < (8 if name == "unetr" else 4.01)


def test_a_layer_of_attention_by_hand():
    mode, fake = CardRules(), FakeTensorMode()
    batch, heads, length, width = 2, 3, 500, 8
    storages = Storages()
    with mode, fake, storages:
        q, k, v = (torch.empty(batch, heads, length, width, requires_grad=True) for _ in range(3))
        out = F.scaled_dot_product_attention(q, k, v)
        number = 4 * batch * heads * length
        assert storages.live == number * (4 * width + 1)  # q, k, v, the result, one number a row
        go_back(out.sum())
        assert storages.peak < number * (8 * width + 4) < number * length


def test_attention_that_no_fused_kernel_takes_keeps_its_scores():
    with CardRules(), FakeTensorMode(), Storages() as storages:
        q = torch.empty(1, 1, 256, 6, requires_grad=True)
        out = F.scaled_dot_product_attention(q, q, q)
        assert out.requires_grad and storages.live >= 4 * 256 * 256


def test_autocast_casts_what_a_card_casts():
    half, full = torch.bfloat16, torch.float32
    with CardRules(), FakeTensorMode(), torch.autocast("cpu", half):
        x = torch.empty(1, 4, 8, 8, 8)
        y = F.conv3d(x, torch.empty(4, 4, 3, 3, 3), padding=1)
        found = {
            "conv": y, "pool": F.avg_pool3d(y, 2), "max": F.max_pool3d(y, 2), "gelu": F.gelu(y),
            "layer": F.layer_norm(y, (8,)), "group": F.group_norm(y, 2),
            "instance": F.instance_norm(y), "softmax": y.softmax(1), "exp": y.exp(),
            "softplus": F.softplus(y), "up": F.interpolate(y, scale_factor=2), "power": y**2,
            "linear": F.linear(x, torch.empty(2, 8)), "product": x @ x, "mixed": x + y,
        }  # fmt: skip
        with torch.autocast("cpu", enabled=False):
            found["outside"] = x.bfloat16().exp()
    halves = {"conv", "pool", "max", "gelu", "instance", "linear", "product", "outside"}
    assert {name: t.dtype for name, t in found.items()} == {
        name: half if name in halves else full for name in found
    }


def test_a_weight_is_cast_once_and_kept():
    spec = small_spec("plain", 2, FEATURES)
    count = parameters(blank_net(spec))
    full, half = (bytes_of(spec, (16, 16), 1, p) for p in ("float32", "bfloat16"))
    # so small a patch costs nothing beside the weights, which are in 16 bits as well
    assert half > full
    assert half - full < 2 * count


def test_sixteen_bits_save_near_half_where_voxels_weigh():
    spec = small_spec("plain", 3, FEATURES)
    full, half = (bytes_of(spec, (64,) * 3, 2, p) for p in ("float32", "float16"))
    assert 0.5 < half / full < 0.65
    assert bytes_of(spec, (64,) * 3, 2, "bfloat16") == half


def test_convolutions_are_linear_in_voxels_and_batch():
    spec = small_spec("plain", 3, FEATURES)
    a, b, c = (bytes_of(spec, (n, 32, 32)) for n in (32, 64, 96))
    assert c - b == pytest.approx(b - a, rel=0.01)
    assert bytes_of(spec, (32,) * 3, 4) == pytest.approx(b, rel=0.01)


def test_recomputing_and_speaking_take_less():
    spec = small_spec("plain", 3, FEATURES)
    again = spec.model_copy(update={"recompute": True})
    patch = (64,) * 3
    assert bytes_of(again, patch) < 0.8 * bytes_of(spec, patch)
    assert inference_bytes(spec, patch, 2, precision="float32") < 0.7 * bytes_of(again, patch)


def test_the_average_and_the_optimisers_state_are_counted():
    spec = small_spec("plain", 2, FEATURES)
    weights = 4 * parameters(blank_net(spec))
    plain = bytes_of(spec, (32, 32), rules="cpu")
    assert bytes_of(spec, (32, 32), rules="cpu", ema_share=0.1) - plain == weights
    more = bytes_of(spec, (32, 32), rules="cpu", optimiser="adamw") - plain
    assert weights <= more < 1.01 * weights + 4096


def test_views_and_work_in_place_count_once_and_death_is_seen():
    with FakeTensorMode(), Storages(512) as storages:
        x = torch.empty(1000)
        y = x.view(10, 100)[2:].add_(1)
        assert storages.live == 4096
        z = x + 1
        del x, y
        assert (storages.live, storages.peak) == (4096, 8192)
        del z
        assert storages.live == 0


def test_gradients_are_summed_in_place_only_by_autograd():
    """As real tensors are: the second term is all that the sum takes."""
    n = 4000

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return grad + grad

    def peak_going_back(make):
        with FakeTensorMode(), Storages() as storages:
            x = torch.empty(n // 4, requires_grad=True)
            value = make(x)
            storages.restart()
            before = storages.live
            go_back(value)
            return storages.peak - before

    def branches(x):
        x = x * 2
        return (x * 3).sum() + (x * 5).sum()

    assert peak_going_back(branches) < 2 * n + 64
    assert peak_going_back(lambda x: Twice.apply(x * 2).mul(3).sum()) >= 2 * n


def test_recomputation_stays_under_the_cards_rules():
    def attend(x):
        return F.scaled_dot_product_attention(x, x, x)

    with CardRules(), FakeTensorMode(), Storages() as storages:
        x = torch.empty(1, 1, 512, 8, requires_grad=True)
        value = checkpoint(attend, x, use_reentrant=False).sum()
        go_back(value)
        assert storages.peak < 4 * 512 * 512


def test_a_loss_may_read_numbers():
    spec = small_spec("plain", 2, FEATURES)

    def loss(logits, labels):
        share = int((labels > 0).sum())
        return logits[0].mean() / max(share, 1)

    def plain_sgd(net: nn.Module):
        return torch.optim.SGD(net.parameters(), lr=0.1)

    peak = training_bytes(spec, (32, 32), 1, precision="float32", loss=loss, optimiser=plain_sgd)
    assert peak > 8 * parameters(blank_net(spec))
