"""How long does a step of a network take on this machine? Asked before a run, on random numbers."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from autoseg.device import synchronise
from autoseg.documents.plan import Training
from autoseg.learn.loop import advance
from autoseg.learn.losses import Loss, deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.state import Average, Run
from autoseg.learn.variants import Variant


def trial_step(
    net: nn.Module,
    train: Training,
    shape: Sequence[int],
    classes: int,
    variant: Variant,
    loss: Loss | None = None,
) -> Callable[[], object]:
    """A function that does one step of training on random numbers; `shape` is (C, *patch).

    `loss` is given labels of so many `classes`; without one it is that of classes. The step changes
    the weights of `net`, a network of its own.
    """
    device = next(net.parameters()).device
    run = Run(net, optimiser(train, net))
    if train.ema_share > 0:
        run.average = Average(net, 0.9)
    image = torch.randn(train.batch_size, *shape, device=device)
    labels = torch.randint(0, classes, (train.batch_size, *shape[1:]), device=device)
    deep = deeply(loss or dice_ce(train), train.supervision)

    def step() -> object:
        return advance(
            run, [(image, labels)], loss=deep, lr_at=lambda _: 1e-6, stop=run.step + 1, seed=0,
            variant=variant, clip_norm=train.clip_norm,
        )  # fmt: skip

    return step


def seconds_per_step(
    step: Callable[[], object], variant: Variant, device: torch.device, repeats: int = 3
) -> float:
    """The least time of a step after one to warm up: others' work on the machine only adds."""
    times = []
    with variant.pinned():
        step()
        synchronise(device)
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            synchronise(device)
            times.append(time.perf_counter() - start)
    return min(times)
