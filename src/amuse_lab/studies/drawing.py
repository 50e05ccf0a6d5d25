"""What the figures of studies have in common: sizes, axes, legends."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from amuse_lab.studies.looks import MARKERS, look
from amuse_lab.studies.study import Entry, Study

WIDTH = 4.8  # inches; at the width of a phone the letters then have 9 pixels
DPI = 200
_SETTINGS: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 3.2,
}


@contextmanager
def defaults() -> Iterator[None]:
    """Context manager: matplotlib's own settings and these, whatever the machine has."""
    with rc_context():
        rcdefaults()
        rcParams.update(_SETTINGS)
        yield


def single(height: float) -> tuple[Figure, Axes]:
    """Return a figure of one panel, of this height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def panels(count: int, height: float, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, two in a row, each of this height in inches."""
    rows = (count + 1) // 2
    figure = Figure(figsize=(WIDTH, 0.8 + rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    made: list[Axes] = []
    for number in range(count):
        first = made[0] if made and sharey else None
        made.append(figure.add_subplot(rows, 2, number + 1, sharey=first))
        made[-1].tick_params(labelsize=8.5)
    return figure, made


def style(study: Study, entry: Entry, *, thin: bool = False) -> dict[str, Any]:
    """Return how matplotlib draws an optimizer's line; thin where lines only lead the eye."""
    own = look(study, entry)
    return {
        "color": own.color,
        "marker": MARKERS[own.marker],
        "markersize": 6 if entry.scheduled else 5,
        "markerfacecolor": "white" if entry.scheduled else own.color,
        "linestyle": (0, own.dash) if own.dash else "solid",
        "linewidth": 0.9 if thin else own.width,
        "label": entry.name,
    }


def columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the steps and the values of a curve."""
    return [x for x, _ in points], [y for _, y in points]


def measure(study: Study) -> str:
    """Return what an axis of the study's measure is called."""
    return "validation loss (nats)" if study.measure == "loss" else study.measure


def steps_axis(axes: Axes, study: Study) -> None:
    """Make the horizontal axis one of steps, logarithmic, with the horizons marked."""
    axes.set_xscale("log")
    _ticks(axes.xaxis, study.horizons)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("steps")


def logarithmic(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Make an axis, "x" or "y", logarithmic, with labels at 1, 2 and 5 times powers of ten around values."""
    axes.set(**{f"{which}scale": "log"})
    low, high = min(values) / 1.2, max(values) * 1.2
    known = [base * 10.0**power for power in range(-8, 8) for base in (1, 2, 5)]
    _ticks(getattr(axes, f"{which}axis"), [tick for tick in known if low <= tick <= high])


def shares_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic, for values around 1."""
    axes.set_yscale("log")
    low, high = min([*values, 0.95]) / 1.03, max([*values, 1.05]) * 1.03
    axes.set_ylim(low, high)
    fine = (0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3) if high / low < 3 else (1,)
    known = sorted({0.1, 0.2, 0.3, 0.5, 0.7, *fine, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0})
    _ticks(axes.yaxis, [tick for tick in known if low <= tick <= high])


def differences_axis(axes: Axes, margin: float) -> None:
    """Make the vertical axis linear around zero, up to a few margins, and logarithmic beyond."""
    axes.set_yscale("asinh", linear_width=2 * margin)
    marks = [margin * times for times in (1, 2, 4, 10, 20, 40, 100, 200, 400)]
    _ticks(axes.yaxis, [-mark for mark in reversed(marks)] + [0.0] + marks)


def _ticks(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def legend(figure: Figure, *axes: Axes) -> None:
    """Draw one legend below all panels, with each label once."""
    found: dict[str, Artist] = {}
    for each in axes:
        handles, labels = each.get_legend_handles_labels()
        found |= dict(zip(map(str, labels), handles, strict=True))
    figure.legend(found.values(), found, loc="outside lower center", ncols=2)
