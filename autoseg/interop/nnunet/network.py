"""Which of our networks is one of nnU-Net's, and under which name does each weight go there?

nnU-Net names a class and its arguments (`architecture` of plans.json, or the flat keys of plans
before 2.3); here it is a sentence. Weights have the names of the package
dynamic_network_architectures, which lists each of them several times.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autoseg.documents.networks.family import NetworkSpec
from autoseg.documents.networks.sentence import Level, Stem, UNetSpec
from autoseg.documents.networks.word import word
from autoseg.documents.presets.nnunet import PLAIN, RESIDUAL
from autoseg.errors import PlanError
from autoseg.nets.shapes import tensor_forms

CLASSES = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
BLOCKS = {"plain": "n_conv_per_stage", "residual": "n_blocks_per_stage"}
NORMS = {"InstanceNorm": "instance", "BatchNorm": "batch"}
ACTIVATIONS = {
    "LeakyReLU": "leaky_relu", "ReLU": "relu", "PReLU": "prelu", "Mish": "mish", "GELU": "gelu",
}  # fmt: skip
MOST_STAGES, MOST_UNITS = 16, 64
KNOWN = {
    "n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides", "n_conv_per_stage",
    "n_blocks_per_stage", "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs",
    "dropout_op", "dropout_op_kwargs", "nonlin", "nonlin_kwargs", "deep_supervision",
    "nonlin_first", "block", "bottleneck_channels", "stem_channels",
}  # fmt: skip


def architecture_in(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The `architecture` of a configuration, made of flat keys where plans are from before 2.3."""
    found = said.get("architecture")
    if isinstance(found, Mapping):
        return dict(found)
    old = ("UNet_class_name", "n_conv_per_stage_encoder", "n_conv_per_stage_decoder",
           "UNet_base_num_features", "unet_max_num_features", "conv_kernel_sizes",
           "pool_op_kernel_sizes", "patch_size")  # fmt: skip
    if missing := [key for key in old if key not in said]:
        raise PlanError(f"{where} says no network: it lacks architecture, or {', '.join(missing)}")
    name = str(said["UNet_class_name"])
    depths, patch = said["n_conv_per_stage_encoder"], said["patch_size"]
    axes = len(patch) if isinstance(patch, list) else 3
    base, most = said["UNet_base_num_features"], said["unet_max_num_features"]
    if type(base) is not int or type(most) is not int:
        raise PlanError(f"{where}: the numbers of features are no whole numbers")
    stages = len(depths) if isinstance(depths, list) else 0
    return {
        "network_class_name": name,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [int(min(base * 2**i, most)) for i in range(min(stages, 32))],
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": said["conv_kernel_sizes"],
            "strides": said["pool_op_kernel_sizes"],
            BLOCKS[CLASSES.get(name, "plain")]: depths,
            "n_conv_per_stage_decoder": said["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
        },
    }


def kind_of(architecture: Mapping[str, Any], where: str) -> str:
    """`plain` or `residual`. Raises PlanError for any other class of network."""
    name = str(architecture.get("network_class_name", "")).rpartition(".")[2]
    if name not in CLASSES:
        raise PlanError(
            f"{where} has the network {name!r}; of nnU-Net's, {' and '.join(CLASSES)} can be used here"
        )
    return CLASSES[name]


def network_of(
    architecture: Mapping[str, Any], inputs: int, outputs: int, preset: str, where: str
) -> UNetSpec:
    """The network of a configuration's `architecture`. Raises PlanError where there is none."""
    kind = kind_of(architecture, where)
    said = architecture.get("arch_kwargs")
    if not isinstance(said, Mapping):
        raise PlanError(f"{where} has an architecture without arch_kwargs; restore plans.json")
    strange = sorted(said.keys() - KNOWN)
    if strange:
        raise PlanError(f"{where}: the network's argument {strange[0]!r} is not known here")
    stages = _stages(said, kind, where)
    depths_up = _per_stage(said, "n_conv_per_stage_decoder", len(stages) - 1, where)
    part = PLAIN if kind == "plain" else RESIDUAL
    levels = [
        {
            "part": part.model_dump(),
            "depth": depth,
            "kernel": kernel,
            "width": width,
            "stride": step,
        }
        for depth, kernel, width, step in stages
    ]
    decoder = [
        {"part": PLAIN.model_dump(), "depth": depth, "kernel": kernel}
        for depth, (_, kernel, _, _) in zip(reversed(depths_up), stages, strict=False)
    ]
    document: dict[str, Any] = {
        "preset": preset,
        "in_channels": inputs,
        "classes": outputs,
        "encoder": levels[:-1],
        "bottleneck": levels[-1],
        "decoder": decoder,
        **_layers(said, where),
    }
    if kind == "residual":
        _refuse_bottlenecks(said, where)
        document |= {"stem": _stem(said, stages[0][2], where), "down": "residual"}
    return UNetSpec.parse(document, f"the network of {where}")


def _stem(said: Mapping[str, Any], usual: int, where: str) -> int:
    found = said.get("stem_channels")
    if found is not None and (type(found) is not int or found < 1):
        raise PlanError(f"{where}: stem_channels is no whole number")
    return usual if found is None else found


def _stages(
    said: Mapping[str, Any], kind: str, where: str
) -> list[tuple[int, list[int], int, list[int]]]:
    """Depth, kernel, width and stride of each level of the encoder."""
    count = said.get("n_stages")
    if not isinstance(count, int) or not 2 <= count <= MOST_STAGES:
        raise PlanError(f"{where}: n_stages is {shown(count)}; expected 2 to {MOST_STAGES}")
    axes = 2 if "2d" in str(said.get("conv_op")) else 3
    kernels = _per_axis(said, "kernel_sizes", count, axes, where)
    strides = _per_axis(said, "strides", count, axes, where)
    widths = _per_stage(said, "features_per_stage", count, where)
    depths = _per_stage(said, BLOCKS[kind], count, where)
    if max(depths) > MOST_UNITS:
        raise PlanError(f"{where}: {max(depths)} units at one level are absurdly many")
    return list(zip(depths, kernels, widths, strides, strict=True))


def shown(found: Any) -> str:
    """A value of a stranger as a message may show it."""
    return str(found)[:60] if isinstance(found, (str, int, float)) else type(found).__name__


def _per_stage(said: Mapping[str, Any], key: str, count: int, where: str) -> list[int]:
    found = said.get(key)
    each = [found] * count if isinstance(found, int) else found
    if (
        not isinstance(each, Sequence)
        or len(each) != count
        or any(type(n) is not int or n < 1 for n in each)
    ):
        raise PlanError(f"{where}: {key} is {shown(found)}; expected {count} whole numbers")
    return list(each)


def _per_axis(
    said: Mapping[str, Any], key: str, count: int, axes: int, where: str
) -> list[list[int]]:
    found = said.get(key)
    each = [found] * count if isinstance(found, int) else found
    if not isinstance(each, Sequence) or len(each) != count:
        raise PlanError(f"{where}: {key} is {shown(found)}; expected {count} times {axes} numbers")
    return [
        [one] * axes if isinstance(one, int) else _per_stage({key: one}, key, axes, where)
        for one in each
    ]


def _layers(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Norm, activation and dropout; PlanError for a setting that our layers do not have."""
    norm = str(said.get("norm_op") or "none").rpartition(".")[2].rstrip("d123").removesuffix("_")
    act = str(said.get("nonlin")).rpartition(".")[2]
    norm_said, act_said = _options(said, "norm_op_kwargs"), _options(said, "nonlin_kwargs")
    wrong = []
    if norm != "none" and norm not in NORMS:
        wrong.append(f"norm_op {norm}")
    if act not in ACTIVATIONS:
        wrong.append(f"nonlin {act}")
    default_affine = norm == "BatchNorm"
    if norm != "none" and (
        not _is(norm_said.get("eps", 1e-5), 1e-5) or not norm_said.get("affine", default_affine)
    ):
        wrong.append("norm_op_kwargs other than eps 1e-5 and affine")
    if not _is(act_said.get("negative_slope", 0.01), 0.01):
        wrong.append("a negative_slope other than 0.01")
    if said.get("nonlin_first"):
        wrong.append("nonlin_first")
    if wrong:
        raise PlanError(f"{where}: the network has {', '.join(wrong)}, which ours cannot have")
    share = _options(said, "dropout_op_kwargs").get("p", 0.5)
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise PlanError(f"{where}: dropout_op_kwargs has no share of dropped channels in p")
    return {
        "norm": NORMS.get(norm, "none"),
        "activation": ACTIVATIONS[act],
        "dropout": float(share) if said.get("dropout_op") else 0.0,
    }


def _options(said: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = said.get(key)
    return found if isinstance(found, Mapping) else {}


def _is(found: Any, usual: float) -> bool:
    return isinstance(found, (int, float)) and usual - 1e-9 <= found <= usual + 1e-9


def _refuse_bottlenecks(said: Mapping[str, Any], where: str) -> None:
    block = str(said.get("block") or "BasicBlockD").rpartition(".")[2]
    if block != "BasicBlockD" or said.get("bottleneck_channels"):
        raise PlanError(f"{where}: the network has blocks {block}, which ours cannot have")


def architecture_of(spec: NetworkSpec, where: str) -> dict[str, Any]:
    """A network as nnU-Net's `architecture`. Raises PlanError for one that nnU-Net does not have."""
    if not isinstance(spec, UNetSpec):
        raise PlanError(_not_there(where, spec.preset))
    kind = "residual" if spec.down == word("residual") else "plain"
    axes = spec.dimensions
    norm = {name: layer for layer, name in NORMS.items()}.get(spec.norm)
    act = {name: layer for layer, name in ACTIVATIONS.items()}[spec.activation]
    arguments: dict[str, Any] = {
        "n_stages": len(spec.levels),
        "features_per_stage": list(spec.widths),
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [list(level.kernel) for level in spec.levels],
        "strides": [list(level.stride) for level in spec.levels],
        BLOCKS[kind]: [level.depth for level in spec.levels],
        "n_conv_per_stage_decoder": [level.depth for level in reversed(spec.decoder)],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.{norm.lower()}.{norm}{axes}d" if norm else None,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": f"torch.nn.modules.dropout.Dropout{axes}d" if spec.dropout else None,
        "dropout_op_kwargs": {"p": spec.dropout, "inplace": True} if spec.dropout else None,
        "nonlin": f"torch.nn.{act}",
        "nonlin_kwargs": {"inplace": True} if act in ("LeakyReLU", "ReLU", "Mish") else None,
    }
    if spec.stem is not None and spec.stem.width != spec.widths[0]:
        arguments["stem_channels"] = spec.stem.width
    name = {k: n for n, k in CLASSES.items()}[kind]
    found = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    # the way back tells whether anything of the sentence was lost
    if spec.norm == "group" or network_of(
        found, spec.in_channels, spec.classes, spec.preset, where
    ) != spec.model_copy(update={"recompute": False}):
        raise PlanError(_not_there(where, spec.preset))
    return found


def _not_there(where: str, preset: str) -> str:
    return (
        f"{where} has the network {preset!r}, which nnU-Net does not have; it has plain and "
        "resenc_m, _l, _xl. Export it with -o FILE.autoseg instead"
    )


def foreign_names(spec: UNetSpec) -> dict[str, str]:
    """Our name of each tensor -> its name in nnU-Net, each once."""
    names = list(tensor_forms(spec))
    found: dict[str, str] = {}
    for ours, theirs, layered in _places(spec):
        inside = [name for name in names if name.startswith(f"{ours}.")]
        convolution = inside[0].rpartition(".")[0]
        for name in inside:
            holder, _, leaf = name.rpartition(".")
            if layered:
                leaf = f"{'conv' if holder == convolution else 'norm'}.{leaf}"
            found[name] = f"{theirs}.{leaf}"
    return found


def aliases(spec: UNetSpec, name: str) -> Iterator[str]:
    """Every further name under which nnU-Net lists a tensor that it also calls `name`."""
    last = ("conv2", "skip")
    first, _, leaf = name.rpartition(".")
    holder, _, layer = first.rpartition(".")
    own = [name]
    if layer in ("conv", "norm"):
        dropped = bool(spec.dropout) and not any(f".{part}" in holder for part in last)
        place = 0 if layer == "conv" else 1 + dropped
        own.append(f"{holder}.all_modules.{place}.{leaf}")
        yield own[1]
    if name.startswith("encoder."):
        yield from (f"decoder.{one}" for one in own)


def _places(spec: UNetSpec) -> Iterator[tuple[str, str, bool]]:
    """(our prefix, theirs, whether it is a convolution with a norm) of every layer with weights."""
    residual = spec.down == word("residual")
    stem = spec.stem is not None
    if stem:
        yield "encode.0.0", "encoder.stem.convs.0", True
    for i, level in enumerate(spec.levels):
        for d in range(level.depth):
            inner = f"{int(stem)}.{d}" if i == 0 else "0" if d == 0 else f"1.{d - 1}"
            ours = f"encode.{i}.{inner}"
            if residual:
                yield from _block(spec, ours, i, d)
            else:
                yield ours, f"encoder.stages.{i}.0.convs.{d}", True
    for i, up in enumerate(spec.decoder):
        stage = len(spec.decoder) - 1 - i
        yield f"decode.{i}.up", f"decoder.transpconvs.{stage}", False
        for d in range(up.depth):
            yield f"decode.{i}.units.{d}", f"decoder.stages.{stage}.convs.{d}", True
        yield f"head.{i}", f"decoder.seg_layers.{stage}", False


def _block(spec: UNetSpec, ours: str, level: int, unit: int) -> Iterator[tuple[str, str, bool]]:
    """The layers of one residual block."""
    theirs = f"encoder.stages.{level}.blocks.{unit}"
    yield f"{ours}.branch.0", f"{theirs}.conv1", True
    yield f"{ours}.branch.1", f"{theirs}.conv2", True
    here: Level = spec.levels[level]
    above = spec.levels[level - 1].width if level else _entering(spec)
    if unit == 0 and above != here.width:
        # the mean over each block goes before, where there is a stride
        place = int(max(here.stride) > 1)
        yield f"{ours}.shortcut", f"{theirs}.skip.{place}", True


def _entering(spec: UNetSpec) -> int:
    stem: Stem | None = spec.stem
    return spec.in_channels if stem is None else stem.width
