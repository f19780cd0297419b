"""What `autoseg status` says of each artefact as it comes into being, goes stale and is broken off."""

import builtins
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

RAW = "raw/Dataset001_Phantom"
FOLD = "results/Dataset001_Phantom/default/3d_fullres/default/fold_0"
IMAGE = f"{RAW}/imagesTr/phantom_002_0000.nii.gz"
FOLD_TITLE = "fold 0 of 3d_fullres (default/default)"


def rows(shell) -> dict[str, tuple[str, str]]:
    """Artefact -> (state, why), of the one dataset there is."""
    said = shell("autoseg status --json")
    assert said.code == 0, said.err
    (dataset,) = json.loads(said.out)
    return {row["artefact"]: (row["state"], row["why"]) for row in dataset["rows"]}


def brighten(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 3, image.affine), path)


def test_nothing_yet(shell, phantoms, tmp_path: Path) -> None:
    phantoms(tmp_path / "autoseg_data", cases=3)
    assert rows(shell) == {"fingerprint": ("missing", "3 new")}


def test_all_is_done(shell, trained: Path) -> None:
    found = rows(shell)
    assert found["fingerprint"] == ("done", "6 cases")
    assert found["plan default"] == ("done", "")
    assert found["prepared cases of 3d_fullres (default)"] == ("done", "6 cases")
    assert found["prepared cases of 2d (default)"] == ("done", "6 cases")
    assert found[FOLD_TITLE] == ("done", "step 8")
    report = json.loads((trained / FOLD / "validation" / "report.json").read_text())
    scores = [label["metrics"]["dice"]["mean"] for label in report["summary"]["labels"].values()]
    assert found[f"validation of {FOLD_TITLE}"] == ("done", f"mean Dice {np.mean(scores):.4f}")


def test_half_done(shell, trained: Path) -> None:
    (trained / FOLD / "stamp.json").unlink()
    (trained / FOLD / "validation" / "report.json").unlink()
    for unit in list(trained.glob("preprocessed/*/prepared/*/phantom_00[45]")):
        shutil.rmtree(unit)
    found = rows(shell)
    assert found["prepared cases of 3d_fullres (default)"] == ("half done", "4 done, 2 missing")
    assert found[f"validation of {FOLD_TITLE}"] == ("half done", "2 of 2 cases")
    state, why = found[FOLD_TITLE]
    assert (state, why.split(" ")[0]) == ("stale", "inputs.cases")


def test_a_fold_that_was_stopped_is_half_done(shell, trained: Path) -> None:
    (trained / FOLD / "stamp.json").unlink()
    assert rows(shell)[FOLD_TITLE] == ("half done", "step 8")


def test_a_changed_scan_makes_stale_what_was_made_from_it(shell, trained: Path) -> None:
    brighten(trained / IMAGE)
    assert rows(shell)["fingerprint"] == ("stale", "1 changed, 5 current")
    assert shell("autoseg fingerprint 1").code == 0
    found = rows(shell)
    assert found["fingerprint"] == ("done", "6 cases")
    assert found["plan default"] == ("stale", "the fingerprint changed since")
    assert found["prepared cases of 3d_fullres (default)"] == ("stale", "5 done, 1 stale")
    assert shell("autoseg preprocess 1").code == 0
    state, why = rows(shell)[FOLD_TITLE]
    assert state == "stale"
    assert why.startswith("inputs.cases ")
    assert " → " in why


def test_another_plan_makes_a_fold_stale_and_says_what_changed(shell, trained: Path) -> None:
    path = trained / "preprocessed/Dataset001_Phantom/plans/default/plan.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["3d_fullres"]["train"]["lr"] = 0.25
    path.write_text(json.dumps(plan))
    found = rows(shell)
    assert found["plan default"] == ("done", "edited by hand, never overwritten")
    state, why = found[FOLD_TITLE]
    assert state == "stale"
    assert "configuration.train.lr" in why
    assert why.endswith("→ 0.25")


def test_a_damaged_plan_is_named_and_the_rest_still_told(shell, trained: Path) -> None:
    path = trained / "preprocessed/Dataset001_Phantom/plans/default/plan.json"
    path.write_text(path.read_text().replace('"patch_vox"', '"patch_vx"', 1))
    found = rows(shell)
    assert found["plan default"][0] == "stale"
    assert "did you mean 'patch_vox'?" in found["plan default"][1]
    assert found["fingerprint"] == ("done", "6 cases")


def test_newer_weights_make_a_validation_stale(shell, trained: Path) -> None:
    weights, report = (
        trained / FOLD / "weights.safetensors",
        trained / FOLD / "validation" / "report.json",
    )
    weights.touch()
    assert weights.stat().st_mtime_ns >= report.stat().st_mtime_ns
    assert rows(shell)[f"validation of {FOLD_TITLE}"][0] == "stale"


def test_no_image_byte_is_read(shell, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by `status`, nor by a second `fingerprint`: sizes and times of the files suffice."""
    opened: list[str] = []
    real = builtins.open

    def watched(file, *rest, **named):
        opened.append(str(file))
        return real(file, *rest, **named)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was read")

    for place in (
        "autoseg.stages.fingerprint.read_image",
        "autoseg.stages.fingerprint.read_labels",
        "autoseg.stages.fingerprint.sha256_file",
        "autoseg.image.reading._load",
    ):
        monkeypatch.setattr(place, refuse)
    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.setattr("io.open", watched)
    assert shell("autoseg status").code == 0
    said = shell("autoseg fingerprint 1")
    assert said.code == 0
    assert "cases measured" not in said.err
    assert any(name.endswith("dataset.json") for name in opened)
    assert [name for name in opened if name.endswith((".nii.gz", ".npy", ".safetensors"))] == []


def test_verify_reads_all_of_them(shell, tiny: Path) -> None:
    """A file changed behind the back of its size and time is found by --verify, and only so."""
    path = tiny / IMAGE
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[9] ^= 1  # the operating system named in the gzip header: another hash, the same voxels
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "cases measured" not in shell("autoseg fingerprint 1").err
    assert "1 of 6 cases measured" in shell("autoseg fingerprint 1 --verify").err
    assert "cases measured" not in shell("autoseg fingerprint 1 --verify").err


def test_a_touched_file_is_hashed_but_not_measured_again(shell, tiny: Path) -> None:
    (tiny / IMAGE).touch()
    assert rows(shell)["fingerprint"] == ("stale", "1 changed, 5 current")
    assert "cases measured" not in shell("autoseg fingerprint 1").err
    assert rows(shell)["fingerprint"] == ("done", "6 cases")


def test_status_as_text_names_every_dataset(shell, tiny: Path) -> None:
    other = tiny / "raw" / "Dataset012_Other"
    shutil.copytree(tiny / RAW, other)
    said = shell("autoseg status")
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line for line in lines if line.startswith("Dataset")] == [
        "Dataset001_Phantom", "Dataset012_Other",
    ]  # fmt: skip
    assert shell("autoseg status -d 12").out.splitlines()[0] == "Dataset012_Other"


def test_one_unreadable_run_is_named_and_the_others_are_told(shell, trained: Path) -> None:
    other = Path(shutil.copytree(trained / FOLD, trained / FOLD.replace("default/fold", "x/fold")))
    (other / "run.json").write_text('{"schema": 1, "of a later version": 1}')
    found = rows(shell)
    assert found[FOLD_TITLE] == ("done", "step 8")
    assert found["fold 0 of 3d_fullres (default/x)"][0] == "unreadable"


def test_asking_needs_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is looked at without being opened for writing, and seen where it is held."""
    from autoseg.files import Lock, is_locked

    path, whole = tmp_path / "lock", builtins.open
    path.touch()

    def reading(file, mode="r", *rest, **more):
        if file == path and set(mode) & set("wax+"):
            raise PermissionError(13, "read-only", str(file))
        return whole(file, mode, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", reading)
        assert not is_locked(path)
    with Lock(path, "it"), monkeypatch.context() as patch:
        patch.setattr(builtins, "open", reading)
        assert is_locked(path)
