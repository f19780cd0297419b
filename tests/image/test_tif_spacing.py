"""The JSON beside a tif volume, by the facts of nnU-Net's Tiff3DIO."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from autoseg.errors import BadData
from autoseg.image.reading import (
    read_header,
    read_image,
    read_labels,
    write_image,
    write_labels,
)
from autoseg.image.tif_spacing import spacing_files
from autoseg.image.volume import Grid

STACK = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)
SPACING = [3.0, 0.75, 0.5]
"""Slices, rows, columns: nnU-Net's order is that of the array."""


def tif(path: Path, said: object = None, beside: str = "") -> Path:
    tifffile.imwrite(path, STACK, photometric="minisblack")
    if beside:
        text = said if isinstance(said, str) else json.dumps(said)
        (path.parent / beside).write_text(text)
    return path


def test_all_channels_of_a_case_share_one_file_without_the_channel(tmp_path: Path) -> None:
    first = tif(tmp_path / "a_0000.tif", {"spacing": SPACING}, "a.json")
    second = tif(tmp_path / "a_0001.tif")
    volume, problems = read_image([first, second], "stored")
    assert problems == []
    assert volume.spacing_mm == tuple(SPACING)
    assert volume.grid.spacing_mm == (0.5, 0.75, 3.0)
    assert (volume.grid.placed, volume.grid.dimensions) == (False, 3)
    assert read_header(second).grid == volume.grid
    assert spacing_files([first, second]) == [tmp_path / "a.json"]
    np.testing.assert_array_equal(volume.array[1], STACK)
    turned, _ = read_image([first], "stored:ijk")
    assert turned.spacing_mm == (0.5, 0.75, 3.0)


def test_a_label_map_has_its_own_and_takes_the_images(tmp_path: Path) -> None:
    label = tif(tmp_path / "a_0001.tif", {"spacing": SPACING}, "a_0001.json")
    (tmp_path / "a.json").write_text('{"spacing": [9, 9, 9]}')
    assert read_labels(label, "stored")[0].spacing_mm == tuple(SPACING)
    image = Grid.of((6, 5, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert read_labels(label, "stored", image)[0].spacing_mm == (2.0, 2.0, 2.0)


def test_an_image_whose_digits_are_no_channel_is_found_by_its_whole_name(tmp_path: Path) -> None:
    path = tif(tmp_path / "img_0007.tiff", {"spacing": SPACING}, "img_0007.json")
    assert read_header(path).grid.spacing_mm == (0.5, 0.75, 3.0)
    (tmp_path / "img.json").write_text('{"spacing": [1, 2, 3]}')
    assert read_header(path).grid.spacing_mm == (3.0, 2.0, 1.0)


def test_without_a_file_voxels_count_one_millimetre(tmp_path: Path) -> None:
    path = tif(tmp_path / "a_0000.tif")
    volume, (problem,) = read_image([path], "stored")
    assert (volume.spacing_mm, spacing_files([path])) == ((1.0, 1.0, 1.0), [])
    assert (problem.fatal, problem.found) == (False, "there is no a.json beside a_0000.tif")
    labels, problems = read_labels(path, "stored")
    assert (labels.spacing_mm, problems) == ((1.0, 1.0, 1.0), [])


def test_a_file_of_another_program_is_told_and_left(tmp_path: Path) -> None:
    path = tif(tmp_path / "a_0000.tif", {"shapes": []}, "a.json")
    volume, (problem,) = read_image([path], "stored")
    assert volume.spacing_mm == (1.0, 1.0, 1.0)
    assert (problem.fatal, "a.json has no" in problem.found) == (False, True)


@pytest.mark.parametrize(
    "said",
    [
        {"spacing": [1, 2]}, {"spacing": [1, 0, 1]}, {"spacing": [1, -2, 1]}, {"spacing": "3"},
        {"spacing": [1, True, 1]}, {"spacing": [1, None, 1]}, {"spacing": {"x": 1}}, [1, 1, 1],
        '{"spacing": [1, NaN, 1]}', '{"spacing": [1, Infinity, 1]}', '{"spacing": [1, 1e300, 1]}',
        "{", "", "[" * 100_000, '{"spacing": ' + "9" * 5000 + "}", " " * (1 << 21),
    ],
)  # fmt: skip
def test_a_spacing_that_is_none_is_a_problem_that_names_the_file(
    tmp_path: Path, said: object
) -> None:
    path = tif(tmp_path / "a_0000.tif", said, "a.json")
    for read in (read_header, lambda p: read_image([p], "stored")):
        with pytest.raises(BadData) as told:
            read(path)
        (problem,) = told.value.problems
        assert problem.what == "the spacing beside a tif volume cannot be used"
        assert "a.json" in problem.found
        assert "remove a.json" in problem.fix


def test_what_is_written_is_read_by_nnunets_rule(tmp_path: Path) -> None:
    grid = Grid.of((6, 5, 4), np.diag([0.5, 0.75, 3.0, 1.0]))
    write_labels(tmp_path / "a.tif", STACK.astype(np.int32), "stored", grid)
    write_image(tmp_path / "b_0000.tif", STACK[None], "stored", grid)
    for name in ("a", "b"):
        assert json.loads((tmp_path / f"{name}.json").read_text()) == {"spacing": SPACING}
    assert read_labels(tmp_path / "a.tif", "stored")[0].spacing_mm == tuple(SPACING)
    assert read_header(tmp_path / "b_0000.tif").grid.spacing_mm == grid.spacing_mm


def test_pictures_have_no_spacing_and_are_no_stack_of_one(tmp_path: Path) -> None:
    grid = Grid.of((6, 5, 1), np.eye(4), placed=False)
    write_labels(tmp_path / "a.tif", STACK[:1].astype(np.int32), "stored", grid)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert tifffile.imread(tmp_path / "a.tif").shape == (5, 6)
    (tmp_path / "a.json").write_text('{"shapes": []}')
    volume, problems = read_image([tmp_path / "a.tif"], "stored")
    assert (problems, volume.spacing_mm) == ([], (1.0, 1.0, 1.0))
