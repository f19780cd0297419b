"""A folder of scans: read ahead, computed and written at the same time, and nothing lost by it."""

import json
import os
import threading

import nibabel as nib
import numpy as np
import pytest
import torch

from autoseg.documents.dataset import Case
from autoseg.documents.model import ModelSpec
from autoseg.errors import AutosegError, BadData
from autoseg.files import Lock, is_half, is_locked
from autoseg.flow import use
from autoseg.image.reading import read_labels
from autoseg.infer.resample import OnDevice
from autoseg.models.members import Model, narrowed
from autoseg.models.scans import made_ready, scan_of_case
from autoseg.models.segment import Segmenter
from autoseg.stages import predict as stage
from autoseg.stages.predict import Keep, predict
from tests.card import card, simulated
from tests.stages.tiny_model import tiny_model

CPU = torch.device("cpu")


def put_scan(folder, case, seed, shape=(24, 20, 10)):
    """A body of soft tissue in air; returns the case."""
    rng = np.random.default_rng(seed)
    array = np.full(shape, -1000.0)
    array[4:16, 4:16, 2:8] = 40
    array += rng.normal(0, 10, shape)
    path = folder / f"{case}_0000.nii.gz"
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([0.8, 0.8, 4.0, 1.0])), path)
    return Case(case, (path,), None)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    document = tiny_model(root).dump()
    for member in (*document["members"], *document["stages"]):
        member["configuration"]["predict"]["mirror"] = False
    return Model(ModelSpec.parse(document, "the tiny model"), root)


@pytest.fixture(scope="module")
def single(model):
    return narrowed(model, fast=True)


@pytest.fixture
def cases(tmp_path):
    return [put_scan(tmp_path / "in", f"scan_{n}", n) for n in range(4)]


def maps(folder):
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.nii.gz")}


def test_scans_are_what_each_would_be_alone(model, cases, tmp_path):
    out = tmp_path / "out"
    done = predict(model, cases, out, device=CPU)
    assert done.written == [out / f"scan_{n}.nii.gz" for n in range(4)]
    assert not (done.failed or done.skipped or done.elsewhere or done.tiles)
    segmenter = Segmenter(model, CPU)
    for case, path in zip(cases, done.written, strict=True):
        ready = made_ready(scan_of_case(case), model.spec)
        found, problems = read_labels(path, ready.first.info["axes"])
        assert not problems and found.array.max() > 0
        want = model.spec.labels.to_values(segmenter.classes(ready))
        np.testing.assert_array_equal(found.array[0], want)
    again = predict(model, cases, out, device=CPU)
    assert (again.written, again.skipped) == ([], 4)


def test_a_scan_that_is_resampled_where_the_networks_run_is_the_same(single, cases):
    sent = []

    class Noting(OnDevice):
        def __call__(self, image, shape, **named):
            sent.append((image.shape[1:], tuple(shape)))
            return super().__call__(image, shape, **named)

    plain = made_ready(scan_of_case(cases[0]), single.spec).first
    there = made_ready(scan_of_case(cases[0]), single.spec, resample=Noting(CPU)).first
    assert sent == [(tuple(plain.info["cropped_shape"]), plain.image.shape[1:])]
    np.testing.assert_allclose(there.image, plain.image, atol=1e-5)


def test_while_one_is_computed_the_next_is_read_and_the_last_written(
    single, cases, tmp_path, monkeypatch
):
    """Each of the three waits for the others: one thread for all would wait for ever."""
    meeting = threading.Barrier(3, timeout=20)
    seen, steps = {}, {"opened": 2, "computed": 1, "written": 0}
    for name, at in steps.items():
        real = getattr(stage._Work, name)

        def step(self, given, name=name, at=at, real=real):
            case = getattr(given, "case", given)
            if case.id == f"scan_{at}":
                seen[name] = threading.current_thread()
                meeting.wait()
            return real(self, given)

        monkeypatch.setattr(stage._Work, name, step)
    done = predict(single, cases, tmp_path / "out", device=CPU)
    assert len(done.written) == 4 and seen["computed"] is threading.main_thread()
    assert len(set(seen.values())) == 3


def test_a_large_scan_is_read_when_the_one_before_is_done(single, cases, tmp_path, monkeypatch):
    order = []
    for name in ("_open", "computed"):
        real = getattr(stage._Work, name)

        def step(self, job, name=name, real=real):
            order.append((name, job.case.id[-1]))
            return real(self, job)

        monkeypatch.setattr(stage._Work, name, step)
    monkeypatch.setattr(stage, "free_bytes", lambda: 0)
    predict(single, cases[:3], tmp_path / "out", device=CPU)
    assert order == [(name, n) for n in "012" for name in ("_open", "computed")]


def test_a_bad_scan_does_not_end_the_others(single, cases, tmp_path):
    cases[1].images[0].write_bytes(b"nothing")
    out = tmp_path / "out"
    done = predict(single, cases, out, device=CPU)
    assert [path.name for path in done.written] == [f"scan_{n}.nii.gz" for n in (0, 2, 3)]
    assert [problem.case[:6] for problem in done.failed] == ["scan_1"]
    assert not any(is_locked(path) for path in (out / ".autoseg").glob("*.lock"))


def test_a_scan_that_cannot_be_written_is_told(single, cases, tmp_path, monkeypatch):
    real = stage.write_classes

    def write(path, *rest):
        if path.name == "scan_2.nii.gz":
            raise AutosegError("the disk is full")
        real(path, *rest)

    monkeypatch.setattr(stage, "write_classes", write)
    done = predict(single, cases, tmp_path / "out", device=CPU)
    assert len(done.written) == 3 and [p.found for p in done.failed] == ["the disk is full"]
    assert not (tmp_path / "out" / ".autoseg" / "scan_2.json").exists()


@pytest.mark.parametrize("at", ["opened", "computed", "written"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_error_is_lost_and_no_scan_stays_locked(single, cases, tmp_path, monkeypatch, at, error):
    out, real = tmp_path / "out", getattr(stage._Work, at)

    def step(self, given):
        if getattr(given, "case", given).id == "scan_1":
            if at != "opened":
                given.end()
            raise error("here")
        return real(self, given)

    monkeypatch.setattr(stage._Work, at, step)
    with pytest.raises(error, match="here"):
        predict(single, cases, out, device=CPU)
    monkeypatch.undo()
    assert not any(is_locked(path) for path in (out / ".autoseg").glob("*.lock"))
    assert (out / "scan_0.nii.gz").exists() and (out / ".autoseg" / "scan_0.json").exists()
    assert not [entry for entry in out.iterdir() if is_half(entry.name)]
    done = predict(single, cases, out, device=CPU)
    assert done.skipped + len(done.written) == 4 and len(maps(out)) == 4


def test_what_another_process_is_at_is_left_to_it(single, cases, tmp_path):
    out = tmp_path / "out"
    with Lock(out / ".autoseg" / "scan_1.lock", "case scan_1"):
        done = predict(single, cases, out, device=CPU)
    assert done.elsewhere == ["scan_1"] and len(done.written) == 3
    assert predict(single, cases, out, device=CPU).written == [out / "scan_1.nii.gz"]


def test_strict_scans_are_told_apart(single, tmp_path):
    cases = [put_scan(tmp_path / "in", "usual", 0), put_scan(tmp_path / "in", "odd", 1)]
    loaded = nib.load(cases[1].images[0])
    image = nib.Nifti1Image(loaded.get_fdata() * 9, loaded.affine)
    nib.save(image, cases[1].images[0])
    done = predict(single, cases, tmp_path / "out", device=CPU, strict=True)
    assert [path.name for path in done.written] == ["usual.nii.gz"]
    assert {problem.case for problem in done.failed} == {"odd"} and done.warnings == done.failed


def test_extras_of_several_scans(model, cases, tmp_path):
    out = tmp_path / "out"
    done = predict(model, cases[:2], out, device=CPU, keep=Keep(True, True))
    assert sorted(done.uncertainty) == ["scan_0", "scan_1"]
    assert len(list((out / "probabilities").glob("*.npy"))) == 2
    again = predict(model, cases[:2], out, device=CPU, keep=Keep(True, True))
    assert again.skipped == 2 and again.uncertainty == pytest.approx(done.uncertainty)


def test_air_is_skipped_where_asked_and_told(single, tmp_path):
    case = put_scan(tmp_path / "in", "wide", 3, shape=(52, 20, 10))
    out = tmp_path / "out"
    predict(single, [case], out, device=CPU)
    plain = json.loads((out / ".autoseg" / "wide.json").read_text())
    assert plain["options"] == {}
    done = predict(single, [case], out, device=CPU, skip_air=True)
    assert len(done.written) == 1 and 0 < done.air_tiles < done.tiles
    assert f"{done.air_tiles} of {done.tiles} tiles held only air and were skipped" in [
        *done.lines()
    ]
    assert json.loads((out / ".autoseg" / "wide.json").read_text())["options"] == {"skip_air": True}
    labels = nib.load(out / "wide.nii.gz").get_fdata()
    # the body ends at voxel 16 of 52: a tile further on nothing was looked at
    assert not labels[34:].any()
    assert predict(single, [case], out, device=CPU, skip_air=True).skipped == 1


def test_a_profile_tells_where_the_time_went(single, cases, tmp_path):
    out = tmp_path / "out"
    done = use.predictions(single, cases, out, device="cpu", profile=True)
    assert len(done.written) == 4
    profile = json.loads((out / "profile" / "profile.json").read_text())
    parts = {row["part"]: row["calls"] for row in profile["parts"]}
    assert parts["in the background / read"] == 4 == parts["in the background / prepare"]
    assert parts["in the background / write"] == 4 == parts["segment"]
    assert any(name.startswith("segment") and name.endswith("forward") for name in parts)
    assert profile["label_maps"] == 4 and profile["device"] == "cpu"
    assert "forward" in (out / "profile" / "profile.txt").read_text()
    names = {
        e["name"] for e in json.loads((out / "profile" / "trace.json").read_text())["traceEvents"]
    }
    assert {"read", "prepare", "forward", "accumulate", "write"} <= names


def test_a_profile_changes_nothing(single, cases, tmp_path):
    for name, profile in (("a", False), ("b", True)):
        use.predictions(single, cases[:2], tmp_path / name, device="cpu", profile=profile)
    assert maps(tmp_path / "a") == maps(tmp_path / "b")


def test_all_faults_are_raised_in_the_end(single, cases, tmp_path):
    for case in cases[1:3]:
        nib.save(nib.Nifti1Image(np.full((24, 20, 10), np.nan), np.eye(4)), case.images[0])
    with pytest.raises(BadData) as told:
        use.predictions(single, cases, tmp_path / "out", device="cpu")
    assert {problem.case for problem in told.value.problems} == {"scan_1", "scan_2"}
    assert len(maps(tmp_path / "out")) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Ctrl-C is sent as a signal")
def test_what_was_read_for_nothing_is_let_go_of_later(single, cases, tmp_path, monkeypatch):
    """The reader is slower than anyone waits for it; it drops its scan when it has it."""
    from autoseg.models import overlap

    go, out = threading.Event(), tmp_path / "out"
    real = stage.made_ready

    def slow(scan, *rest, **named):
        if scan.name == "scan_1":
            go.wait(20)
        return real(scan, *rest, **named)

    def stop(self, job):
        job.end()
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "made_ready", slow)
    monkeypatch.setattr(stage._Work, "computed", stop)
    monkeypatch.setattr(overlap, "PATIENCE_S", 0.05)
    with pytest.raises(KeyboardInterrupt):
        predict(single, cases, out, device=CPU)
    lock = out / ".autoseg" / "scan_1.lock"
    assert is_locked(lock)
    go.set()
    for thread in threading.enumerate():
        if thread.name == "reader":
            thread.join(20)
    assert not is_locked(lock)


def test_a_scan_that_a_card_cannot_hold_is_told_and_the_others_are_written(
    single, cases, tmp_path, monkeypatch
):
    wide = put_scan(tmp_path / "in", "wide", 9, shape=(160, 160, 10))
    with simulated(monkeypatch, card(8), limit=1 << 40) as cards:
        predict(single, cases[:1], tmp_path / "first", device=CPU)
        peak = cards.memory.peak
    with simulated(monkeypatch, card(8), limit=int(1.2 * peak)) as cards:
        done = predict(single, [cases[0], wide, cases[1]], tmp_path / "out", device=CPU)
        assert cards.memory.refused > 0
    assert [path.name for path in done.written] == ["scan_0.nii.gz", "scan_1.nii.gz"]
    (problem,) = done.failed
    assert (problem.case, problem.what) == ("wide", "too little memory")
    assert "--device cpu" in problem.fix
    assert maps(tmp_path / "out")["scan_0.nii.gz"] == maps(tmp_path / "first")["scan_0.nii.gz"]


def test_networks_that_a_card_cannot_hold_end_it_with_a_reason(
    single, cases, tmp_path, monkeypatch
):
    with (
        simulated(monkeypatch, card(8), limit=1000),
        pytest.raises(
            AutosegError, match=r"no room for 1 networks .* close other programs"
        ) as told,
    ):
        predict(single, cases, tmp_path / "out", device=CPU)
    assert told.value.exit_code == 2
