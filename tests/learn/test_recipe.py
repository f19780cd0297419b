"""Optimisers and schedules."""

import pytest
import torch
from torch import nn

from autoseg.learn.optimisers import optimiser
from autoseg.learn.pace import Pace, paced_rate
from autoseg.learn.schedules import constant, cosine, poly, warmed


def test_poly_is_nnunets_at_the_start_of_every_epoch():
    for epoch in (0, 1, 10, 499, 999):
        want = 1e-2 * (1 - epoch / 1000) ** 0.9
        assert 1e-2 * poly(epoch * 250, 250_000) == pytest.approx(want, rel=1e-12)
    assert poly(250_000, 250_000) == 0


def test_cosine_and_warmup():
    assert [cosine(s, 8) for s in (0, 4, 8)] == pytest.approx([1, 0.5, 0])
    rising = warmed(constant, 4)
    assert [rising(s, 10) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    later = warmed(poly, 4)
    assert later(4, 10) == 1
    assert later(7, 10) == pytest.approx(0.5**0.9)


def test_the_rate_of_a_plan(recipe):
    lr_at = paced_rate(
        recipe.model_copy(update={"lr": 0.5, "warmup_share": 2 / recipe.steps}), Pace(recipe.steps)
    )
    assert lr_at(0) == 0.25
    assert lr_at(7) == pytest.approx(0.5 * 0.5**0.9)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    net(torch.randn(2, 1, 8, 8)).square().mean().backward()
    return net


def test_sgd_follows_nesterovs_formula_and_decays_all(recipe):
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    steps = [p.grad.clone() for p in net.parameters()]
    made = optimiser(recipe.model_copy(update={"weight_decay": 0.1}), net)
    made.step()
    for p, old, grad in zip(net.parameters(), before, steps, strict=True):
        full = grad + 0.1 * old
        assert torch.allclose(p, old - 0.01 * (full + 0.99 * full), atol=1e-7)


def test_adamw_spares_norms_and_biases(recipe):
    net = network()
    made = optimiser(
        recipe.model_copy(update={"optimiser": "adamw", "weight_decay": 0.5, "momentum": 0.9}), net
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)  # then only decay moves a weight
    made.step()
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"0.weight"}
    assert torch.allclose(net[0].weight, before["0.weight"] * (1 - 0.01 * 0.5))
    assert made.param_groups[0]["betas"] == (0.9, 0.999)
