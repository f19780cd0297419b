"""Choosing postprocessing on label maps made for it: what helps is found, what harms is left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.documents.postprocessing import (
    CAVEAT,
    DenseCRF,
    FillHoles,
    KeepLargest,
    MinimumSize,
    Postprocessing,
)
from autoseg.errors import BadData
from autoseg.files import is_half
from autoseg.image.cleaning import cleaned
from autoseg.image.reading import read_labels, write_labels
from autoseg.image.volume import Grid
from autoseg.rules.postprocessing import (
    classes_of,
    depends_on,
    size_limits_mm3,
    steps_to_try,
    supersedes,
    touched,
)
from autoseg.rules.selection import mean_dice
from autoseg.stages import determine as stage
from autoseg.stages.determine import determine

SHAPE = (12, 20, 16)
MM = (2.0, 1.0, 1.0)
GRID = Grid.of(SHAPE[::-1], np.diag([1.0, 1.0, 2.0, 1.0]))
LABELS = LabelSet(names=("background", "organ", "lesion"), values=(0, 3, 9))
NESTED = parse_labels({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2])
FIELD = DenseCRF(radius_mm=3, smooth_mm=1, bilateral_mm=3)

Pairs = dict[str, tuple[Path, Path]]
Spoil = Callable[[np.random.Generator, np.ndarray], None]


def ball(centre: tuple[float, ...], radius: float) -> np.ndarray:
    places = np.indices(SHAPE) - np.reshape(centre, (3, 1, 1, 1))
    return ((places * np.reshape(MM, (3, 1, 1, 1))) ** 2).sum(0) < radius**2


def truth(rng: np.random.Generator) -> np.ndarray:
    """An organ with two lesions, in class indices."""
    y, x = rng.uniform(8, 10), rng.uniform(6, 8)
    classes = ball((6, y, x), 6.5).astype(np.int16)
    classes[ball((6, y - 3.0, x), 2.2)] = 2
    classes[ball((6, y + 3.0, x), 1.7)] = 2
    return classes


def roughen(rng: np.random.Generator, predicted: np.ndarray) -> None:
    """What every prediction has: a slice or two too few."""
    predicted[3] = 0
    predicted[8 + int(rng.integers(2)) :] = 0


def add_specks(rng: np.random.Generator, predicted: np.ndarray) -> None:
    """Loose voxels of the organ in a corner where there is nothing."""
    predicted[:3, 17:, 12:][rng.random((3, 3, 4)) < 0.4] = 1


def add_lesion_specks(rng: np.random.Generator, predicted: np.ndarray) -> None:
    organ = np.argwhere(predicted == 1)
    far = organ[organ[:, 0] == 4]
    for z, y, x in far[rng.choice(len(far), 2, replace=False)]:
        predicted[z, y, x] = 2


def add_holes(rng: np.random.Generator, predicted: np.ndarray) -> None:
    predicted[6, 9, 6 + int(rng.integers(0, 2)) : 8] = 0


def made(
    folder: Path, *spoils: Spoil, cases: int = 6, labels: LabelSet = LABELS, seed: int = 1
) -> Pairs:
    """Pairs of files: the truth, and the truth spoilt."""
    pairs = {}
    for index in range(cases):
        rng = np.random.default_rng([seed, index])
        classes = truth(rng)
        predicted = classes.copy()
        for spoil in spoils:
            spoil(rng, predicted)
        paths = folder / "predicted" / f"case_{index}.nii.gz", folder / "labels" / f"{index}.nii.gz"
        for path, array in zip(paths, (predicted, classes), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_labels(path, labels.to_values(array), "stored", GRID)
        pairs[f"case_{index}"] = paths
    return pairs


def classes_in(path: Path, labels: LabelSet = LABELS) -> np.ndarray:
    return labels.to_classes(read_labels(path, "stored")[0].array[0])


def naive_mean(pairs: Pairs, steps: tuple, labels: LabelSet = LABELS) -> float | None:
    """The mean foreground Dice after the steps, counted voxel by voxel."""
    return mean_dice(naive_dice(pairs, steps, labels))


def naive_dice(
    pairs: Pairs, steps: tuple, labels: LabelSet = LABELS
) -> dict[str, dict[str, float | None]]:
    dice: dict[str, dict[str, float | None]] = {}
    for case, (prediction, reference) in pairs.items():
        found = cleaned(classes_in(prediction, labels), MM, steps, labels)
        wanted = classes_in(reference, labels)
        dice[case] = {}
        for name, classes in classes_of(labels).items():
            a, b = np.isin(found, classes), np.isin(wanted, classes)
            a &= wanted >= 0
            both = int(a.sum() + b.sum())
            dice[case][name] = 2 * int((a & b).sum()) / both if both else None
    return dice


def checked(found: Postprocessing, pairs: Pairs, labels: LabelSet = LABELS) -> Postprocessing:
    """What is true of every answer."""
    assert found.steps == tuple(t.step for t in found.tried if t.kept)
    assert found.cases == len(pairs)
    assert found.before == pytest.approx(naive_mean(pairs, (), labels), abs=1e-12)
    assert found.after == pytest.approx(naive_mean(pairs, found.steps, labels), abs=1e-12)
    assert Postprocessing.parse(found.dump(), "it") == found
    return found


def test_specks_are_dropped_by_the_largest_piece_of_all(tmp_path: Path) -> None:
    pairs = made(tmp_path, roughen, add_specks)
    found = checked(determine(pairs, LABELS, folder=tmp_path / "cache"), pairs)
    assert found.steps == (KeepLargest(of="*"),)
    assert found.after is not None and found.before is not None
    assert found.after > found.before + 0.005
    assert found.note == CAVEAT
    lines = list(found.lines())
    assert lines[0] == "postprocessing: keep the largest piece of all foreground"
    assert len(lines) == 2 + len(found.tried)


def test_small_pieces_go_where_the_largest_alone_would_harm(tmp_path: Path) -> None:
    pairs = made(tmp_path, roughen, add_lesion_specks)
    found = checked(determine(pairs, LABELS, folder=tmp_path / "cache"), pairs)
    verdicts = {t.step: t for t in found.tried}
    assert not verdicts[KeepLargest(of="lesion")].kept
    (size,) = [s for s in found.steps if isinstance(s, MinimumSize)]
    assert size.of == "lesion"
    assert 2.0 < size.mm3 < 15.0
    replaced = [t for t in found.tried if "a later step does this and more" in t.why]
    assert all(not t.kept and t.step.of == "lesion" for t in replaced)


def test_holes_are_filled_and_everything_together(tmp_path: Path) -> None:
    pairs = made(tmp_path, roughen, add_specks, add_lesion_specks, add_holes)
    found = checked(determine(pairs, LABELS, folder=tmp_path / "cache"), pairs)
    kinds = [(s.kind, s.of) for s in found.steps]
    assert kinds == [
        ("keep_largest", "*"), ("minimum_size", "lesion"), ("fill_holes", "organ")
    ]  # fmt: skip
    # the same with the measurements of the first
    assert found == determine(pairs, LABELS, folder=tmp_path / "cache")


@pytest.mark.slow
def test_two_processes_find_the_same(tmp_path: Path) -> None:
    pairs = made(tmp_path, roughen, add_specks, add_lesion_specks, add_holes)
    found = determine(pairs, LABELS, folder=tmp_path / "cache")
    assert found == determine(pairs, LABELS, folder=tmp_path / "other", workers=2)


def test_good_predictions_are_left_alone(tmp_path: Path) -> None:
    pairs = made(tmp_path)
    found = checked(determine(pairs, LABELS, folder=tmp_path / "cache"), pairs)
    assert (found.steps, found.before, found.after) == ((), 1.0, 1.0)
    sizes = [t.step for t in found.tried if isinstance(t.step, MinimumSize)]
    assert len(found.tried) == 1 + 2 + len(sizes) + 2
    harmless = [t for t in found.tried if t.after == 1.0]
    assert all("the same in every case" in t.why for t in harmless)
    assert next(found.lines()) == "postprocessing: nothing"


def test_what_helps_the_mean_and_harms_one_structure_is_not_kept(tmp_path: Path) -> None:
    def cut_off(rng: np.random.Generator, predicted: np.ndarray) -> None:
        """A lesion is loose, and a large piece of the organ is wrong."""
        predicted[:, 10:12] = 0
        behind = predicted[:, 10:]
        behind[behind == 1] = 0
        predicted[:2, :, : 5 + int(rng.integers(2))] = 1

    pairs = made(tmp_path, cut_off)
    found = checked(determine(pairs, LABELS, folder=tmp_path / "cache"), pairs)
    (whole,) = [t for t in found.tried if t.step == KeepLargest(of="*")]
    assert not whole.kept
    assert whole.before is not None and whole.after is not None
    assert whole.after > whole.before + 0.01
    assert "better, as 0.0%" in whole.why
    assert "; but lesion falls from" in whole.why
    assert KeepLargest(of="organ") in found.steps


def test_few_cases_choose_nothing(tmp_path: Path) -> None:
    pairs = made(tmp_path, add_specks, cases=4)
    found = checked(determine(pairs, LABELS, folder=tmp_path / "cache"), pairs)
    assert found.steps == ()
    assert "fewer than 5 cases" in found.tried[0].why


def test_regions_are_cleaned_one_in_the_other(tmp_path: Path) -> None:
    pairs = made(tmp_path, roughen, add_specks, add_lesion_specks, add_holes, labels=NESTED)
    found = checked(determine(pairs, NESTED, folder=tmp_path / "cache"), pairs, NESTED)
    kinds = {(s.kind, s.of) for s in found.steps}
    assert {("keep_largest", "*"), ("minimum_size", "core"), ("fill_holes", "whole")} <= kinds


def test_what_nobody_labelled_does_not_count(tmp_path: Path) -> None:
    labels = LabelSet(names=LABELS.names, values=LABELS.values, ignore=10)
    pairs = made(tmp_path, roughen, add_specks)
    for _, reference in pairs.values():
        values = read_labels(reference, "stored")[0].array[0]
        values[:4, 16:, 11:] = 10
        write_labels(reference, values, "stored", GRID)
    found = checked(determine(pairs, labels, folder=tmp_path / "cache"), pairs, labels)
    assert found.tried[0].after == found.tried[0].before
    assert found.steps == ()


def test_a_single_structure_is_all_foreground(tmp_path: Path) -> None:
    labels = LabelSet(names=("background", "organ"), values=(0, 1))
    steps = steps_to_try(labels, {}, 1.0)
    assert [len(wave) for wave in steps] == [0, 1, 0, 0, 1]


def test_limits_come_from_the_pieces_of_the_references() -> None:
    volumes = [1000.0 + i for i in range(50)] + [20.0, 10.0]
    assert size_limits_mm3(volumes, 0.5) == (1.0, 5.0, 10.0, 1000.0)
    assert size_limits_mm3(volumes, 1.0) == (5.0, 10.0, 1000.0)
    assert size_limits_mm3([], 1.0) == ()
    assert size_limits_mm3([0.125 * 8], 0.125) == (0.5, 1.0)
    assert size_limits_mm3([1234.9], 1.0) == (123.0, 617.0, 1230.0)


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=40)
def test_what_a_step_depends_on_is_all_that_it_depends_on(seed: int, data: st.DataObject) -> None:
    labels = data.draw(st.sampled_from([LABELS, NESTED]))
    waves = steps_to_try(labels, {n: [2.0, 3.0, 5.0] for n in classes_of(labels)}, 0.01)
    order = [step for wave in waves for step in wave]
    tried = data.draw(st.sampled_from(order))
    kept: tuple = ()
    for step in order[: order.index(tried)]:
        if data.draw(st.booleans()):
            kept = (*(s for s in kept if not supersedes(step, s)), step)
    rng = np.random.default_rng(seed)
    lumps = ndimage.uniform_filter(rng.random((4, 7, 8)), 2)
    classes = np.where(lumps < np.median(lumps), rng.integers(1, 3, lumps.shape), 0)
    whole = cleaned(classes, MM, (*kept, tried), labels)
    part = cleaned(classes, MM, (*depends_on(tried, kept, labels), tried), labels)
    before = cleaned(classes, MM, kept, labels)
    for name, members in classes_of(labels).items():
        if name in touched(tried, labels):
            np.testing.assert_array_equal(np.isin(part, members), np.isin(whole, members))
        else:
            np.testing.assert_array_equal(np.isin(before, members), np.isin(whole, members))


# ---- the dense CRF


def test_a_field_that_helps_comes_first_and_takes_the_place_of_a_worse_one(tmp_path: Path) -> None:
    pairs = made(tmp_path, roughen, add_specks)
    asked = []

    def refine(case: str, field: DenseCRF) -> np.ndarray:
        asked.append((case, field.bilateral_weight))
        prediction, reference = (classes_in(p) for p in pairs[case])
        half = slice(None) if field.bilateral_weight > 1 else slice(0, 9)
        prediction[3:10, half] = reference[3:10, half]  # mends the missing slices
        return prediction

    folder = tmp_path / "cache"
    found = determine(pairs, LABELS, folder=folder, refine=refine)
    assert [type(s) for s in found.steps] == [DenseCRF, KeepLargest]
    first, second, third = found.tried[:3]
    assert [t.kept for t in (first, second, third)] == [False, True, False]
    assert "a later step does this and more" in first.why
    assert "the same in every case" in third.why
    assert found.after == 1.0
    assert len(asked) == 3 * len(pairs)
    # one setting's label maps stay, and nothing is asked again
    assert len(list(folder.glob("crf_*"))) == 1
    assert determine(pairs, LABELS, folder=folder, refine=refine) == found
    assert len(asked) == 3 * len(pairs)
    # without refining the other steps are chosen anew
    assert determine(pairs, LABELS, folder=folder).steps == (KeepLargest(of="*"),)


def test_a_field_that_harms_is_not_kept(tmp_path: Path) -> None:
    pairs = made(tmp_path, roughen)

    def refine(case: str, field: DenseCRF) -> np.ndarray:
        worse = classes_in(pairs[case][0])
        worse[5] = 0
        return worse

    found = determine(pairs, LABELS, folder=tmp_path / "cache", refine=refine, settings=[FIELD])
    assert found.tried[0].step == FIELD
    assert not found.tried[0].kept
    assert not list((tmp_path / "cache").glob("crf_*"))


def test_a_field_on_another_grid_is_a_fault_that_is_not_remembered(tmp_path: Path) -> None:
    pairs = made(tmp_path, cases=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="no label map on the grid"):
            determine(
                pairs, LABELS, folder=tmp_path / "cache", settings=[FIELD],
                refine=lambda *_: np.zeros((1, 2, 3), np.int16),
            )  # fmt: skip
    found = determine(
        pairs, LABELS, folder=tmp_path / "cache", settings=[FIELD],
        refine=lambda case, _: classes_in(pairs[case][0]),
    )  # fmt: skip
    assert found.tried[0].after == 1.0


# ---- going on


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases whose files are read from now on."""
    read: list[str] = []
    whole = stage._read_pair

    def reading(unit, *rest):
        read.append(unit.case)
        return whole(unit, *rest)

    monkeypatch.setattr(stage, "_read_pair", reading)
    return read


def test_what_is_known_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = made(tmp_path, roughen, add_specks, add_lesion_specks)
    folder = tmp_path / "cache"
    found = determine(pairs, LABELS, folder=folder)
    read = counted(monkeypatch)
    assert determine(pairs, LABELS, folder=folder) == found
    assert read == []
    # one prediction changes, one file is damaged, one case is new
    prediction, reference = pairs["case_3"]
    prediction.write_bytes(reference.read_bytes())
    (folder / "case_5.json").write_text('{"made_from": ')
    more = made(tmp_path / "more", roughen, add_specks, cases=1, seed=9)["case_0"]
    changed = checked(
        determine({**pairs, "new": more}, LABELS, folder=folder), {**pairs, "new": more}
    )
    assert set(read) == {"case_3", "case_5", "new"}
    assert changed.before != found.before


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_determine as made_for
from autoseg.files import fresh_token
from autoseg.stages import determine as stage
count = 0
whole = stage.write_json
def write_json(path, value, **how):
    global count
    whole(path, value, **how)
    count += 1
    if count == int(sys.argv[3]):
        half = path.with_name(fresh_token())
        half.mkdir()
        (half / path.name).write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)
stage.write_json = write_json
folder = Path(sys.argv[2])
pairs = {p.name[:-7]: (p, folder / "labels" / f"{p.name[5:-7]}.nii.gz")
         for p in sorted((folder / "predicted").iterdir())}
stage.determine(pairs, made_for.LABELS, folder=folder / "cache")
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
def test_a_killed_search_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    pairs = made(tmp_path, roughen, add_specks, add_holes)
    here = str(Path(__file__).parent)
    code = subprocess.run(
        [sys.executable, "-c", KILLED, here, str(tmp_path), "9"],
        env={**os.environ, "PYTHONPATH": str(repository)},
    ).returncode
    assert code == -signal.SIGKILL
    folder = tmp_path / "cache"
    known = [json.loads((folder / f"{case}.json").read_text())["dice"] for case in sorted(pairs)]
    assert [len(dice) for dice in known] == [2, 2, 2, 1, 1, 1]
    assert [is_half(entry.name) for entry in folder.iterdir()].count(True) == 1
    read = counted(monkeypatch)
    found = checked(determine(pairs, LABELS, folder=folder), pairs)
    assert read[:4] == ["case_3", "case_4", "case_5", "case_0"]
    assert not [entry for entry in folder.iterdir() if is_half(entry.name)]
    assert found == determine(pairs, LABELS, folder=tmp_path / "fresh")


def test_the_held_out_estimate_is_that_of_searches_without_the_case(tmp_path: Path) -> None:
    """A step that helps is kept in every search; the estimate is then that of the steps themselves."""
    pairs = made(tmp_path, roughen, add_specks, cases=12)
    found = determine(pairs, LABELS, folder=tmp_path / "cache")
    assert found.steps and found.held_out is not None and found.after is not None
    assert found.held_out <= found.after + 1e-12
    names = sorted(pairs)
    honest = {}
    for part in range(stage.PARTS):
        out = names[part :: stage.PARTS]
        rest = {name: pairs[name] for name in names if name not in out}
        steps = determine(rest, LABELS, folder=tmp_path / f"part_{part}").steps
        honest |= naive_dice({name: pairs[name] for name in out}, steps)
    assert found.held_out == pytest.approx(mean_dice(honest), abs=1e-9)
    assert "held out" in "\n".join(found.lines())


def test_too_few_cases_have_no_held_out_estimate(tmp_path: Path) -> None:
    found = determine(made(tmp_path, add_specks, cases=6), LABELS, folder=tmp_path / "cache")
    assert found.steps and found.held_out is None


def test_all_bad_pairs_are_told_at_once(tmp_path: Path) -> None:
    pairs = made(tmp_path, cases=3)
    array = read_labels(pairs["case_0"][0], "stored")[0].array[0]
    array[0, 0, 0] = 5
    write_labels(pairs["case_0"][0], array, "stored", GRID)
    moved = Grid.of(SHAPE[::-1], np.diag([1.0, 1.0, 2.5, 1.0]))
    write_labels(pairs["case_1"][0], array * 0, "stored", moved)
    pairs["case_2"][0].write_bytes(b"no image")
    with pytest.raises(BadData) as caught:
        determine(pairs, LABELS, folder=tmp_path / "cache")
    told = {p.case: p.what for p in caught.value.problems}
    assert told["case_0"] == "the label map holds values that are not declared"
    assert told["case_1"] == "image and prediction are not in the same place"
    assert "not an image" in told["case_2"]


def test_no_pairs_are_a_misuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pairs of prediction and reference"):
        determine({}, LABELS, folder=tmp_path / "cache")


def test_a_field_can_only_be_the_first_step() -> None:
    with pytest.raises(ValueError, match="the first step alone"):
        Postprocessing(steps=(FillHoles(of="organ"), FIELD))
