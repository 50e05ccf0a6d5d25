"""Plots of runs, drawn from their recorded metrics only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_STYLES: dict[str, dict[str, Any]] = {
    "train": {"label": "training batches", "color": "#b9c0c9", "linewidth": 1.0},
    "val_y": {"label": "validation at y, where gradients are taken", "color": "#d9822b", "linewidth": 1.6},
    "val_x": {"label": "validation at x, the model", "color": "#1f5fa8", "linewidth": 2.2},
}


def draw_curve(metrics: Sequence[Mapping[str, Any]], path: Path, *, title: str, averages: bool) -> None:
    """Draw the loss at x and at y against steps.

    Args:
        metrics: Lines of metrics.jsonl, as dictionaries.
        path: The PNG file to write.
        title: Text above the picture.
        averages: Whether x and y differ; if not, one validation curve is drawn.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    validation: list[float] = []
    for split, style in _STYLES.items():
        if split == "val_y" and not averages:
            continue
        points = [(line["step"], line["loss"]) for line in metrics if line["split"] == split]
        if split != "train":
            validation += [loss for _, loss in points]
            style = style | {"marker": "o", "markersize": 3.5}
        if not averages and split == "val_x":
            style = style | {"label": "validation"}
        axes.plot(*zip(*points, strict=True) if points else ((), ()), **style)
    if validation:
        low, high = min(validation), max(validation)
        margin = 0.08 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + 3 * margin)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")
