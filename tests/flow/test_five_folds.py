"""From folds to one model: what is chosen, packed, installed and predicted with is one and the same."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from autoseg import api
from autoseg.api import Predictor
from autoseg.documents.model import ModelSpec
from autoseg.documents.run import append_line, lines
from autoseg.errors import AutosegError

RESULTS = "results/Dataset001_Phantom"
PACKAGE = f"{RESULTS}/Dataset001_Phantom.autoseg"


def label_maps(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.nii.gz"))}


def moments(folder: Path) -> dict[str, int]:
    """When each file was last written, but for locks, logs of time, and files that say when."""
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and not p.name.endswith(("lock", "run.jsonl"))
    }


def test_run_leaves_a_choice_with_reasons(whole_root: Path) -> None:
    final = whole_root / RESULTS / "default" / "final"
    choice = json.loads((final / "choice.json").read_text())
    assert [c["name"] for c in choice["candidates"]] == ["2d", "3d_fullres", "2d + 3d_fullres"]
    by_name = {c["name"]: c for c in choice["candidates"]}
    assert by_name["2d + 3d_fullres"]["cost"] == pytest.approx(
        by_name["2d"]["cost"] + by_name["3d_fullres"]["cost"]
    )
    assert all(c["why"] and 0 <= c["mean_dice"] <= 1 for c in choice["candidates"])
    assert sum("chosen" in c["why"] for c in choice["candidates"]) == 1
    tried = json.loads((final / "postprocessing.json").read_text())["tried"]
    assert {t["step"]["kind"] for t in tried} == {"keep_largest", "minimum_size", "fill_holes"}
    spec = ModelSpec.read(final / "model.json")
    assert [m.name for m in spec.members] == choice["chosen"]
    assert all(len(m.weights) == 3 for m in spec.members)
    report = json.loads((final / "report.json").read_text())
    assert len(report["cases"]) == 6
    assert spec.cross_validation is not None
    assert spec.cross_validation.mean_dice == report["summary"]["mean_dice"]


def test_run_again_does_nothing(whole: Path) -> None:
    before = moments(whole)
    api.run("1", configuration=("3d_fullres", "2d"), root=whole, workers=1)
    assert moments(whole) == before


def test_run_goes_on_where_folds_are_missing(whole: Path) -> None:
    fold = whole / RESULTS / "default" / "3d_fullres" / "default" / "fold_1"
    weights = fold / "weights.safetensors"
    before, others = weights.read_bytes(), (fold.parent / "fold_0" / "history.jsonl").stat()
    shutil.rmtree(fold)
    with pytest.raises(AutosegError, match="3d_fullres lacks fold 1"):
        api.find_best_configuration("1", configuration=("3d_fullres",), root=whole, workers=1)
    api.run("1", configuration=("3d_fullres", "2d"), root=whole, workers=1)
    assert weights.read_bytes() == before
    assert (fold.parent / "fold_0" / "history.jsonl").stat().st_mtime_ns == others.st_mtime_ns


def test_the_package_alone_gives_the_same_label_maps(whole: Path, tmp_path: Path) -> None:
    api.predict(None, tmp_path / "here", dataset="1", root=whole)
    package = shutil.copy(whole / PACKAGE, tmp_path / "hippo.autoseg")
    scans = Path(shutil.copytree(whole / "raw/Dataset001_Phantom/imagesTs", tmp_path / "scans"))
    shutil.rmtree(whole)
    api.predict(scans, tmp_path / "there", model=str(package), root=tmp_path / "empty")
    assert label_maps(tmp_path / "there") == label_maps(tmp_path / "here") != {}
    api.install(package, root=tmp_path / "empty")
    (found,) = api.models(root=tmp_path / "empty").models
    api.predict(scans, tmp_path / "installed", model=found.name, root=tmp_path / "empty")
    assert label_maps(tmp_path / "installed") == label_maps(tmp_path / "here")
    # the same model: nothing is to be done again
    again = api.predict(scans, tmp_path / "here", model=found.name, root=tmp_path / "empty")
    assert (again.written, again.skipped) == ([], 2)


def test_the_predictor_says_the_same_of_arrays_and_files(whole: Path, tmp_path: Path) -> None:
    api.predict(None, tmp_path / "out", dataset="1", root=whole)
    scan = nib.load(whole / "raw/Dataset001_Phantom/imagesTs/phantom_007_0000.nii.gz")
    wanted = np.asarray(nib.load(tmp_path / "out" / "phantom_007.nii.gz").dataobj)
    with Predictor(whole / PACKAGE) as predictor:
        assert predictor.labels == {"organ": (1,), "lesion": (2,)}
        array = np.asarray(scan.dataobj)
        np.testing.assert_array_equal(predictor.segment(array, scan.affine), wanted)
        # the same anatomy, stored the other way round
        turned = scan.affine @ np.diag([-1.0, 1, 1, 1])
        turned[:3, 3] = scan.affine[:3, :3] @ [array.shape[0] - 1, 0, 0] + scan.affine[:3, 3]
        np.testing.assert_array_equal(predictor.segment(array[::-1], turned), wanted[::-1])
        found = predictor.segment_files([Path(scan.get_filename())], tmp_path / "one.nii.gz")
        np.testing.assert_array_equal(found, wanted)
        assert (tmp_path / "one.nii.gz").read_bytes() == (
            tmp_path / "out" / "phantom_007.nii.gz"
        ).read_bytes()
        for wrong in (array[0], np.stack([array, array])):
            with pytest.raises(AutosegError, match="1 channel "):
                predictor.segment(wrong, scan.affine)
        with pytest.raises(AutosegError, match="affine"):
            predictor.segment(array)
        with pytest.raises(AutosegError, match="NaN"):
            predictor.segment(np.full_like(array, np.nan, dtype=np.float32), scan.affine)


def test_an_ensemble_of_folders_is_that_of_the_networks(whole: Path, tmp_path: Path) -> None:
    both = ("2d", "3d_fullres")
    for name in both:
        api.predict(
            None, tmp_path / name, dataset="1", configuration=(name,), root=whole,
            save_probabilities=True,
        )  # fmt: skip
    api.ensemble(tuple(tmp_path / name for name in both), tmp_path / "files")
    api.predict(None, tmp_path / "nets", dataset="1", configuration=both, root=whole)
    for name in label_maps(tmp_path / "nets"):
        ours = np.asarray(nib.load(tmp_path / "files" / name).dataobj)
        theirs = np.asarray(nib.load(tmp_path / "nets" / name).dataobj)
        assert (ours == theirs).mean() > 0.998  # half precision on disk
    done = api.ensemble(tuple(tmp_path / name for name in both), tmp_path / "files")
    assert (done.written, done.skipped) == ([], 2)
    (tmp_path / "2d" / "probabilities" / "phantom_007.json").unlink()
    with pytest.raises(AutosegError, match="has no probabilities of phantom_007"):
        api.ensemble(tuple(tmp_path / name for name in both), tmp_path / "files")


def test_saved_probabilities_are_those_of_the_label_map(whole: Path, tmp_path: Path) -> None:
    from autoseg.image.geometry import restore
    from autoseg.models.probabilities import open_probabilities

    api.predict(
        None, tmp_path / "out", dataset="1", configuration=("3d_fullres",), root=whole,
        save_probabilities=True,
    )  # fmt: skip
    found = open_probabilities(tmp_path / "out" / "probabilities" / "phantom_008.npy")
    p = np.asarray(found.array, np.float32)
    np.testing.assert_allclose(p.sum(0), 1, atol=2e-3)
    painted = restore(p.argmax(0)[None], found.grid.arrangement(found.axes))[0]
    written = np.asarray(nib.load(tmp_path / "out" / "phantom_008.nii.gz").dataobj)
    assert (painted == written).mean() > 0.998


def test_fast_is_the_first_fold_without_mirroring(whole: Path, tmp_path: Path) -> None:
    api.predict(
        None, tmp_path / "fast", model=str(whole / PACKAGE), root=whole, dataset="1", fast=True
    )
    spec = ModelSpec.read(whole / RESULTS / "default/final/model.json")
    with Predictor(whole / PACKAGE, fast=True) as predictor:
        (member,) = predictor.spec.members
    assert [w.fold for w in member.weights] == ["0"]
    assert member.configuration.predict.mirror is False
    assert member.name == spec.members[0].name
    assert len(label_maps(tmp_path / "fast")) == 2


def test_uncertainty_comes_as_maps_and_a_score(whole: Path, tmp_path: Path) -> None:
    found = api.predict(None, tmp_path / "out", dataset="1", root=whole, uncertainty=True)
    folder = tmp_path / "out" / "uncertainty"
    table = (folder / "scores.csv").read_text().splitlines()
    assert table[0] == "case,uncertainty"
    assert {row.split(",")[0] for row in table[1:]} == {"phantom_007", "phantom_008"}
    assert all(0 < score < 1 for score in found.uncertainty.values())
    for name in ("entropy", "variance"):
        image = nib.load(folder / f"phantom_007_{name}.nii.gz")
        assert image.shape == nib.load(tmp_path / "out" / "phantom_007.nii.gz").shape
        values = image.get_fdata()
        assert 0 <= values.min() < values.max() <= 1
    again = api.predict(None, tmp_path / "out", dataset="1", root=whole, uncertainty=True)
    assert again.skipped == 2 and again.uncertainty == pytest.approx(found.uncertainty, abs=1e-6)


@pytest.mark.slow
def test_processes_share_the_scans(whole: Path, tmp_path: Path) -> None:
    api.predict(None, tmp_path / "one", dataset="1", root=whole)
    found = api.predict(None, tmp_path / "two", dataset="1", root=whole, workers=2)
    assert len(found.written) == 2
    assert label_maps(tmp_path / "one") == label_maps(tmp_path / "two")


def test_postprocessing_alone_equals_that_of_predict(whole: Path, tmp_path: Path) -> None:
    chosen = ModelSpec.read(whole / RESULTS / "default/final/model.json")
    if not chosen.postprocessing:
        pytest.skip("nothing helped on this phantom")
    names = tuple(member.name for member in chosen.members)
    api.predict(None, tmp_path / "raw", dataset="1", configuration=names, root=whole)
    api.predict(None, tmp_path / "whole", dataset="1", root=whole)
    api.postprocess(tmp_path / "raw", tmp_path / "clean", dataset="1", root=whole, workers=1)
    assert label_maps(tmp_path / "clean") == label_maps(tmp_path / "whole")
    assert label_maps(tmp_path / "clean") != label_maps(tmp_path / "raw")


def test_a_fold_trained_again_makes_the_choice_stale(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.train("1", "3d_fullres", ("0",), root=whole, workers=0, redo=True, steps=4)
    with caplog.at_level("WARNING", logger="autoseg"):
        api.predict(None, tmp_path / "out", dataset="1", root=whole)
    assert "fold 0 of 3d_fullres was trained again" in caplog.text
    (status,) = api.status("1", root=whole)
    (row,) = [row for row in status.rows if row.artefact == "choice of default/default"]
    assert row.state == "stale"


def test_status_tells_how_far_a_run_is(whole: Path) -> None:
    ledger = whole / RESULTS / "default" / "final" / "run.jsonl"
    spent = sum(e["seconds"] for e in lines(ledger) if e["event"] == "spent")
    append_line(ledger, {"event": "time", "total_s": spent + 600})
    append_line(ledger, {"event": "configurations", "names": ["2d", "3d_fullres"]})
    fold = whole / RESULTS / "default" / "2d" / "default" / "fold_2"
    shutil.rmtree(fold)
    (status,) = api.status("1", root=whole)
    (row,) = [row for row in status.rows if row.artefact == "run of default"]
    assert "11 of 13 steps done, next fold 2 of 2d, 10 of" in row.why


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predict -i in -o out --model nowhere.autoseg", "there is no model 'nowhere.autoseg'"),
        ("predict -o out -d 1 -c 3d_lowres", "no trained model of Dataset001_Phantom is that"),
        ("predict -o out -d 1 -f 7", "fold 7 of"),
        ("predict -o out -d 1 --precision float8", "--precision 'float8' is unknown"),
        ("predict -o out -d 1 --precision float16", "which only a card computes"),
        ("predict -o out -d 1 --workers 0", "--workers 0 must be at least 1"),
        ("export -d 1", "needs output"),
        ("ensemble -i raw -o out", "holds no probabilities"),
        ("find_best_configuration -d 1 --plan other", "has no plan 'other'"),
        ("find_best_configuration -d 1 -c 3d_lowres", "no configuration '3d_lowres'"),
        ("run 1 --time soon", "soon"),
        ("install nothing.autoseg", "nothing.autoseg"),
    ],
)
def test_mistakes_end_in_one_line(shell, whole: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(whole / "raw/Dataset001_Phantom/imagesTs/phantom_007_0000.nii.gz", tmp_path / "in")
    (tmp_path / "raw").mkdir()
    found = shell(f"autoseg {line}")
    assert found.code == 2, found.err
    assert said in found.err
    assert "Traceback" not in found.err
    assert not list((tmp_path / "out").glob("*.nii.gz")) if (tmp_path / "out").exists() else True
