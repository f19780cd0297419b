"""What every network must keep to, whatever its family: used by the tests of words and families."""

from math import prod

import torch

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.networks.sentence import DecoderLevel, Level, Part, UNetSpec
from autoseg.documents.networks.word import Word
from autoseg.nets.build import build
from autoseg.nets.network import Network

STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 1)]
KERNELS = [(1, 3, 3), (3, 3, 3), (3, 3, 3)]


def part(unit: str | dict, *wraps: str | dict) -> Part:
    """A part from words or documents of words."""
    return Part.model_validate({"unit": unit, "wraps": wraps})


def sentence(dimensions: int, said: Part, widths=(4, 6, 8), **words) -> UNetSpec:
    """Three levels with flat kernels and uneven strides, one part everywhere."""
    cut = slice(3 - dimensions, None)
    levels = [
        Level(part=said, depth=d, kernel=k[cut], width=w, stride=s[cut])
        for d, k, w, s in zip((1, 2, 2), KERNELS, widths, STRIDES, strict=True)
    ]
    decoder = tuple(DecoderLevel(part=said, depth=1, kernel=k[cut]) for k in KERNELS[:2])
    return UNetSpec(
        preset="plain", in_channels=2, classes=3, encoder=levels[:2], bottleneck=levels[2],
        decoder=decoder, **words,
    )  # fmt: skip


def check_contract(
    spec: NetworkSpec, size: tuple[int, ...] | None = None, batch: int = 2
) -> Network:
    """The network of `spec`, after its contract was checked on a random image.

    Shapes of all outputs, their static strides and weights, a finite gradient in every parameter,
    nothing registered twice, the finest output alone in evaluation.
    """
    torch.manual_seed(0)
    net = build(spec).train()
    size = size or (8, 16, 16)[3 - spec.dimensions :]
    outputs = net(torch.randn(batch, spec.in_channels, *size))
    assert net.supervision_strides == spec.output_strides
    assert net.supervision_weights == spec.output_weights
    assert len(spec.output_weights) == len(spec.output_strides)
    assert abs(sum(spec.output_weights) - 1) < 1e-9
    assert all(s >= f for s, f in zip(map(prod, spec.output_strides[1:]),
                                      map(prod, spec.output_strides), strict=False))  # fmt: skip
    grids = [tuple(n // s for n, s in zip(size, by, strict=True)) for by in net.supervision_strides]
    assert [tuple(o.shape) for o in outputs] == [(batch, spec.classes, *grid) for grid in grids]
    sum(o.square().mean() for o in outputs).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    # nothing is registered under two names
    assert len(list(net.named_parameters(remove_duplicate=False))) == len(list(net.parameters()))
    net.eval()
    with torch.no_grad():
        only = net(torch.randn(1, spec.in_channels, *size))
    assert [tuple(o.shape) for o in only] == [(1, spec.classes, *size)]
    return net


def check_recompute(spec: NetworkSpec, size: tuple[int, ...]) -> None:
    """With `recompute` outputs and gradients stay what they were."""
    x = torch.randn(2, spec.in_channels, *size)
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = build(spec.model_copy(update={"recompute": recompute})).train()
        torch.manual_seed(1)
        outputs = net(x)
        sum(o.square().mean() for o in outputs).backward()
        found.append((outputs, [p.grad for p in net.parameters()]))
    for a, b in zip(*(list(o) + list(g) for o, g in found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def worded(name: str, **settings) -> Word:
    return Word.model_validate({"word": name, **settings})
