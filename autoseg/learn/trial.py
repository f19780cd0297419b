"""How long does a step of a network take on this machine? Asked before a run, on random numbers."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from autoseg.device import is_card, synchronise
from autoseg.documents.plan import Training
from autoseg.learn.loop import advance
from autoseg.learn.losses import Loss, deeply, dice_ce
from autoseg.learn.optimisers import optimiser
from autoseg.learn.scaling import scale_losses
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
    the weights of `net`, a network of its own. It holds no more than a step of a training does: on
    a card each step has a batch of its own, which is let go of on the way.
    """
    device = next(net.parameters()).device
    run = Run(net, optimiser(train, net))
    scale_losses(run, variant, device)
    if train.ema_share > 0:
        run.average = Average(net, 0.9)
    deep = deeply(loss or dice_ce(train), train.supervision)

    def batch() -> tuple[Tensor, Tensor]:
        image = torch.randn(train.batch_size, *shape, device=device)
        return image, torch.randint(0, classes, (train.batch_size, *shape[1:]), device=device)

    kept = None if is_card(device) else batch()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield batch() if kept is None else kept

    def step() -> object:
        return advance(
            run, batches(), loss=deep, lr_at=lambda _: 1e-6, stop=run.step + 1, seed=0,
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
