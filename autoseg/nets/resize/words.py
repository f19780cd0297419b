"""The vocabularies of Down and Up, built as resize(kit, cin, cout, stride), settings as keywords.

A Down maps (B, cin, *S) to (B, cout, *S / stride) and takes the place of the first unit of its
level; an Up maps (B, cin, *S) to (B, cout, *S * stride).
"""

from collections.abc import Callable

from torch import nn

from autoseg.nets.resize import mednext, merging, plain, preactivated

Resize = Callable[..., nn.Module]

DOWNS: dict[str, Resize] = {
    "strided": plain.strided,
    "pooled": plain.pooled,
    "mean_pooled": plain.mean_pooled,
    "pooled_residual": plain.pooled_residual,
    "residual": plain.residual,
    "merging": merging.merging,
    "mednext": mednext.down,
    "bare": preactivated.bare,
}

UPS: dict[str, Resize] = {
    "transposed": plain.transposed,
    "linear": plain.linear,
    "nearest": plain.nearest,
    "expanding": merging.expanding,
    "mednext": mednext.up,
}
