"""Prepared cases: what two folders may share, how many processes the work is worth, quantiles."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from autoseg.documents.dataset import Dataset, read_dataset
from autoseg.documents.fingerprint import QUANTILES
from autoseg.documents.plan import ChannelScale, Preparation
from autoseg.files import Lock
from autoseg.stages import preprocess as stage
from autoseg.stages.fingerprint import evenly_spaced_quantiles, fingerprint
from autoseg.stages.preprocess import preprocess
from autoseg.workspace import DatasetPlaces, open_workspace

FILES = ("image.npy", "label.npy", "places.npy", "case.json")


@pytest.mark.parametrize("size", [1, 2, 3, 999, 1000, 1001, 20_011])
def test_quantiles_are_numpys(size: int) -> None:
    rng = np.random.default_rng(size)
    steps = np.linspace(0, 1, QUANTILES)
    for values in (rng.normal(size=size) * 1000, rng.integers(-50, 50, size)):
        narrow = values.astype(np.float32)
        np.testing.assert_array_equal(evenly_spaced_quantiles(narrow), np.quantile(narrow, steps))


@pytest.fixture
def places(tmp_path: Path, phantoms: Callable[..., Path]) -> DatasetPlaces:
    """A phantom's folders, nothing made of it yet."""
    phantoms(tmp_path, cases=2, test_cases=0)
    return open_workspace(tmp_path).dataset("1")


def spaced(dataset: Dataset, *spacing_mm: float | None) -> Preparation:
    channels = tuple(ChannelScale(scheme="zscore") for _ in dataset.channels)
    return Preparation(axes="SAR", spacing_mm=spacing_mm, channels=channels, labels=dataset.labels)  # type: ignore[arg-type]


def test_folders_that_differ_in_spacing_alone_share_what_comes_out_the_same(
    places: DatasetPlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, _ = read_dataset(places.raw)
    measured = fingerprint(places)
    first, second = spaced(dataset, 3.0, 3.0, 3.0), spaced(dataset, None, 3.0, 3.0)
    assert preprocess(places, dataset, measured, first) == 2
    with monkeypatch.context() as patch:
        patch.setattr(stage, "prepare", lambda *_: pytest.fail("it was there already"))
        assert preprocess(places, dataset, measured, second) == 2
    one, two = (places.prepared(p.key) / dataset.cases[0].id for p in (first, second))
    assert all((one / name).samefile(two / name) for name in FILES)
    assert not (one / "stamp.json").samefile(two / "stamp.json")
    assert preprocess(places, dataset, measured, second) == 0

    # another spacing, a stale or a damaged neighbour: the case is prepared
    coarser = spaced(dataset, None, 6.0, 6.0)
    assert preprocess(places, dataset, measured, coarser) == 2
    made = places.prepared(coarser.key) / dataset.cases[0].id
    assert np.load(made / "image.npy").size < np.load(one / "image.npy").size
    expected = np.load(two / "image.npy")
    for path in (two / "stamp.json", *two.parent.glob("*/stamp.json")):
        path.unlink(missing_ok=True)
    for path in one.parent.glob("*/case.json"):
        path.unlink()
        path.write_text("{")
    assert preprocess(places, dataset, measured, second) == 2
    np.testing.assert_array_equal(np.load(two / "image.npy"), expected)
    assert not (one / "image.npy").samefile(two / "image.npy")


def test_little_work_stays_in_this_process(places: DatasetPlaces) -> None:
    dataset, _ = read_dataset(places.raw)
    measured = fingerprint(places)
    assert stage._processes(8, dataset.cases, measured) == 1
    large = [c.model_copy(update={"shape": (512, 512, 500)}) for c in measured.cases]
    many = measured.model_copy(update={"cases": tuple(large)})
    assert stage._processes(8, dataset.cases, many) > 4
    assert stage._processes(2, dataset.cases, many) == 2


def test_a_case_is_measured_again_when_the_spacing_beside_its_tif_changes(tmp_path: Path) -> None:
    """The spacing of a tif volume lies in a JSON file of its own."""
    folder = tmp_path / "raw" / "Dataset002_Stack"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    scan = np.arange(4 * 12 * 10, dtype=np.uint16).reshape(4, 12, 10)
    for case in ("a", "b"):
        tifffile.imwrite(folder / f"imagesTr/{case}_0000.tif", scan, photometric="minisblack")
        label = (scan > 200).astype(np.uint8)
        tifffile.imwrite(folder / f"labelsTr/{case}.tif", label, photometric="minisblack")
        for name in ("imagesTr", "labelsTr"):
            (folder / name / f"{case}.json").write_text('{"spacing": [3, 1, 1]}')
    document = {"channel_names": {"0": "EM"}, "labels": {"background": 0, "cell": 1}}
    (folder / "dataset.json").write_text(json.dumps(document | {"file_ending": ".tif"}))
    places = open_workspace(tmp_path).dataset("2")
    before = fingerprint(places)
    assert {c.spacing_mm for c in before.cases} == {(1.0, 1.0, 3.0)}
    for name in ("imagesTr", "labelsTr"):
        (folder / name / "a.json").write_text('{"spacing": [5, 1, 1]}')
    after = fingerprint(places)
    assert [c.spacing_mm for c in after.cases] == [(1.0, 1.0, 5.0), (1.0, 1.0, 3.0)]
    digests = [{c.case: c.digest for c in made.cases} for made in (before, after)]
    assert digests[0]["a"] != digests[1]["a"]
    assert digests[0]["b"] == digests[1]["b"]


def test_cases_that_another_command_prepares_are_waited_for(
    places: DatasetPlaces, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are prepared meanwhile; what the other command made is not made again."""
    dataset, _ = read_dataset(places.raw)
    measured = fingerprint(places)
    wanted = spaced(dataset, 3.0, 3.0, 3.0)
    first, second = (case.id for case in dataset.cases)
    folder, made = places.prepared(wanted.key), []
    whole, lock = stage.prepare, Lock(folder / f".{first}.lock", "it")

    def noted(case, preparation):
        made.append(case.id)
        return whole(case, preparation)

    def other_command() -> None:
        while not (folder / second / "stamp.json").exists():
            time.sleep(0.01)
        shutil.copytree(folder / second, folder / first)
        digest = next(c.digest for c in measured.cases if c.case == first)
        stage.case_stamp(digest, wanted).write(folder / first / "stamp.json")
        lock.__exit__(None, None, None)

    monkeypatch.setattr(stage, "prepare", noted)
    monkeypatch.setattr(stage, "LOOK_S", 0.01)
    lock.__enter__()
    thread = threading.Thread(target=other_command)
    thread.start()
    with caplog.at_level("WARNING"):
        caplog.clear()  # what was said while measuring
        stage.preprocess(places, dataset, measured, wanted)
    thread.join()
    assert made == [second]
    assert [r.message for r in caplog.records] == [
        f"waiting for 1 case that another command is preparing ({first}, …)"
    ]
