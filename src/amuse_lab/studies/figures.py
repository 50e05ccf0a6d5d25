"""The figures of a study, drawn from its records only; what has not been run yet is left out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amuse_lab.files import replacing
from amuse_lab.studies import series
from amuse_lab.studies.looks import BAND, GREY, MARKERS, look
from amuse_lab.studies.study import Entry, Records, Study

_WIDTH = 4.8  # inches; at the width of a phone the letters then have 9 pixels
_DPI = 200
_SETTINGS: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 3.2,
}


def anytime(study: Study, records: Records) -> Figure | None:
    """Draw the loss against steps: optimizers without a horizon as curves, the ends of scheduled runs.

    Bands reach from the best to the worst seed. Grey lines are the training losses of scheduled runs.

    Args:
        study: The study.
        records: Its records, as far as there are any.

    Returns:
        The figure; None where there is nothing to draw yet. So do the other figures.
    """
    curves = {entry.name: series.curve(study, entry, records) for entry in study.entries}
    shown = [entry for entry in study.entries if curves[entry.name]]
    if not shown:
        return None
    figure, axes = _figure(5.6)
    start = study.horizons[0] // 2
    for entry in (entry for entry in shown if entry.scheduled):
        runs = series.reported(study, entry, records)
        for horizon in study.horizons:
            points = series.training([run for run in runs if run.steps == horizon])
            points = [point for point in points if point[0] >= start]
            axes.plot(*_columns(points), color=GREY, linewidth=0.8, zorder=1)
    for number, entry in enumerate(shown):
        own = {step: value for step, value in curves[entry.name].items() if step >= start}
        means = [value.mean for value in own.values()]
        style = _style(study, entry)
        if entry.scheduled:
            axes.plot(list(own), means, **style | {"linestyle": "none", "zorder": 4})
        else:
            axes.plot(list(own), means, **style, markevery=(number % 5, 5), zorder=3)
            low, high = [value.low for value in own.values()], [value.high for value in own.values()]
            axes.fill_between(list(own), low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=2)
    best = _envelope(study, curves)
    axes.plot(list(best), list(best.values()), color="black", linewidth=1, zorder=2, label="envelope")
    axes.plot([], [], color=GREY, linewidth=0.8, label="training loss, scheduled")
    seen = [value.mean for name in curves for step, value in curves[name].items() if step >= start]
    low, high = min(seen), max(seen)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    _steps_axis(axes, study)
    axes.set_ylabel(_measure(study))
    _legend(figure, axes)
    return figure


def _envelope(study: Study, curves: Mapping[str, Mapping[int, series.Summary]]) -> dict[int, float]:
    """The best mean of the scheduled runs at each horizon."""
    ends = [curves[entry.name] for entry in study.entries if entry.scheduled]
    return {
        horizon: min(each[horizon].mean for each in ends if horizon in each)
        for horizon in study.horizons
        if any(horizon in each for each in ends)
    }


def learning_rate(study: Study, records: Records) -> Figure | None:
    """Draw what the trials of each optimizer are behind its best one, against the learning rate."""
    tried = {entry.name: series.tried(study, entry, records) for entry in study.entries}
    shown = [entry for entry in study.entries if tried[entry.name]]
    if not shown:
        return None
    figure, panels = _panels(len(shown), 2.3)
    colors = _gradation(len(study.horizons))
    for panel, entry in zip(panels, shown, strict=True):
        for number, horizon in enumerate(study.horizons):
            points = sorted(
                (each.point["lr"], each.value) for each in tried[entry.name] if each.horizon == horizon
            )
            if points:
                best = min(value for _, value in points)
                panel.plot(
                    [lr for lr, _ in points],
                    [value - best for _, value in points],
                    color=colors[number],
                    marker=list(MARKERS.values())[number % len(MARKERS)],
                    markersize=4.5,
                    linestyle="none",
                    label=f"{horizon:,} steps",
                )
        panel.set_xscale("log")
        _few_ticks(panel, [each.point["lr"] for each in tried[entry.name]])
        panel.set_yscale("symlog", linthresh=2 * study.margin, linscale=0.5)
        panel.set_ylim(-study.margin, None)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_title(entry.name, loc="left", fontsize=10)
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel(f"{study.measure} behind the best trial", fontsize=10)
    _legend(figure, *panels)
    return figure


def settings(study: Study, records: Records) -> Figure | None:
    """Draw the trials of optimizers without a horizon: own setting and learning rate, shaded by loss.

    The loss is the mean over the horizons up to which all of them were run. An optimizer's own setting is
    the last one that is tuned.
    """
    early = [horizon for horizon in study.horizons if horizon <= study.first_stage]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for entry in (entry for entry in study.entries if not entry.scheduled):
        for record in series.trials(study, entry, records):
            values = [
                min(record.value(horizon, readout, study.measure) for readout in entry.readouts)
                for horizon in early
            ]
            mean = sum(values) / len(values)
            own = list(entry.tuned)[-1]
            if np.isfinite(mean) and own != "lr":
                found.setdefault(entry.name, []).append((record.point["lr"], record.point[own], mean))
    if not found:
        return None
    figure, panels = _panels(len(found), 2.5)
    for panel, (name, points) in zip(panels, found.items(), strict=True):
        scale = study.entry(name).tuned[list(study.entry(name).tuned)[-1]]
        x, y, values = map(np.array, zip(*points, strict=True))
        behind = values - values.min()
        shades = panel.scatter(
            x, 1 - y if scale.complement else y, c=behind, cmap="viridis_r", s=70, edgecolors="black", vmin=0
        )
        best = int(behind.argmin())
        panel.plot(
            x[best], 1 - y[best] if scale.complement else y[best], "k*", markersize=5, label="best trial"
        )
        own = list(study.entry(name).tuned)[-1]
        panel.set_xscale("log")
        panel.set_yscale("log")
        _few_ticks(panel, list(x))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        panel.set_ylabel(f"1 − {own}" if scale.complement else own)
        panel.set_title(name, loc="left", fontsize=10)
        figure.colorbar(shades, ax=panel).ax.tick_params(labelsize=8.5)
    figure.supxlabel("learning rate", fontsize=10)
    figure.suptitle(f"shade: mean {study.measure} behind the best trial (star)", fontsize=10)
    return figure


def readouts(study: Study, records: Records) -> Figure | None:
    """Draw what each readout of the chosen trial is behind the best of them, by horizon."""
    found = {entry.name: series.readout_losses(study, entry, records) for entry in study.entries}
    shown = [entry for entry in study.entries if found[entry.name] and len(entry.readouts) > 1]
    if not shown:
        return None
    rows = max(len(entry.readouts) for entry in shown)
    figure, panels = _panels(len(shown), 0.9 + 0.22 * rows)
    for panel, entry in zip(panels, shown, strict=True):
        own = found[entry.name]
        horizons = list(own)
        table = np.array([[own[horizon][name] for horizon in horizons] for name in entry.readouts])
        table = np.where(np.isfinite(table), table, np.nan)
        panel.imshow(np.minimum(table, 20 * study.margin), cmap="Greys", vmin=0, vmax=20 * study.margin)
        for (row, column), value in np.ndenumerate(table):
            text = "–" if np.isnan(value) else f"{1000 * value:.0f}"
            color = "white" if value > 10 * study.margin else "black"
            panel.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        panel.set_xticks(range(len(horizons)), [f"{horizon:,}" for horizon in horizons], fontsize=8)
        panel.set_yticks(range(len(entry.readouts)), entry.readouts, fontsize=8)
        panel.grid(False)
        panel.set_aspect("auto")
        panel.set_title(entry.name, loc="left", fontsize=10)
    figure.supxlabel("steps", fontsize=10)
    figure.suptitle(f"{study.measure} behind the best readout, in thousandths", fontsize=10)
    return figure


FIGURES: Mapping[str, Callable[[Study, Records], Figure | None]] = {
    "anytime": anytime,
    "learning-rate": learning_rate,
    "settings": settings,
    "readouts": readouts,
}
"""The figures by the names of their files."""


def write_figures(study: Study, records: Records, folder: Path) -> list[Path]:
    """Write the figures as PNG files, the same bytes for the same records.

    Args:
        study: The study.
        records: Its records, as far as there are any.
        folder: Where to; the files are called `STUDY-FIGURE.png`.

    Returns:
        The files; a figure that would show nothing is not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        path = folder / f"{study.name}-{name}.png"
        with rc_context(_SETTINGS):
            figure = draw(study, records)
            if figure is None:
                continue
            with replacing(path) as partial:
                figure.savefig(partial, dpi=_DPI, format="png", metadata={"Software": None})
        written.append(path)
    return written


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, two in a row, each of this height in inches."""
    rows = (count + 1) // 2
    figure = Figure(figsize=(_WIDTH, 1 + rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, 2, number + 1) for number in range(count)]


def _style(study: Study, entry: Entry) -> dict[str, Any]:
    own = look(study, entry)
    return {
        "color": own.color,
        "marker": MARKERS[own.marker],
        "markersize": 6 if entry.scheduled else 5,
        "markerfacecolor": "white" if entry.scheduled else own.color,
        "linestyle": (0, own.dash) if own.dash else "solid",
        "linewidth": own.width,
        "label": entry.name,
    }


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _measure(study: Study) -> str:
    return "validation loss (nats)" if study.measure == "loss" else study.measure


def _gradation(count: int) -> list[str]:
    """Colours that grow darker, also on paper without colour."""
    shades = ("#f0a830", "#56b4e9", "#009e73", "#0072b2", "#000000", "#cc79a7")
    return list(shades[:count]) if count <= len(shades) else [shades[n % len(shades)] for n in range(count)]


def _steps_axis(axes: Axes, study: Study) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(study.horizons))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("steps")


def _few_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times powers of ten between the values."""
    powers = range(-8, 4)
    known = [base * 10.0**power for power in powers for base in (1, 2, 5)]
    ticks = [tick for tick in known if min(values) <= tick * 1.001 and tick * 0.999 <= max(values)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(labelsize=8.5)


def _legend(figure: Figure, *panels: Axes) -> None:
    """One legend below all panels, with each label once."""
    found = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=2)
