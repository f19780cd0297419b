"""A network as an ONNX graph: traced, made free of what it need not tell, and held against torch.

The tracing exporter is used rather than torch's newer one: on these networks it gives graphs as good
in a tenth of the time, without the paths and program lines that the other writes into each node.
What it cannot trace with free axes is traced for one patch, and what differs from torch is refused.
"""

import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoseg.documents.onnx import AXES, INPUT, LARGEST, OPSET, OUTPUT, TOLERANCE
from autoseg.errors import AutosegError
from autoseg.models.onnx import need, session_of
from autoseg.nets.network import Network

log = logging.getLogger(__name__)

Free = Literal["all", "batch", "none"]
"""Which axes of a graph take any length."""

WAYS: tuple[Free, ...] = ("all", "batch", "none")

UNTRACEABLE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What torch raises on what it cannot trace; its own errors are among them."""


@dataclass(frozen=True)
class Graph:
    """A network in ONNX's own bytes; `difference` is the largest from torch's logits, of their scale."""

    content: bytes
    free: Free
    difference: float


class _Odd(Exception):
    """A graph that cannot be used; the message says why in a few words."""


def graph_of(
    net: Network, channels: int, patch: Sequence[int], divisor: Sequence[int], ways: Sequence[Free]
) -> Graph:
    """The first of the ways in which the network becomes a graph that speaks as torch does.

    Raises AutosegError with the reason of each way that failed.
    """
    if reason := _beyond(net):
        raise AutosegError(reason)
    reasons = []
    for free in ways:
        try:
            content = _traced(net, channels, patch, free)
            return Graph(content, free, _difference(content, net, channels, patch, divisor, free))
        except _Odd as error:
            reasons.append(f"with {_said(free)}: {error}")
            log.debug("%s", reasons[-1])
    raise AutosegError("; ".join(reasons))


def _said(free: Free) -> str:
    return {"all": "all axes free", "batch": "only the batch free", "none": "all axes fixed"}[free]


def _beyond(net: nn.Module) -> str:
    """Why a network is not tried at all; empty if it is."""
    held = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    if held > LARGEST:
        return f"its weights take {held / 2**30:.2f} GiB, and one ONNX file has at most 2"
    if any(module.__class__.__module__.endswith("mamba") for module in net.modules()):
        return (
            "it has state-space blocks, whose scan over the tokens is a recurrence that ONNX has no "
            "operator for; unrolled it would have a node for every token"
        )
    return ""


# ---- tracing


class _Finest(nn.Module):
    """The finest logits of a network, as a tensor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        finest: Tensor = self.net(image)[0]
        return finest


class _Settled(TorchFunctionMode):
    """Lengths are plain numbers while a network is traced, but of axes that stay free.

    The exporter writes axes that are counted from the end as they are, which ONNX does not know.
    """

    def __init__(self, free: Free) -> None:
        super().__init__()
        self.free = free

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.movedim, torch.movedim) and len(args) == 3 and not kwargs:
            return _moved(*args)
        out = func(*args, **kwargs)
        if self.free == "all" or func not in LENGTHS:
            return out
        if isinstance(out, tuple):
            first = out[:1] if self.free == "batch" else map(int, out[:1])
            return torch.Size((*first, *map(int, out[1:])))
        batch = self.free == "batch" and (args[1:] or tuple(kwargs.values()))[0] == 0
        return out if batch else int(out)


LENGTHS = (Tensor.shape.__get__, Tensor.size)  # type: ignore[attr-defined]


def _moved(x: Tensor, source: int, target: int) -> Tensor:
    """What `movedim` gives, by a permutation of axes counted from the first."""
    source, target = source % x.ndim, target % x.ndim
    order = [axis for axis in range(x.ndim) if axis != source]
    order.insert(target, source)
    return x.permute(order)


def _traced(net: nn.Module, channels: int, patch: Sequence[int], free: Free) -> bytes:
    """The network as ONNX, without names of files or programs. Raises _Odd."""
    names = axes_of(len(patch), free)
    image = torch.zeros(2 if free != "none" else 1, channels, *patch)
    file = io.BytesIO()
    try:
        with _silence() as remarks, torch.no_grad(), _Settled(free):
            torch.onnx.export(
                _Finest(net).eval(), (image,), file,  # type: ignore[arg-type]
                dynamo=False, opset_version=OPSET,
                input_names=[INPUT], output_names=[OUTPUT],
                dynamic_axes={INPUT: names, OUTPUT: names},
            )  # fmt: skip
    except UNTRACEABLE as error:
        raise _Odd(_first_line(error)) from error
    if free == "all" and any(map(_of_one_size, remarks)):
        raise _Odd("what it computes depends on the size of the image")
    return _bare(file.getvalue())


def _of_one_size(remark: warnings.WarningMessage) -> bool:
    """Whether a length became a number, so that what follows from it holds for this length alone.

    Torch's own layers do so in checks only.
    """
    own = Path(torch.__file__).parent in Path(remark.filename).parents
    return remark.category.__name__ == "TracerWarning" and not own


def axes_of(dimensions: int, free: Free) -> dict[int, str]:
    """The names of a graph's free axes, by their place in a batch (N, C, *S)."""
    if free == "none":
        return {}
    inner = {2 + i: name for i, name in enumerate(AXES[3 - dimensions :])}
    return {0: "batch"} | (inner if free == "all" else {})


LOG_SWITCH = "_jit_set_onnx_log_enabled"


@contextmanager
def _silence() -> Iterator[list[warnings.WarningMessage]]:
    """The exporter's remarks, which are kept rather than shown.

    Where it gives up it prints the whole network, unless its log is off; and it switches its log on.
    """
    switches: Any = torch._C
    switch = getattr(switches, LOG_SWITCH, None)
    if switch is not None:
        switch(False)
        setattr(switches, LOG_SWITCH, lambda _: None)
    try:
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            yield remarks
    finally:
        if switch is not None:
            setattr(switches, LOG_SWITCH, switch)


def _bare(content: bytes) -> bytes:
    """The graph without descriptions of where its nodes come from."""
    onnx = need("onnx")
    model = onnx.load_model_from_string(content)
    model.doc_string, model.producer_name, model.producer_version = "", "autoseg", ""
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    model.graph.name = "network"
    found: bytes = model.SerializeToString(deterministic=True)
    return found


def _another(length: int, divisor: int, times: int) -> int:
    """A multiple of the divisor that is not this length."""
    return divisor * (times if divisor * times != length else times + 3)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:160]


# ---- parity


def _difference(
    content: bytes, net: Network, channels: int, patch: Sequence[int], divisor: Sequence[int],
    free: Free,
) -> float:  # fmt: skip
    """The largest difference from torch's logits, as a share of the largest logit.

    On random images of the patch's size, and of other batches and sizes where these are free. Raises
    _Odd above the tolerance.
    """
    session = session_of(content)
    shapes = [(2 if free != "none" else 1, *patch)]
    if free == "batch":
        shapes.append((1, *patch))
    if free == "all":
        # no two axes alike, and none as when it was traced
        shapes.append((1, *(_another(p, d, 2 + i) for i, (p, d) in enumerate(zip(patch, divisor)))))
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    draw, worst = torch.Generator().manual_seed(0), 0.0
    for samples, *size in shapes:
        image = torch.randn(samples, channels, *size, generator=draw)
        try:
            with torch.inference_mode():
                wanted = net(image)[0].numpy()
        except UNTRACEABLE as error:
            raise _Odd(f"torch on {list(image.shape)}: {_first_line(error)}") from error
        try:
            (found,) = session.run([OUTPUT], {INPUT: image.numpy()})
        except (errors.RuntimeException, errors.InvalidArgument, errors.Fail) as error:
            raise _Odd(f"onnxruntime: {_first_line(error)}") from error
        if found.shape != wanted.shape:
            raise _Odd(f"it gives {found.shape} where torch gives {wanted.shape}")
        worst = max(worst, float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-6)))
        if not worst <= TOLERANCE:
            raise _Odd(f"its logits differ from torch's by {worst:.2g} of their scale")
    return worst
