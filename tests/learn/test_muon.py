"""Muon: its updates are orthogonal, its other weights follow AdamW exactly."""

import pytest
import torch
from torch import nn

from autoseg.documents.plan import Training
from autoseg.learn.muon import Muon, orthogonalised
from autoseg.learn.optimisers import optimiser


@pytest.mark.parametrize("shape", [(8, 216), (64, 27), (16, 16)])
def test_an_update_keeps_its_singular_vectors_and_has_values_about_one(shape):
    torch.manual_seed(0)
    update = torch.randn(shape)
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    made = orthogonalised(update)
    turned = u.T @ made @ v.T
    values = turned.diagonal()
    assert values.min() > 0.3
    assert values.max() < 1.3
    torch.testing.assert_close(turned, torch.diag(values), atol=2e-3, rtol=0)


def step_by_step(update: torch.Tensor) -> torch.Tensor:
    """Jordan's iteration as it is written, in float64."""
    x = update.double() / update.double().norm()
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(8, 216), (96, 640), (64, 64), (64, 27)])
@pytest.mark.parametrize("noise", [1.0, 1e-3, 0.0])
def test_it_is_the_iteration_as_it_is_written(shape, noise):
    torch.manual_seed(0)
    few = torch.randn(shape[0], 3) @ torch.randn(3, shape[1])  # gradients are of a low rank
    update = 1e-4 * (few + noise * torch.randn(shape))
    made, want = orthogonalised(update), step_by_step(update)
    assert torch.isfinite(made).all()
    assert (made - want).norm() < 2e-3 * want.norm()


def test_weights_that_are_no_hidden_convolution_follow_adamw():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    twin = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    twin.load_state_dict(net.state_dict())
    mine = Muon([], net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.02)
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in twin.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99))
    for _ in range(5):
        x = torch.randn(6, 4)
        for model, opt in ((net, mine), (twin, theirs)):
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_which_weights_are_hidden_convolutions():
    net = nn.Sequential(
        nn.Conv3d(1, 8, 3),
        nn.Conv3d(8, 16, (1, 3, 3)),
        nn.ConvTranspose3d(16, 8, 2),
        nn.Conv3d(8, 2, 1),
    )
    train = Training(
        steps=1, batch_size=1, optimiser="muon", lr=0.02, momentum=0.95, supervision=(1.0,)
    )
    made = optimiser(train, net)
    hidden = [p for g in made.param_groups if g["orthogonal"] for p in g["params"]]
    assert [tuple(p.shape) for p in hidden] == [(16, 8, 1, 3, 3)]
    assert sum(len(g["params"]) for g in made.param_groups) == 8
