"""The contract of every network: what it maps to what, and what it says of its outputs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoseg.documents.networks.network import Network as Document


class Network(nn.Module):
    """image (B, C, *S) -> logits [(B, K, *S), (B, K, *S / stride), …], finest first.

    When training, one tensor for each of `supervision_strides`; in evaluation the finest alone.
    S must be a multiple of the document's divisor.
    """

    supervision_strides: tuple[tuple[int, ...], ...]
    """The grid of each output as a fraction of the image's; known without running anything."""
    supervision_weights: tuple[float, ...]
    """What each output counts in the loss, as the network's authors had it; they sum to 1."""

    def __init__(self, spec: Document) -> None:
        super().__init__()
        self.supervision_strides = spec.output_strides
        self.supervision_weights = spec.output_weights
        self.recompute = spec.recompute

    def run(self, part: nn.Module, *inputs: Tensor) -> Any:
        """The part's output; where the document says so, its inside is computed again going back.

        Chen et al. 2016, arXiv:1604.06174.
        """
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)
