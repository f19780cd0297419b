"""The spacing of a tif volume, which lies in a JSON file beside it, as nnU-Net's Tiff3DIO has it.

    case_0000.tif, case_0001.tif, case.json    {"spacing": [3.0, 0.8, 0.8]}

All channels of a case share one file, named without the channel; a label map `case.tif` has
`case.json` in its own folder. The lengths are mm, in the order of the array in the file: slices,
rows, columns. Pictures of one slice have no such file.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.errors import AutosegError, BadData, Problem
from autoseg.files import read_json, write_json
from autoseg.image.checks import THICKEST_MM, THINNEST_MM
from autoseg.image.volume import Grid, Header

CHANNEL = re.compile(r"_\d{4}$")
LONGEST = 1 << 20
"""Bytes of such a file; it needs a hundred."""
WANTED = '{"spacing": [3.0, 0.8, 0.8]}, in mm: slices, rows, columns'


def spacing_file(path: Path, *, labels: bool = False) -> Path:
    """Where the spacing of a tif file lies, or would lie: without the channel in an image's name."""
    return path.with_name(f"{path.stem if labels else CHANNEL.sub('', path.stem)}.json")


def spacing_files(paths: Sequence[Path]) -> list[Path]:
    """The JSON files from which the spacing of these images comes, where there are any.

    They belong to what an image is made of, and so into the marks of what is made from it.
    """
    tifs = [path for path in paths if path.suffix.lower() in (".tif", ".tiff")]
    found = [_there(path, labels=False) for path in tifs]
    return list(dict.fromkeys(path for path in found if path is not None))


def _there(path: Path, *, labels: bool) -> Path | None:
    # an image whose name ends in four digits that count no channel has them in its JSON's name too
    beside = (spacing_file(path, labels=labels), path.with_suffix(".json"))
    return next((place for place in beside if place.is_file()), None)


def with_spacing(header: Header, path: Path, case: str, *, labels: bool) -> Header:
    """The header of a tif file with the spacing that lies beside it, and what is wrong with that.

    Without a JSON file (told of images), or where it says nothing of a spacing, voxels count 1 mm. Raises
    BadData for a file that cannot be read, or whose spacing is none.
    """
    if header.grid.dimensions == 2:
        return header
    beside = _there(path, labels=labels)
    if beside is None and labels:
        return header
    if beside is None:
        place = spacing_file(path)
        what = "a tif volume says nothing of its spacing; 1 mm is taken"
        fix = f"write {WANTED} into it, or nothing if the voxels are cubes of 1 mm"
        unknown = Problem(
            case, what, f"there is no {place.name} beside {path.name}", fix, fatal=False
        )
        return replace(header, problems=(*header.problems, unknown))
    try:
        if beside.stat().st_size > LONGEST:
            raise AutosegError(f"more than {LONGEST} bytes")
        said = read_json(beside)
    except (AutosegError, OSError, RecursionError, ValueError) as error:
        raise _bad(case, beside, f"{beside}: {str(error)[:200]}") from error
    if isinstance(said, dict) and "spacing" not in said:
        found, fix = f'{beside} has no "spacing"', f"write {WANTED}"
        what = "the file beside a tif volume does not say its spacing; 1 mm is taken"
        return replace(
            header, problems=(*header.problems, Problem(case, what, found, fix, fatal=False))
        )
    spacing = said["spacing"] if isinstance(said, dict) else None
    if not isinstance(spacing, list) or len(spacing) != 3 or not all(map(_is_length, spacing)):
        raise _bad(case, beside, f"{beside} says {str(spacing)[:60]}")
    k, j, i = (float(mm) for mm in spacing)
    grid = Grid.of(header.grid.shape, np.diag([i, j, k, 1.0]), placed=False)
    return replace(header, grid=grid)


def write_spacing(path: Path, grid: Grid, *, labels: bool) -> None:
    """Write the spacing of a tif volume beside it, so that it is read with it; of a slice nothing."""
    if grid.dimensions == 3:
        write_json(spacing_file(path, labels=labels), {"spacing": list(grid.spacing_mm[::-1])})


def _is_length(mm: Any) -> bool:
    number = isinstance(mm, (int, float)) and not isinstance(mm, bool)
    return number and THINNEST_MM <= mm <= THICKEST_MM


def _bad(case: str, path: Path, found: str) -> BadData:
    what = "the spacing beside a tif volume cannot be used"
    fix = f"write {WANTED}, or remove {path.name} and count 1 mm"
    return BadData([Problem(case, what, found, fix)])
