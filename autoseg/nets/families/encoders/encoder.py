"""What every encoder is: features of an image at each of its reductions, and the layers all share.

The state dict of an encoder has torchvision's names, so that weight files load by name
(`nets.weights`). A published encoder halves its grid five times; here each reduction takes the step
that the plan has for it, which may be uneven (1, 2, 2), and reductions beyond the plan's last level
leave the grid alone, so that an encoder fits small images as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from autoseg.nets.kit import Kit

REDUCTIONS = 5

Grid = tuple[int, ...]
Steps = Sequence[Sequence[int]]
Run = Callable[..., Any]


class Encoder(nn.Module):
    """image (B, C, *S) -> features [(B, widths[i], *S / strides[i]), …], finest first.

    `strides` counts from the image. `first` is the reduction that the first feature stands after:
    0 for an encoder with features on the image's own grid, else 1.
    """

    widths: tuple[int, ...]
    strides: tuple[Grid, ...]
    first: int

    def parts(self) -> list[nn.Module]:
        """What makes each feature from the one before, the first from the image."""
        raise NotImplementedError

    def forward(self, x: Tensor, run: Run | None = None) -> list[Tensor]:
        """`run(part, x)` is how a part is called: `Network.run` where it may be recomputed."""
        kept: list[Tensor] = []
        for part in self.parts():
            x = part(x) if run is None else run(part, x)
            kept.append(x)
        return kept


def reductions(steps: Steps, count: int = REDUCTIONS) -> tuple[Grid, ...]:
    """The step of each of `count` reductions, from the steps of a plan's levels, finest first.

    Ones where the plan has no more levels. Raises ValueError where it has more than that.
    """
    if not 1 <= len(steps) <= count + 1:
        raise ValueError(f"an encoder of {count} reductions has no {len(steps)} levels")
    found = [tuple(step) for step in steps[1:]]
    return tuple(found + [(1,) * len(steps[0])] * (count - len(found)))


def sized(kit: Kit, kernels: Steps, level: int, published: int) -> Grid:
    """A published kernel at a level (the deepest there is); 1 on axes where the plan's is 1."""
    own = kernels[min(level, len(kernels) - 1)]
    return tuple(1 if k == 1 else published for k in kit.each(own))


def norm_act(kit: Kit, channels: int, eps: float | None = None) -> tuple[nn.Module, nn.Module]:
    """The norm and the activation as two modules, the names of which are the publishers'.

    Where one module does both, the second does nothing.
    """
    if kit.norm_name == "instance":
        both = kit.norm_act(channels)
        if not isinstance(both, nn.Sequential):
            return both, nn.Identity()
    return norm(kit, channels, eps), kit.act()


def norm(kit: Kit, channels: int, eps: float | None = None) -> nn.Module:
    """The kit's norm, with the epsilon that the weights were trained with."""
    made: Any = kit.norm(channels)
    if eps is not None and hasattr(made, "eps"):
        made.eps = eps
    layer: nn.Module = made
    return layer
