"""The scale of float16 losses: small gradients are multiplied so that float16 holds them.

Micikevicius et al. 2018, arXiv:1710.03740. The scale is found by trying: gradients that overflow
skip a step and halve it, which is normal now and then and fatal where it does not end.
"""

import torch

from autoseg.device import is_card
from autoseg.learn.state import Run
from autoseg.learn.variants import Variant

LEAST_SCALE = 1e-4
"""A smaller scale says that the loss itself explodes (fairseq's --min-loss-scale): from torch's
first scale, 65,536, it takes 30 skipped steps in a row."""


def scaler_for(variant: Variant, device: torch.device) -> torch.amp.GradScaler | None:
    """What scales the losses of steps of a variant; None where no precision needs it."""
    if variant.precision != "float16" or not is_card(device):
        return None
    return torch.amp.GradScaler(device.type)


def scale_losses(run: Run, variant: Variant, device: torch.device) -> None:
    """Give a new run the scaler that its variant needs, if any.

    torch's fused SGD makes its momentum out of memory that nobody wrote to, and leaves it so where
    its very first step is skipped, as float16's usually is: here it begins as zeros, which is what
    a first step that is not skipped amounts to.
    """
    run.scaler = scaler_for(variant, device)
    if run.scaler is None or not isinstance(run.optimiser, torch.optim.SGD):
        return
    for group in run.optimiser.param_groups:
        for weight in group["params"] if group["momentum"] else ():
            run.optimiser.state[weight]["momentum_buffer"] = torch.zeros_like(weight).detach()


def exploded(scaler: torch.amp.GradScaler | None) -> bool:
    """Whether steps are skipped without end. Makes the processor wait for a card."""
    return scaler is not None and scaler.get_scale() < LEAST_SCALE
