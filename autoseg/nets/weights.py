"""Weight files of others: how an encoder takes what an image classifier has learnt.

Nothing is downloaded. A file is safetensors, or torch's with tensors and plain containers in it; a
file that would run code is refused.
"""

import difflib
import pickle
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autoseg.errors import AutosegError
from autoseg.nets.families.encoders.encoder import Encoder

ENOUGH = 0.99
"""The share of an encoder's numbers that a file must hold."""

COUNTER = "num_batches_tracked"
"""Of batch norm; says nothing once the statistics are there."""

ZIP_START = b"PK\x03\x04"
OLD_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch's files begin, since 1.6 and before: torchvision still has both."""

DAMAGE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    struct.error,
)  # fmt: skip
"""What torch's restricted reader stumbles over in a damaged file."""

Inflation = Literal["centre", "mean"]


@dataclass(frozen=True)
class Match:
    """How a weight file met an encoder.

    `matched_share` counts numbers, running statistics included. `missing` are names of the encoder
    that were left as they were, `unexpected` names of the file that no one took (a classifier's
    last layers), `inflated` kernels that were made 3D.
    """

    matched_share: float
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    inflated: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.matched_share:.1%} of its numbers taken, {len(self.inflated)} kernels made 3D, "
            f"{len(self.missing)} names left as they were, {len(self.unexpected)} in the file unused"
        )


def load_encoder(net: nn.Module, path: Path, inflation: Inflation = "centre") -> Match:
    """What of the file went into the encoder of `net`, which is changed in place.

    Names are torchvision's, behind any prefix. A 2D kernel goes into a 3D encoder along the first
    axis: `centre` puts it into the middle plane, the others are zero, so that the network begins
    as the 2D one, plane by plane; `mean` repeats it, divided by the number of planes (Carreira and
    Zisserman 2017, arXiv:1705.07750), which loses response near the first and last plane, at every
    layer again, since padding is zero. The first convolution's channels are averaged where the
    image has another number of them, so that equal channels get the published response.

    Raises AutosegError, and changes nothing, where less than 99 % of the encoder's numbers match
    by name and shape, or the file is no weight file.
    """
    encoder = _encoder_in(net)
    wanted = {
        name: tensor for name, tensor in encoder.state_dict().items() if not name.endswith(COUNTER)
    }
    given = _without_prefix(read_weights(path), wanted)
    first = next(name for name, tensor in wanted.items() if tensor.ndim > 2)
    fitted: dict[str, Tensor] = {}
    inflated = []
    for name in wanted.keys() & given.keys():
        found = _flat_to_deep(given[name], wanted[name].shape, inflation)
        if name == first:
            found = _channels(found, wanted[name].shape[1])
        if found.shape == wanted[name].shape:
            fitted[name] = found
            if found.ndim != given[name].ndim:
                inflated.append(name)
    missing = [name for name in wanted if name not in fitted]
    share = _numbers(wanted[name] for name in fitted) / _numbers(wanted.values())
    if share < ENOUGH:
        raise AutosegError(_misfit(path, share, missing[0], wanted, given))
    with torch.no_grad():
        for name, tensor in fitted.items():
            wanted[name].copy_(tensor)
    unexpected = tuple(name for name in given if name not in fitted)
    return Match(share, tuple(missing), unexpected, tuple(sorted(inflated)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The floating point tensors of a file by name, without batch norm's counters.

    Raises AutosegError for a missing or damaged file, and for one that holds more than tensors.
    """
    if not path.is_file():
        raise AutosegError(f"there is no weight file {path}")
    if path.suffix == ".safetensors":
        try:
            held: Any = load_file(path)
        except SafetensorError as error:
            raise AutosegError(f"{path} is no safetensors file: {error}") from error
    else:
        held = _torch_file(path)
    tensors = {
        str(name): tensor
        for name, tensor in _largest(held).items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    if not tensors:
        raise AutosegError(f"{path} holds no tensors by name; give the file of a state dict")
    return tensors


def _torch_file(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(len(OLD_START))
    if not (start.startswith(ZIP_START) or start == OLD_START):
        raise AutosegError(
            f"{path} is neither safetensors (by its ending) nor a weight file of torch, or it is "
            "damaged; save the state dict again, best as safetensors"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise AutosegError(
            f"{path} holds more than tensors, or is damaged; it was not opened, since such a file "
            "can run code. Save the state dict alone, best as safetensors"
        ) from error
    except DAMAGE as error:
        raise AutosegError(f"{path} is damaged ({error}); copy or save it again") from error


def _largest(held: Any) -> Mapping[Any, Any]:
    """The mapping with most tensors: what was saved, or one a level below (`state_dict`, …)."""
    inside = [held, *held.values()] if isinstance(held, Mapping) else []
    mappings = [x for x in inside if isinstance(x, Mapping)]
    tensors = [sum(isinstance(x, Tensor) for x in m.values()) for m in mappings]
    return mappings[tensors.index(max(tensors))] if mappings else {}


def _encoder_in(net: nn.Module) -> Encoder:
    for module in net.modules():
        if isinstance(module, Encoder):
            return module
    raise AutosegError(
        "this network has no encoder that weight files are known for; networks that have one are "
        "the unet_… on a classifier, the DeepLabs, FCN and SegNet"
    )


def _without_prefix(given: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The tensors behind the prefix (`module.`, `encoder.`, …) under which most names are known.

    Others keep their names.
    """
    known = set(wanted)
    counts: dict[str, int] = {"": 0}
    for name in given:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in known:
                prefix = "".join(f"{part}." for part in parts[:i])
                counts[prefix] = counts.get(prefix, 0) + 1
    best = max(counts, key=lambda prefix: counts[prefix])
    return {name.removeprefix(best): tensor for name, tensor in given.items()}


def _flat_to_deep(kernel: Tensor, wanted: torch.Size, inflation: Inflation) -> Tensor:
    """A 2D kernel as the 3D one of `wanted`'s depth; anything else as it is."""
    if not (kernel.ndim == 4 and len(wanted) == 5):
        return kernel
    depth = wanted[2]
    if inflation == "mean":
        return kernel[:, :, None].repeat(1, 1, depth, 1, 1) / depth
    deep = kernel.new_zeros(*kernel.shape[:2], depth, *kernel.shape[2:])
    deep[:, :, depth // 2] = kernel
    return deep


def _channels(kernel: Tensor, wanted: int) -> Tensor:
    """A first convolution for another number of channels, of which each has an equal share."""
    if kernel.shape[1] == wanted:
        return kernel
    shared = kernel.sum(1, keepdim=True) / wanted
    return shared.expand(-1, wanted, *kernel.shape[2:])


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _misfit(
    path: Path, share: float, name: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> str:
    said = (
        f"{path} does not fit the network's encoder: {share:.1%} of its numbers match by name and "
        f"shape, {ENOUGH:.0%} must; {name!r} is "
    )
    if name not in given:
        near = difflib.get_close_matches(name, list(given), n=1, cutoff=0.0)
        return f"{said}not in the file, where the nearest name is {near[0]!r}"
    here, there = ("x".join(map(str, t.shape)) for t in (wanted[name], given[name]))
    return (
        f"{said}{here} in the network and {there} in the file; published weights need the "
        "published widths (features that begin with 32)"
    )
