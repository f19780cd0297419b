"""What a network costs before it is run: parameters, multiply-adds, peak bytes of memory.

Nothing is allocated: the network runs on fake CPU tensors, which have shapes alone, and the storages
of a whole training step are counted, under the rules of a card or of the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from autoseg.documents.networks.family import NetworkSpec
from autoseg.nets.cost.blank import blank
from autoseg.nets.cost.cards import GRANULE, CardRules
from autoseg.nets.cost.operations import Operations, scans
from autoseg.nets.cost.storages import Storages, go_back
from autoseg.nets.network import Network
from autoseg.nets.scan import arranged_for

Precision = Literal["float32", "bfloat16", "float16"]
Rules = Literal["cuda", "cpu"]
Loss = Callable[[list[Tensor], Tensor], Tensor]


def parameters(net: nn.Module) -> int:
    """How many numbers are learnt."""
    return sum(p.numel() for p in net.parameters())


def multiply_adds(spec: NetworkSpec, patch_vox: Sequence[int]) -> int:
    """Multiply-adds of one forward pass of one patch while training: heads of all levels too.

    Convolutions, products of matrices, attention and scans count, sums and norms do not. Training
    takes three times as many (forward, and backward to inputs and to weights).
    """
    fake, operations = FakeTensorMode(), Operations()
    net = blank(spec.model_copy(update={"recompute": False}), fake).train()
    with fake, operations:
        logits = net(torch.empty(1, spec.in_channels, *patch_vox))
    return operations.total + scans(logits)


def training_bytes(
    spec: NetworkSpec,
    patch_vox: Sequence[int],
    batch: int,
    *,
    precision: Precision,
    loss: Loss,
    optimiser: Callable[[nn.Module], Optimizer],
    average: bool = False,
    rules: Rules = "cuda",
) -> int:
    """The most bytes of tensors that are alive in a training step, from the second step on.

    Weights, their moving average where there is one, gradients, the optimiser's state, what the
    network and `loss` keep for going back, temporaries, image and labels. `loss` is given the
    logits, finest first, and labels (B, *patch). It is the step of `autoseg.learn.loop`: logits
    and gradients of the step before live until they are replaced. A convolution's workspace, the
    allocator's gaps and the card's context are not tensors and are not counted; nor are clipping
    and a scaler, a few numbers for each weight.
    """
    with _counting(spec, rules) as (net, storages):
        net.train()
        weights = [*net.parameters(), *net.buffers()]
        averaged = [torch.empty_like(w) for w in weights if average]
        made = optimiser(net)
        for weight in net.parameters():
            weight.grad = torch.empty_like(weight)
        made.step()
        storages.restart()
        image = torch.empty(batch, spec.in_channels, *patch_vox)
        labels = torch.empty(batch, *patch_vox, dtype=torch.int64)
        handed = [image]
        if rules == "cuda":  # the loop holds what was sent to the card no longer than it needs it
            del image
        with _autocast(precision):
            logits = net(handed.pop())
        forward = storages.peak + storages.size(logits)
        storages.restart()
        value = loss(logits, labels)
        if rules == "cuda":
            del labels
        made.zero_grad(set_to_none=True)
        go_back(value)
        made.step()
        del averaged
    return max(forward, storages.peak)


def inference_bytes(
    spec: NetworkSpec,
    patch_vox: Sequence[int],
    batch: int,
    *,
    precision: Precision,
    rules: Rules = "cuda",
) -> int:
    """The most bytes of tensors that are alive while a trained network speaks about a batch.

    Weights, image, everything on the way, and the finest logits.
    """
    with _counting(spec, rules) as (net, storages), torch.no_grad(), _autocast(precision):
        net.eval()
        net(torch.empty(batch, spec.in_channels, *patch_vox))
    return storages.peak


@contextmanager
def _counting(spec: NetworkSpec, rules: Rules) -> Iterator[tuple[Network, Storages]]:
    """The network of a document, and the count of storages, that of its weights in it."""
    fake = FakeTensorMode()
    storages = Storages(GRANULE if rules == "cuda" else 1)
    net = blank(spec, fake)
    card = CardRules() if rules == "cuda" else nullcontext()
    with arranged_for(rules), card, fake, storages:
        storages.hold([*net.parameters(), *net.buffers()])
        yield net, storages


def _autocast(precision: Precision) -> AbstractContextManager[object]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast("cpu", getattr(torch, precision))
