"""How sure the networks are: a map a voxel, and one number a case.

The entropy of the mean prediction of networks trained apart (Lakshminarayanan et al. 2017, arXiv
1612.01474) says how far it is from a clear answer; the variance between them, how much they disagree.
The entropy averaged over a segmented structure falls as its Dice rises, so that it ranks cases by
how likely they need a look (Mehrtash et al. 2020, IEEE TMI 39:3868, arXiv 1911.13273).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE = 0.1
"""Background of no more entropy is certain: another class has below 1.3 % of two, or 9 % of twenty."""


def entropy(probabilities: Tensor, *, regional: bool) -> Tensor:
    """The entropy (Z, Y, X) of probabilities (K, Z, Y, X), 0 where certain, 1 where all are equal.

    Softmax: -sum(p log p) / log K. Regions: the mean over regions of that of each and its complement.
    """
    share: Tensor = torch.special.entr(probabilities)
    if regional:
        share = (share + torch.special.entr(1 - probabilities)).mean(0) / math.log(2)
    else:
        share = share.sum(0) / math.log(len(probabilities))
    return share.clamp_(0, 1)


def fold_variance(probabilities: Tensor) -> Tensor:
    """The variance between networks (Z, Y, X) of what each says (F, K, Z, Y, X), mean over outputs.

    It is that of these F, not an estimate for more: 0 for one network, and never above 1/4.
    """
    return probabilities.var(0, correction=0).mean(0)


@dataclass
class Score:
    """One number a case in [0, 1], higher is less sure; it grows chunk by chunk.

    The mean entropy of the voxels that are segmented as some structure, and of the background that
    is not certain (its entropy is above NEGLIGIBLE), where a structure may have been missed. The
    certain background is left out: how much of it a scan shows says nothing.
    """

    total: float = 0.0
    voxels: int = 0

    def add(self, entropy: Tensor, classes: Tensor) -> None:
        """Count a chunk: its entropy and its class indices, both (Z, Y, X)."""
        counted = entropy[(classes > 0) | (entropy > NEGLIGIBLE)]
        self.total += float(counted.sum(dtype=torch.float64))
        self.voxels += counted.numel()

    @property
    def value(self) -> float:
        """The mean so far; 0 where everything is certain background."""
        return self.total / self.voxels if self.voxels else 0.0
