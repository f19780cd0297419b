"""What is wrong with data, plan, disk or model is told in words, with exit code 2 and no traceback.

Each test spoils one thing in a workspace where all was well, and then looks at three things: what
is said (which case, what, what to do), that what was there before is as it was, and that nothing
half-written is left.
"""

import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from safetensors import SafetensorError

from autoseg.files import is_half

RAW, NAME = "raw/Dataset001_Phantom", "Dataset001_Phantom"
FOLD = f"results/{NAME}/default/3d_fullres/default/fold_0"
PREPARE = "autoseg plan_and_preprocess -d 1"


def image(folder: Path, number: int) -> Path:
    return folder / "imagesTr" / f"phantom_00{number}_0000.nii.gz"


def label(folder: Path, number: int) -> Path:
    return folder / "labelsTr" / f"phantom_00{number}.nii.gz"


def changed(
    path: Path,
    voxels: Callable[[np.ndarray], np.ndarray] = lambda v: v,
    place: Callable[[np.ndarray], np.ndarray] = lambda a: a,
) -> None:
    """Rewrite a NIfTI file with other voxels or in another place."""
    old = nib.load(path)
    array = voxels(np.asarray(old.dataobj).copy())
    nib.save(nib.Nifti1Image(array, place(old.affine.copy())), path)


def document(folder: Path, **entries) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def artefacts(root: Path) -> dict[str, str]:
    """Everything that was made, by content; a report of what is wrong may be written anew."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
        and p.relative_to(root).parts[0] != "raw"
        and not p.name.endswith("lock")
        and p.name != "checks.json"
        and p.parent.name != "cases"
    }


def refused(shell, root: Path, line: str, *told: str) -> str:
    """Run a command that must end with exit code 2 and these words, and must change nothing."""
    before = artefacts(root)
    said = shell(line)
    assert said.code == 2, said.err
    for words in told:
        assert words in said.err
    assert "Traceback" not in said.err
    assert artefacts(root) == before
    assert [p for p in root.rglob("*") if is_half(p.name)] == []
    return said.err


def as_mha_with_tilt(folder: Path) -> None:
    """One case as MHA files whose header gives the third axis a spacing of zero."""
    for path in (image(folder, 2), label(folder, 2)):
        scan = sitk.ReadImage(path)
        new = path.with_name(path.name.replace(".nii.gz", ".mha"))
        sitk.WriteImage(scan, new)
        raw = new.read_bytes()
        start = raw.index(b"ElementSpacing")
        end = raw.index(b"\n", start)
        new.write_bytes(raw[:start] + b"ElementSpacing = 3 3 0" + raw[end:])
        path.unlink()


def zero_spacing(path: Path) -> None:
    """A NIfTI file without sform and with a pixel size of zero."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:256] = bytes(4)  # qform_code, sform_code
    raw[80:84] = np.float32(0).tobytes()  # pixdim[1]
    path.write_bytes(gzip.compress(bytes(raw)))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SPOILT: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "other size": (
        lambda d: changed(label(d, 2), lambda v: v[:, :, :-3]),
        ("phantom_002", "image and label differ in size", "18, label", "15 voxels", "to fix:"),
    ),
    "other place": (
        lambda d: changed(label(d, 2), place=lambda a: a + np.outer([1, 1, 1, 0], [0, 0, 0, 5])),
        ("phantom_002", "not in the same place", "8.66 mm apart", "copy the image's header"),
    ),
    "undeclared label": (
        lambda d: changed(label(d, 3), lambda v: np.where(v == 2, 9, v).astype(v.dtype)),
        ("phantom_003", "not declared", "9 (declared: 0, 1, 2)", "dataset.json"),
    ),
    "halves": (
        lambda d: changed(label(d, 3), lambda v: (v * 0.75).astype(np.float32)),
        ("phantom_003", "not whole numbers", "0.75, 1.5", "nearest-neighbour"),
    ),
    "NaN": (
        lambda d: changed(image(d, 1), lambda v: np.where(v > 500, np.nan, v).astype("f4")),
        ("phantom_001", "not numbers", "NaN or infinite", "replace them"),
    ),
    "infinity": (
        lambda d: changed(image(d, 1), lambda v: np.where(v > 500, np.inf, v).astype("f4")),
        ("phantom_001", "not numbers", "NaN or infinite", "replace them"),
    ),
    "constant": (
        lambda d: changed(image(d, 4), lambda v: np.full_like(v, 7)),
        ("phantom_004", "the same everywhere", "channel 0 is 7", "export this channel again"),
    ),
    "empty file": (
        lambda d: image(d, 5).write_bytes(b""),
        ("phantom_005", "is empty (0 bytes)", "to fix:"),
    ),
    "truncated": (
        lambda d: truncated(image(d, 5)),
        ("phantom_005", "the compressed data ends early", "copy or export the file again"),
    ),
    "truncated label": (
        lambda d: truncated(label(d, 5)),
        ("phantom_005", "the compressed data ends early", "copy or export the file again"),
    ),
    "no image at all": (
        lambda d: image(d, 5).write_bytes(b"this is a note, not a scan"),
        ("phantom_005", "not an image of a known kind", "export it again"),
    ),
    "missing channel": (
        lambda d: document(d, channel_names={"0": "T1", "1": "T2"}),
        ("phantom_001", "number of channels", "1 found, 2 declared", "channel_names"),
    ),
    "a gap in the channels": (
        lambda d: image(d, 1).rename(d / "imagesTr" / "phantom_001_0001.nii.gz"),
        ("phantom_001", "lacks a channel", "no _0000", "add the missing file"),
    ),
    "unknown extension": (
        lambda d: image(d, 1).rename(d / "imagesTr" / "phantom_001_0000.xyz"),
        ("phantom_001_0000.xyz", "unknown extension", "convert it to one of .nii.gz"),
    ),
    "no channel number": (
        lambda d: image(d, 1).rename(d / "imagesTr" / "phantom_001.nii.gz"),
        ("phantom_001.nii.gz", "no channel number", "rename it to CASE_0000.nii.gz"),
    ),
    "two cases of one id": (
        lambda d: shutil.copy(image(d, 1), d / "imagesTr" / "phantom_001_0000.nii"),
        ("phantom_001", "two files claim", "phantom_001_0000.nii and phantom_001_0000.nii.gz",
         "another id"),
    ),
    "two labels of one id": (
        lambda d: [shutil.copy(label(d, 1), d / "labelsTr" / f"phantom_001.{e}")
                   for e in ("nii", "nrrd")] + [label(d, 1).unlink()],
        ("phantom_001", "two label files claim", "keep one of them"),
    ),
    "no label": (
        lambda d: label(d, 6).unlink(),
        ("phantom_006", "an image has no label", "does not exist", "move the image to imagesTs"),
    ),
    "4D": (
        lambda d: changed(image(d, 2), lambda v: np.stack([v, v], -1)),
        ("phantom_002", "several volumes (4D)", "20 x 24 x 18 x 2", "split it"),
    ),
    "2D among 3D": (
        lambda d: [changed(p(d, 2), lambda v: v[:, :, 9:10]) for p in (image, label)],
        ("phantom_002", "2D and 3D images are mixed", "split them"),
    ),
    "zero spacing": (
        lambda d: zero_spacing(image(d, 2)),
        ("phantom_002", "spacing is zero", "write the true spacing into the header"),
    ),
    "zero spacing in MHA": (as_mha_with_tilt, ("phantom_002", "pacing", "to fix:")),
    "no images": (
        lambda d: [p.unlink() for p in (d / "imagesTr").iterdir()],
        ("imagesTr", "holds no image", "expected files such as CASE_0000.nii.gz"),
    ),
    "no folder of images": (
        lambda d: shutil.rmtree(d / "imagesTr"),
        ("imagesTr", "it does not exist"),
    ),
    "no dataset.json": (
        lambda d: (d / "dataset.json").unlink(),
        ("dataset.json", "it does not exist"),
    ),
    "broken dataset.json": (
        lambda d: (d / "dataset.json").write_text('{"labels": {'),
        ("dataset.json is not valid JSON", "restore or rewrite it"),
    ),
    "no labels declared": (
        lambda d: (d / "dataset.json").write_text('{"channel_names": {"0": "CT"}}'),
        ("dataset.json", 'has no "labels"', "declare names and values"),
    ),
    "no background": (
        lambda d: document(d, labels={"organ": 1, "lesion": 2}),
        ("the lowest label value is 1", "background must be declared as 0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", list(SPOILT))
def test_bad_scans(spoilt: str, shell, tiny: Path) -> None:
    spoil, told = SPOILT[spoilt]
    spoil(tiny / RAW)
    refused(shell, tiny, PREPARE, *told)


def test_all_problems_are_told_at_once_and_the_good_cases_are_kept(
    shell, phantoms, tmp_path: Path
) -> None:
    folder = phantoms(tmp_path / "autoseg_data")
    for name in ("undeclared label", "NaN", "constant", "truncated", "4D"):
        SPOILT[name][0](folder)
    said = shell(PREPARE)
    assert said.code == 2
    for case, what in {
        "phantom_001": "not numbers", "phantom_002": "several volumes", "phantom_003": "declared",
        "phantom_004": "same everywhere", "phantom_005": "ends early",
    }.items():  # fmt: skip
        assert case in said.err
        assert what in said.err
    assert said.err.count("to fix:") == 5
    places = tmp_path / "autoseg_data/preprocessed/Dataset001_Phantom"
    checks = json.loads((places / "fingerprint/checks.json").read_text())
    assert {p["case"] for p in checks["problems"]} == {f"phantom_00{n}" for n in range(1, 6)}
    assert not (places / "fingerprint" / "fingerprint.json").exists()
    assert not (places / "plans").exists()


def test_check_lists_warnings_too(shell, tiny: Path) -> None:
    """Axes that are not at right angles are a warning: the case is used."""

    def sheared(affine: np.ndarray) -> np.ndarray:
        affine[0, 2] += 0.4
        return affine

    for path in (image(tiny / RAW, 2), label(tiny / RAW, 2)):
        old = nib.load(path)
        made = nib.Nifti1Image(np.asarray(old.dataobj), None)
        made.set_sform(sheared(old.affine), 1)
        made.set_qform(None, 0)
        nib.save(made, path)
    said = shell("autoseg check 1 --json")
    assert said.code == 0
    problems = json.loads(said.out)
    assert {(p["case"], p["what"], p["fatal"]) for p in problems} == {
        ("phantom_002", "the image axes are not at right angles", False)
    }
    assert "degrees off (gantry tilt or shear)" in said.err


def test_there_is_no_such_dataset(shell, tiny: Path) -> None:
    refused(shell, tiny, "autoseg fingerprint 7", "no dataset '7'", "Dataset001_Phantom")
    refused(shell, tiny, "autoseg fingerprint Dataset01_Phanton", "mean 'Dataset001_Phantom'?")


def test_an_empty_root(shell, tmp_path: Path) -> None:
    said = shell("autoseg plan_and_preprocess -d 1 --root nowhere")
    assert said.code == 2
    assert "make a phantom with `autoseg demo`" in said.err
    assert not (tmp_path / "nowhere").exists()


def edited(root: Path, change: Callable[[dict], object]) -> Path:
    path = root / f"preprocessed/{NAME}/plans/default/plan.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    return path


def test_a_plan_with_wrong_keys_tells_the_nearest_and_all_of_them(shell, tiny: Path) -> None:
    def spoil(plan: dict) -> None:
        train = plan["configurations"]["3d_fullres"]["train"]
        train["batchsize"] = train.pop("batch_size")
        plan["configurations"]["2d"]["patch_vx"] = [16, 16]
        plan["configurations"]["2d"]["train"]["lr"] = -1

    edited(tiny, spoil)
    refused(
        shell, tiny, "autoseg train 1 3d_fullres 0",
        "plan.json cannot work",
        "unknown key 'configurations.3d_fullres.train.batchsize'; did you mean 'batch_size'?",
        "unknown key 'configurations.2d.patch_vx'; did you mean 'patch_vox'?",
        "'configurations.3d_fullres.train.batch_size' is missing",
        "configurations.2d.train.lr",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("plan -d 1 --name new --set train.lrr=0.1", "did you mean 'lr'?"),
        ("plan -d 1 --name new --set train.lr=fast", "train.lr"),
        ("plan -d 1 --name new --set 3d_fullres.patch_vox=[17,16,16]", "the nearest that"),
        ("plan -d 1 --name new --network resnec_m", "resenc_m"),
        ("plan -d 1 --name a/b", "name"),
        ("train 1 3d_fullres 0 --run a --set train.lrr=0.1", "did you mean 'lr'?"),
        ("train 1 3d_fullres 0 --plan defalt", "did you mean 'default'?"),
        ("preprocess 1 --plan defalt", "did you mean 'default'?"),
        ("train 1 3d_fulres 0", "did you mean '3d_fullres'?"),
        ("train 1 3d_fullres 5", "there is no fold '5'; the folds are 0, 1, 2, 3, 4, or all"),
        ("train 1 3d_fullres first", "there is no fold 'first'"),
        ("validate 1 3d_fullres 1", "is not trained; run `autoseg train"),
        ("train 1 3d_fullres 0 --device gpu", "gpu"),
    ],
)
def test_wishes_that_cannot_be_met(shell, tiny: Path, line: str, told: str) -> None:
    refused(shell, tiny, f"autoseg {line}", told)
    assert not (tiny / "results").exists()
    assert not (tiny / f"preprocessed/{NAME}/plans/new").exists()


def test_a_splits_file_with_an_unknown_case(shell, tiny: Path) -> None:
    splits = [{"train": ["phantom_001", "phantom_009"], "val": ["phantom_002"]}]
    (tiny / RAW / "splits.json").write_text(json.dumps(splits))
    refused(shell, tiny, "autoseg train 1 3d_fullres 0", "fold 0 names 'phantom_009'")


def no_space(error: Exception) -> Callable[..., None]:
    """A writer on a full disk; the errors are those that a small tmpfs gave each library."""

    def write(*_: object, **__: object) -> None:
        raise error

    return write


NUMPY_FULL = OSError("1000000 requested and 38384 written")
TORCH_FULL = SafetensorError(
    "Error while serializing: I/O error: No space left on device (os error 28)"
)
DISK_FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_preparing(shell, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(tiny / f"preprocessed/{NAME}/prepared")
    with monkeypatch.context() as full:
        full.setattr("autoseg.data.store.np.save", no_space(NUMPY_FULL))
        said = shell(PREPARE)
        assert said.code == 2
        assert "6 of 6 cases could not be prepared" in said.err
        assert "phantom_001: cannot write" in said.err
        assert "the disk is full; free some space" in said.err
    prepared = tiny / f"preprocessed/{NAME}/prepared"
    assert [p.name for p in prepared.glob("*/*") if "phantom" in p.name and p.is_dir()] == []
    assert shell(PREPARE).code == 0


def test_a_full_disk_while_training(shell, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        for module in ("state", "weights"):
            full.setattr(f"autoseg.learn.{module}.save_file", no_space(TORCH_FULL), raising=False)
        said = shell("autoseg train 1 3d_fullres 0")
        assert said.code == 2
        assert "the disk is full; free some space and repeat the same command" in said.err
    assert [p for p in tiny.rglob("*") if is_half(p.name)] == []
    assert shell("autoseg train 1 3d_fullres 0").code == 0


def test_a_full_disk_while_predicting(
    shell, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr("autoseg.image.reading.write_nifti", no_space(DISK_FULL))
        said = shell("autoseg predict -o out")
        assert said.code == 2
        assert "phantom_007" in said.err
        assert "the disk is full" in said.err
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".autoseg"]
    assert shell("autoseg predict -o out").code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB, where this process may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(shell, tiny_root: Path, small_disk: Path) -> None:
    shutil.copytree(tiny_root / "raw", small_disk / "raw")
    left = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(left - 16_384))
    said = shell(f"{PREPARE} --root {small_disk}")
    assert said.code == 2
    assert "the disk is full; free some space" in said.err
    assert "Traceback" not in said.err
    (small_disk / "ballast").unlink()
    said = shell(f"autoseg fingerprint 1 --root {small_disk}")
    assert said.code == 0
    assert [p for p in small_disk.rglob("*") if is_half(p.name)] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_report_to_a_full_device(shell, trained: Path) -> None:
    """`/dev/full` refuses every byte, as a full disk does."""
    labels = trained / RAW / "labelsTs"
    said = shell(f"autoseg evaluate {labels} {labels} -o /dev/full/report.json")
    assert said.code == 2
    assert "/dev/full" in said.err


@pytest.mark.parametrize("place", ["preprocessed", "results"])
def test_a_folder_that_cannot_be_made(shell, tiny: Path, place: str) -> None:
    """A file where a folder should be: the superuser, who may write anywhere, is refused too."""
    shutil.rmtree(tiny / place, ignore_errors=True)
    (tiny / place).write_text("in the way")
    said = shell("autoseg train 1 3d_fullres 0")
    assert said.code == 2
    assert str(tiny / place) in said.err
    assert "Traceback" not in said.err
    assert (tiny / place).read_text() == "in the way"


@pytest.mark.skipif(not os.path.isdir("/proc/1"), reason="needs a file system that refuses writes")
def test_an_output_that_cannot_be_written(shell, trained: Path) -> None:
    said = shell("autoseg predict -o /proc/out")
    assert said.code == 2
    assert "/proc/out" in said.err


MODEL: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated weights": (
        lambda f: truncated(f / "weights.safetensors"),
        ("weights.safetensors is damaged", "--redo"),
    ),
    "empty weights": (
        lambda f: (f / "weights.safetensors").write_bytes(b""),
        ("weights.safetensors is damaged", "--redo"),
    ),
    "foreign weights": (
        lambda f: shutil.copy(f / "last.safetensors", f / "weights.safetensors"),
        ("weights.safetensors holds the weights of another network",),
    ),
    "no run.json": (lambda f: (f / "run.json").unlink(), ("run.json", "it does not exist")),
    "broken run.json": (
        lambda f: (f / "run.json").write_text('{"dataset": '),
        ("run.json is not valid JSON", "restore or rewrite it"),
    ),
    "run.json with another key": (
        lambda f: (f / "run.json").write_text(
            (f / "run.json").read_text().replace('"train_cases"', '"train_case"')
        ),
        ("run.json cannot work", "unknown key 'train_case'; did you mean 'train_cases'?"),
    ),
}


@pytest.mark.parametrize("damage", list(MODEL))
def test_a_damaged_model_folder(damage: str, shell, trained: Path, tmp_path: Path) -> None:
    spoil, told = MODEL[damage]
    spoil(trained / FOLD)
    said = refused(shell, trained, "autoseg predict -o out", *told)
    assert not list(tmp_path.glob("out/*.nii.gz"))
    assert "a case could not be segmented" not in said


def test_what_a_power_cut_left_of_a_cheap_unit_is_made_again(shell, tiny: Path) -> None:
    stamp = sorted(tiny.glob(f"preprocessed/{NAME}/prepared/*/phantom_002/stamp.json"))[0]
    stamp.write_text("{")
    measured = tiny / f"preprocessed/{NAME}/fingerprint/cases/phantom_003.json"
    whole = measured.read_text()
    measured.write_text(whole[:100])
    assert shell(PREPARE).code == 0
    assert json.loads(stamp.read_text())["stage"] == "preprocess"
    assert measured.read_text() == whole


def test_predict_before_any_training(shell, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    refused(shell, tiny, "autoseg predict -i in -o out", "there is no trained model")
    refused(shell, tiny, "autoseg predict -i in -o out -d 1", "has no trained fold")


def test_scans_that_the_model_cannot_take(shell, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    refused(shell, trained, "autoseg predict -i in -o out", "holds no image", "CASE_0000")
    refused(shell, trained, "autoseg predict -i absent -o out", "absent", "it does not exist")

    scan = trained / RAW / "imagesTs" / "phantom_007_0000.nii.gz"
    for name in ("good_0000", "double_0000", "double_0001", "flat_0000"):
        shutil.copy(scan, folder / f"{name}.nii.gz")
    changed(folder / "flat_0000.nii.gz", lambda v: v[:, :, :1])
    refused(
        shell, trained, "autoseg predict -i in -o out",
        "double: 2 found, the model needs 1: MRI", "flat: it is 2D, the model is for 3D",
    )  # fmt: skip
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["good.nii.gz"]


def test_a_failing_scan_does_not_end_the_others(shell, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / RAW / "imagesTs", tmp_path / "in")
    truncated(tmp_path / "in" / "phantom_007_0000.nii.gz")
    said = shell("autoseg predict -i in -o out")
    assert said.code == 2
    assert "phantom_007" in said.err
    assert "ends early" in said.err
    assert "1 label map written" in said.err
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["phantom_008.nii.gz"]


def test_label_maps_of_other_cases_are_told_together(shell, trained: Path, tmp_path: Path) -> None:
    found = Path(shutil.copytree(trained / RAW / "labelsTs", tmp_path / "found"))
    for path in sorted(found.iterdir()):
        path.rename(path.with_name(path.name.replace("phantom_0", "phantom_1")))
    said = shell("autoseg evaluate found -d 1")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "none of the" in said.err and "did you mean" not in said.err


def test_label_maps_that_cannot_be_compared(shell, trained: Path, tmp_path: Path) -> None:
    found = Path(shutil.copytree(trained / RAW / "labelsTs", tmp_path / "found"))
    shutil.copy(found / "phantom_007.nii.gz", found / "phantom_07.nii.gz")
    said = shell("autoseg evaluate found -d 1")
    assert said.code == 2
    assert "phantom_07.nii.gz has no reference; did you mean 'phantom_007'?" in said.err
    (found / "phantom_07.nii.gz").unlink()
    changed(found / "phantom_007.nii.gz", lambda v: v[:-1])
    changed(found / "phantom_008.nii.gz", lambda v: v + 4)
    said = shell("autoseg evaluate found -d 1 -o report.json")
    assert said.code == 2
    assert "phantom_007" in said.err
    assert "differ in size" in said.err
    assert "4, 5, 6 (declared: 0, 1, 2)" in said.err
    assert not (tmp_path / "report.json").exists()


def test_a_fold_made_from_something_else_is_not_redone(shell, trained: Path) -> None:
    """A trained fold is kept until --redo says otherwise."""
    changed(image(trained / RAW, 1), lambda v: v[::-1])
    assert shell(PREPARE).code == 0
    before = (trained / FOLD / "weights.safetensors").read_bytes()
    said = shell("autoseg train 1 3d_fullres 0")
    assert said.code == 2
    assert "was trained from something else (inputs.cases" in said.err
    assert "--redo" in said.err
    assert (trained / FOLD / "weights.safetensors").read_bytes() == before
    assert shell("autoseg train 1 3d_fullres 0 --redo").code == 0
    assert (trained / FOLD / "weights.safetensors").read_bytes() != before
