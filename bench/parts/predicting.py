"""From a scan to a label map: tiles, export of logits, evaluation, and the whole command."""

import shutil
from functools import partial
from math import prod
from pathlib import Path

from bench.equality import checked, folders_checked, labels_equal
from bench.pairs import OURS, RIVAL, Row
from bench.parts.arrays import INTENSITIES, saved, text
from bench.parts.commands import CORES, pair
from bench.parts.models import ct_scan, hippocampus, scans, whole_ct
from bench.parts.training import BFLOAT16
from bench.places import CT, DATA, HIPPOCAMPUS, ROOT
from bench.sides import OURS as AUTOSEG
from bench.sides import Result, Side, command, rival_is_there, side, their

HERE = ROOT / "predicting"
LIMIT_BYTES = 20 << 30
"""The address space of a process that exports: this machine has 23 GiB and no swap."""


def predict(quick: bool) -> list[Row]:
    """12 held-out scans of data set 4 by the same weights, with mirroring, one fold."""
    count = 2 if quick else 12
    model, scans_folder = hippocampus(quick), scans(count)
    names = {OURS: "ours", "autoseg, bf16": "bf16", RIVAL: "theirs"}
    outputs = {name: HERE / f"predict_{folder}" for name, folder in names.items()}
    shared = {"input": str(scans_folder), "device": "cpu", "fast": False, "precision": None}
    ours = {**shared, "model": str(model / "model.autoseg")}
    half = {**ours, "precision": "bfloat16", "output": str(outputs["autoseg, bf16"])}
    theirs = {**shared, "model": str(model / "nnunet"), "output": str(outputs[RIVAL])}
    sides = {
        OURS: side("ours", "predict", {**ours, "output": str(outputs[OURS])}),
        "autoseg, bf16": side("ours", "predict", half, environment=BFLOAT16, may_fail=True),
    }
    if rival_is_there():
        sides[RIVAL] = side("theirs", "predict", theirs)
    return [
        Row(
            "hippocampus", f"predict {count} scans, {HIPPOCAMPUS}, mirroring, one fold", sides,
            {OURS: "autoseg predict --model M -i IN -o OUT [--precision bfloat16]",
             RIVAL: "nnUNetPredictor.predict_from_files_sequential"},
            {OURS: {"wall_s": 1 / 1.2}, "autoseg, bf16": {"wall_s": 1 / 2.5}},
            folders_checked({k: outputs[k] for k in sides}, DATA / HIPPOCAMPUS / "labelsTr"),
            times=2,
            note="libraries are loaded before; from files to files; the same weights, of a plain "
            "network 32-64-128-256 with patches of 40×56×40, trained for 60 steps without these scans",
        )
    ]  # fmt: skip


def exported(
    name: str, labels: int, prepared: list[int], full: list[int], prepared_mm: list[float],
    full_mm: list[float], *, wanted: bool = False, times: int | None = None,
) -> Row:  # fmt: skip
    """The same logits to a label map by both, each with no more than LIMIT_BYTES."""
    arguments = {"labels": labels, "prepared": prepared, "full": full, "stream": False,
                 "prepared_mm": prepared_mm, "full_mm": full_mm}  # fmt: skip
    _, folder = saved("export", name, arguments)
    paths = {whose: str(folder / f"{whose}.npy") for whose in ("ours", "theirs")}
    sides = pair(
        side("ours", "export", {**arguments, "save": paths["ours"]}, limit_bytes=LIMIT_BYTES),
        side("theirs", "export", {**arguments, "save": paths["theirs"]}, limit_bytes=LIMIT_BYTES),
    )
    values = labels * prod(full)
    return Row(
        name, f"export, {labels} labels, {text(prepared)} → {text(full)}", sides,
        {OURS: "bench/ours/export.py", RIVAL: "bench/theirs/export.py"},
        {OURS: {"wall_s": 1 / 8, "peak_bytes": 1 / 6}} if wanted else {},
        checked(labels_equal, folder) if RIVAL in sides else None, times=times,
        size={"voxels × labels": values, "labels": labels,
              "bytes": 4 * labels * prod(prepared) + 2 * prod(full), "operations": 7 * values},
        note=f"under a limit of {LIMIT_BYTES >> 30} GiB of address space; nnU-Net is given all logits "
        "in memory, as its prediction holds them, autoseg reads a few rows after another from a file",
    )  # fmt: skip


def alone(labels: int, prepared: list[int], full: list[int]) -> Row:
    """What nnU-Net would need over 70 GB for: logits come a few rows after another, as from tiles."""
    folder = HERE / "alone"
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {
        "labels": labels, "prepared": prepared, "full": full, "stream": True,
        "prepared_mm": [1.2, 1.2, 1.2], "full_mm": [1.0, 0.8, 0.8], "save": str(folder / "ours.npy"),
    }  # fmt: skip
    one = {OURS: side("ours", "export", arguments, limit_bytes=LIMIT_BYTES)}
    return Row(
        "alone", f"export, {labels} labels, {text(prepared)} → {text(full)}, autoseg alone", one,
        {OURS: "bench/ours/export.py"}, times=1,
        note="logits of 16 rows, held in memory, are handed on again and again",
    )  # fmt: skip


def export(quick: bool) -> list[Row]:
    iso, body = [1.5] * 3, [1.28, 1.0, 1.0]
    small = exported("labels20_small", 20, [64, 85, 85], [75, 128, 128], iso, body)
    apart = exported("apart", 20, [40, 96, 96], [40, 160, 160], [5.0, 1.3, 1.3], [5.0, 0.8, 0.8])
    if quick:
        return [small, apart]
    return [
        exported("labels5", 5, [64, 85, 85], [75, 128, 128], iso, body),
        small, apart,
        exported("labels60", 60, [64, 85, 85], [75, 128, 128], iso, body),
        exported("labels20_middle", 20, [100, 170, 170], [150, 256, 256], [1.5, 1.2, 1.2],
                 [1.0, 0.8, 0.8], times=2),
        exported("labels117", 117, [128, 170, 170], [150, 256, 256], iso, body, wanted=True,
                 times=1),
        exported("labels20", 20, [200, 340, 340], [300, 512, 512], [1.5, 1.2, 1.2],
                 [1.0, 0.8, 0.8], wanted=True, times=1),
        alone(117, [200, 340, 340], [300, 512, 512]),
    ]  # fmt: skip


def evaluate(quick: bool) -> list[Row]:
    """Label maps moved by a voxel against themselves."""
    count = 12 if quick else 60
    found, wanted = HERE / f"found_{count}", HERE / f"wanted_{count}"
    _moved(found, wanted, count)
    ours = [*AUTOSEG, "evaluate", str(found), str(wanted), "-o", str(HERE / "report.json")]
    theirs = [their("nnUNetv2_evaluate_simple"), str(wanted), str(found), "-l", "1", "2", "-np",
              CORES, "-o", str(HERE / "summary.json")]  # fmt: skip
    plain = {"found": str(found), "wanted": str(wanted), "values": [1, 2]}
    sides = {OURS: partial(command, ours), "scipy": side("ours", "surfaces", plain)}
    if rival_is_there():
        sides[RIVAL] = partial(command, theirs)
    return [
        Row(
            "hippocampus", f"evaluate {count} label maps, {HIPPOCAMPUS}", sides,
            {OURS: "autoseg evaluate FOUND WANTED -o REPORT",
             RIVAL: f"nnUNetv2_evaluate_simple WANTED FOUND -l 1 2 -np {CORES}",
             "scipy": "bench/ours/surfaces.py"},
            note="nnU-Net counts overlaps alone; autoseg and scipy measure surface distances, too. "
            "scipy: distance maps of whole volumes in one process, libraries loaded before",
        )
    ]  # fmt: skip


def _moved(found: Path, wanted: Path, count: int) -> None:
    """Fill two folders with label maps, those of `found` moved by a voxel."""
    import nibabel as nib
    import numpy as np

    for folder in (found, wanted):
        folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((DATA / HIPPOCAMPUS / "labelsTr").glob("*.nii.gz"))[:count]:
        if not (found / path.name).exists():
            image = nib.load(path)
            shutil.copy(path, wanted / path.name)
            shifted = np.roll(np.asarray(image.dataobj), 1, 0)
            nib.save(nib.Nifti1Image(shifted, image.affine, image.header), found / path.name)


def raw(quick: bool) -> list[Row]:
    """The whole command, start-up included: one small scan with mirroring, the whole CT without."""
    rows = [_whole("scan", "raw scan to label map, one of data set 4, mirroring",
                   hippocampus(quick), scans(1), fast=False)]  # fmt: skip
    if not quick and CT.exists():
        rows.append(
            _whole("ct", "raw scan to label map, whole CT 51×512×512 at 3 mm, no mirroring",
                   whole_ct(INTENSITIES), ct_scan(), fast=True, times=2)
        )  # fmt: skip
    return rows


def _whole(
    name: str, what: str, model: Path, scans_folder: Path, *, fast: bool, device: str = "cpu",
    times: int | None = None, wanted: float | None = None,
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
        folders_checked({k: outputs[k] for k in sides}, None), times=times,
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
                   ct_scan(), fast=True, device="cuda", wanted=1 / 4)]  # fmt: skip
