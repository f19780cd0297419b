"""The package: what goes in comes out, equal models equal bytes, and nothing private."""

import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from autoseg.documents.model import ModelSpec
from autoseg.errors import AutosegError
from autoseg.learn.weights import load_weights, save_weights
from autoseg.nets.build import build
from autoseg.report.text import as_json, as_text
from autoseg.stages import package as stage
from autoseg.stages.package import export, install, installed, read_model, unpack
from autoseg.workspace import open_workspace
from tests.stages.repacked import (
    FIRST,
    contents,
    with_model,
    with_weights,
    zipped,
)
from tests.stages.tiny_model import FOLDERS, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of the tiny model where training left them."""
    root = tmp_path_factory.mktemp("trained")
    tiny_model(root)
    return root


@pytest.fixture(scope="module")
def spec(trained: Path) -> ModelSpec:
    return tiny_model(trained)


@pytest.fixture(scope="module")
def packed(trained: Path, spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the tiny model. Not to be changed."""
    return export(spec, trained, tmp_path_factory.mktemp("out") / "hippo", card="# hippo\n")


# ---- round trip


def test_a_package_gives_back_the_same_model(
    trained: Path, spec: ModelSpec, packed: Path, tmp_path: Path
) -> None:
    found = unpack(packed, tmp_path / "model")
    assert packed.name == "hippo.autoseg"
    assert found.digest == spec.digest
    wanted = spec.dump()
    for theirs, mine in zip((*spec.stages, *spec.members), (*found.stages, *found.members),
                            strict=True):  # fmt: skip
        for before, after in zip(theirs.weights, mine.weights, strict=True):
            data = (tmp_path / "model" / after.file).read_bytes()
            assert data == (trained / before.file).read_bytes()
            assert (after.sha256, after.size) == (before.sha256, len(data))
            net = build(mine.configuration.network)
            load_weights(tmp_path / "model" / after.file, net)
            truth = load_file(trained / before.file)
            assert all(torch.equal(t, truth[n]) for n, t in net.state_dict().items())
    for part in (*wanted["members"], *wanted["stages"]):
        for weights in part["weights"]:
            weights["file"] = f"weights/{part['name']}/fold_{weights['fold']}.safetensors"
    assert found.dump() == wanted
    assert read_model(tmp_path / "model", verify=True) == found
    assert (tmp_path / "model" / "card.md").read_text() == "# hippo\n"


def test_a_stage_that_speaks_too_is_packed_once(packed: Path) -> None:
    assert [name for name in contents(packed) if name.startswith("weights/")] == [
        "weights/3d_cascade_fullres/fold_0.safetensors",
        "weights/3d_lowres/fold_0.safetensors",
        "weights/3d_lowres/fold_1.safetensors",
    ]


def test_equal_models_give_equal_bytes(
    trained: Path, spec: ModelSpec, packed: Path, tmp_path: Path
) -> None:
    again = export(spec, trained, tmp_path / "other.autoseg", card="# hippo\n")
    assert again.read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(again) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None


def test_a_package_names_no_case_and_no_place(trained: Path, packed: Path) -> None:
    data = packed.read_bytes()
    for word in (*FOLDERS.split("/"), "Meier", "Smith", str(trained), trained.name, os.sep + "tmp"):
        assert word.encode() not in data, word
    header = contents(packed)[FIRST]
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert json.loads(metadata["autoseg"]) == {"step": 8, "score": 0.5}


@pytest.mark.parametrize(
    "facts", [{"path": "/home/meier/data"}, {"case": "Meier, Hans"}, {"cases": ["a"]}]
)
def test_weights_that_tell_more_than_numbers_are_not_exported(
    spec: ModelSpec, tmp_path: Path, facts: dict[str, Any]
) -> None:
    tiny_model(tmp_path)
    document = spec.dump()
    weights = document["members"][0]["weights"][0]
    file = tmp_path / weights["file"]
    net = build(spec.members[0].configuration.network)
    save_weights(file, net, facts)
    weights |= {
        "size": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    with pytest.raises(AutosegError, match="may name a person or a place"):
        export(ModelSpec.parse(document, "it"), tmp_path, tmp_path / "x.autoseg", card="")
    assert not (tmp_path / "x.autoseg").exists()


# ---- export


def test_the_same_model_is_not_written_again_and_another_only_if_told(
    trained: Path, spec: ModelSpec, packed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "hippo.autoseg"
    output.write_bytes(packed.read_bytes())
    before = output.stat().st_mtime_ns
    assert export(spec, trained, output, card="# hippo\n") == output
    assert output.stat().st_mtime_ns == before
    with pytest.raises(AutosegError, match=r"exists and is not this model.*--overwrite"):
        export(spec, trained, output, card="# another\n")
    assert output.read_bytes() == packed.read_bytes()
    export(spec, trained, output, card="# another\n", overwrite=True)
    assert contents(output)["card.md"] == b"# another\n"
    output.write_bytes(b"something else")
    with pytest.raises(AutosegError, match="exists and is not this model"):
        export(spec, trained, output, card="# hippo\n")
    with pytest.raises(AutosegError, match="is a folder"):
        export(spec, trained, tmp_path, card="")


def test_an_export_that_is_stopped_leaves_the_old_package(
    trained: Path, spec: ModelSpec, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "hippo.autoseg"
    output.write_bytes(packed.read_bytes())
    whole = stage.pieces

    def half(*given: Any) -> Any:
        for number, piece in enumerate(whole(*given)):
            if number == 2:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(stage, "pieces", half)
    with pytest.raises(KeyboardInterrupt):
        export(spec, trained, output, card="# new\n", overwrite=True)
    assert output.read_bytes() == packed.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["hippo.autoseg"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: f.unlink(), "cannot read .*does not exist"),
        (lambda f: f.write_bytes(f.read_bytes()[:-4]), "bytes, 89712 when"),
        (lambda f: f.write_bytes(f.read_bytes()[:-4] + bytes(4)), "changed since the model"),
        (lambda f: f.write_bytes(bytes(f.stat().st_size)), "cannot be exported"),
    ],
)
def test_weights_that_changed_are_not_exported(
    spec: ModelSpec, tmp_path: Path, harm: Callable[[Path], object], words: str
) -> None:
    tiny_model(tmp_path)
    harm(tmp_path / FOLDERS / "3d_lowres" / "fold_1" / "weights.safetensors")
    with pytest.raises(AutosegError, match=words):
        export(spec, tmp_path, tmp_path / "x.autoseg", card="")
    assert not list(tmp_path.glob("*x.autoseg"))


def test_what_would_be_refused_is_not_exported(
    trained: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    document = spec.dump()
    for part in (*document["members"], *document["stages"]):
        part["configuration"]["predict"]["tile_step"] = 1e-6
    with pytest.raises(AutosegError, match="tile_step of 1e-06"):
        export(ModelSpec.parse(document, "it"), trained, tmp_path / "x", card="")
    with pytest.raises(AutosegError, match=r"card.md holds control characters"):
        export(spec, trained, tmp_path / "x", card="\x1b[2J")
    assert list(tmp_path.iterdir()) == []


def poisoned(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<f", float("nan"))


# ---- installed models


def test_an_installed_model_is_listed(packed: Path, tmp_path: Path) -> None:
    models = open_workspace(tmp_path).models
    assert as_text(installed(models)).startswith("no model in")
    made = install(packed, models)
    assert made.folder == tmp_path / "models" / "hippo"
    assert (made.name, made.dataset, made.structures) == (
        "hippo", "Dataset900_Made", ("liver", "tumour_a"),
    )  # fmt: skip
    assert made.members == ("3d_lowres × 2 folds", "3d_cascade_fullres × 1 fold")
    assert made.mean_dice == pytest.approx((0.915 + 0.0) / 2)
    assert made.size == sum(len(v) for k, v in contents(packed).items() if "weights" in k)
    second = install(packed, models, name="Other.v2")
    found = installed(models)
    assert found.models == tuple(sorted([made, second], key=lambda m: m.name))
    text = as_text(found)
    assert "liver, tumour_a" in text
    assert "0.4575" in text
    assert json.loads(as_json(found))["models"][1]["name"] == "hippo"


def test_models_are_listed_without_waiting_for_torch(packed: Path, tmp_path: Path) -> None:
    install(packed, tmp_path)
    ask = (
        "import sys; from pathlib import Path; from autoseg.stages.package import installed; "
        f"print(installed(Path({str(tmp_path)!r})).models[0].name, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["hippo", "False"]


def test_a_damaged_model_is_listed_with_its_fault(packed: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        install(packed, tmp_path, name=name)
    (tmp_path / "a" / FIRST).write_bytes(b"short")
    (tmp_path / "b" / "model.json").write_text("{")
    (tmp_path / "c" / "model.json").unlink()
    faults = [model.fault for model in installed(tmp_path).models]
    for fault, words in zip(faults, ("damaged (5 bytes", "not valid JSON", "does not exist", ""),
                            strict=True):  # fmt: skip
        assert words in fault
    assert faults[3] == ""
    assert "cannot be used: " in as_text(installed(tmp_path))


def test_a_model_is_replaced_only_if_told(
    trained: Path, spec: ModelSpec, packed: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    first = install(packed, models)
    stamp = (first.folder / "model.json").stat().st_mtime_ns
    assert install(packed, models) == first
    assert (first.folder / "model.json").stat().st_mtime_ns == stamp
    other = export(spec, trained, tmp_path / "other", card="# other\n")
    with pytest.raises(AutosegError, match=r"another model is installed as hippo.*--name"):
        install(other, models)
    assert (first.folder / "card.md").read_text() == "# hippo\n"
    install(other, models, overwrite=True)
    assert (first.folder / "card.md").read_text() == "# other\n"
    # a damaged one is mended by the same package
    (first.folder / FIRST).write_bytes(b"")
    assert install(other, models).fault == ""
    assert read_model(first.folder, verify=True).digest == spec.digest


@pytest.mark.parametrize(
    "name", ["..", "a/b", "a\\b", ".hidden", "", "con", "x.", "a b", "é", "a:b"]
)
def test_a_name_that_is_no_folder_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    document = with_model(contents(packed), lambda d: d.update(name=name))
    bad = zipped(tmp_path / "bad.autoseg", document)
    with pytest.raises(AutosegError, match="a model cannot be called"):
        install(bad, tmp_path / "models")
    if name:
        with pytest.raises(AutosegError, match="a model cannot be called"):
            install(packed, tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


def test_a_refused_package_leaves_the_installed_model(packed: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    kept = install(packed, models)
    bad = zipped(
        tmp_path / "bad", with_weights(contents(packed), poisoned(contents(packed)[FIRST]))
    )
    with pytest.raises(AutosegError, match="NaN"):
        install(bad, models, overwrite=True)
    assert read_model(kept.folder, verify=True).name == "hippo"
    assert [p.name for p in models.iterdir() if p.name.startswith(".half")] == []


def test_a_folder_that_holds_no_model_is_never_replaced(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("years of work")
    with pytest.raises(AutosegError, match="holds no model"):
        unpack(packed, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "years of work"
    unpack(packed, tmp_path / "new")
    unpack(packed, tmp_path / "new")
    assert read_model(tmp_path / "new", verify=True).name == "hippo"


def test_reading_a_folder_finds_what_changed_if_asked(packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "m")
    file = tmp_path / "m" / FIRST
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    assert read_model(tmp_path / "m").name == "hippo"
    with pytest.raises(
        AutosegError, match=r"damaged .its sha256 changed.*install the package again"
    ):
        read_model(tmp_path / "m", verify=True)
    file.unlink()
    with pytest.raises(AutosegError, match=r"fold_0.safetensors: it does not exist"):
        read_model(tmp_path / "m")


def test_models_lie_below_the_root_also_beside_nnunets_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / "theirs" / name))
    monkeypatch.delenv("AUTOSEG_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert open_workspace().models == tmp_path / "autoseg_data" / "models"
    assert open_workspace(tmp_path / "here").models == tmp_path / "here" / "models"
