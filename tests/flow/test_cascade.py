"""A cascade: it makes what it waits for, and is shown nothing that knew the answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg import api
from autoseg.documents.run import RunSpec
from autoseg.errors import AutosegError, Busy
from autoseg.flow import make
from autoseg.workspace import DatasetPlaces

RESULTS = "results/Dataset001_Phantom/default"
CASCADE = f"{RESULTS}/3d_cascade_fullres/default"


def test_it_made_the_stage_before_by_itself(cascade_root: Path) -> None:
    low = cascade_root / RESULTS / "3d_lowres" / "default"
    assert sorted(p.name for p in low.glob("fold_*")) == ["fold_0", "fold_1"]
    assert (cascade_root / CASCADE / "fold_0" / "weights.safetensors").exists()
    assert not (cascade_root / CASCADE / "fold_1").exists()


def test_each_case_is_shown_what_a_network_said_that_never_saw_it(cascade_root: Path) -> None:
    """The maps are those of the fold that held the case out, brought to the cascade's grid."""
    from autoseg.data.previous import prepare_previous
    from autoseg.data.store import open_case
    from autoseg.image.reading import read_labels

    spec = RunSpec.read(cascade_root / CASCADE / "fold_0" / "run.json")
    preparation = spec.configuration.preparation
    prepared = cascade_root / "preprocessed/Dataset001_Phantom/prepared" / preparation.key
    low = cascade_root / RESULTS / "3d_lowres" / "default"
    for case in (*spec.train_cases, *spec.validation_cases):
        folds = [
            fold for fold in low.glob("fold_*")
            if case in RunSpec.read(fold / "run.json").validation_cases
        ]  # fmt: skip
        (fold,) = folds
        assert case not in RunSpec.read(fold / "run.json").train_cases
        said = read_labels(fold / "validation" / f"{case}.nii.gz", preparation.axes)[0].array[0]
        wanted = prepare_previous(
            preparation.labels.to_classes(said), open_case(prepared / case).info, preparation
        )
        shown = np.load(cascade_root / CASCADE / "previous" / f"{case}.npy")
        np.testing.assert_array_equal(shown, wanted)
    assert len(spec.train_cases) == 3


def test_prediction_asks_the_stage_before_by_itself(cascade_root: Path, tmp_path: Path) -> None:
    api.predict(
        None, tmp_path / "out", dataset="1", configuration=("3d_cascade_fullres",),
        root=cascade_root,
    )  # fmt: skip
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    file = tmp_path / "cascade.autoseg"
    api.export("1", file, configuration=("3d_cascade_fullres",), root=cascade_root)
    scans = cascade_root / "raw/Dataset001_Phantom/imagesTs"
    api.predict(scans, tmp_path / "there", model=str(file), root=tmp_path)
    for path in (tmp_path / "out").glob("*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


def test_what_the_stage_says_changes_the_answer(cascade_root: Path) -> None:
    """The network is shown the earlier label map: other maps, other logits."""
    import torch

    from autoseg.data.previous import one_hot
    from autoseg.data.store import open_case
    from autoseg.models.members import member_of
    from autoseg.models.segment import Shown, Voice
    from autoseg.workspace import Fold

    fold = Fold(cascade_root / CASCADE / "fold_0")
    member = member_of([fold], fold.folder)
    voice = Voice(member, [fold.weights], torch.device("cpu"))
    key = member.configuration.preparation.key
    case = "phantom_001"
    stored = open_case(cascade_root / "preprocessed/Dataset001_Phantom/prepared" / key / case)
    shown = np.load(cascade_root / CASCADE / "previous" / f"{case}.npy")

    def logits(previous: np.ndarray) -> np.ndarray:
        image = np.concatenate([np.asarray(stored.image), one_hot(previous, voice.labels.count)])
        return np.concatenate([x.numpy() for _, x in voice.rows(Shown(image, stored.info))], axis=1)

    np.testing.assert_array_equal(logits(shown), logits(shown))
    assert np.abs(logits(shown) - logits(np.zeros_like(shown))).max() > 1e-3


def test_a_case_that_nobody_holds_out_is_refused(
    cascade_root: Path, tmp_path: Path, tiny_plan: str
) -> None:
    import json
    import shutil

    root = Path(shutil.copytree(cascade_root, tmp_path / "root"))
    shutil.rmtree(root / "results")
    path = root / "raw/Dataset001_Phantom/splits.json"
    splits = json.loads(path.read_text())
    lost = splits[0]["val"].pop()
    for split in splits:
        split["train"] = sorted({*split["train"], lost})
    path.write_text(json.dumps(splits))
    with pytest.raises(AutosegError, match=f"no fold of Dataset001_Phantom holds out {lost}"):
        api.train("1", "3d_cascade_fullres", ("0",), root=root, workers=0, device="cpu")


def test_folds_that_another_command_trains_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are trained meanwhile; the wait is told once."""
    job = make.Job(DatasetPlaces("D", *(tmp_path / n for n in ("raw", "prepared", "results"))))
    stages = [replace(job, configuration="low", fold=str(n)) for n in range(3)]
    tried: list[str] = []

    def fold(stage: make.Job, **_: object) -> None:
        tried.append(stage.fold)
        if stage.fold != "1" and tried.count(stage.fold) < 3:
            raise Busy(f"fold {stage.fold} is being written by process 7; wait for it")

    monkeypatch.setattr(make, "LOOK_S", 0.001)
    monkeypatch.setattr(make, "fold", fold)
    monkeypatch.setattr(make, "validation", lambda *_: None)
    monkeypatch.setattr(make, "held_out_maps", lambda stage, _: {stage.fold: tmp_path})
    with caplog.at_level("WARNING"):
        maps = make._shared_maps(stages, None, None)  # type: ignore[arg-type]
    assert sorted(maps) == ["0", "1", "2"]
    assert tried == ["0", "1", "2", "0", "2", "0", "2"]
    assert [r.message for r in caplog.records] == [
        "fold 0 is being written by process 7, and is waited for"
    ]
