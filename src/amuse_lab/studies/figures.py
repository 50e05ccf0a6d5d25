"""The figures of a study, drawn from its records only; what has not been run yet is left out."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from amuse_lab.files import replacing
from amuse_lab.studies import drawing, series
from amuse_lab.studies.looks import BAND, GREY, MARKERS, SHADES
from amuse_lab.studies.study import Entry, Point, Records, Study
from amuse_lab.studies.verdicts import Findings, findings


def anytime(found: Findings, _records: Records) -> Figure | None:
    """Draw the loss against steps: optimizers without a horizon as curves, the ends of scheduled runs.

    Bands reach from the best to the worst seed. Grey lines are the training losses of scheduled runs.

    Args:
        found: What is reported of the study, as far as it has been run.
        _records: Records of the study, which every figure is given; this one does not need them.

    Returns:
        The figure; None where there is nothing to draw yet. So do the other figures.
    """
    study = found.study
    start = study.horizons[0] // 2
    curves = {
        entry.name: {step: value for step, value in series.curve(found, entry).items() if step >= start}
        for entry in study.entries
    }
    shown = sorted(
        (entry for entry in study.entries if curves[entry.name]), key=lambda entry: entry.scheduled
    )
    if not shown:
        return None
    figure, axes = drawing.single(5.6)
    for number, entry in enumerate(shown):
        steps = list(curves[entry.name])
        values = list(curves[entry.name].values())
        style = drawing.style(study, entry)
        means = [value.mean for value in values]
        if entry.scheduled:
            axes.plot(steps, means, **style | {"linestyle": "none"}, zorder=5)
            for horizon in study.horizons:
                points = [point for point in series.training(found, entry, horizon) if point[0] >= start]
                axes.plot(*drawing.columns(points), color=GREY, linewidth=0.8, zorder=1)
        else:
            axes.plot(steps, means, **style, markevery=(number % 5, 5), zorder=3)
            low, high = [value.low for value in values], [value.high for value in values]
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=2)
    best = drawing.columns(series.envelope(found))
    label = "envelope of scheduled runs"
    axes.plot(*best, color="black", linewidth=0.9, linestyle=":", zorder=4, label=label)
    axes.plot([], [], color=GREY, linewidth=0.8, label="their training loss")
    means = [value.mean for name in curves for value in curves[name].values()]
    room = 0.08 * (max(means) - min(means)) or 0.1
    axes.set_ylim(min(means) - room, max(means) + room)
    drawing.steps_axis(axes, study)
    axes.set_ylabel(drawing.measure(study))
    drawing.legend(figure, axes)
    return figure


def difference(found: Findings, _records: Records) -> Figure | None:
    """Draw the difference to the envelope by horizon, with intervals, and the margin as a band."""
    study = found.study
    verdicts = {entry.name: found.verdicts(entry.name) for entry in study.entries}
    shown = sorted(
        (entry for entry in study.entries if verdicts[entry.name]), key=lambda entry: entry.scheduled
    )
    if not shown:
        return None
    figure, axes = drawing.single(5.6)
    axes.axhspan(
        -study.margin, study.margin, color=BAND, linewidth=0, zorder=0, label=f"within {study.margin:g}"
    )
    axes.axhline(0, color="black", linewidth=0.9, zorder=1, label="envelope of scheduled runs")
    for number, entry in enumerate(shown):
        own = [each for each in verdicts[entry.name].values() if np.isfinite(each.difference.mean)]
        offset = 0.7 * ((number + 0.5) / len(shown) - 0.5)
        places = [study.horizons.index(each.horizon) + offset for each in own]
        means = [each.difference.mean for each in own]
        halves = [each.difference.half if np.isfinite(each.difference.half) else 0.0 for each in own]
        axes.errorbar(places, means, halves, **drawing.style(study, entry, thin=True), capsize=2, zorder=3)
    drawing.differences_axis(axes, study.margin)
    axes.set_xticks(range(len(study.horizons)), [f"{horizon:,}" for horizon in study.horizons])
    axes.set_xlim(-0.5, len(study.horizons) - 0.5)
    axes.set_xlabel("steps")
    axes.set_ylabel(f"{study.measure} minus the envelope's, 95 % intervals")
    drawing.legend(figure, axes)
    return figure


def steps(found: Findings, _records: Records) -> Figure | None:
    """Draw the steps that optimizers need for the envelope's loss at each horizon, over the horizon.

    Arrows: the loss is never reached, or is reached before the first evaluation.
    """
    study = found.study
    shares = {entry.name: series.steps_to_envelope(found, entry) for entry in study.entries}
    shown = [entry for entry in study.entries if any(shares[entry.name])]
    if not shown:
        return None
    figure, axes = drawing.single(5.6)
    axes.axhline(1, color="black", linewidth=0.9, zorder=1, label="envelope of scheduled runs")
    for number, entry in enumerate(shown):
        reached, bounds = shares[entry.name]
        style = drawing.style(study, entry)
        axes.plot(*drawing.columns(reached), **style)
        apart = 1 + 0.05 * (number - (len(shown) - 1) / 2)
        for horizon, share in bounds:
            arrow = r"$\uparrow$" if share >= 1 else r"$\downarrow$"
            place = {"marker": arrow, "markersize": 11, "linestyle": "none", "color": style["color"]}
            axes.plot([horizon * apart], [share], **place)
    drawing.steps_axis(axes, study)
    drawing.shares_axis(axes, [share for pair in shares.values() for part in pair for _, share in part])
    axes.set_ylabel("steps needed / steps of the envelope")
    drawing.legend(figure, axes)
    return figure


def learning_rate(found: Findings, records: Records) -> Figure | None:
    """Draw what the trials of each optimizer are behind its best one, against the learning rate."""
    study = found.study
    tried = {entry.name: series.tried(study, entry, records) for entry in study.entries}
    shown = [entry for entry in study.entries if tried[entry.name]]
    if not shown:
        return None
    figure, panels = drawing.panels(len(shown), 2.3, sharey=True)
    for panel, entry in zip(panels, shown, strict=True):
        for number, horizon in enumerate(study.horizons):
            own = [each for each in tried[entry.name] if each.horizon == horizon]
            best = min((each.value for each in own), default=0.0)
            panel.plot(
                [each.point["lr"] for each in own],
                [each.value - best for each in own],
                color=SHADES[number % len(SHADES)],
                marker=list(MARKERS.values())[number % len(MARKERS)],
                markersize=5,
                markerfacecolor="none",
                linestyle="none",
                label=f"{horizon:,} steps",
            )
        drawing.logarithmic(panel, "x", [each.point["lr"] for each in tried[entry.name]])
        drawing.differences_axis(panel, study.margin)
        panel.set_title(entry.name, loc="left", fontsize=10)
        panel.set_xlabel("learning rate", fontsize=9)
    figure.supylabel(f"{study.measure} behind the optimizer's best trial", fontsize=10)
    drawing.legend(figure, *panels)
    return figure


def settings(found: Findings, records: Records) -> Figure | None:
    """Draw the trials of optimizers without a horizon: own setting and learning rate, shaded by loss.

    The loss is the mean over the horizons, at the best readout of each. An optimizer's own setting is the
    last one that is tuned. Star: what tuning chose, which counts the horizons by their spreads.
    """
    study = found.study
    points: dict[str, list[tuple[float, float, float]]] = {}
    stars: dict[str, tuple[float, float]] = {}
    for entry in (entry for entry in study.entries if not entry.scheduled):
        for record in series.trials(study, entry, records):
            values = [series.best_readout(study, entry, record, horizon) for horizon in study.horizons]
            if np.isfinite(sum(values)):
                place = _place(entry, record.point)
                points.setdefault(entry.name, []).append((*place, sum(values) / len(values)))
        choice = found.reported[entry.name].choices.get(study.longest)
        if choice is not None:
            stars[entry.name] = _place(entry, choice.point)
    if not points:
        return None
    figure, panels = drawing.panels(len(points), 2.4)
    norm = Normalize(0, 20 * study.margin, clip=True)
    for panel, (name, rows) in zip(panels, points.items(), strict=True):
        rates, owns, losses = np.array(rows).T
        behind = losses - losses.min()
        shades = panel.scatter(rates, owns, c=behind, cmap="viridis_r", norm=norm, s=80, edgecolors="black")
        panel.plot(*stars.get(name, ((), ())), "k*", markersize=6)
        drawing.logarithmic(panel, "x", list(rates))
        drawing.logarithmic(panel, "y", list(owns))
        panel.margins(0.12)
        setting, scale = list(study.entry(name).tuned.items())[-1]
        panel.set_ylabel(f"1 - {setting}" if scale.complement else setting, fontsize=9)
        panel.set_xlabel("learning rate", fontsize=9)
        panel.set_title(name, loc="left", fontsize=10)
    bar = figure.colorbar(shades, ax=panels, location="bottom", extend="max", aspect=40)
    bar.set_label(f"mean {study.measure} behind the best trial; star: chosen", fontsize=9)
    return figure


def _place(entry: Entry, point: Point) -> tuple[float, float]:
    """Where a trial stands: learning rate and own setting, or what that lacks to 1."""
    own, scale = list(entry.tuned.items())[-1]
    return point["lr"], 1 - point[own] if scale.complement else point[own]


def readouts(found: Findings, records: Records) -> Figure | None:
    """Draw what each readout of the chosen trial is behind the best of them, by horizon."""
    study = found.study
    tables = {entry.name: series.readout_losses(found, entry, records) for entry in study.entries}
    shown = [entry for entry in study.entries if tables[entry.name] and len(entry.readouts) > 1]
    if not shown:
        return None
    figure, panels = drawing.panels(len(shown), 0.8 + 0.2 * max(len(entry.readouts) for entry in shown))
    darkest = 20 * study.margin
    for panel, entry in zip(panels, shown, strict=True):
        own = tables[entry.name]
        table = np.array([[own[horizon][name] for horizon in own] for name in entry.readouts])
        panel.imshow(np.minimum(table, darkest), cmap="Greys", vmin=0, vmax=darkest, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            text = f"{1000 * value:.0f}" if np.isfinite(value) else "?"
            color = "white" if value > darkest / 2 else "black"
            panel.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        panel.set_xticks(range(len(own)), [f"{horizon:,}" for horizon in own], fontsize=8)
        panel.set_yticks(range(len(entry.readouts)), entry.readouts, fontsize=8)
        panel.grid(False)
        panel.set_title(entry.name, loc="left", fontsize=10)
    figure.supxlabel("steps", fontsize=10)
    figure.suptitle(f"{study.measure} behind the best readout, in thousandths", fontsize=10)
    return figure


FIGURES: Mapping[str, Callable[[Findings, Records], Figure | None]] = {
    "anytime": anytime,
    "difference": difference,
    "steps": steps,
    "learning-rate": learning_rate,
    "settings": settings,
    "readouts": readouts,
}
"""The figures by the names of their files."""


def write_figures(study: Study, records: Records, folder: Path) -> dict[str, Path]:
    """Write the figures as PNG files, the same bytes for the same records.

    Args:
        study: Study that the records are of; its name begins those of the files.
        records: Its records, as far as there are any.
        folder: Where to; the files are called `STUDY-FIGURE.png`.

    Returns:
        The files by the names of the figures; a figure that would show nothing is not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = findings(study, records)
    written = {}
    for name, draw in FIGURES.items():
        path = folder / f"{study.name}-{name}.png"
        with drawing.defaults():
            figure = draw(found, records)
            if figure is not None:
                with replacing(path) as partial:
                    figure.savefig(partial, dpi=drawing.DPI, format="png", metadata={"Software": None})
                written[name] = path
    return written
