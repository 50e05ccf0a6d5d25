"""The frame of a page: one HTML file that needs no network, with charts that `page.js` draws."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from amuse_lab.studies.looks import Look

Json = dict[str, Any]


def document(title: str, content: str, charts: Sequence[Json]) -> str:
    """Return a page as HTML.

    Args:
        title: Title of the window, as text.
        content: What the page shows, as HTML, with a place for every chart, from `figure`.
        charts: Data of the charts, from `chart`; the page's script draws each in its place.
    """
    text = json.dumps(charts, separators=(",", ":"), ensure_ascii=False)
    return Template(_file("frame.html")).substitute(
        title=escape(title),
        content=content,
        charts=text.replace("</", "<\\/"),
        style=_file("page.css"),
        script=_file("page.js"),
        plot_style=_file("uPlot.min.css"),
        plot_script=_file("uPlot.min.js"),
        licence=escape(_file("uPlot.LICENSE")),
    )


def filled(template: str, **parts: str) -> str:
    """Return one of the templates beside this file with its places filled."""
    return Template(_file(template).removesuffix("\n")).substitute(parts)


def _file(name: str) -> str:
    return (files("amuse_lab.studies.page") / name).read_text("utf-8")


def figure(chart: Mapping[str, Any], caption: str) -> str:
    """Return the place of a chart, with its switches.

    Args:
        chart: Data of the chart, from `chart`.
        caption: What it shows, as HTML.
    """
    switches = [
        f'<label><input type="checkbox" data-axis="{side}"{" checked" if side in chart["checked"] else ""}> '
        f"logarithmic: {escape(chart['labels'][side])}</label>"
        for side in chart["log"]
    ]
    if len(chart["groups"]) > 1:
        options = "".join(f"<option>{escape(group['name'])}</option>" for group in chart["groups"])
        switches.insert(0, f"<label>show <select>{options}</select></label>")
    return (
        f'<section class="chart" id="{chart["id"]}"><h3>{escape(chart["title"])}</h3>\n'
        f'<div class="switches">{"".join(switches)}</div>\n<div class="plot"></div>\n'
        f'<p class="note">{caption}</p></section>'
    )


def chart(
    name: str, title: str, labels: tuple[str, str], groups: list[Json], *, log: Mapping[str, str], **more: Any
) -> Json:
    """Return a chart: its groups are shown one at a time; `log` says how its axes can be switched.

    More has `checked`, the axes that are logarithmic at first; `ticks`, where the horizontal axis is marked;
    `zero` and `band`, a line and a stretch behind the curves; `linear`, up to where an asinh axis is nearly
    linear; `fit`, the values that the vertical axis reaches over.
    """
    labelled = dict(zip("xy", labels, strict=True))
    return {"id": name, "title": title, "labels": labelled, "groups": groups, "log": dict(log)} | more


def style(look: Look, name: str, *, hollow: bool = False, line: bool = True) -> Json:
    """Return the style of a series in a look; without a line it has markers alone."""
    return {
        "name": name,
        "color": look.color,
        "marker": look.marker,
        "hollow": hollow,
        "dash": [round(look.width * length, 2) for length in look.dash],
        "width": look.width,
        "line": line,
    }


def line(name: str, color: str, *, dotted: bool = False) -> Json:
    """Return the style of a thin line without markers."""
    dash = {"dash": [1, 3]} if dotted else {}
    return {"name": name, "color": color, "marker": "none", "hollow": False, "width": 1, "line": True} | dash


def series(
    style: Json,
    points: Sequence[tuple[float, float]],
    bounds: tuple[Iterable[float], Iterable[float]] | None = None,
    spread: str = "",
) -> Json:
    """Return a series of a chart; bounds are drawn as a "band" or as "bars"."""
    content = style | {"x": [x for x, _ in points], "y": [short(y) for _, y in points]}
    if bounds is not None:
        low, high = ([short(value) for value in side] for side in bounds)
        content |= {"low": low, "high": high, "spread": spread}
    return content


def short(value: float) -> float:
    """Return a number to the five digits that charts have."""
    return float(f"{value:.5g}")
