"""From a scan to a label map: tiles, export of logits, evaluation, and the whole command."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from bench.equality import checked, folders_checked, labels_equal
from bench.pairs import HALF, OURS, RIVAL, Row, Targets
from bench.parts.arrays import INTENSITIES, saved, text
from bench.parts.commands import CORES, pair
from bench.parts.models import TRAINED_STEPS, ct_scan, hippocampus, scans, whole_ct
from bench.parts.specimens import moved_cases
from bench.parts.training import BFLOAT16, FEATURES
from bench.places import CT, DATA, HIPPOCAMPUS, ROOT
from bench.sides import OURS as AUTOSEG
from bench.sides import Result, Side, command, rival_is_there, side, their

HERE = ROOT / "predicting"
LIMIT_BYTES = 20 << 30
"""The address space of a process that exports: this machine has 23 GiB and no swap."""


def predicted(
    name: str, what: str, model: Path, scans_folder: Path, *, mirroring: bool = False,
    half: bool = False, reference: Path | None = None, targets: Targets | None = None,
    pairs: int = 1, pair_s: float, size: Mapping[str, float] | None = None, note: str = "",
) -> Row:  # fmt: skip
    """A folder of scans by the same weights, libraries loaded before; with `half` in bfloat16, too."""
    outputs = {
        whose: HERE / f"predict_{name}_{folder}"
        for whose, folder in ((OURS, "ours"), (HALF, "bf16"), (RIVAL, "theirs"))
    }
    shared = {"input": str(scans_folder), "device": "cpu", "fast": not mirroring, "precision": None}
    ours = {**shared, "model": str(model / "model.autoseg"), "output": str(outputs[OURS])}
    theirs = {**shared, "model": str(model / "nnunet"), "output": str(outputs[RIVAL])}
    sides = pair(side("ours", "predict", ours), side("theirs", "predict", theirs))
    if half:
        other = {**ours, "precision": "bfloat16", "output": str(outputs[HALF])}
        sides[HALF] = side("ours", "predict", other, environment=BFLOAT16, may_fail=True)
    return Row(
        name, what, sides,
        {OURS: "autoseg predict --model M -i IN -o OUT" + " [--precision bfloat16]" * half
               + " --fast" * (not mirroring),
         RIVAL: "nnUNetPredictor.predict_from_files_sequential"},
        targets or {}, folders_checked({k: outputs[k] for k in sides}, reference),
        pairs=pairs, pair_s=pair_s, size=size or {}, note=note,
    )  # fmt: skip


def predict(quick: bool) -> list[Row]:
    """12 held-out scans of data set 4 by the same weights, with mirroring, one fold."""
    count = 2 if quick else 12
    return [
        predicted(
            "hippocampus", f"predict {count} scans, {HIPPOCAMPUS}, mirroring, one fold",
            hippocampus(quick), scans(count), mirroring=True, half=True,
            reference=DATA / HIPPOCAMPUS / "labelsTr",
            targets={OURS: {"wall_s": 1 / 1.2}, HALF: {"wall_s": 1 / 2.5}}, pairs=2, pair_s=130,
            note="libraries are loaded before; from files to files; the same weights, of a plain "
            f"network {'-'.join(map(str, FEATURES))} with patches of 40×56×40, trained for "
            f"{TRAINED_STEPS} steps without these scans",
        )
    ]  # fmt: skip


def exported(
    name: str, labels: int, prepared: Sequence[int], full: Sequence[int],
    prepared_mm: Sequence[float], full_mm: Sequence[float], *, wanted: bool = False,
    pairs: int = 2, pair_s: float = 14, size: Mapping[str, float] | None = None,
) -> Row:  # fmt: skip
    """The same logits to a label map by both, each with no more than LIMIT_BYTES."""
    arguments = {"labels": labels, "prepared": prepared, "full": full, "stream": False,
                 "prepared_mm": prepared_mm, "full_mm": full_mm}  # fmt: skip
    sides, folder = saved("export", name, arguments, limit_bytes=LIMIT_BYTES)
    return Row(
        name, f"export, {labels} labels, {text(prepared)} → {text(full)}", sides,
        {OURS: "bench/ours/export.py", RIVAL: "bench/theirs/export.py"},
        {OURS: {"wall_s": 1 / 8, "peak_bytes": 1 / 6}} if wanted else {},
        checked(labels_equal, folder) if RIVAL in sides else None, pairs=pairs, pair_s=pair_s,
        size=size or {}, least=linear_least(labels, prepared, full),
        note=f"under a limit of {LIMIT_BYTES >> 30} GiB of address space; nnU-Net is given all logits "
        "in memory, as its prediction holds them, autoseg reads a few rows after another from a file",
    )  # fmt: skip


def linear_least(labels: int, prepared: Sequence[int], full: Sequence[int]) -> dict[str, float]:
    """Logits read once, labels (int16) written once; a label's value of a voxel is joined from two,
    by three operations, along an axis after another, and compared with the highest so far."""
    operations, now = prod(full), list(prepared)
    for axis, (n_in, n_out) in enumerate(zip(prepared, full, strict=True)):
        now[axis] = n_out
        operations += 3 * prod(now) * (n_in != n_out)
    return {
        "bytes": 4 * labels * prod(prepared) + 2 * prod(full),
        "operations": labels * operations,
    }


BODY_MM = (1.5, 1.2, 1.2), (1.0, 0.8, 0.8)


def alone(labels: int, prepared: Sequence[int], full: Sequence[int]) -> Row:
    """What nnU-Net would need over 70 GB for: logits come a few rows after another, as from tiles."""
    folder = HERE / "alone"
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {
        "labels": labels, "prepared": prepared, "full": full, "stream": True,
        "prepared_mm": BODY_MM[0], "full_mm": BODY_MM[1], "save": str(folder / "ours.npy"),
    }  # fmt: skip
    one = {OURS: side("ours", "export", arguments, limit_bytes=LIMIT_BYTES)}
    return Row(
        "alone", f"export, {labels} labels, {text(prepared)} → {text(full)}, autoseg alone", one,
        {OURS: "bench/ours/export.py"}, pairs=1, pair_s=100,
        least=linear_least(labels, prepared, full),
        note="logits of 16 rows, held in memory, are handed on again and again",
    )  # fmt: skip


def export(quick: bool) -> list[Row]:
    spacings = (1.5, 1.5, 1.5), (1.28, 1.0, 1.0)

    def small(name: str, labels: int, pairs: int = 2, **size: float) -> Row:
        shapes = (64, 85, 85), (75, 128, 128)
        return exported(
            name, labels, *shapes, *spacings, pairs=pairs, size={"labels": labels, **size}
        )

    def body(name: str, prepared: Sequence[int], full: Sequence[int], **rest: Any) -> Row:
        size = {"voxels": prod(full)}
        return exported(name, 20, prepared, full, *BODY_MM, size=size, **rest)

    twenty = small("labels20_small", 20, voxels=prod((75, 128, 128)))
    apart = exported("apart", 20, (40, 96, 96), (40, 160, 160), (5.0, 1.3, 1.3), (5.0, 0.8, 0.8))
    if quick:
        return [twenty, apart]
    return [
        small("labels5", 5), twenty, small("labels60", 60, pairs=1), apart,
        body("labels20_middle", (100, 170, 170), (150, 256, 256), pairs=1, pair_s=45),
        exported("labels117", 117, (128, 170, 170), (150, 256, 256), *spacings, wanted=True, pairs=1,
                 pair_s=170),
        body("labels20", (200, 340, 340), (300, 512, 512), wanted=True, pairs=1, pair_s=350),
        alone(117, (200, 340, 340), (300, 512, 512)),
    ]  # fmt: skip


def evaluated(
    name: str, what: str, folders: tuple[Path, Path], labels: int, *, plainly: bool = False,
    pairs: int = 1, pair_s: float = 12, size: Mapping[str, float] | None = None,
) -> Row:  # fmt: skip
    """Label maps in a folder against those of the other; `plainly` by scipy as well."""
    found, wanted = map(str, folders)
    values = [*range(1, labels + 1)]
    ours = [*AUTOSEG, "evaluate", found, wanted, "-o", str(HERE / "report.json")]
    theirs = [their("nnUNetv2_evaluate_simple"), wanted, found, "-l", *map(str, values), "-np", CORES,
              "-o", str(HERE / "summary.json")]  # fmt: skip
    said = "1 … N" if labels > 2 else "1 2"
    sides: dict[str, Side] = {OURS: partial(command, ours)}
    commands = {OURS: "autoseg evaluate FOUND WANTED -o REPORT",
                RIVAL: f"nnUNetv2_evaluate_simple WANTED FOUND -l {said} -np {CORES}"}  # fmt: skip
    note = "nnU-Net counts overlaps alone; autoseg measures surface distances, too"
    if plainly:
        plain = {"found": found, "wanted": wanted, "values": values}
        sides["scipy"] = side("ours", "surfaces", plain)
        commands["scipy"] = "bench/ours/surfaces.py"
        note += (". scipy: the same by distance maps of whole volumes in one process, libraries "
                 "loaded before")  # fmt: skip
    if rival_is_there():
        sides[RIVAL] = partial(command, theirs)
    return Row(name, f"evaluate {what}", sides, commands, pairs=pairs, pair_s=pair_s,
               size=size or {}, note=note)  # fmt: skip


def evaluate(quick: bool) -> list[Row]:
    """Label maps moved by a voxel against themselves."""
    count = 12 if quick else 60
    return [
        evaluated("hippocampus", f"{count} label maps, {HIPPOCAMPUS}", moved_cases(count), 2,
                  plainly=True, pairs=3, size={"cases": count})
    ]  # fmt: skip


def raw(quick: bool) -> list[Row]:
    """The whole command, start-up included: one small scan with mirroring, the whole CT without."""
    rows = [_whole("scan", "raw scan to label map, one of data set 4, mirroring",
                   hippocampus(quick), scans(1), fast=False, pair_s=28)]  # fmt: skip
    if not quick and CT.exists():
        rows.append(
            _whole("ct", "raw scan to label map, whole CT 51×512×512 at 3 mm, no mirroring",
                   whole_ct(INTENSITIES), ct_scan(), fast=True, pairs=2, pair_s=40)
        )  # fmt: skip
    return rows


def _whole(
    name: str, what: str, model: Path, scans_folder: Path, *, fast: bool, device: str = "cpu",
    pairs: int = 3, pair_s: float, wanted: float | None = None,
) -> Row:  # fmt: skip
    outputs = {OURS: HERE / f"{name}_ours", RIVAL: HERE / f"{name}_theirs"}
    ours = [*AUTOSEG, "predict", "--model", str(model / "model.autoseg"), "-i", str(scans_folder),
            "-o", str(outputs[OURS]), "--device", device, *(["--fast"] if fast else [])]  # fmt: skip
    theirs = [their("nnUNetv2_predict_from_modelfolder"), "-i", str(scans_folder), "-o",
              str(outputs[RIVAL]), "-m", str(model / "nnunet"), "-f", "0", "-device", device, "-npp",
              "1", "-nps", "1", *(["--disable_tta"] if fast else [])]  # fmt: skip
    sides = pair(_into(outputs[OURS], ours), _into(outputs[RIVAL], theirs))
    return Row(
        name, what, sides,
        {OURS: "autoseg predict --model M -i IN -o OUT" + " --fast" * fast,
         RIVAL: "nnUNetv2_predict_from_modelfolder -i IN -o OUT -m M -f 0 -npp 1 -nps 1"
                + " --disable_tta" * fast},
        {OURS: {"wall_s": wanted}} if wanted else {},
        folders_checked({k: outputs[k] for k in sides}, None), pairs=pairs, pair_s=pair_s,
    )  # fmt: skip


def _into(output: Path, argv: list[str]) -> Side:
    """The command, after its output folder was emptied."""

    def run() -> Result:
        shutil.rmtree(output, ignore_errors=True)
        return command(argv)

    return run


def card(_: bool) -> list[Row]:
    """The whole CT on a card; the caller asks whether there is one."""
    return [_whole("ct", "card: whole CT to label map at 3 mm, no mirroring", whole_ct(INTENSITIES),
                   ct_scan(), fast=True, device="cuda", wanted=1 / 4, pairs=2, pair_s=60)]  # fmt: skip
