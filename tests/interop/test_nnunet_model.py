"""Imported models say what nnU-Net 2.8.1 said; exported ones are its own files again."""

import copy
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name its users know
import torch

from autoseg.api import import_nnunet
from autoseg.api.predictor import Predictor
from autoseg.data.prepare import prepare
from autoseg.documents.dataset import Case
from autoseg.documents.model import ModelSpec
from autoseg.errors import AutosegError, PlanError
from autoseg.infer.volume import logit_slabs
from autoseg.interop.nnunet.checkpoint import read_checkpoint
from autoseg.interop.nnunet.model import Wanted, model_from
from autoseg.interop.nnunet.write import reader_and_order, write_model
from autoseg.learn.weights import load_weights
from autoseg.nets.build import build
from autoseg.stages.package import read_model
from tests.interop.nnunet_files import (
    CASCADE,
    EVERY,
    LOW,
    PLAIN,
    REGIONS,
    Genuine,
    changed,
    full,
    imported,
    kwargs,
)


@pytest.fixture(scope="module", params=EVERY, ids=lambda g: f"{g.name}-{g.configuration}")
def genuine(request: pytest.FixtureRequest) -> Genuine:
    return request.param


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def said(spec: ModelSpec, folder: Path, paths: list[Path], expected: dict) -> np.ndarray:
    """The logits of the first member on the prepared grid; a cascade is shown what nnU-Net showed."""
    member = spec.members[0]
    c = member.configuration
    net = build(c.network).eval()
    load_weights(folder / member.weights[0].file, net)
    image = prepare(Case("scan", tuple(paths), None), c.preparation).image
    if "previous" in expected:
        image = np.concatenate([image, expected["previous"].astype(np.float32)])
    slabs = logit_slabs(
        [net], image, c.patch_vox, c.preparation.labels.outputs, c.predict,
        c.augmentation.mirror_axes,
    )  # fmt: skip
    with torch.inference_mode():
        return torch.cat([slab for _, slab in slabs], -3).numpy()


def test_logits_and_labels_are_those_of_nnunet(
    genuine: Genuine, root: Path, tmp_path: Path
) -> None:
    name = f"{genuine.name}_{genuine.configuration}"
    found = import_nnunet(genuine.folder, name, configuration=(genuine.configuration,), root=root)
    assert (found.fault, found.name) == ("", name)
    expected, paths = genuine.expected, genuine.scan(tmp_path / "in")
    logits = said(read_model(found.folder), found.folder, paths, expected)
    assert logits.shape == tuple(expected["shape"])
    assert np.abs(logits[:, ::3, ::3, ::3] - expected["logits"]).max() < 1e-4
    with Predictor(name, root=root) as predictor:
        predictor.segment_files(paths, tmp_path / "out.nii.gz")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.nii.gz")))
    equal = (labels == expected["labels"]).mean()
    # labels on the cascade's grid are exactly half and half at many voxels, which newer versions of
    # nnU-Net's helper package settle otherwise than older ones; untrained networks mind
    assert equal >= (0.97 if genuine == CASCADE else 0.9999)
    counts = np.bincount(expected["labels"].ravel())
    assert counts.min() > 100


def test_the_document_says_what_the_plans_said() -> None:
    spec, _ = imported(PLAIN)
    c = spec.members[0].configuration
    assert c.preparation.axes == "stored:jki"
    assert c.preparation.spacing_mm == (3.0, 1.2, 1.2)
    assert [s.scheme for s in c.preparation.channels] == ["ct", "zscore"]
    assert [s.use_mask for s in c.preparation.channels] == [False, True]
    assert c.augmentation.mirror_axes == (0, 2)
    assert spec.channels == ("CT", "PET")
    regions, _ = imported(REGIONS)
    assert regions.labels.structures == {"whole": (1, 2), "core": (2,)}
    assert (regions.labels.ignore, regions.labels.outputs) == (3, 2)
    cascade, _ = imported(CASCADE)
    assert [s.name for s in cascade.stages] == ["3d_lowres"]
    assert cascade.members[0].configuration.inputs == 3


def test_exporting_an_imported_model_gives_its_own_weights(
    genuine: Genuine, tmp_path: Path
) -> None:
    spec, weights = imported(genuine, tmp_path / "weights")
    folders = write_model(spec, weights, tmp_path / "out", ending=".nii.gz", orientation=None)
    home = next(f for f in folders if f.name == genuine.model.name)
    ours = torch.load(home / "fold_0" / "checkpoint_final.pth", weights_only=True)
    theirs = torch.load(genuine.checkpoint, weights_only=False)
    assert ours["network_weights"].keys() == theirs["network_weights"].keys()
    for name, tensor in theirs["network_weights"].items():
        assert torch.equal(ours["network_weights"][name], tensor)
    for key in ("trainer_name", "inference_allowed_mirroring_axes"):
        assert ours[key] == theirs[key]
    assert ours["init_args"]["configuration"] == genuine.configuration
    wrote = json.loads((home / "plans.json").read_text())
    given = json.loads((genuine.model / "plans.json").read_text())
    for key in ("transpose_forward", "transpose_backward", "image_reader_writer"):
        assert wrote[key] == given[key]
    made = wrote["configurations"][genuine.configuration]
    wanted = {**given["configurations"].get("3d_fullres", {}),
              **given["configurations"][genuine.configuration]}  # fmt: skip
    for key in ("patch_size", "spacing", "normalization_schemes", "architecture",
                "resampling_fn_data_kwargs", "use_mask_for_norm"):  # fmt: skip
        assert made[key] == wanted[key], key
    dataset = json.loads((home / "dataset.json").read_text())
    original = json.loads((genuine.model / "dataset.json").read_text())
    assert dataset["labels"] == original["labels"]
    assert dataset.get("regions_class_order") == original.get("regions_class_order")


@pytest.mark.parametrize("size", ["M", "L", "XL"])
def test_the_size_of_a_residual_network_comes_back(tmp_path: Path, size: str) -> None:
    planner = f"nnUNetPlannerResEnc{size}"
    folder = changed(
        REGIONS, tmp_path, "plans.json", lambda d: d.update(experiment_planner_used=planner)
    )
    spec = model_from(folder, tmp_path / "w", None, Wanted())
    assert spec.members[0].configuration.network.preset == f"resenc_{size.lower()}"
    (home,) = write_model(spec, tmp_path / "w", tmp_path / "o", ending=".nii.gz", orientation=None)
    assert json.loads((home / "plans.json").read_text())["experiment_planner_used"] == planner
    assert model_from(tmp_path / "o", tmp_path / "v", None, Wanted()).digest == spec.digest


def test_a_zip_of_nnunet_is_the_same_model(tmp_path: Path) -> None:
    path = CASCADE.zipped(tmp_path / "model.zip")
    with pytest.raises(AutosegError, match="holds 2 models: 3d_cascade_fullres, 3d_lowres; choose"):
        import_nnunet(path, root=tmp_path)
    found = import_nnunet(path, "from_zip", configuration=("3d_cascade_fullres",), root=tmp_path)
    assert found.members == ("3d_lowres × 1 fold", "3d_cascade_fullres × 1 fold")
    again = import_nnunet(
        CASCADE.folder, "from_folder", configuration=("3d_cascade_fullres",), root=tmp_path
    )
    assert read_model(found.folder).digest == read_model(again.folder).digest


def test_what_nnunet_chose_is_taken(tmp_path: Path) -> None:
    home = tmp_path / "Dataset901_X"
    shutil.copytree(CASCADE.folder, home)
    chosen = {"configuration": "3d_lowres", "trainer": "nnUNetTrainer",
              "plans_identifier": "nnUNetPlans"}  # fmt: skip
    (home / "inference_information.json").write_text(
        json.dumps({"best_model_or_ensemble": {"selected_model_or_models": [chosen]}})
    )
    cv = home / LOW.model.name / "crossval_results_folds_0"
    cv.mkdir()
    (cv / "postprocessing.json").write_text(json.dumps({
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"] * 2,
        "postprocessing_kwargs": [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 2}],
    }))  # fmt: skip
    spec = model_from(tmp_path, tmp_path / "w", "x", Wanted())
    assert [m.name for m in spec.members] == ["3d_lowres"]
    assert [step.of for step in spec.postprocessing] == ["*", "b"]
    raw = model_from(tmp_path, tmp_path / "r", "x", Wanted(postprocessing=False))
    assert raw.postprocessing == ()


def test_a_cascade_alone_names_the_folder_that_it_needs(tmp_path: Path) -> None:
    shutil.copytree(CASCADE.model, tmp_path / CASCADE.model.name)
    with pytest.raises(AutosegError, match="refines 3d_lowres, which is not beside it; give"):
        model_from(tmp_path, tmp_path / "w", None, Wanted())


def test_names_that_training_put_before_weights_are_taken_off(tmp_path: Path) -> None:
    shutil.copytree(PLAIN.model, tmp_path / "m")
    path = tmp_path / "m" / "fold_0" / "checkpoint_final.pth"
    document = torch.load(path, weights_only=False)
    weights = document["network_weights"]
    document["network_weights"] = {f"module._orig_mod.{k}": v for k, v in weights.items()}
    torch.save(document, path)
    assert read_checkpoint(path).weights.keys() == weights.keys()
    spec = model_from(tmp_path / "m", tmp_path / "w", None, Wanted())
    first, _ = imported(PLAIN)
    assert spec.digest == first.digest


def test_half_and_channels_last_weights_come_as_float32(tmp_path: Path) -> None:
    shutil.copytree(PLAIN.model, tmp_path / "m")
    path = tmp_path / "m" / "fold_0" / "checkpoint_final.pth"
    document = torch.load(path, weights_only=False)
    document["network_weights"] = {
        k: v.to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
        if v.ndim == 5 else v.half() for k, v in document["network_weights"].items()
    }  # fmt: skip
    torch.save(document, path)
    spec = model_from(tmp_path / "m", tmp_path / "w", None, Wanted())
    net = build(spec.members[0].configuration.network)
    load_weights(tmp_path / "w" / spec.members[0].weights[0].file, net)
    wanted = document["network_weights"]["encoder.stages.1.0.convs.0.conv.weight"]
    assert torch.equal(net.state_dict()["encode.1.0.0.weight"], wanted.float())
    assert not wanted.is_contiguous()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("plans.json", lambda d: d.pop("configurations"), "has no configurations; it is no plans"),
        ("plans.json", lambda d: d.update(image_reader_writer="MyIO"), "with 'MyIO', which is not"),
        ("plans.json", lambda d: d.update(transpose_forward=[0, 0, 1]), "transpose_forward is"),
        ("plans.json", lambda d: full(d).update(spacing=[0, 1, 1]), "lengths are positive"),
        ("plans.json", lambda d: full(d).update(spacing="1e999"), "expected lengths in mm"),
        ("plans.json", lambda d: full(d).update(normalization_schemes=["X", "X"]), "'X', which"),
        ("plans.json", lambda d: kwargs(d).update(n_stages=10**9), "n_stages is 1000000000"),
        ("plans.json", lambda d: kwargs(d).update(nonlin="torch.nn.Tanh"), "nonlin Tanh, which ours"),
        ("plans.json", lambda d: kwargs(d).update(nonlin_first=True), "nonlin_first, which ours"),
        ("plans.json", lambda d: kwargs(d).update(magic=1), "argument 'magic' is not known"),
        ("plans.json", lambda d: full(d).update(inherits_from="3d_fullres"), "inherits from itself"),
        ("plans.json", lambda d: full(d)["architecture"].update(network_class_name="a.Primus"),
         "'Primus'; of nnU-Net's, PlainConvUNet and ResidualEncoderUNet"),
        ("plans.json", lambda d: full(d)["resampling_fn_data_kwargs"].update(order=2), "order"),
        ("plans.json", lambda d: full(d).update(resampling_fn_data="mine"), "'mine', which is not"),
        ("plans.json", lambda d: kwargs(d).update(features_per_stage=[3, 4, 9]),
         "the checkpoint belongs to other plans"),
        ("dataset.json", lambda d: d.pop("labels"), 'has no "labels"'),
        ("dataset.json", lambda d: d.pop("channel_names"), "has no channel_names"),
        ("dataset.json", lambda d: d["labels"].update(more=3), "the network of plans.json needs"),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, file: str, change, message: str
) -> None:
    folder = changed(PLAIN, tmp_path, file, change)
    with pytest.raises(AutosegError, match=message) as told:
        model_from(folder, tmp_path / "w", None, Wanted())
    assert len(str(told.value)) < 600


def test_folds_and_checkpoints_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match="has no fold 3; there is 0"):
        model_from(PLAIN.model, tmp_path, None, Wanted(folds=("3",)))
    with pytest.raises(AutosegError, match=r"no fold_\*/checkpoint_best.pth; there is checkpoint_"):
        model_from(PLAIN.model, tmp_path, None, Wanted(checkpoint="checkpoint_best.pth"))
    with pytest.raises(AutosegError, match="there is no trained '3d_fulres'; did you mean"):
        model_from(PLAIN.folder, tmp_path, None, Wanted(configurations=("3d_fulres",)))
    with pytest.raises(AutosegError, match=r"fold_0 is one fold of a model; give .*3d_fullres, wi"):
        import_nnunet(PLAIN.checkpoint.parent, root=tmp_path)
    with pytest.raises(AutosegError, match="is a checkpoint alone; give the folder above its fold"):
        import_nnunet(PLAIN.checkpoint, root=tmp_path)
    with pytest.raises(AutosegError, match=r"-d 4 belongs to a plans\.json"):
        import_nnunet(PLAIN.model, dataset="4", root=tmp_path)
    with pytest.raises(AutosegError, match="holds no model of nnU-Net v2; expected a folder"):
        model_from(tmp_path, tmp_path / "w", None, Wanted())


def test_of_several_trainers_one_is_named_by_its_folder(tmp_path: Path) -> None:
    home = tmp_path / "Dataset901_X"
    name = PLAIN.model.name
    shutil.copytree(PLAIN.model, home / name)
    shutil.copytree(PLAIN.model, home / name.replace("Trainer", "Trainer_5epochs"))
    shutil.copytree(REGIONS.model, home / REGIONS.model.name)
    said = (
        r"holds 3 models: 2d, nnUNetTrainer__nnUNetPlans__3d_fullres, nnUNetTrainer_5epochs__\S+; "
        "choose one with -c, as -c 2d, or several"
    )
    with pytest.raises(AutosegError, match=said):
        model_from(tmp_path, tmp_path / "w", None, Wanted())
    with pytest.raises(
        AutosegError, match="3d_fullres is there 2 times; choose with -c one of: nn"
    ):
        model_from(tmp_path, tmp_path / "w", None, Wanted(("3d_fullres",)))
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in home.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    for source in (tmp_path / "z.zip", home):
        word = name if source == home else f"{home.name}/{name}"
        found = import_nnunet(source, source.stem, configuration=(word,), root=tmp_path)
        assert found.members == ("3d_fullres × 1 fold",)
    # the same model of two datasets
    shutil.copytree(home / name, tmp_path / "Dataset902_Y" / name)
    with pytest.raises(AutosegError, match=f"one of: Dataset901_X/{name}, Dataset902_Y/{name}"):
        model_from(tmp_path, tmp_path / "w", None, Wanted((name,)))


def test_a_model_with_its_best_checkpoint_alone_is_taken_by_that_name(tmp_path: Path) -> None:
    shutil.copytree(PLAIN.model, tmp_path / "m")
    fold = tmp_path / "m" / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_best.pth")
    with pytest.raises(AutosegError, match=r"there is checkpoint_best\.pth: name it with"):
        model_from(tmp_path / "m", tmp_path / "w", None, Wanted())
    spec = model_from(
        tmp_path / "m", tmp_path / "w", None, Wanted(checkpoint="checkpoint_best.pth")
    )
    assert spec.digest == imported(PLAIN)[0].digest
    with pytest.raises(
        AutosegError, match=r"model.zip holds .*; there is checkpoint_final\.pth: na"
    ):
        import_nnunet(
            PLAIN.zipped(tmp_path / "model.zip"), checkpoint="checkpoint_best.pth", root=tmp_path
        )
    (fold / "checkpoint_best.pth").unlink()
    with pytest.raises(AutosegError, match="name a folder, or copy it again with its checkpoints"):
        model_from(tmp_path / "m", tmp_path / "w", None, Wanted())


def remove_all_but_largest_component_from_segmentation() -> None:
    raise AssertionError("it was called")


def test_pickled_postprocessing_is_read_and_told_and_never_run(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / PLAIN.model.name
    shutil.copytree(PLAIN.model, folder)
    keep = remove_all_but_largest_component_from_segmentation
    steps = ([keep, print], [{"labels_or_regions": [1]}, {"labels_or_regions": [1]}])
    (folder / "postprocessing.pkl").write_bytes(pickle.dumps(steps))
    spec = model_from(folder, tmp_path / "w", None, Wanted())
    assert len(spec.postprocessing) == 1
    assert "postprocessing, done by `predict`: " + spec.postprocessing[0].phrase in caplog.text
    assert "is left out: builtins print" in caplog.text
    caplog.clear()
    raw = model_from(folder, tmp_path / "r", None, Wanted(postprocessing=False))
    assert raw.postprocessing == ()
    assert "nnU-Net's postprocessing is left out (--raw)" in caplog.text


@pytest.mark.parametrize(
    ("axes", "ending", "orientation", "wanted"),
    [
        ("stored", ".nii.gz", None, ("SimpleITKIO", (0, 1, 2))),
        ("stored:jki", ".nii.gz", None, ("SimpleITKIO", (1, 0, 2))),
        ("SAR", ".nii.gz", "LPS", ("NibabelIOWithReorient", (0, 1, 2))),
        ("ARS", ".mha", None, ("SimpleITKIOWithReorient", (1, 2, 0))),
        ("SPL", ".nii.gz", "LPS", ("SimpleITKIO", (0, 1, 2))),
        ("LPS", ".nii.gz", "SLP", ("SimpleITKIO", (1, 0, 2))),
        ("SAR", ".png", None, ("NaturalImage2DIO", (0, 1, 2))),
    ],
)
def test_axes_as_nnunet_reads_files(axes, ending, orientation, wanted) -> None:
    """`transpose_forward` applied to the reversed file axes gives the plan's axes."""
    reader, order = reader_and_order(axes, ending, orientation)
    assert (reader, order) == wanted
    backwards = (
        "kji" if axes.startswith("stored")
        else "SAR" if "Reorient" in reader or orientation is None else orientation[::-1]
    )  # fmt: skip
    letters = "".join(backwards[axis] for axis in order)
    assert letters == (axes.partition(":")[2] or ("kji" if axes == "stored" else axes))


def test_axes_that_nnunet_would_have_to_flip_are_refused() -> None:
    with pytest.raises(PlanError, match="never flips an axis"):
        reader_and_order("SPL", ".nii.gz", None)
    with pytest.raises(PlanError, match="is stored as RAS, and nnU-Net never"):
        reader_and_order("SPL", ".nii.gz", "RAS")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a\\b", "C:evil"])
def test_zips_that_leave_their_folder_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(f"{name}/plans.json", "{}")
    with pytest.raises(AutosegError, match="a name that leaves its folder"):
        import_nnunet(tmp_path / "z.zip", root=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["z.zip"]


def test_zips_that_swell_or_are_cut_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/plans.json", b" " * (8 << 20))
    with pytest.raises(AutosegError, match="would have 8388608 bytes once it is unpacked"):
        import_nnunet(bomb, root=tmp_path)
    whole = CASCADE.zipped(tmp_path / "whole.zip").read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AutosegError, match="is no zip, or a damaged one"):
        import_nnunet(cut, root=tmp_path)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 255
    cut.write_bytes(flipped)
    with pytest.raises(AutosegError, match="cut"):
        import_nnunet(cut, configuration=("3d_cascade_fullres",), root=tmp_path)
    with pytest.raises(AutosegError, match="does not exist; name a folder or a zip"):
        import_nnunet(tmp_path / "none.zip", root=tmp_path)


def test_zips_whose_files_overlap_are_refused(tmp_path: Path) -> None:
    """Two entries of the directory point at the same bytes."""
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/plans.json", os.urandom(3000))
        first = archive.infolist()[0]
        for name in ("b/plans.json", "c/plans.json"):
            twin = copy.copy(first)
            twin.filename = twin.orig_filename = name
            archive.filelist.append(twin)
            archive.NameToInfo[name] = twin
    with pytest.raises(AutosegError, match="its files overlap, so that it would swell"):
        import_nnunet(path, root=tmp_path)
