"""ONNX exports: each network against torch, the folder against damage and malice, label maps alike."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from torch import nn
from torch.nn import functional as F

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from autoseg.api import Predictor  # noqa: E402
from autoseg.documents.model import ModelSpec  # noqa: E402
from autoseg.documents.onnx import OnnxManifest, check_manifest, description  # noqa: E402
from autoseg.documents.presets.table import network_spec  # noqa: E402
from autoseg.errors import AutosegError  # noqa: E402
from autoseg.files import sha256_file, to_json  # noqa: E402
from autoseg.interop import onnx_graph  # noqa: E402
from autoseg.interop.onnx import export  # noqa: E402
from autoseg.interop.onnx_graph import WAYS, Graph, graph_of  # noqa: E402
from autoseg.models.members import Model, narrowed  # noqa: E402
from autoseg.models.onnx import session_of  # noqa: E402
from autoseg.nets.build import build  # noqa: E402
from autoseg.stages.package import export as export_package  # noqa: E402
from autoseg.stages.package import read_model  # noqa: E402
from tests.card import settings_kept  # noqa: E402
from tests.stages.tiny_model import tiny_model  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A cascade and its stage, 2 + 1 folds of random weights."""
    root = tmp_path_factory.mktemp("model")
    return Model(tiny_model(root), root)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export. To be copied, not changed."""
    folder = tmp_path_factory.mktemp("exported") / "hippo"
    export(model, folder, card="# hippo\n")
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "hippo"))


def of_preset(
    name: str, dimensions: int, levels: int = 3
) -> tuple[nn.Module, tuple[int, ...], Any]:
    """A tiny network of a preset, the smallest patch for it, and its document."""
    spec = network_spec(
        name, 2, 3, (8, 16, 32, 32, 32, 32)[:levels],
        ([(1,) * dimensions] + [(2,) * dimensions] * 5)[:levels], [(3,) * dimensions] * levels,
    )  # fmt: skip
    torch.manual_seed(0)
    return build(spec).eval(), tuple(max(16, d) for d in spec.divisor), spec


def graph(name: str, dimensions: int, levels: int = 3) -> Graph:
    net, patch, spec = of_preset(name, dimensions, levels)
    return graph_of(net, 2, patch, spec.divisor, WAYS)


# ---- graphs


@pytest.mark.parametrize(
    ("name", "dimensions", "levels", "free"),
    [
        ("plain", 3, 3, "all"),
        ("resenc_m", 2, 3, "all"),
        ("unetpp", 2, 3, "all"),
        ("convnext_unet", 2, 3, "all"),
        ("mednext_s", 2, 3, "all"),
        pytest.param("unetr", 2, 4, "batch", marks=pytest.mark.slow),
        ("aspp_unet", 2, 4, "batch"),
        pytest.param("swin_unetr", 2, 3, "none", marks=pytest.mark.slow),
    ],
)
def test_a_network_becomes_a_graph_that_speaks_like_it(
    name: str, dimensions: int, levels: int, free: str
) -> None:
    found = graph(name, dimensions, levels)
    assert found.free == free
    assert found.difference <= 5e-5
    net, patch, spec = of_preset(name, dimensions, levels)
    batch = 1 if free == "none" else 3
    size = [p + d for p, d in zip(patch, spec.divisor, strict=True)] if free == "all" else patch
    image = torch.randn(batch, 2, *size)
    with torch.no_grad():
        wanted = net(image)[0].numpy()
    said = session_of(found.content).run(["logits"], {"image": image.numpy()})[0]
    np.testing.assert_allclose(said, wanted, atol=5e-5 * np.abs(wanted).max())


def test_the_exporter_stays_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """It switches its log on by itself, and then prints every network that it cannot trace."""
    log: Any = torch._C
    switch = log._jit_set_onnx_log_enabled
    with onnx_graph._silence():
        log._jit_set_onnx_log_enabled(True)
        log._jit_onnx_log("the whole network")
    assert log._jit_set_onnx_log_enabled is switch
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_network_of_windows_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert graph("swin_unetr", 2).free == "none"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["umamba_bot", "vm_unet"])
def test_a_recurrence_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(AutosegError, match=r"state-space blocks.*no operator"):
        graph(name, 2)


def test_what_the_exporter_cannot_do_is_told() -> None:
    with pytest.raises(AutosegError, match="max_unpool3d"):
        graph("segnet", 3)


class Odd(nn.Module):
    """A convolution whose padding is not what a graph of one size would have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        factor = float(image.abs().sum())  # traced as a number: true of one image alone
        return [self.layer(image) * (1 + factor)]


def test_a_graph_that_differs_is_refused() -> None:
    with pytest.raises(AutosegError, match=r"differ from torch's by .* with all axes fixed"):
        graph_of(Odd().eval(), 1, (8, 8), (1, 1), WAYS)


def test_a_graph_tells_nothing_of_where_it_was_made(exported: Path) -> None:
    files = sorted((exported / "networks").rglob("*.onnx"))
    assert len(files) == 3
    for path in files:
        found = path.read_bytes()
        assert not any(word in found for word in (b".py", b"forward", b"site-packages", b"Meier"))
        made = onnx.load(path)
        onnx.checker.check_model(made)
        assert [o.version for o in made.opset_import] == [17]


# ---- the folder


def test_the_manifest_tells_what_the_plan_says(exported: Path, model: Model) -> None:
    spec = read_model(exported)
    check_manifest(exported, spec)
    found = json.loads((exported / "manifest.json").read_text("utf-8"))
    c = model.spec.members[1].configuration
    told = found["description"]["members"][1]
    assert told["spacing_mm"] == list(c.preparation.spacing_mm)
    assert told["normalisation"][0]["mean"] == c.preparation.channels[0].mean
    assert told["tiles"]["patch_vox"] == [8, 16, 16]
    assert told["networks"] == ["networks/3d_lowres/fold_0.onnx", "networks/3d_lowres/fold_1.onnx"]
    assert found["description"]["members"][0]["refines"] == "3d_lowres"
    assert found["description"]["labels"]["values"] == [0, 1, 4]
    assert found["description"]["postprocessing"] == [s.dump() for s in model.spec.postprocessing]
    for file, network in found["networks"].items():
        assert network["sha256"] == sha256_file(exported / file)
        assert network["input"][2:] == ["z", "y", "x"]
        assert network["difference"] <= 1e-5
    assert (exported / "card.md").read_text("utf-8") == "# hippo\n"


def test_the_same_model_again_changes_nothing(model: Model, copy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    assert export(model, copy, card="").there
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before
    other = narrowed(model, folds=["0"])
    with pytest.raises(AutosegError, match=r"exists and is not this model.*--overwrite"):
        export(other, copy, card="")
    assert len(export(other, copy, card="", overwrite=True).networks) == 2
    assert not (copy / "networks/3d_lowres/fold_1.onnx").exists()


def test_what_is_no_export_is_never_replaced(model: Model, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"mine")
    with pytest.raises(AutosegError, match="holds no ONNX export"):
        export(model, tmp_path, card="", overwrite=True)
    with pytest.raises(AutosegError, match="writes a folder"):
        export(model, tmp_path / "hippo.onnx", card="")
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_nothing_is_written_where_logits_differ(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "TOLERANCE", 1e-12)
    with pytest.raises(AutosegError, match=r"fold 0 of 3d_lowres.*differ from torch's"):
        export(model, tmp_path / "hippo", card="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package_is_told_with_the_command(
    missing: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(AutosegError, match=f"needs the package {missing}.*pip install onnx"):
        export(model, tmp_path / "hippo", card="")
    assert list(tmp_path.iterdir()) == []


def test_small_scans_in_one_piece_need_free_axes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of one size can only be shown patches; its document must say so."""
    document = narrowed(model, fast=True).spec.dump()
    document["members"] = document["members"][:1]
    for member in (*document["members"], *document["stages"]):
        member["configuration"]["predict"]["whole_up_to"] = 2.0
    whole = Model(ModelSpec.parse(document, "it"), model.folder)
    export(whole, tmp_path / "free", card="")
    assert read_model(tmp_path / "free").members[0].configuration.predict.whole_up_to == 2.0
    monkeypatch.setattr("autoseg.interop.onnx.WAYS", ("batch",))
    made = export(whole, tmp_path / "fixed", card="")
    assert set(made.whole) == {"3d_cascade_fullres", "3d_lowres"}
    spec = read_model(tmp_path / "fixed")
    assert spec.members[0].configuration.predict.whole_up_to == 0.0
    assert all(n.input[2:] == (8, 16, 16) for n in made.networks.values())
    assert all("of this size alone" in line for line in list(made.lines())[1:])


# ---- speaking


def scan(spec: ModelSpec) -> tuple[np.ndarray, list[float]]:
    """A random scan of soft blobs, and its spacing (x, y, z)."""
    torch.manual_seed(3)
    noise = torch.randn(len(spec.channels), 3, 5, 5)
    soft = F.interpolate(noise[None], (8, 17, 20), mode="trilinear")[0]
    wanted = [mm or 1.0 for mm in spec.members[0].configuration.preparation.spacing_mm]
    return (300 * soft.permute(0, 3, 2, 1)).numpy(), wanted[::-1]


def test_label_maps_are_those_of_torch(model: Model, exported: Path, tmp_path: Path) -> None:
    """A cascade with its stage, folds, mirroring, tiles, resampling and postprocessing."""
    package = export_package(model.spec, model.folder, tmp_path / "hippo", card="# hippo\n")
    image, spacing = scan(model.spec)
    for options in ({}, {"fold": ("0",), "fast": True}):
        found = []
        for source in (package, exported):
            with Predictor(source, device="cpu", **options) as predictor:
                found.append(predictor.segment(image, spacing_mm=[1.1 * s for s in spacing]))
        assert found[0].shape == image.shape[1:]
        assert len(np.unique(found[0])) > 1
        assert (found[0] == found[1]).mean() >= 0.9999


def test_a_fixed_batch_is_shown_one_sample_after_another(
    model: Model, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoseg.interop.onnx.WAYS", ("none",))
    export(model, tmp_path / "fixed", card="")
    image, spacing = scan(model.spec)
    found = []
    for source in (exported, tmp_path / "fixed"):
        with Predictor(source, fast=True) as predictor:
            found.append(predictor.segment(image, spacing_mm=spacing))
    assert (found[0] == found[1]).mean() >= 0.9999


def test_runtimes_are_not_mixed_up(
    shell: Callable[[str], Any], model: Model, exported: Path, tmp_path: Path
) -> None:
    package = export_package(model.spec, model.folder, tmp_path / "hippo.autoseg", card="# hippo\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a_0000.nii.gz").write_bytes(b"")
    start = "autoseg predict -i in -o out"
    for line, words in (
        (f"{start} --model {package} --runtime onnx", "autoseg export --onnx"),
        (f"{start} --model {exported} --runtime torch", "which torch cannot compute"),
        (f"{start} --model {exported} --runtime onyx", "did you mean 'onnx'?"),
        (f"autoseg export --model {exported} -o b.autoseg", "export the model that it was made"),
        (f"autoseg export --model {exported} --onnx -o b", "export the model that it was made"),
        (f"autoseg export --model {exported} --nnunet b", "export the model that it was made"),
        (f"autoseg export --model {package} --onnx --nnunet b", "one thing a call"),
        (f"autoseg export --model {package} --onnx", "needs output (-o), as hippo_onnx"),
    ):
        said = shell(line)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
        assert words in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hippo.autoseg", "in"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"precision": "bfloat16"}, "computed in float32"), ({"device": "cuda"}, "on the processor")],
)
def test_only_float32_on_the_processor(
    options: dict[str, Any], words: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if "precision" in options:
        from autoseg.learn.cores import bfloat16_works

        if not bfloat16_works():
            words = "bfloat16"
    with settings_kept(), pytest.raises(AutosegError, match=words):
        Predictor(exported, **options)


PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def alone(model: Model) -> Model:
    """Its first stage as a model of its own, without postprocessing."""
    document = model.spec.dump()
    document |= {"members": document["stages"], "stages": [], "postprocessing": []}
    return Model(ModelSpec.parse(document, "it"), model.folder)


def test_the_shortest_program_gives_the_label_map_of_an_array(
    model: Model, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy and onnxruntime alone, on an array that needs no turning and no resampling."""
    single = alone(model)
    export(single, tmp_path / "hippo", card="")
    image, spacing = scan(model.spec)
    with Predictor(tmp_path / "hippo") as predictor:
        wanted = predictor.segment(image, spacing_mm=spacing)
    axes = single.spec.members[0].configuration.preparation.axes
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(axes)))
    np.save(tmp_path / "scan.npy", np.stack([apply_orientation(c, turn) for c in image]))
    short, _ = PROGRAM.findall((repository / "docs" / "onnx.md").read_text("utf-8"))
    names = [str(tmp_path / name) for name in ("hippo", "scan.npy", "labels.npy")]
    monkeypatch.setattr(sys, "argv", ["program", *names])
    exec(compile(short, "docs/onnx.md", "exec"), {"__name__": "__main__"})
    assert np.bincount(wanted.ravel()).max() < 0.99 * wanted.size
    assert (np.load(tmp_path / "labels.npy") == apply_orientation(wanted, turn)).mean() >= 0.9999


@pytest.mark.parametrize("coarse", [False, True])
def test_the_manifest_is_enough_for_another_program(
    coarse: bool,
    model: Model,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The program of the documentation, which uses nothing of autoseg, gives its label maps."""
    export(alone(model), tmp_path / "hippo", card="")
    image, spacing = scan(model.spec)
    # stored front to back and right to left, the coarse axis in the middle
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -spacing[1], spacing[2], spacing[0], 1
    affine[:3, :3] *= [[1.2], [0.9], [4.5 if coarse else 1.1]]
    stored = np.ascontiguousarray(image[0].transpose(1, 2, 0))
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "scan.nii.gz")
    with Predictor(tmp_path / "hippo") as predictor:
        wanted = predictor.segment_files([tmp_path / "scan.nii.gz"])
    _, program = PROGRAM.findall((repository / "docs" / "onnx.md").read_text("utf-8"))
    names = [str(tmp_path / name) for name in ("hippo", "scan.nii.gz", "labels.nii.gz")]
    monkeypatch.setattr(sys, "argv", ["program", *names])
    exec(compile(program, "docs/onnx.md", "exec"), {"__name__": "__main__"})
    found = np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj)
    assert capsys.readouterr().out.endswith("left to do: []\n")
    assert found.shape == wanted.shape == stored.shape
    assert np.bincount(wanted.ravel()).max() < 0.99 * wanted.size
    assert (found == wanted).mean() >= 0.9995


# ---- damage and malice


def refused(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(AutosegError) as found:
        Predictor(folder)
    text = str(found.value)
    assert "\n" not in text
    return text


FILE = "networks/3d_lowres/fold_0.onnx"


def passed_off(folder: Path, change: Callable[[Any], None] | bytes) -> None:
    """A changed network, with its hash and size in both documents set right."""
    path = folder / FILE
    before = (sha256_file(path), path.stat().st_size)
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        made = onnx.load(path)
        change(made)
        path.write_bytes(made.SerializeToString())
    after = (sha256_file(path), path.stat().st_size)
    for name in ("model.json", "manifest.json"):
        text = (folder / name).read_text("utf-8")
        assert before[0] in text
        document = json.loads(text)
        _replace(document, before, after)
        (folder / name).write_text(to_json(document), "utf-8")


def _replace(value: Any, before: tuple[str, int], after: tuple[str, int]) -> None:
    for inside in value.values() if isinstance(value, dict) else value:
        if isinstance(inside, dict) and inside.get("sha256") == before[0]:
            inside["sha256"], inside["size"] = after
        elif isinstance(inside, (dict, list)):
            _replace(inside, before, after)


def outside(model: Any) -> None:
    """Weights that are to be read from elsewhere."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def hidden_outside(model: Any) -> None:
    """The same in a constant of a node."""
    node = model.graph.node.add(op_type="Constant", output=["hidden"])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.data_type = onnx.TensorProto.FLOAT
    attribute.t.dims.append(4)
    attribute.t.data_location = onnx.TensorProto.EXTERNAL
    attribute.t.external_data.add(key="location", value="/etc/passwd")


def endless(model: Any) -> None:
    """A loop without an end."""
    node = model.graph.node.add(op_type="Loop", output=["never"])
    attribute = node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    attribute.g.name = "body"


def foreign(model: Any) -> None:
    model.graph.node.add(op_type="Run", domain="my.company", output=["x"])


def function(model: Any) -> None:
    model.functions.add(name="f", domain="my.company")


def renamed(model: Any) -> None:
    model.graph.input[0].name = "picture"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = "picture" if name == "image" else name


def narrower(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[4].dim_value = 20
    model.graph.output[0].type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def other_classes(model: Any) -> None:
    """Logits of two classes fewer than the document says."""
    model.graph.node[-1].output[0] = "all"
    for name, numbers in (("from", [0]), ("to", [1]), ("axis", [1])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(numbers), name))
    model.graph.node.add(op_type="Slice", input=["all", "from", "to", "axis"], output=["logits"])
    model.graph.output[0].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (outside, "its numbers lie in another file, '../../../etc/passwd'"),
        (hidden_outside, "its numbers lie in another file, '/etc/passwd'"),
        (endless, "a graph within a graph (Loop)"),
        (foreign, "operators of 'my.company'"),
        (function, "functions or a training of its own"),
        (renamed, "takes ['picture']"),
        (narrower, "it patches of"),
        (b"", "is damaged"),
        (b"not a graph at all, but long enough to look like something", "is no ONNX file"),
        (b"\x08\x08", "cannot be loaded"),
    ],
)
def test_a_network_made_to_harm_is_refused(change: Any, words: str, copy: Path) -> None:
    if change == b"":
        (copy / FILE).write_bytes(change)
    else:
        passed_off(copy, change)
    assert words in refused(copy)


def test_logits_of_another_number_of_classes_are_refused(copy: Path, model: Model) -> None:
    passed_off(copy, other_classes)
    image, spacing = scan(model.spec)
    with (
        Predictor(copy) as predictor,
        pytest.raises(AutosegError, match=r"cannot be computed|gives .* for an image"),
    ):
        predictor.segment(image, spacing_mm=spacing)


def test_damage_is_told_in_one_line(copy: Path) -> None:
    path, whole = copy / FILE, (copy / FILE).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refused(copy)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "its sha256 changed" in refused(copy)
    path.unlink()
    assert "does not exist" in refused(copy)


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(to_json(document), "utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("networks"), "'networks' is missing"),
        (lambda d: d.update(schema=2), "no manifest of an ONNX export"),
        (lambda d: d.update(format="other"), "no manifest of an ONNX export"),
        (lambda d: d["networks"].pop(FILE), "named in only one of them"),
        (lambda d: d["networks"][FILE].update(fold="1"), "another file"),
        (lambda d: d["description"].update(channels=["T1"]), "description.channels differs"),
        (
            lambda d: d["description"]["members"][0].update(axes="LPS"),
            "description.members differs",
        ),
    ],
)
def test_a_manifest_that_does_not_agree_is_refused(
    change: Callable[[dict[str, Any]], None], words: str, copy: Path
) -> None:
    edited(copy, change)
    said = refused(copy)
    assert words in said
    assert "manifest.json" in said


def test_a_manifest_that_is_gone_or_torn_is_told(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text("utf-8")[:100], "utf-8")
    assert "not valid JSON" in refused(copy)
    path.unlink()
    assert "manifest.json: it does not exist" in refused(copy)


def test_the_manifest_is_what_the_description_says(exported: Path) -> None:
    manifest = OnnxManifest.read(exported / "manifest.json")
    assert dict(manifest.description) == description(read_model(exported))
