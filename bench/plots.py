"""Small pictures of how the cost of a part grows with its size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIZES = ("voxels × labels", "voxels × channels", "voxels")


def grown(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """What the rows of a part grow with, and those that have it, smallest first."""
    for key in SIZES:
        found = [row for row in rows if key in row.get("size", {})]
        if len(found) > 2:
            return key, sorted(found, key=lambda row: row["size"][key])
    return "", []


def draw(part: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> Path | None:
    """Seconds against size of every side; None where fewer than three sizes were measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    key, found = grown(rows)
    if not found:
        return None
    figure, axes = plt.subplots(figsize=(4.2, 3.0))
    names = dict.fromkeys(name for row in found for name in row["sides"])
    for name in names:
        points = [
            (row["size"][key], row["sides"][name]["wall_s"])
            for row in found
            if "wall_s" in row["sides"].get(name, {})
        ]
        axes.loglog(*zip(*points, strict=True), "o-", label=name, markersize=4)
    axes.set(xlabel=key, ylabel="wall s", title=part)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench_{part}.png"
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)
    return path
