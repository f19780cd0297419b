"""Networks without numbers: built in no time, of any size, to be run on shapes alone."""

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from autoseg.documents.networks.family import NetworkSpec
from autoseg.nets.build import build
from autoseg.nets.network import Network

INITIALISERS = {
    "normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_",
    "xavier_normal_", "xavier_uniform_",
}  # fmt: skip


class _WithoutNumbers(TorchFunctionMode):
    """Random numbers are not drawn: for tensors without storage torch would be slow about it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def blank(spec: NetworkSpec, fake: FakeTensorMode) -> Network:
    """The network of a document, whose weights and buffers are fake CPU tensors of a mode."""
    with torch.device("meta"), _WithoutNumbers():
        net = build(spec)
    cpu = torch.device("cpu")
    for module in net.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                learnt = FakeTensor(fake, weight.detach(), cpu)
                module._parameters[name] = nn.Parameter(learnt, weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(fake, buffer, cpu)
    return net
