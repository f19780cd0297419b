"""Cleaning a folder of label maps: every format on its own grid, resumable, faults named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoseg.documents.labels import LabelSet, parse_labels
from autoseg.documents.postprocessing import DenseCRF, FillHoles, KeepLargest, MinimumSize, Step
from autoseg.errors import AutosegError, BadData, Busy
from autoseg.files import Lock, fresh_token
from autoseg.image.cleaning import cleaned
from autoseg.image.reading import read_header, read_labels, write_labels
from autoseg.image.volume import Grid
from autoseg.stages.postprocess import apply, apply_to

LABELS = LabelSet(names=("background", "organ", "lesion"), values=(0, 100, 400))
STEPS: tuple[Step, ...] = (KeepLargest(of="organ"), MinimumSize(of="lesion", mm3=4.0))
TURNED = np.array([[0, -2.5, 0, 7], [0, 0, 1.2, -3], [-1.2, 0, 0, 40], [0, 0, 0, 1.0]])


def values_of(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A label map (slowest axis first) in file values, with specks and holes."""
    rng = np.random.default_rng(seed)
    classes = np.zeros(shape, np.int16)
    classes[..., 3:9, 3:10] = 1
    classes[..., 5:7, 5:7] = 2
    specks = (rng.random(shape) < 0.06) & (classes != 2)
    classes[specks] = rng.integers(0, 3, shape)[specks]
    return LABELS.to_values(classes)


def folder_of(path: Path, names: tuple[str, ...], shape: tuple[int, int, int]) -> Path:
    path.mkdir()
    for seed, name in enumerate(names):
        flat = name.endswith((".png", ".bmp"))
        grid = Grid.of(shape[::-1], np.eye(4) if flat else TURNED, placed=not flat)
        write_labels(path / name, values_of(seed, shape), "stored", grid)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.mark.parametrize(
    ("ending", "shape"),
    [(".nii.gz", (6, 12, 14)), (".nrrd", (6, 12, 14)), (".tif", (6, 12, 14)),
     (".png", (1, 12, 14)), (".nii.gz", (1, 12, 14))],
)  # fmt: skip
def test_every_format_comes_back_on_its_own_grid(
    ending: str, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    before = folder_of(tmp_path / "in", (f"a{ending}", f"b{ending}"), shape)
    (before / "dataset.json").write_text("{}")
    untouched = contents(before)
    done = apply(before, tmp_path / "out", STEPS, LABELS)
    assert [p.name for p in done.written] == [f"a{ending}", f"b{ending}"]
    assert (done.changed, done.skipped, done.failed) == (2, 0, ())
    assert list(done.lines()) == ["2 label maps written, 2 of them changed"]
    assert contents(before) == untouched
    for path in done.written:
        old, new = read_labels(before / path.name, "stored")[0], read_labels(path, "stored")[0]
        header, was = read_header(path), read_header(before / path.name)
        assert (header.grid, header.dtype) == (was.grid, was.dtype) == (old.grid, "uint16")
        classes = LABELS.to_classes(old.array[0])
        expected = LABELS.to_values(cleaned(classes, old.spacing_mm, STEPS, LABELS))
        np.testing.assert_array_equal(new.array[0], expected)
        assert np.any(new.array != old.array)


def test_axes_decide_only_ties(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "in", ("a.nii.gz", "b.nii.gz"), (6, 12, 14))
    one = apply(before, tmp_path / "one", (*STEPS, FillHoles(of="organ")), LABELS)
    two = apply(before, tmp_path / "two", (*STEPS, FillHoles(of="organ")), LABELS, axes="RAS")
    for a, b in zip(one.written, two.written, strict=True):
        np.testing.assert_array_equal(
            read_labels(a, "stored")[0].array, read_labels(b, "stored")[0].array
        )


def test_what_is_done_is_skipped_until_something_changes(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "in", ("a.nii.gz", "b.nii.gz", "c.nii.gz"), (6, 12, 14))
    out = tmp_path / "out"
    first = apply(before, out, STEPS, LABELS, workers=2)
    kept = contents(out)
    again = apply(before, out, STEPS, LABELS)
    assert (again.written, again.skipped) == ((), 3)
    assert list(again.lines()) == ["0 label maps written, 0 of them changed, 3 were there already"]
    (out / "a.nii.gz").unlink()
    (before / "b.nii.gz").write_bytes((before / "c.nii.gz").read_bytes())
    litter = out / fresh_token()
    litter.mkdir()
    (litter / "c.nii.gz").write_text("")
    third = apply(before, out, STEPS, LABELS)
    assert [p.name for p in third.written] == ["a.nii.gz", "b.nii.gz"]
    assert contents(out) == {**kept, "b.nii.gz": kept["c.nii.gz"]}
    none = apply(before, out, (), LABELS)
    assert (len(none.written), none.changed) == (len(first.written), 0)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_postprocess as made_for
from autoseg.stages import postprocess as stage
whole = stage.write_labels
def write_labels(path, *rest):
    whole(path, *rest)
    if path.name.startswith("c"):
        os.kill(os.getpid(), signal.SIGKILL)
stage.write_labels = write_labels
folder = Path(sys.argv[2])
stage.apply(folder / "in", folder / "out", made_for.STEPS, made_for.LABELS)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
def test_a_killed_command_goes_on(tmp_path: Path, repository: Path) -> None:
    before = folder_of(tmp_path / "in", tuple(f"{c}.nii.gz" for c in "abcd"), (6, 12, 14))
    code = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(repository)},
    ).returncode
    assert code == -signal.SIGKILL
    out = tmp_path / "out"
    assert len(contents(out)) == 3
    done = apply(before, out, STEPS, LABELS)
    # the third was written, but not yet vouched for
    assert [p.name for p in done.written] == ["c.nii.gz", "d.nii.gz"]
    assert done.skipped == 2
    apply(before, tmp_path / "whole", STEPS, LABELS)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_faulty_label_map_does_not_end_the_others(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "in", ("a.nii.gz", "b.nii.gz", "c.nii.gz"), (6, 12, 14))
    volume = read_labels(before / "a.nii.gz", "stored")[0]
    volume.array[0, 0, 0, 0] = 7
    write_labels(before / "a.nii.gz", volume.array[0], "stored", volume.grid)
    (before / "b.nii.gz").write_bytes(b"torn")
    done = apply(before, tmp_path / "out", STEPS, LABELS)
    assert [p.name for p in done.written] == ["c.nii.gz"]
    strange, torn = done.failed
    assert (strange.case, strange.found) == ("a", "7 (declared: 0, 100, 400)")
    assert torn.case == "b"
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_a_label_map_of_a_format_that_is_not_written(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "in", ("a.nii.gz",), (6, 12, 14))
    (before / "a.nii.gz").rename(before / "a.mhd")
    done = apply(before, tmp_path / "out", STEPS, LABELS)
    assert [p.name for p in done.written] == ["a.nii.gz"]
    assert [p.what for p in done.warnings] == ["a file's suffix is not that of its content"]


def test_regions_are_painted_back(tmp_path: Path) -> None:
    nested = parse_labels({"background": 0, "whole": [1, 2], "core": [2]}, [1, 2])
    values = np.zeros((1, 9, 9), np.int16)
    values[0, 1:8, 1:8] = 1
    values[0, 3:5, 3:5] = 2
    values[0, 6, 6] = 2
    (tmp_path / "in").mkdir()
    write_labels(
        tmp_path / "in" / "a.png", values, "stored", Grid.of((9, 9, 1), np.eye(4), placed=False)
    )
    apply(tmp_path / "in", tmp_path / "out", [KeepLargest(of="core")], nested)
    found = read_labels(tmp_path / "out" / "a.png", "stored")[0].array[0]
    values[0, 6, 6] = 1
    np.testing.assert_array_equal(found, values)


def test_what_cannot_work_is_said_before_any_work(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "in", ("a.nii.gz",), (6, 12, 14))
    out = tmp_path / "out"
    field = DenseCRF(radius_mm=3, smooth_mm=1, bilateral_mm=3)
    with pytest.raises(AutosegError, match="the dense CRF needs probabilities"):
        apply(before, out, [field], LABELS)
    with pytest.raises(AutosegError, match=r"'lesions', which is no structure .* mean 'lesion'"):
        apply(before, out, [KeepLargest(of="lesions")], LABELS)
    with pytest.raises(AutosegError, match="choose another output folder"):
        apply(before, tmp_path / "out" / ".." / "in", STEPS, LABELS)
    with pytest.raises(AutosegError, match="it does not exist"):
        apply(tmp_path / "nowhere", out, STEPS, LABELS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AutosegError, match="no label map to clean"):
        apply(tmp_path / "empty", out, STEPS, LABELS)
    assert not out.exists()
    (before / "a.nrrd").write_bytes(b"")
    with pytest.raises(AutosegError, match=r"two label maps of a: a\.nii\.gz and a\.nrrd"):
        apply(before, out, STEPS, LABELS)
    (before / "a.nrrd").unlink()
    with Lock(out / ".autoseg" / "lock", "it"), pytest.raises(Busy, match="the output folder"):
        apply(before, out, STEPS, LABELS)


FIELD = DenseCRF(radius_mm=3, smooth_mm=1, bilateral_mm=3)


def test_chosen_files_are_refined_before_they_are_cleaned(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "in", ("x.nii.gz", "y.nii.gz", "z.nii.gz"), (6, 12, 14))
    maps = {"one": before / "x.nii.gz", "two": before / "y.nii.gz"}
    asked = []

    def refine(case: str, field: DenseCRF) -> np.ndarray:
        asked.append((case, field))
        classes = LABELS.to_classes(read_labels(maps[case], "RAS")[0].array[0])
        classes[:, 0] = 2
        return classes

    out = tmp_path / "out"
    for _ in range(2):
        found = apply_to(maps, out, (FIELD, *STEPS), LABELS, axes="RAS", refine=refine)
        assert asked == [("one", FIELD), ("two", FIELD)]
        assert found == {"one": out / "one.nii.gz", "two": out / "two.nii.gz"}
        for case, path in found.items():
            volume = read_labels(path, "RAS")[0]
            classes = LABELS.to_classes(read_labels(maps[case], "RAS")[0].array[0])
            classes[:, 0] = 2
            expected = cleaned(classes, volume.spacing_mm, STEPS, LABELS)
            np.testing.assert_array_equal(LABELS.to_classes(volume.array[0]), expected)
    with pytest.raises(AutosegError, match="the dense CRF needs probabilities"):
        apply_to(maps, out, (FIELD,), LABELS)
    with pytest.raises(ValueError, match="no label map on the grid"):
        apply_to(maps, tmp_path / "o", (FIELD,), LABELS, refine=lambda *_: np.zeros((2, 2, 2)))


def test_chosen_files_must_all_work(tmp_path: Path) -> None:
    before = folder_of(tmp_path / "in", ("a.nii.gz", "b.nii.gz"), (6, 12, 14))
    maps = {"one": before / "a.nii.gz", "two": before / "b.nii.gz"}
    assert apply_to(maps, tmp_path / "out", STEPS, LABELS, workers=2) == {
        "one": tmp_path / "out" / "one.nii.gz", "two": tmp_path / "out" / "two.nii.gz"
    }  # fmt: skip
    for path in maps.values():
        path.write_bytes(b"torn")
    with pytest.raises(BadData) as caught:
        apply_to(maps, tmp_path / "out", STEPS, LABELS)
    assert [p.case for p in caught.value.problems] == ["a", "b"]
