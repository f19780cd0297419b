"""Model ↔ one file: export, and a package unpacked, installed and listed on another machine.

What a package is, and how its bytes are checked, is said in `documents.package`; here it meets the
networks: weights are held against the network that they are for before they are written.
"""

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from autoseg import __version__
from autoseg.documents.model import Installed, Member, Models, ModelSpec, Weights, size_text
from autoseg.documents.package import (
    CARD,
    DEVICES,
    ENDING,
    MANIFEST,
    MODEL,
    TEXT_LIMIT,
    Entry,
    Manifest,
    Package,
    entry_of,
    in_blocks,
    known_number,
    opened,
    parsed,
    plain_json,
    refuse,
    text_fault,
    write_package,
)
from autoseg.documents.tensors import (
    HEADER_LIMIT,
    Form,
    NotTensors,
    pieces,
    private_fact,
    read_header,
)
from autoseg.errors import AutosegError, PlanError
from autoseg.files import (
    Lock,
    explaining,
    replacing_folder,
    sha256_file,
    sha256_json,
    sweep,
    to_json,
)

log = logging.getLogger(__name__)

SCHEMA = 1
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


# ---- export


def export(
    spec: ModelSpec, folder: Path, output: Path, *, card: str, overwrite: bool = False
) -> Path:
    """The package of a model whose weights lie below `folder`, as one file.

    Written beside and renamed; equal models give equal bytes, so an output that holds this very
    model already is left alone. Raises AutosegError if the output is something else and
    `overwrite` is not set, or if a weight file is missing, changed, or of another network.
    """
    if output.is_dir():
        raise AutosegError(f"{output} is a folder; name the file to write, as hippo{ENDING}")
    path = output if output.suffix else output.with_name(output.name + ENDING)
    if spec.beyond_reason:
        raise AutosegError(f"this model would be refused as absurdly large: {spec.beyond_reason}")
    packed, lies = spec.packed()
    sources = {name: folder / file for name, file in lies.items()}
    texts = {MODEL: to_json(packed.dump()).encode(), CARD: card.encode()}
    files = {name: entry_of(text) for name, text in texts.items()}
    for member in packed.every_member():
        files |= {w.file: Entry(size=w.size, sha256=w.sha256) for w in member.weights}
    manifest = Manifest(autoseg=__version__, files=dict(sorted(files.items())))
    head = to_json(manifest.dump()).encode()
    for name, text in texts.items():
        if fault := text_fault(text, name):
            raise AutosegError(f"this model cannot be packed: {name} {fault}")
    if path.exists() and not _may_replace(path, head, overwrite):
        log.info("%s holds this model already", path)
        return path

    forms = _forms_by_file(packed)

    def pour(name: str, take: Callable[[bytes], Any]) -> None:
        for piece in _source_pieces(name, texts, sources, files[name].size, forms):
            take(piece)

    write_package(path, manifest, head, pour)
    return path


def _may_replace(path: Path, head: bytes, overwrite: bool) -> bool:
    """Whether a file is to be replaced; False if it holds the same. Raises AutosegError."""
    try:
        with opened(path) as package:
            if package.head == head:
                return False
    except AutosegError as error:
        log.debug("%s", error)
    if not overwrite:
        raise AutosegError(
            f"{path} exists and is not this model; choose another --output, or replace it with "
            "--overwrite"
        )
    return True


def _source_pieces(
    name: str,
    texts: Mapping[str, bytes],
    sources: Mapping[str, Path],
    size: int,
    forms: Mapping[str, Mapping[str, Form]],
) -> Iterator[bytes]:
    """The bytes of a file to be exported. Raises AutosegError if they are not what they should be."""
    if name in texts:
        yield texts[name]
        return
    path = sources[name]
    with explaining(path, "read"), open(path, "rb") as file:
        found = path.stat().st_size
        if found != size:
            raise AutosegError(
                f"{path} has {found} bytes, {size} when the model was put together; export again"
            )
        try:
            private = private_fact(read_header(file, size).metadata)
            if private:
                raise NotTensors(f"its header says {private}, which may name a person or a place")
            file.seek(0)
            yield from pieces(file, size, forms[name])
        except NotTensors as error:
            raise AutosegError(
                f"{path} cannot be exported: {error}; train this fold again with --redo"
            ) from error


# ---- import


def unpack(path: Path, into: Path) -> ModelSpec:
    """The model of a package, unpacked into the folder `into` in one step once all is verified.

    Raises AutosegError with one line, and writes nothing, if anything about it is wrong.
    """
    if into.exists() and not _is_model_folder(into):
        raise AutosegError(
            f"{into} exists and holds no model; name a folder that does not exist yet"
        )
    with opened(path) as package:
        spec = _sound_model(package)
        forms = _sound_weights(package, spec)
        needed = sum(entry.size for entry in package.manifest.files.values())
        with replacing_folder(into) as half:
            free = shutil.disk_usage(half).free
            if free < needed:
                raise AutosegError(
                    f"{into} needs {size_text(needed)}, the disk has {size_text(free)} left; free some "
                    "space, or choose another --root"
                )
            (half / MANIFEST).write_bytes(package.head)
            for name, entry in package.manifest.files.items():
                read = in_blocks if name not in forms else _reader(entry.size, forms[name])
                target = half / name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with open(target, "xb") as file:
                        for piece in package.pour(name, read):
                            file.write(piece)
                except NotTensors as error:
                    refuse(path, f"{name}: {error}")
    return spec


def _reader(size: int, forms: Mapping[str, Form]) -> Callable[[IO[bytes]], Iterator[bytes]]:
    return lambda file: pieces(file, size, forms)


def _is_model_folder(folder: Path) -> bool:
    """Whether a folder may give way to a model: it holds one, or nothing."""
    return folder.is_dir() and ((folder / MODEL).is_file() or not any(folder.iterdir()))


def _sound_model(package: Package) -> ModelSpec:
    """The document of a package's model. Raises AutosegError if it asks for what is absurd."""
    path = package.path
    if CARD not in package.manifest.files:
        refuse(path, f"{CARD} is missing")
    package.text(CARD)
    spec = _parsed_model(package.text(MODEL), path)
    named = {w.file: w for member in spec.every_member() for w in member.weights}
    odd = sorted(package.manifest.files.keys() ^ {MODEL, CARD, *named})
    if odd:
        there = odd[0] in package.manifest.files
        refuse(path, f"{odd[0]} is {'an additional file' if there else 'missing'}: the weights "
               f"that {MODEL} names are not those in the package")  # fmt: skip
    for member in spec.every_member():
        for w in member.weights:
            held = package.manifest.files[w.file]
            if (held.size, held.sha256) != (w.size, w.sha256):
                refuse(path, f"{MODEL} gives {w.file} another size or sha256 than {MANIFEST}")
    return spec


def _parsed_model(text: bytes, path: Path) -> ModelSpec:
    found = plain_json(text, MODEL, path)
    known_number(found, "schema", SCHEMA, MODEL, path)
    spec = parsed(ModelSpec, found, MODEL, path)
    if spec.beyond_reason:
        refuse(path, f"{MODEL} is absurdly large: {spec.beyond_reason}")
    return spec


def _sound_weights(package: Package, spec: ModelSpec) -> dict[str, dict[str, Form]]:
    """File -> the tensors that it must hold. Raises AutosegError if one has an impossible size."""
    try:
        forms = _forms_by_file(spec)
    except PlanError as error:
        refuse(package.path, f"the network of {MODEL} is refused: {error}")
    for name, wanted in forms.items():
        size = package.manifest.files[name].size
        numbers = sum(form.size for form in wanted.values())
        if not numbers + 8 <= size <= numbers + 8 + HEADER_LIMIT:
            refuse(package.path, f"{name} has {size} bytes where its network has {numbers}: these "
                   "are the weights of another network")  # fmt: skip
    return forms


def _forms_by_file(spec: ModelSpec) -> dict[str, dict[str, Form]]:
    """File -> the tensors of its network. Raises PlanError if one cannot be built."""
    # not above: models are listed without waiting for torch
    from autoseg.nets.shapes import tensor_forms

    by_network: dict[str, dict[str, Form]] = {}
    found: dict[str, dict[str, Form]] = {}
    for member in spec.every_member():
        network = member.configuration.network
        key = sha256_json(network.dump())
        if key not in by_network:
            by_network[key] = {n: Form(*form) for n, form in tensor_forms(network).items()}
        for weights in member.weights:
            if found.setdefault(weights.file, by_network[key]) != by_network[key]:
                raise PlanError(f"{weights.file} is used for two networks")
    return found


def read_model(folder: Path, *, verify: bool = False) -> ModelSpec:
    """The model in an unpacked folder, whose weights are there and of the right size.

    With `verify` they are read and held against their hashes and their network as well. Raises
    AutosegError.
    """
    path = folder / MODEL
    with explaining(path, "read"):
        if path.stat().st_size > TEXT_LIMIT:
            refuse(path, f"it has more than {TEXT_LIMIT} bytes")
        text = path.read_bytes()
    spec = _parsed_model(text, folder)
    for member in spec.every_member():
        for weights in member.weights:
            _present(folder / weights.file, weights)
    if verify:
        try:
            forms = _forms_by_file(spec)
        except PlanError as error:
            refuse(folder, f"the network of {MODEL} is refused: {error}")
        for member in spec.every_member():
            for weights in member.weights:
                _verify(folder / weights.file, weights, forms[weights.file])
    return spec


def _present(path: Path, weights: Weights) -> None:
    with explaining(path, "read"):
        size = path.stat().st_size
    if size != weights.size:
        raise AutosegError(
            f"{path} is damaged ({size} bytes, expected {weights.size}); install the package again"
        )


def _verify(path: Path, weights: Weights, forms: Mapping[str, Form]) -> None:
    if sha256_file(path) != weights.sha256:
        raise AutosegError(f"{path} is damaged (its sha256 changed); install the package again")
    try:
        with explaining(path, "read"), open(path, "rb") as file:
            for _ in pieces(file, weights.size, forms):
                pass
    except NotTensors as error:
        raise AutosegError(f"{path} cannot be used: {error}; install the package again") from error


# ---- installed models


def install(
    path: Path, models: Path, *, name: str | None = None, overwrite: bool = False
) -> Installed:
    """The model of a package, unpacked into `models` under its own or another name.

    The same package again changes nothing. Raises AutosegError if the name is taken by another
    model and `overwrite` is not set, or if the package is refused.
    """
    with opened(path) as package:
        head = package.head
        called = name or _sound_model(package).name
    if not MODEL_NAME.fullmatch(called) or DEVICES.fullmatch(called) or called.endswith("."):
        raise AutosegError(
            f"a model cannot be called {called[:100]!r}; give it a --name of letters, digits, "
            "_ . and -, beginning with a letter or digit"
        )
    folder = models / called
    sweep(models)
    with Lock(models / f".{called}.lock", f"model {called}"):
        if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == head:
            found = look_at(folder)
            if not found.fault:
                log.info("%s is installed already", called)
                return found
        elif folder.exists() and not overwrite:
            raise AutosegError(
                f"another model is installed as {called}; choose another --name, or replace it "
                "with --overwrite"
            )
        unpack(path, folder)
    return look_at(folder)


def installed(models: Path) -> Models:
    """The models in a folder; a damaged one is among them, with its fault."""
    if not models.is_dir():
        return Models(models, ())
    with explaining(models, "list"):
        folders = sorted(p for p in models.iterdir() if p.is_dir() and not p.name.startswith("."))
    return Models(models, tuple(look_at(folder) for folder in folders))


def look_at(folder: Path) -> Installed:
    """What an installed model says of itself; its weights are not read."""
    try:
        spec = read_model(folder)
    except AutosegError as error:
        return Installed(folder.name, folder, fault=str(error).replace("\n", " "))
    summary = spec.cross_validation
    files = {w.file: w.size for member in spec.every_member() for w in member.weights}
    return Installed(
        name=folder.name,
        folder=folder,
        dataset=spec.dataset,
        structures=tuple(spec.labels.structures),
        channels=spec.channels,
        members=tuple(dict.fromkeys(_member_line(member) for member in spec.every_member())),
        mean_dice=None if summary is None else summary.mean_dice,
        size=sum(files.values()),
        version=spec.version,
    )


def _member_line(member: Member) -> str:
    folds = len(member.weights)
    return f"{member.name} × {folds} fold{'s' if folds != 1 else ''}"
