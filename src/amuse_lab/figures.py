"""Plots of runs, drawn from their recorded metrics only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Told apart by lightness, dashes and markers, so that no color has to be seen.
_STYLES: dict[str, dict[str, Any]] = {
    "train": {"label": "training batches", "color": "#aab2bd", "linewidth": 1.2},
    "val_y": {
        "label": "validation at y, where gradients are taken",
        "color": "#d9822b",
        "linewidth": 1.6,
        "linestyle": (0, (4, 2)),
        "marker": "s",
        "markerfacecolor": "white",
    },
    "val_x": {"label": "validation at x, the model", "color": "#174a85", "linewidth": 2.2, "marker": "o"},
}


def draw_curve(metrics: Sequence[Mapping[str, Any]], path: Path, *, title: str, averages: bool) -> None:
    """Draw the loss, and below it the accuracy where it was measured, against the step.

    Steps and losses have logarithmic axes, which show the first losses and the last differences alike.
    Nothing that was recorded is cut off. The legend says where each curve ends.

    Args:
        metrics: Lines of metrics.jsonl, as dictionaries.
        path: The PNG file to write.
        title: Text above the picture.
        averages: Whether x and y differ; if not, one validation curve is drawn.
    """
    panels = {"loss": "loss (nats)"}
    if any("accuracy" in line for line in metrics):
        panels["accuracy"] = "accuracy"
    figure = Figure(figsize=(6.4, 1.0 + 4.2 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12)
    below: Axes | None = None
    for number, (name, label) in enumerate(panels.items(), start=1):
        below = figure.add_subplot(len(panels), 1, number, sharex=below)
        _draw_panel(below, metrics, name, averages=averages)
        below.set_ylabel(label, fontsize=12)
    assert below is not None
    below.set_xlabel("step", fontsize=12)
    figure.savefig(path, dpi=150, format="png")


def _draw_panel(axes: Axes, metrics: Sequence[Mapping[str, Any]], name: str, *, averages: bool) -> None:
    """Draw one value of every split against the step.

    Args:
        axes: An empty panel, which gets the curves, the scales of its axes and a legend.
        metrics: Lines of metrics.jsonl, as dictionaries.
        name: The value's name in them.
        averages: Whether x and y differ.
    """
    for split, style in _STYLES.items():
        points = [(line["step"], line[name]) for line in metrics if line["split"] == split and name in line]
        if not points or (split == "val_y" and not averages):
            continue
        steps, values = zip(*points, strict=True)
        label = "validation" if split == "val_x" and not averages else style["label"]
        end = "not finite" if values[-1] is None else f"{values[-1]:#.4g}"
        style = style | {"label": f"{label}: {end} at the end"}
        axes.plot(steps, values, markersize=5, markevery=0.08, **style)
    set_logarithmic(axes, "x")
    if name == "loss":
        set_logarithmic(axes, "y")
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        # Above the panel, where no curve is.
        axes.legend(frameon=False, fontsize=11, loc="lower left", bbox_to_anchor=(-0.02, 1.0))


def set_logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers beside it, the more in a decade the fewer decades it has.

    Args:
        axes: Panel of the axis, which has its curves.
        which: The axis to change: "x" is the horizontal one, "y" the vertical one.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    numbers = (1, 1.5, 2, 2.5, 3, 4, 5, 7) if high < 20 * low else (1, 2, 5) if high < 500 * low else (1,)
    axis.set_major_locator(LogLocator(subs=numbers))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
