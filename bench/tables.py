"""The tables of what autoseg is measured in alone: Dice within a time, memory of prediction."""

from collections.abc import Mapping
from typing import Any


def origin(part: Mapping[str, Any]) -> str:
    m = part["machine"]
    commands = part["command"].replace(" | ", "` against `").replace("; ", "`, then `")
    return (f"{m['date']}, {m['cores']} cores of {m['processor']}, Python {m['python']}, load "
            f"{m['load']} at the end. `{commands}`")  # fmt: skip


def train_table(part: Mapping[str, Any]) -> list[str]:
    lines = ["## Fold 0 within given minutes", "", origin(part), "",
             "Mean foreground Dice on the whole volumes of fold 0's held-out cases (five shuffled "
             "folds, nnU-Net's split). nnU-Net was not trained on these cases here.", "",
             "| data set | configuration | given | plan + train s (wall) | steps | patch, batch, widths | "
             "Dice | wanted (aim) |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in part["rows"]:
        labels = ", ".join(f"{k} {v:.3f}" for k, v in r["labels"].items())
        shape = "×".join(map(str, r["patch"]))
        lines.append(
            f"| {r['what']} ({r['cases']} cases) | {r['configuration']} | {r['minutes']} min | "
            f"{r['plan_s']:.0f} + {r['train_s']:.0f} | {r['steps']} | {shape}, {r['batch']}, "
            f"{'-'.join(map(str, r['widths']))} | **{r['dice']:.4f}** ({labels}) | "
            f"{r['target'][0]} ({r['target'][1]}) |"
        )
    notes = [f"{r['what']}: {r['note']}." for r in part["rows"] if "note" in r]
    return [*lines, "", *notes, ""]


def folds_table(part: Mapping[str, Any]) -> list[str]:
    lines = ["## Five folds, choice and package within an hour", "", origin(part), "",
             "Every case segmented by the fold that held it out (five shuffled folds, nnU-Net's "
             "split).", "",
             "| data set | spent | steps a fold | patch, batch, widths | Dice of the folds | "
             "cross-validated Dice | wanted (aim) |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in part["rows"]:
        labels = ", ".join(f"{k} {v:.3f}" for k, v in r["labels"].items())
        kept = ", ".join(r["postprocessing"]) or "no postprocessing kept"
        lines.append(
            f"| {r['what']} ({r['cases']} cases) | {r['spent_s'] / 60:.1f} of {r['minutes']} min | "
            f"{', '.join(str(f['steps']) for f in r['folds'])} | "
            f"{'×'.join(map(str, r['patch']))}, {r['batch']}, {'-'.join(map(str, r['widths']))} | "
            f"{', '.join(format(f['dice'], '.4f') for f in r['folds'])} | "
            f"**{r['dice']:.4f}** ({labels}; {kept}, {r['before']:.4f} before) | "
            f"{r['target'][0]} ({r['target'][1]}) |"
        )
    return [*lines, ""]


def memory_table(part: Mapping[str, Any]) -> list[str]:
    lines = ["## Memory of prediction", "", origin(part), "",
             "From an image in memory to a label map on the scan's grid, tiles, folds and the way back "
             "included. *Whole* is what holding all classes of all voxels would take, computed and "
             "not run.", "",
             "| scan | prepared | labels | folds | patch, widths, tile step | peak resident GB | "
             "of it before predicting | whole GB | CPU s |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in part["rows"]:
        by = {k: "×".join(map(str, r[k])) for k in ("full_vox", "prepared_vox", "patch_vox")}
        lines.append(
            f"| {by['full_vox']} | {by['prepared_vox']} | {r['labels']} | {r['folds']} | "
            f"{by['patch_vox']}, {'-'.join(map(str, r['features']))}, {r['tile_step']} | "
            f"**{r['peak_bytes'] / 1e9:.2f}** | {r['peak_before_bytes'] / 1e9:.2f} | "
            f"{r['whole_volume_bytes'] / 1e9:.1f} | {r['cpu_s']:.0f} |"
        )
    notes = [
        f"Reading and preparing included: {w['what']}: peak {w['peak_bytes'] / 1e9:.2f} GB, "
        f"{w['wall_s']} s."
        for r in part["rows"]
        if (w := r.get("whole_command"))
    ]
    return [*lines, "", *notes, ""]
