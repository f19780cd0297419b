"""Muon: momentum whose updates are orthogonalised, for the convolutions between hidden channels.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon). The update of a weight, seen as a matrix
(out, in * kernel), is replaced by the nearest matrix whose singular values are all about 1, found
by a Newton-Schulz iteration. All other weights are updated by AdamW.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan et al.: fast, with singular values that end between 0.7 and 1.2."""
ITERATIONS = 5


def is_free(weight: Tensor) -> bool:
    """Whether a weight may decay at all: a network marks those, as a state space's rates, that never do."""
    return not getattr(weight, "no_decay", False)


def decays(weight: Tensor) -> bool:
    """Whether a weight decays: norms and biases do not, nor what is not free to."""
    return weight.ndim > 1 and is_free(weight)


def orthogonalised(update: Tensor) -> Tensor:
    """The matrix (rows, columns) with the same singular vectors and singular values about 1.

    Each iteration multiplies X by a polynomial of X X', and so do all of them together: they are
    done on the small square matrix alone, and X is multiplied once (4x faster for wide kernels).
    """
    wide: Tensor = update.T if update.shape[0] > update.shape[1] else update
    x: Tensor = wide / (wide.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    gram = x @ x.T
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if iteration + 1 < ITERATIONS:
            gram = factor @ gram @ factor
    assert product is not None
    x = product @ x
    return x.T if update.shape[0] > update.shape[1] else x


class Muon(Optimizer):
    """Muon for `hidden`, AdamW for `others` at `lr * others_share`; norms and biases do not decay.

    `lr` is Muon's, the spectral size of an update.
    """

    def __init__(
        self,
        hidden: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        others_share: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        rest = list(others)
        groups: list[dict[str, Any]] = [
            {"params": list(hidden), "orthogonal": True, "weight_decay": weight_decay},
            {
                "params": [p for p in rest if decays(p)],
                "orthogonal": False,
                "weight_decay": weight_decay,
            },
            {
                "params": [p for p in rest if not decays(p)],
                "orthogonal": False,
                "weight_decay": 0.0,
            },
        ]
        defaults = {
            "lr": lr, "momentum": momentum, "others_share": others_share, "betas": betas,
        }  # fmt: skip
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all weights from their gradients. Takes no closure."""
        assert closure is None
        for group in self.param_groups:
            update = self._muon if group["orthogonal"] else self._adamw
            for weight in group["params"]:
                if weight.grad is not None:
                    update(weight, weight.grad, group)

    def _muon(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"].mul_(group["momentum"]).add_(grad)
        nesterov = grad + group["momentum"] * mean
        matrix = orthogonalised(nesterov.flatten(1).float())
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(matrix.view(nesterov.shape).to(weight.dtype), alpha=-group["lr"] * scale)

    def _adamw(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = (
                torch.zeros_like(weight),
                torch.zeros_like(weight),
            )
            state["updates"] = 0
        state["updates"] += 1
        first, second = group["betas"]
        lr = group["lr"] * group["others_share"]
        mean = state["exp_avg"].lerp_(grad, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
        shrink_first = 1 - first ** state["updates"]
        shrink_second = 1 - second ** state["updates"]
        weight.mul_(1 - lr * group["weight_decay"])
        scale = (square / shrink_second).sqrt_().add_(1e-8)
        weight.addcdiv_(mean, scale, value=-lr / shrink_first)
