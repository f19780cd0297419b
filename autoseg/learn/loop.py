"""The training loop: it is handed functions and batches, and knows no dataset and no network.

A step depends on the weights, its batch and (seed, step) alone, so that a run that was killed and
goes on from its saved state ends with the same weights, bit for bit.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from autoseg.errors import TrainingDiverged
from autoseg.learn.losses import DeepLoss
from autoseg.learn.optimisers import align
from autoseg.learn.state import Run
from autoseg.learn.variants import Variant
from autoseg.timing import part

Forward = Callable[[Tensor], Sequence[Tensor]]

CHECK_EVERY_ON_CARD = 25
"""Reading a loss makes the processor wait for the card."""


def advance(
    run: Run,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    loss: DeepLoss,
    lr_at: Callable[[int], float],
    stop: int,
    seed: int,
    variant: Variant,
    clip_norm: float | None = None,
    on_step: Callable[[Run, Tensor], bool] | None = None,
    forward: Forward | None = None,
) -> Run:
    """Advance `run` from run.step to step `stop`; `batches` begins with that of run.step.

    `on_step` is told the run and the loss of each step, a tensor on the network's device; where it
    returns False the loop ends after that step. It may save, validate and log. `forward` computes
    what run.net does, on its weights and compiled, say. Raises TrainingDiverged where the loss or
    the gradient is no longer a number: on a CPU before the weights are touched, on a card within
    CHECK_EVERY_ON_CARD steps.
    """
    device = next(run.net.parameters()).device
    unread: list[tuple[int, float, Tensor]] = []
    variant.arrange(run.net)
    if run.average is not None:
        variant.arrange(run.average.net)
    align(run.optimiser)
    stream = iter(batches)
    with variant.pinned():
        for step in range(run.step, stop):
            with part("step"):
                with part("loading"):
                    batch = next(stream, None)
                if batch is None:
                    break
                lr = lr_at(step)
                for group in run.optimiser.param_groups:
                    group["lr"] = lr
                torch.manual_seed(step_seed(seed, step))
                logits = _logits_of(run, batch[0], variant, device, forward or run.net)
                with part("loss"):
                    value = loss(logits, batch[1].to(device, non_blocking=True))
                unread.append((step, lr, _differentiate(run, value, clip_norm)))
                if device.type == "cpu" or len(unread) == CHECK_EVERY_ON_CARD or step + 1 == stop:
                    _check(unread)
                _update(run)
                run.step = step + 1
            if on_step is not None and not on_step(run, value.detach()):
                break
        _check(unread)
    return run


def _logits_of(
    run: Run, image: Tensor, variant: Variant, device: torch.device, forward: Forward
) -> Sequence[Tensor]:
    """What the network says of one batch's images, going forwards."""
    run.net.train()
    with part("transfer"):
        # handed on, so that a network can let go of it
        handed = [variant.arranged(image.to(device, non_blocking=True))]
    with part("forward"), variant.autocast(device.type):
        return forward(handed.pop())


def _differentiate(run: Run, value: Tensor, clip_norm: float | None) -> Tensor:
    """Fill and clip the gradients; a number that is finite where the loss and they are."""
    run.optimiser.zero_grad(set_to_none=True)
    with part("backward"):
        if run.scaler is not None:
            run.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            run.scaler.unscale_(run.optimiser)
        else:
            value.backward()  # type: ignore[no-untyped-call]
    with part("gradient norm"):
        if clip_norm is not None:
            norm = clip_grad_norm_(run.net.parameters(), clip_norm)
        else:
            norm = get_total_norm(p.grad for p in run.net.parameters() if p.grad is not None)
    # the scaler's way to find its scale is to meet infinite gradients now and then
    return value.detach() if run.scaler is not None else value.detach() + 0 * norm


def _update(run: Run) -> None:
    with part("optimiser"):
        if run.scaler is not None:
            run.scaler.step(run.optimiser)
            run.scaler.update()
        else:
            run.optimiser.step()
    if run.average is not None:
        with part("average"):
            run.average.update(run.net)


def _check(unread: list[tuple[int, float, Tensor]]) -> None:
    """Read the losses that were not read yet. Raises TrainingDiverged for the first bad one."""
    if not unread:
        return
    values = torch.stack([value for _, _, value in unread]).tolist()
    for (step, lr, _), value in zip(unread, values, strict=True):
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss is {value} at step {step} (learning rate {lr:.2g}); train again under "
                "another name with a smaller lr, or look for broken intensities in the data"
            )
    unread.clear()


def step_seed(seed: int, step: int) -> int:
    """The seed of dropout at one step: neighbouring seeds and steps have nothing in common."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
