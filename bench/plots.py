"""How the cost of a part grows with what it is given: small pictures, and the power of it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST_POINTS = 3
PANEL_INCHES = 2.9, 2.6


@dataclass(frozen=True)
class Curve:
    """Rows of a part that differ in one size: that size, and each side's (size, seconds)."""

    of: str
    points: Mapping[str, Sequence[tuple[float, float]]]

    @property
    def sizes(self) -> list[float]:
        return sorted({size for points in self.points.values() for size, _ in points})


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """What was measured at three sizes or more, the smallest first; sides with fewer are left out."""
    found = []
    for of in dict.fromkeys(key for row in rows for key in row.get("size", {})):
        points: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            for name, side in row["sides"].items():
                if of in row.get("size", {}) and "wall_s" in side:
                    points.setdefault(name, []).append((row["size"][of], side["wall_s"]))
        enough = {
            name: sorted(some) for name, some in points.items() if len(dict(some)) >= LEAST_POINTS
        }
        if enough:
            found.append(Curve(of, enough))
    return found


def power(points: Sequence[tuple[float, float]]) -> float:
    """The p of seconds ~ size^p that lies nearest to the points (least squares of logarithms)."""
    x, y = zip(*((math.log(size), math.log(seconds)) for size, seconds in points), strict=True)
    return float(statistics.linear_regression(x, y).slope)


def draw(part: str, found: Sequence[Curve], folder: Path) -> Path | None:
    """A panel a curve, side by side, both axes logarithmic; None where there is no curve."""
    if not found:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    wide, high = PANEL_INCHES
    figure, panels = plt.subplots(1, len(found), figsize=(wide * len(found), high), squeeze=False)
    for axes, curve in zip(panels[0], found, strict=True):
        for name, points in curve.points.items():
            axes.loglog(*zip(*points, strict=True), "o-", label=name, markersize=4)
        axes.set_xlabel(curve.of, fontsize=8)
        axes.tick_params(which="both", labelsize=7)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        axes.minorticks_off()
        axes.set_xticks(curve.sizes, [short(size) for size in curve.sizes])
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("wall s", fontsize=8)
    panels[0][0].legend(fontsize=7)
    figure.suptitle(part, fontsize=9)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench_{part}.png"
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)
    return path


def short(size: float) -> str:
    """A size in few letters."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:g}"
