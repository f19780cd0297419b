"""Label maps of an earlier stage × prepared cases → what a cascade is shown, a case a unit."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoseg.data.previous import prepare_previous
from autoseg.data.store import open_case
from autoseg.documents.plan import Preparation
from autoseg.errors import AutosegError
from autoseg.files import explaining, replacing, sha256_file, sweep
from autoseg.image.reading import read_labels
from autoseg.image.volume import Grid
from autoseg.pool import over_units
from autoseg.stage import Stamp, read_stamp, standing

VERSION = 1


def previous_maps(
    label_maps: Mapping[str, Path],
    prepared: Path,
    preparation: Preparation,
    output: Path,
    *,
    workers: int = 1,
) -> dict[str, str]:
    """Bring each case's label map to the grid of its prepared arrays; case id -> digest.

    The files are `output/<case>.npy`; what is current is left alone. The label maps must be those
    that networks gave which were not trained on the case. Raises AutosegError naming a case.
    """
    with explaining(output, "write to"):
        output.mkdir(parents=True, exist_ok=True)
    sweep(output)
    stamps: dict[str, Stamp] = {}
    for case, path in label_maps.items():
        source = read_stamp(prepared / case / "stamp.json")
        if source is None:
            raise AutosegError(f"case {case} is not prepared; run preprocess again")
        inputs = {"label map": sha256_file(path), "case": source.digest}
        stamps[case] = Stamp("previous", VERSION, inputs)
    todo = [
        (case, label_maps[case], prepared / case, preparation, output)
        for case, stamp in stamps.items()
        if not (output / f"{case}.npy").exists()
        or standing(output / f"{case}.json", stamp).state != "current"
    ]
    for (case, *_), outcome in over_units(_write, todo, workers=workers):
        if isinstance(outcome, AutosegError):
            raise AutosegError(f"{case}: {outcome}")
        stamps[case].write(output / f"{case}.json")
    return {case: stamp.digest for case, stamp in stamps.items()}


def _write(unit: tuple[str, Path, Path, Preparation, Path]) -> None:
    case, label_map, folder, preparation, output = unit
    info = open_case(folder).info
    grid = Grid.from_dict(dict(info["grid"]))
    volume, _ = read_labels(label_map, preparation.axes, grid)
    classes = preparation.labels.to_classes(volume.array[0])
    found = prepare_previous(classes, info, preparation)
    with replacing(output / f"{case}.npy", durable=False) as half, half.open("wb") as file:
        np.save(file, found)
