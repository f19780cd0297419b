"""Instance norm, with the activation after it, in an arrangement that is fast on the CPU as well.

Torch's own instance norm copies a channels-last tensor to contiguous and back. Here each sample of
a float32 channels-last tensor on the CPU goes through the batch norm kernels instead, which know the
layout: over one sample they compute the same thing.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from autoseg.nets.layout import is_fast_channels_last, memory_format


class InstanceNorm(nn.Module):
    """Each channel of each sample to mean 0 and variance 1, then scale and shift, then activation.

    `slope` is that of a leaky rectifier (0: a plain one); None: no activation. Weights and result
    are those of torch's affine instance norm without running statistics.
    """

    def __init__(self, channels: int, eps: float, slope: float | None = None) -> None:
        super().__init__()
        self.eps, self.slope = eps, slope
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, slope={self.slope}"

    def forward(self, x: Tensor) -> Tensor:
        if is_fast_channels_last(x) and x[0, 0].numel() > 1:
            out: Tensor = ChannelsLastNorm.apply(x, self.weight, self.bias, self.eps, self.slope)  # type: ignore[no-untyped-call]
            return out
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            y = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
            return y if self.slope is None else F.leaky_relu(y, self.slope)
        return self._in_one_row(x)

    def _in_one_row(self, x: Tensor) -> Tensor:
        """As torch's instance norm does it inside, a batch norm of the samples' channels in a row.

        Torch's own gives a view, on which a rectifier in place costs copies going back: a fifth of
        the memory of a plain U-Net's step.
        """
        size = x.shape
        row = x.reshape(1, size[0] * size[1], *size[2:])
        weight, bias = self.weight.repeat(size[0]), self.bias.repeat(size[0])
        y = F.batch_norm(row, None, None, weight, bias, training=True, eps=self.eps)
        if self.slope is not None:
            y = F.leaky_relu_(y, self.slope)
        return y.view(size)


class ChannelsLastNorm(torch.autograd.Function):
    """Instance norm and leaky rectifier of a channels-last tensor; saves its input and output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float | None
    ) -> Tensor:
        y = torch.empty_like(x)
        mean, scale = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
        for i in range(len(x)):
            one = slice(i, i + 1)
            torch.ops.aten.native_batch_norm.out(
                x[one], weight, bias, None, None, True, 0.0, eps,
                out=y[one], save_mean=mean[i], save_invstd=scale[i],
            )  # fmt: skip
            if slope is not None:
                F.leaky_relu_(y[one], slope)
        ctx.save_for_backward(x, weight, mean, scale, y if slope is not None else None)
        ctx.slope, ctx.eps = slope, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format(x))
        to_x = torch.empty_like(x)
        for_weight, for_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        part_weight, part_bias = torch.empty_like(weight), torch.empty_like(weight)
        for i in range(len(x)):
            one = slice(i, i + 1)
            g = grad[one]
            if y is not None:
                g = torch.ops.aten.leaky_relu_backward(g, y[one], ctx.slope, True)
            torch.ops.aten.native_batch_norm_backward.out(
                g, x[one], weight, None, None, mean[i], scale[i], True, ctx.eps, [True] * 3,
                out0=to_x[one], out1=part_weight, out2=part_bias,
            )  # fmt: skip
            for_weight += part_weight
            for_bias += part_bias
        return to_x, for_weight, for_bias, None, None
