"""What the optimisers leave alone: weights that a network marks, whatever the optimiser."""

import pytest
import torch
from torch import nn

from autoseg.documents.plan import Training
from autoseg.learn.optimisers import OPTIMISERS, optimiser


@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_a_network_marks_never_decays(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[0].weight.no_decay = True
    before = [p.detach().clone() for p in net.parameters()]
    recipe = Training(
        steps=1, batch_size=1, supervision=(1.0,), optimiser=name, lr=0.1, weight_decay=0.5
    )
    made = optimiser(recipe, net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    made.step()
    assert torch.equal(net[0].weight, before[0])
    assert (net[1].weight.abs() < before[1].abs()).all()
