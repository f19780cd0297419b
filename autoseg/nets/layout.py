"""Memory layout on the CPU: which tensors have their channels lying together, and layers for them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def memory_format(x: Tensor) -> torch.memory_format:
    """The channels-last format for the number of axes of `x` (B, C, *S)."""
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def is_fast_channels_last(x: Tensor) -> bool:
    """Whether `x` is a float32 CPU tensor whose channels lie together, and are more than one.

    False while a network is compiled or exported, so that graphs hold the standard layers.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.is_contiguous():
        return False
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return False
    return x.is_contiguous(memory_format=memory_format(x))


def _pointwise(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A 1x1 convolution as one matrix product over the channels of the voxels that it steps on.

    With a step this is also a way around torch 2.13, whose own backward of a strided 1x1 convolution
    of 8 channels writes beyond its memory when channels lie together.
    """
    if max(layer.stride) > 1:
        x = x[(slice(None), slice(None), *(slice(None, None, s) for s in layer.stride))]
    return F.linear(x.movedim(1, -1), layer.weight.flatten(1), layer.bias).movedim(-1, 1)


class Pointwise2d(nn.Conv2d):
    """A 1x1 convolution; channels-last on the CPU it is a matrix product, which is faster."""

    def forward(self, input: Tensor) -> Tensor:
        return _pointwise(self, input) if is_fast_channels_last(input) else super().forward(input)


class Pointwise3d(nn.Conv3d):
    """The same in 3D, for which torch's own CPU convolution copies to contiguous and back."""

    def forward(self, input: Tensor) -> Tensor:
        return _pointwise(self, input) if is_fast_channels_last(input) else super().forward(input)
