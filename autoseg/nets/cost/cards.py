"""What a CUDA card does otherwise than the CPU, for networks that are run on fake CPU tensors.

Which numbers autocast makes of which, and what fused attention and dropout keep. Kernels decide no
more here than the sizes of the tensors that they keep and return.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

GRANULE = 512
"""CUDA's caching allocator rounds every block up to a multiple of so many bytes
(`kMinBlockSize` in torch's c10/cuda/CUDACachingAllocator)."""

FLOAT32 = {
    "__pow__", "__rdiv__", "__rpow__", "__rtruediv__", "acos", "asin", "cdist", "cosh",
    "cosine_similarity", "dist", "erfinv", "exp", "expm1", "group_norm", "huber_loss",
    "interpolate", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2",
    "logsumexp", "mse_loss", "nll_loss", "norm", "normalize", "pdist", "pow", "reciprocal",
    "renorm", "rms_norm", "rsqrt", "sinh", "smooth_l1_loss", "softplus", "square", "tan",
    "upsample", "upsample_bilinear", "upsample_nearest",
}  # fmt: skip
"""Functions whose inputs autocast turns into float32 on a card (torch's documentation, "CUDA Ops
that can autocast to float32"; ATen/autocast_mode.h, AT_FORALL_FP32). With those that are made of
them: `square`, `normalize`, `interpolate`."""

FLOAT32_RESULT = {
    "cumprod", "cumsum", "log_softmax", "prod", "softmax", "softmin", "sum",
}  # fmt: skip
"""Functions that are told to compute in float32 (the same, AT_FORALL_FP32_SET_OPT_DTYPE)."""

WIDEST = {
    "addcdiv", "addcmul", "bilinear", "grid_sample", "grid_sampler", "scatter_add", "tensordot",
}  # fmt: skip
"""Functions whose inputs become those of the widest type among them (the same, "autocast to the
widest input type")."""

AS_GIVEN = {
    "adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d", "max_pool3d",
    "max_pool3d_with_indices", "max_unpool2d", "max_unpool3d", "pad", "trace",
}  # fmt: skip
"""Functions that the CPU's autocast turns into float32 and a card's leaves alone. What is cast to
16 bits (convolutions and products of matrices) is the same for both."""

IS_CUDA = Tensor.is_cuda.__get__  # type: ignore[attr-defined]
CHANNELS_LAST = {torch.channels_last, torch.channels_last_3d}


class CardRules(TorchFunctionMode):
    """While it is entered, the CPU's autocast casts what CUDA's does, and attention is fused.

    Networks that ask find themselves on a card, and no tensor channels last, since the ways that
    they have for such tensors are the CPU's.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func == IS_CUDA:
            return True
        if name == "is_contiguous" and kwargs.get("memory_format") in CHANNELS_LAST:
            return False
        if name == "scaled_dot_product_attention":
            return _attention(func, *args, **kwargs)
        if name == "dropout":
            return _dropout(*args, **kwargs)
        if not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        if name in FLOAT32 or (name in WIDEST and _mixed(args)):
            args, kwargs = _cast(args, torch.float32), _cast(kwargs, torch.float32)
        elif name in FLOAT32_RESULT:
            if kwargs.get("dtype") is None and _is_float(args[0] if args else kwargs["input"]):
                kwargs = {**kwargs, "dtype": torch.float32}
        elif name not in AS_GIVEN and name not in WIDEST:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs)


def _is_float(value: Any) -> bool:
    """Whether it is a tensor that autocast would cast."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """`value`, or what it holds, with every tensor of floats turned into `dtype`."""
    if isinstance(value, (tuple, list)):
        return type(value)(_cast(v, dtype) for v in value)
    if isinstance(value, dict):
        return {key: _cast(v, dtype) for key, v in value.items()}
    return value.to(dtype) if _is_float(value) else value


def _mixed(args: tuple[Any, ...]) -> bool:
    return len({a.dtype for a in args if _is_float(a)}) > 1


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """A card keeps one byte for each number where the CPU keeps a number."""
    if inplace or not training or p == 0:
        return torch.dropout_(input, p, training) if inplace else torch.dropout(input, p, training)
    out, _ = torch.native_dropout(input, p, True)
    return out


def _attention(
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value, attn_mask = _cast([query, key, value, attn_mask], dtype)
    if _fuses(query, key, value, attn_mask) and not settings.get("enable_gqa"):
        out: Tensor = FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
        return out
    with torch.autocast("cpu", enabled=False), sdpa_kernel(SDPBackend.MATH):
        plain: Tensor = func(query, key, value, attn_mask, dropout_p, is_causal, **settings)
    return plain


def _fuses(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether one of CUDA's fused kernels takes these (ATen/native/transformers/cuda/sdp_utils).

    They want (B, heads, L, E) in at most 32 bits. The flash kernel, for 16 bits without a mask,
    pads E itself up to 256; the memory-efficient one wants multiples of 16 bytes.
    """
    if query.ndim != 4 or query.dtype == torch.float64:
        return False
    sixteen = query.element_size() == 2
    if sixteen and mask is None and query.shape[-1] == value.shape[-1] <= 256:
        return True
    multiple = 8 if sixteen else 4
    return all(t.shape[-1] % multiple == 0 for t in (query, key, value))


class FusedAttention(torch.autograd.Function):
    """The memory of CUDA's fused attention, and no numbers; for fake tensors (B, H, L, E).

    Kept are the inputs, the result and one float32 a row; going back takes another float32 a row,
    for 16 bits the sums of the query's gradient in float32, and for a mask that learns the
    gradient of all (B, H, L, S). No L x S is kept (Dao et al. 2022, arXiv:2205.14135).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        rows = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, _out, rows = ctx.saved_tensors
        sums = [torch.empty_like(rows)]
        if query.element_size() == 2:
            sums.append(torch.empty_like(query, dtype=torch.float32))
        grads = [torch.empty_like(t) for t in (query, key, value)]
        if mask is None or not ctx.needs_input_grad[3]:
            return (*grads, None)
        whole = mask.new_empty(*query.shape[:3], key.shape[2])
        return (*grads, whole.sum_to_size(mask.shape))
