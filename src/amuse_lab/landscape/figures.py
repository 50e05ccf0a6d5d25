"""The pictures of landscapes: charts of the page drawn by matplotlib, and the plane."""

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from amuse_lab.figures import set_logarithmic
from amuse_lab.files import replacing
from amuse_lab.landscape.charts import NAMES, POINTS, charts
from amuse_lab.landscape.measuring import Measurement
from amuse_lab.landscape.recorded import Recorded
from amuse_lab.studies import drawing
from amuse_lab.studies.looks import MARKERS

_LEVELS = 14  # contour lines, closer together near the floor


def drawn(chart: Mapping[str, Any], group: int = 0) -> Figure:
    """Draw a chart of a page with matplotlib.

    Args:
        chart: A chart as data in JSON's types, from `studies.page.frame.chart`.
        group: Number, from 0, of the group of series to draw; a page shows one group at a time.
    """
    figure, axes = drawing.single(4.2)
    if chart.get("zero") is not None:
        axes.axhline(chart["zero"], color="black", linewidth=0.9, zorder=1)
    for series in chart["groups"][group]["series"]:
        marker = MARKERS.get(series["marker"], "none")
        dash = [length / series["width"] for length in series.get("dash", ())]
        axes.plot(
            series["x"],
            series["y"],
            color=series["color"],
            marker=marker,
            markersize=4.5,
            markerfacecolor="white" if series["hollow"] else series["color"],
            linestyle="none" if not series["line"] else (0, dash) if dash else "solid",
            linewidth=series["width"],
            label=series["name"],
        )
        if series.get("spread") == "band":
            axes.fill_between(
                series["x"], series["low"], series["high"], color=series["color"], alpha=0.15, linewidth=0
            )
        elif series.get("spread") == "bars":
            axes.vlines(series["x"], series["low"], series["high"], color=series["color"], linewidth=1)
    for side in chart["checked"]:
        kind = chart["log"][side]
        if kind == "log":
            set_logarithmic(axes, side)
        else:
            axes.set_yscale(kind, linear_width=chart["linear"])
    if all(float(x).is_integer() for series in chart["groups"][group]["series"] for x in series["x"]):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(chart["labels"]["x"])
    axes.set_ylabel(chart["labels"]["y"])
    drawing.legend(figure, axes)
    return figure


def plane(at: Measurement) -> Figure | None:
    """Draw the loss around x in the plane of a dominant and a bulk direction, with the trajectories.

    The lighter, the lower; lines of equal loss are closer together near the lowest.

    Args:
        at: What was measured at a step.

    Returns:
        None where there is no plane.
    """
    if at.plane is None:
        return None
    figure, axes = drawing.single(4.6)
    losses = np.array(at.plane["losses"])
    low, high = losses.min(), losses.max()
    levels = low + (high - low) * np.linspace(0, 1, _LEVELS) ** 2.5
    across, river = at.plane["dominant"], at.plane["bulk"]
    shades = axes.contourf(river, across, losses, levels=levels, cmap="Greys", alpha=0.55)
    axes.contour(river, across, losses, levels=levels, colors="#8a8a8a", linewidths=0.5)
    averages = at.segment is not None
    for name, path in at.plane["paths"].items():
        if averages or name == "z":
            look, (second, first) = POINTS[name], list(zip(*path, strict=True))
            label = NAMES[name] if averages else "the weights"
            axes.plot(first, second, color=look.color, linestyle=(0, look.dash) if look.dash else "solid")
            axes.plot(first, second, MARKERS[look.marker], color=look.color, markersize=3.5, label=label)
            axes.plot(
                *([first[0]], [second[0]]), MARKERS[look.marker], color="black", markersize=7, mfc="white"
            )
    axes.grid(False)
    axes.set_xlabel("along the bulk direction")
    axes.set_ylabel("along the dominant direction")
    figure.colorbar(shades, ax=axes, format="%.3g", label="training loss (nats)")
    drawing.legend(figure, axes)
    return figure


def as_svg(figure: Figure) -> str:
    """Return a figure as an element of a page, no wider than that; the same text for the same figure."""
    text = StringIO()
    with rc_context({"svg.hashsalt": "amuse-lab", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    found = text.getvalue()
    return found[found.index("<svg") :].replace("<svg", '<svg style="max-width: 100%; height: auto"', 1)


def write(figures: Mapping[str, Figure], folder: Path, prefix: str) -> list[Path]:
    """Write figures as PNG files called `PREFIX-NAME.png`, the same bytes for the same figures."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        path = folder / f"{prefix}-{name}.png"
        with replacing(path) as partial:
            figure.savefig(partial, dpi=drawing.DPI, format="png", metadata={"Software": None})
        written.append(path)
    return written


def of_run(run: Recorded) -> dict[str, Figure]:
    """Draw all charts of a run and the plane at its last measured step."""
    found = {chart["id"]: drawn(chart) for chart in charts(run)}
    last = [figure for at in run.measurements if (figure := plane(at)) is not None]
    return found | ({"plane": last[-1]} if last else {})


def planes(run: Recorded) -> Sequence[tuple[int, Figure]]:
    """Draw the planes of a run, each with its step."""
    return [(at.step, figure) for at in run.measurements if (figure := plane(at)) is not None]
