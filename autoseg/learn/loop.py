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

from autoseg.device import is_card
from autoseg.errors import TrainingDiverged
from autoseg.learn.losses import DeepLoss
from autoseg.learn.optimisers import align
from autoseg.learn.scaling import LEAST_SCALE, exploded
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

    `on_step` is told the run and the loss of each step, a tensor on the network's device that is
    finite where the loss and the gradients are; where it returns False the loop ends after that
    step. It may save, validate and log. `forward` computes what run.net does, on its weights and
    compiled, say. Raises TrainingDiverged where the loss or the gradient is no longer a number: on a
    CPU before the weights are touched, on a card within CHECK_EVERY_ON_CARD steps. Gradients of
    float16 that overflow now and then skip their step; where that does not end it is raised too.
    """
    device = next(run.net.parameters()).device
    check_every = CHECK_EVERY_ON_CARD if is_card(device) else 1
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
                image, labels = batch
                handed = [image]
                # a batch that lies on a card is held no longer than the network needs it
                del batch, image
                lr = lr_at(step)
                for group in run.optimiser.param_groups:
                    group["lr"] = lr
                torch.manual_seed(step_seed(seed, step))
                logits = _logits_of(run, handed, variant, device, forward or run.net)
                with part("loss"):
                    value = loss(logits, labels.to(device, non_blocking=True))
                del labels
                value = _differentiate(run, value, clip_norm)
                unread.append((step, lr, value))
                if len(unread) == check_every or step + 1 == stop:
                    _check(run, unread)
                _update(run)
                run.step = step + 1
            if on_step is not None and not on_step(run, value):
                break
        _check(run, unread)
    return run


def _logits_of(
    run: Run, handed: list[Tensor], variant: Variant, device: torch.device, forward: Forward
) -> Sequence[Tensor]:
    """What the network says of the one batch of images in `handed`, which it can let go of."""
    run.net.train()
    with part("transfer"):
        handed.append(variant.arranged(handed.pop().to(device, non_blocking=True)))
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


def _check(run: Run, unread: list[tuple[int, float, Tensor]]) -> None:
    """Read the losses that were not read yet. Raises TrainingDiverged for the first bad one."""
    if not unread:
        return
    values = torch.stack([value for _, _, value in unread]).tolist()
    for (step, lr, _), value in zip(unread, values, strict=True):
        if not math.isfinite(value):
            raise diverged(step, lr, f"the loss is {value}")
    if exploded(run.scaler):
        step, lr, _ = unread[-1]
        raise diverged(
            step, lr,
            f"gradients overflow float16 at every step (the loss is scaled by less than {LEAST_SCALE:g})",
        )  # fmt: skip
    unread.clear()


def diverged(step: int, lr: float, what: str) -> TrainingDiverged:
    """The error of a run that cannot go on, with what happened at a step."""
    return TrainingDiverged(
        f"{what} at step {step} (learning rate {lr:.2g}); train again under "
        "another name with a smaller lr, or look for broken intensities in the data"
    )


def weights_finite(run: Run) -> bool:
    """Whether all weights are numbers; waits for a card."""
    norm = get_total_norm([p.detach() for p in run.net.parameters()])
    return bool(torch.isfinite(norm))


def step_seed(seed: int, step: int) -> int:
    """The seed of dropout at one step: neighbouring seeds and steps have nothing in common."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
