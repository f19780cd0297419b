"""The vocabularies of Down and Up, built as resize(kit, cin, cout, stride), settings as keywords.

A Down maps (B, cin, *S) to (B, cout, *S / stride) and takes the place of the first unit of its
level; an Up maps (B, cin, *S) to (B, cout, *S * stride).
"""

from collections.abc import Callable

from torch import nn

from autoseg.nets.resize import plain

Resize = Callable[..., nn.Module]

DOWNS: dict[str, Resize] = {
    "strided": plain.strided,
    "pooled": plain.pooled,
    "residual": plain.residual,
}

UPS: dict[str, Resize] = {
    "transposed": plain.transposed,
    "linear": plain.linear,
}
