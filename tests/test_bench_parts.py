"""The parts of the benchmark: what their rows are, what they are made of, and what they can show."""

import json
import shutil
import subprocess
from math import prod

import nibabel as nib
import numpy as np
import pytest

from bench import places
from bench.parts import PARTS, arrays, growth, predicting, specimens, training
from bench.plots import LEAST_POINTS


@pytest.fixture
def nothing_made(monkeypatch, tmp_path):
    """Rows are made, but nothing that they work on."""
    for module in (arrays, predicting, training):
        monkeypatch.setattr(module, "HERE", tmp_path)
    for module in (predicting, growth):
        monkeypatch.setattr(module, "hippocampus", lambda quick: tmp_path)
        monkeypatch.setattr(module, "moved_cases", lambda count: (tmp_path, tmp_path))
    for name in ("phantom", "some_cases"):
        monkeypatch.setattr(growth, name, lambda *of: tmp_path)
    monkeypatch.setattr(growth, "moved_phantoms", lambda *of: (tmp_path, tmp_path))
    for name in ("scans", "ct_scan", "whole_ct"):
        monkeypatch.setattr(predicting, name, lambda *of: tmp_path)
    for name in ("prepared_by_us", "prepared_by_nnunet"):
        monkeypatch.setattr(training, name, lambda: str(tmp_path))


def test_every_row_has_a_name_of_its_own_and_something_to_run(nothing_made):
    for part in PARTS.values():
        for quick in (True, False):
            rows = part(quick)
            assert len({row.name for row in rows}) == len({row.what for row in rows}) == len(rows)
            assert all(row.sides and row.pairs >= 1 and row.pair_s > 0 for row in rows)
            assert all(set(row.targets) <= set(row.sides) for row in rows)


def test_what_grows_is_measured_at_three_sizes_or_more(nothing_made):
    grown = {}
    for name, part in PARTS.items():
        rows = part(False)
        for of in {key for row in rows for key in row.size}:
            sizes = {row.size[of] for row in rows if of in row.size}
            assert len(sizes) >= LEAST_POINTS, (name, of)
            grown.setdefault(name, set()).add(of.split()[0].rstrip(","))
        assert all(row.size for row in rows if row.aside)
    assert grown == {
        "fingerprint": {"cases", "voxels", "channels"},
        "preprocess": {"cases", "voxels", "channels"},
        "resample": {"voxels", "labels"}, "augmentation": {"voxels", "channels"},
        "step": {"voxels"}, "predict": {"tiles"}, "export": {"voxels", "labels"},
        "evaluate": {"cases", "voxels", "labels"},
    }  # fmt: skip


def test_all_of_it_takes_about_fifty_minutes(nothing_made):
    expected = sum(row.pairs * row.pair_s for part in PARTS.values() for row in part(False))
    assert 20 * 60 < expected < 52 * 60


def test_short_rows_with_a_target_run_often(nothing_made):
    rows = [row for part in PARTS.values() for row in part(False) if row.targets]
    assert all(row.pairs >= 3 for row in rows if row.pair_s <= 30)
    assert all(row.pairs <= 2 for row in rows if row.pair_s > 90)


def test_a_spline_reads_and_writes_once_and_multiplies_by_blocks():
    least = arrays.spline_least((8, 6, 5), (8, 12, 5))
    assert least["bytes"] == 4 * (8 * 6 * 5 + 8 * 12 * 5)
    # one block of 12 new voxels and 6 old ones, for every line along the axis
    assert least["operations"] == 2 * 12 * 6 * 8 * 5
    assert arrays.spline_least((4, 4, 4), (4, 4, 4))["operations"] == 0


def test_linear_interpolation_is_counted_by_hand():
    least = predicting.linear_least(3, (2, 2, 2), (4, 4, 2))
    assert least["bytes"] == 3 * 8 * 4 + 32 * 2
    # along the first axis 4 × 2 × 2 values, along the second 4 × 4 × 2; then compared
    assert least["operations"] == 3 * (3 * 16 + 3 * 32 + 32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(specimens, "HERE", tmp_path / "specimens")
    return tmp_path


def test_phantoms_are_data_sets_of_one_case(here):
    dataset = specimens.phantom((20, 24, 22), 2)
    images = [np.asarray(nib.load(p).dataobj) for p in specimens.channels_of(dataset)]
    labels = np.asarray(nib.load(dataset / "labelsTr" / "phantom.nii.gz").dataobj)
    assert [a.shape for a in images] == [(20, 24, 22)] * 2 and labels.shape == (20, 24, 22)
    assert not np.array_equal(*images) and set(np.unique(labels)) == {0, 1, 2, 3}
    document = json.loads((dataset / "dataset.json").read_text())
    assert len(document["channel_names"]) == 2 and len(document["labels"]) == 4
    written = (dataset / "dataset.json").stat().st_mtime_ns
    assert specimens.phantom((20, 24, 22), 2) == dataset
    assert (dataset / "dataset.json").stat().st_mtime_ns == written


def test_half_a_specimen_is_made_anew(here, monkeypatch):
    half = here / "specimens" / ".moved1_12_2"
    half.mkdir(parents=True)
    (half / "rest").touch()
    found, wanted = specimens.moved_phantoms(1, 12, 2)
    assert not half.exists() and not (found.parent / "rest").exists()
    a, b = (np.asarray(nib.load(f / "map0.nii.gz").dataobj) for f in (found, wanted))
    assert np.array_equal(a, np.roll(b, 1, 0)) and prod(a.shape) == 12**3


def test_some_cases_are_the_first_ones(here, monkeypatch):
    source = here / "data" / places.HIPPOCAMPUS
    for folder, names in (("imagesTr", ("a_0000", "b_0000", "c_0000")), ("labelsTr", "abc")):
        (source / folder).mkdir(parents=True)
        for name in names:
            (source / folder / f"{name}.nii.gz").touch()
    (source / "dataset.json").write_text(json.dumps({"numTraining": 3, "labels": {}}))
    monkeypatch.setattr(specimens, "DATA", here / "data")
    made = specimens.some_cases(2) / places.HIPPOCAMPUS
    assert json.loads((made / "dataset.json").read_text()) == {"numTraining": 2, "labels": {}}
    names = {folder: sorted(p.name for p in (made / folder).iterdir()) for folder in
             ("imagesTr", "labelsTr")}  # fmt: skip
    assert names == {
        "imagesTr": ["a_0000.nii.gz", "b_0000.nii.gz"], "labelsTr": ["a.nii.gz", "b.nii.gz"],
    }  # fmt: skip
    assert (made / "labelsTr" / "a.nii.gz").resolve() == source / "labelsTr" / "a.nii.gz"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_figures_that_were_written_do_not_make_another_version(tmp_path, monkeypatch):
    def git(*words):
        names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True)

    for name in ("autoseg/a.py", "bench/b.py", "bench/results/r.json", "docs/d.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(places, "REPOSITORY", tmp_path)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = places.commit()
    assert 4 <= len(clean) <= 12
    for name in ("bench/results/r.json", "docs/d.md"):
        (tmp_path / name).write_text("another")
    assert places.commit() == clean
    (tmp_path / "bench" / "b.py").write_text("another")
    assert places.commit() == f"{clean}+"
