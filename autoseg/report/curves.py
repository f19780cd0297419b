"""The curves of a training run as a PNG: loss, validation Dice and learning rate over the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.files import replacing


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the entries of history.jsonl (a loss a step, a Dice a validation) to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [(e["step"], e["loss"]) for e in history if "loss" in e]
    scores = [e for e in history if "dice" in e]
    if not losses:
        return
    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = np.array(losses, np.float64).T
    axes.plot(steps, values, color="#9db7d5", linewidth=0.6, label="loss of a step")
    window = max(1, len(values) // 50)
    if window > 1:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="#2a5c8f", linewidth=1.6,
                  label=f"mean of {window} steps")  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("loss", color="#2a5c8f")
    right = axes.twinx()
    right.set_ylim(0, 1)
    right.set_ylabel("validation patches: Dice", color="#b3541e")
    if scores:
        known = [(e["step"], e["dice"]) for e in scores if e["dice"] is not None]
        if known:
            at, dice = np.array(known, np.float64).T
            right.plot(at, dice, "o-", color="#b3541e", markersize=3, label="Dice")
        top = max(e["lr"] for e in scores) or 1.0
        right.plot([e["step"] for e in scores], [0.1 * e["lr"] / top for e in scores],
                   color="#888888", linewidth=0.8, linestyle=":", label=f"lr (top {top:.2g})")  # fmt: skip
    axes.set_title(title, fontsize=10)
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    names = [*axes.get_legend_handles_labels()[1], *right.get_legend_handles_labels()[1]]
    axes.legend(handles, names, loc="center right", fontsize=8)
    with replacing(path, durable=False) as half:
        figure.savefig(half)
