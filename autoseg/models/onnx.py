"""Networks that onnxruntime computes: a model in the folder of `autoseg export --onnx`.

A graph of a stranger is read before it is run: it must be one file without anything outside it, made
of ONNX's own operators alone, with the shapes that the model's document promises. The packages are
an extra: they are imported when they are needed, and an error says how to get them.
"""

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.device import is_card
from autoseg.documents.model import Member, Precision, Weights
from autoseg.documents.onnx import AGAIN, INPUT, LARGEST, OUTPUT, is_onnx
from autoseg.errors import AutosegError, nearest
from autoseg.files import explaining
from autoseg.infer.together import Speaker
from autoseg.models.members import Model

RUNTIMES = ("torch", "onnx")
PACKAGES = "onnx onnxruntime"
SUSPICIOUS = "do not use it; ask its maker for the folder that `autoseg export --onnx` wrote"


def need(name: str) -> Any:
    """The optional module of this name. Raises AutosegError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AutosegError(
            f"ONNX needs the package {name.split('.')[0]}, which is not installed ({error}); "
            f"run: pip install {PACKAGES}"
        ) from error


def checked_runtime(model: Model, wanted: str | None) -> None:
    """Raise AutosegError unless the runtime that was asked for is the one that the model is for."""
    if wanted is not None and wanted not in RUNTIMES:
        raise AutosegError(f"--runtime {wanted!r} is unknown{nearest(wanted, list(RUNTIMES))}")
    if wanted == "onnx" and not is_onnx(model.spec):
        raise AutosegError(
            f"--runtime onnx needs an ONNX export, the model {model.spec.name} is none; make one "
            "with `autoseg export --onnx -o FOLDER`, and give the folder as --model"
        )
    if wanted == "torch" and is_onnx(model.spec):
        raise AutosegError(
            f"the model {model.spec.name} is an ONNX export, which torch cannot compute; leave "
            "--runtime torch out, or give the model that it was exported from"
        )


def speakers(
    member: Member, paths: Sequence[Path], device: torch.device, precision: Precision | None = None
) -> list[Speaker]:
    """The networks of one member, loaded once. Raises AutosegError if one cannot be used."""
    if is_card(device):
        raise AutosegError(
            f"ONNX models are computed on the processor, --device {device} is none; give --device "
            "cpu, or use the model that it was exported from"
        )
    if precision not in (None, "float32"):
        raise AutosegError(
            f"ONNX models are computed in float32, not in {precision}; leave the precision "
            "out, or use the model that it was exported from"
        )
    return [
        _speaker(path, weights, member) for path, weights in zip(paths, member.weights, strict=True)
    ]


def _speaker(path: Path, weights: Weights, member: Member) -> Speaker:
    """The network in a file, as a function of a float32 batch."""
    content = _sound(path, weights)
    session = session_of(content, path)
    shape = _shape(session, member, path)
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    fixed = shape[0] if isinstance(shape[0], int) else None

    def logits(image: Tensor) -> list[Tensor]:
        step = fixed or len(image)
        parts = [image[at : at + step] for at in range(0, len(image), step)]
        try:
            said = [session.run([OUTPUT], {INPUT: part.contiguous().numpy()})[0] for part in parts]
        except (errors.RuntimeException, errors.InvalidArgument, errors.Fail) as error:
            raise AutosegError(
                f"{path} cannot be computed ({_first_line(error)}); {AGAIN}"
            ) from error
        found = torch.cat([torch.from_numpy(one) for one in said])
        if found.shape != (len(image), member.configuration.network.classes, *image.shape[2:]):
            raise AutosegError(
                f"{path} gives {tuple(found.shape)} for an image of {tuple(image.shape)}; {SUSPICIOUS}"
            )
        return [found]

    return logits


def session_of(content: bytes, path: Path | None = None) -> Any:
    """A graph, ready to run on as many threads as torch has. Raises AutosegError."""
    runtime = need("onnxruntime")
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4
    kinds = tuple(vars(errors)[name] for name in FAULTS)
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except kinds as error:
        where = path or "the graph"
        raise AutosegError(f"{where} cannot be loaded ({_first_line(error)}); {AGAIN}") from error


FAULTS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented",
          "RuntimeException")  # fmt: skip
"""What onnxruntime raises on a graph that it cannot run."""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:160]


# ---- what is looked at before anything is run


def _sound(path: Path, weights: Weights) -> bytes:
    """The bytes of a graph that is what the model says and asks for nothing else. Raises AutosegError."""
    onnx = need("onnx")
    if weights.size > LARGEST:
        raise AutosegError(f"{path} has {weights.size} bytes, more than a graph can; {SUSPICIOUS}")
    with explaining(path, "read"):
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise AutosegError(f"{path} is damaged (its sha256 changed); {AGAIN}")
    message = importlib.import_module("google.protobuf.message")
    try:
        model = onnx.load_model_from_string(content)
    except message.DecodeError as error:
        raise AutosegError(f"{path} is no ONNX file ({_first_line(error)}); {AGAIN}") from error
    fault = _fault(onnx, model)
    if fault:
        raise AutosegError(f"{path} is refused: {fault}; {SUSPICIOUS}")
    return content


def _fault(onnx: Any, model: Any) -> str:
    """Why a graph is not run; empty if it may be."""
    if len(model.functions) or len(model.training_info):
        return "it brings functions or a training of its own"
    own = {"", "ai.onnx"}
    foreign = {o.domain for o in model.opset_import} | {n.domain for n in model.graph.node}
    if foreign - own:
        return f"it has operators of {sorted(foreign - own)[0]!r}, which are not ONNX's own"
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
            places = {entry.key: entry.value for entry in tensor.external_data}
            return f"its numbers lie in another file, {places.get('location', '')[:80]!r}"
    if len(model.graph.sparse_initializer):
        return "it has sparse tensors, which an export never has"
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or len(attribute.graphs):
                return f"it has a graph within a graph ({node.op_type}), which could run for ever"
    return ""


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph: its weights, and those that its nodes carry."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _shape(session: Any, member: Member, path: Path) -> list[Any]:
    """The shape (batch, channels, *S) that a graph takes, names where any length will do.

    Raises AutosegError unless it fits the member.
    """
    c = member.configuration
    given, made = session.get_inputs(), session.get_outputs()
    names = ([g.name for g in given], [m.name for m in made])
    if names != ([INPUT], [OUTPUT]) or given[0].type != "tensor(float)":
        raise AutosegError(f"{path} takes {names[0]} and gives {names[1]}; {SUSPICIOUS}")
    shape = list(given[0].shape)
    fits = len(shape) == 2 + c.dimensions and shape[1] == c.network.in_channels
    inner = zip(shape[2:], c.patch_vox, strict=False)
    if not fits or any(isinstance(n, int) and n != p for n, p in inner):
        raise AutosegError(
            f"{path} takes images of {shape}, the model {member.name} shows it patches of "
            f"{[c.network.in_channels, *c.patch_vox]}; {AGAIN}"
        )
    return shape
