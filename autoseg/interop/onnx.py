"""A model as a folder of ONNX files with a manifest, for other programs and for onnxruntime.

One file a fold: folds can then be chosen among, compared for uncertainty and asked one after another,
so that memory holds one of them; a graph with the mean of five would need five times as much. A folder
is written as a whole, once every file has been held against torch.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from autoseg import __version__
from autoseg.documents.model import Member, ModelSpec, size_text
from autoseg.documents.onnx import (
    CARD,
    ENDING,
    INPUT,
    MANIFEST,
    MODEL,
    OPSET,
    OUTPUT,
    Network,
    OnnxManifest,
    description,
    is_onnx,
)
from autoseg.errors import AutosegError, PlanError
from autoseg.files import replacing_folder, sha256_json, write_json
from autoseg.interop.onnx_graph import WAYS, Free, Graph, axes_of, graph_of
from autoseg.learn.weights import load_weights
from autoseg.models.members import Model
from autoseg.models.onnx import need
from autoseg.nets.build import build

log = logging.getLogger(__name__)


@dataclass
class Exported:
    """A folder of ONNX files and what was found of each."""

    folder: Path
    networks: dict[str, Network] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    """Configurations that segment small scans in one piece with torch, and in tiles with ONNX."""
    there: bool = False

    def lines(self) -> Iterator[str]:
        """What a person wants to know of it."""
        size = size_text(sum(n.size for n in self.networks.values()))
        yield f"{self.folder}: {size}{', which was there already' if self.there else ''}"
        for file, n in self.networks.items():
            shape = f"({', '.join(map(str, n.input))})"
            fixed = "" if isinstance(n.input[-1], str) else "; of this size alone"
            yield f"  {file}  {INPUT} {shape}{fixed}; {OUTPUT} as torch's within {n.difference:.1g}"


def export(model: Model, output: Path, *, card: str, overwrite: bool = False) -> Exported:
    """Write a model as ONNX files with a manifest into a folder, in one step.

    An output that holds this very model already is left alone. Raises AutosegError, writing nothing,
    for a network that ONNX cannot express, one that does not speak as torch does, packages that are
    missing, or an output that is something else where `overwrite` is not set.
    """
    if is_onnx(model.spec):
        raise AutosegError(
            f"the model {model.spec.name} is an ONNX export; export the model that it was made from"
        )
    for name in ("onnx", "onnxruntime"):
        need(name)
    if output.suffix in (ENDING, ".autoseg") or output.is_file():
        raise AutosegError(
            f"--onnx writes a folder, {output} is a file: name a folder, as {output.stem}_onnx"
        )
    source = sha256_json([model.spec.digest, __version__, OPSET])
    if output.exists():
        there = _already(output, source, overwrite)
        if there is not None:
            return there
    with replacing_folder(output) as half:
        made = _Export(model, half)
        networks = made.written()
        spec = ModelSpec.parse(made.document, "the exported model")
        manifest = OnnxManifest(
            autoseg=__version__, source=source, opset=OPSET, networks=networks,
            description=description(spec),
        )  # fmt: skip
        write_json(half / MODEL, spec.dump())
        write_json(half / MANIFEST, manifest.dump())
        (half / CARD).write_text(card, encoding="utf-8")
    for name in made.whole:
        log.warning(
            "%s segments small scans in one piece with torch; its ONNX file takes its patch alone, so "
            "that they are segmented in tiles and may differ a little",
            name,
        )
    return Exported(output, networks, tuple(made.whole))


def _already(output: Path, source: str, overwrite: bool) -> Exported | None:
    """The export of the same model that is there; None if it is to be replaced. Raises AutosegError."""
    manifest = None
    try:
        manifest = OnnxManifest.read(output / MANIFEST)
    except AutosegError as error:
        log.debug("%s", error)
    whole = manifest is not None and all(
        _unchanged(output / f, n) for f, n in manifest.networks.items()
    )
    if manifest is not None and manifest.source == source and whole and (output / MODEL).is_file():
        return Exported(output, dict(manifest.networks), there=True)
    if output.is_dir() and not any(output.iterdir()):
        return None
    if manifest is None:
        raise AutosegError(
            f"{output} exists and holds no ONNX export; choose another --output, or remove it"
        )
    if not overwrite:
        raise AutosegError(
            f"{output} exists and is not this model; choose another --output, or replace it with "
            "--overwrite"
        )
    return None


def _unchanged(path: Path, network: Network) -> bool:
    if not path.is_file() or path.stat().st_size != network.size:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == network.sha256


class _Export:
    """The files of a model, written one after another."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        packed, self.lies = model.spec.packed()
        self.document: dict[str, Any] = json.loads(json.dumps(packed.dump()))
        self.packed = packed
        self.whole: list[str] = []
        self.made: dict[str, tuple[Network, Free]] = {}

    def written(self) -> dict[str, Network]:
        """The networks by their files; the document then names these."""
        groups = [*zip(self.packed.stages, self.document["stages"], strict=True),
                  *zip(self.packed.members, self.document["members"], strict=True)]  # fmt: skip
        count = sum(len(member.weights) for member, _ in groups)
        with tqdm(total=count, desc="export", unit="network", disable=None) as bar:
            for member, document in groups:
                ways: Sequence[Free] = WAYS
                for weights, told in zip(member.weights, document["weights"], strict=True):
                    name = str(PurePosixPath("networks", *PurePosixPath(weights.file).parts[1:]))
                    file = str(PurePosixPath(name).with_suffix(ENDING))
                    if file not in self.made:
                        self.made[file] = self._network(
                            member, weights.file, weights.fold, file, ways
                        )
                    network, free = self.made[file]
                    ways = [free]
                    told |= {"file": file, "sha256": network.sha256, "size": network.size}
                    bar.update()
                document |= {"precision": "float32", "layouts": {}}
                if ways[0] != "all" and member.configuration.predict.whole_up_to:
                    document["configuration"]["predict"]["whole_up_to"] = 0.0
                    self.whole.append(member.name)
        return {file: network for file, (network, _) in sorted(self.made.items())}

    def _network(
        self, member: Member, weights: str, fold: str, file: str, ways: Sequence[Free]
    ) -> tuple[Network, Free]:
        """One network, traced, checked and written. Raises AutosegError."""
        c = member.configuration
        net = build(c.network)
        load_weights(self.model.folder / self.lies[weights], net)
        try:
            graph = graph_of(net.eval(), c.inputs, c.patch_vox, c.network.divisor, ways)
        except PlanError:
            raise
        except AutosegError as error:
            raise AutosegError(
                f"fold {fold} of {member.name} (network {c.network.preset}) cannot be exported as "
                f"ONNX: {error}"
            ) from error
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(graph.content)
        return _told(member, fold, graph), graph.free


def _told(member: Member, fold: str, graph: Graph) -> Network:
    """What the manifest says of a graph."""
    c = member.configuration
    shape: list[int | str] = [1, c.inputs, *c.patch_vox]
    for axis, name in axes_of(len(c.patch_vox), graph.free).items():
        shape[axis] = name
    return Network(
        configuration=member.name,
        fold=fold,
        sha256=hashlib.sha256(graph.content).hexdigest(),
        size=len(graph.content),
        input=tuple(shape),
        difference=float(f"{graph.difference:.2e}"),
    )
