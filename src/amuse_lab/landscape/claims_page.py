"""The page of the claims, from the records of their runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from amuse_lab.landscape import claims
from amuse_lab.landscape.claims import AVERAGING, CLAIMS, ORTHOGONALIZING, RULE, cells, verdict
from amuse_lab.landscape.experiments import missing
from amuse_lab.landscape.measuring import Measurement
from amuse_lab.landscape.page import shown
from amuse_lab.landscape.recorded import Recorded, mean
from amuse_lab.studies.looks import FREE, SCHEDULED, Look
from amuse_lab.studies.page import frame, sections
from amuse_lab.studies.page.frame import Json
from amuse_lab.studies.statistics import Interval, interval

LOOKS: dict[str, Look] = {
    "amuse": FREE[0],
    "sf-muon": FREE[1],
    "sf-adamw": FREE[2],
    "muon": FREE[3],
    "adamw": SCHEDULED[0],
    "sgd": SCHEDULED[1],
}

CAPTIONS = {
    "claim-1": "Hollow: the momentum, filled: the update that orthogonalization (for the others: the "
    "optimizer) makes of it, both of the hidden matrices. The lower, the more of it lies in the bulk.",
    "claim-2": "||sum of updates||^2 over the sum of ||update||^2 over the window: 1 for steps that know "
    "nothing of each other, less for steps that undo each other. Filled: within the dominant subspace, "
    "hollow: within the bulk.",
    "claim-3": "Dominant share of the gradients of single batches at z (hollow) and at x (filled), each in "
    "the dominant subspace at its own point.",
    "claim-3-way": "The same on the way from z to x, all in the dominant subspace at x, at the last measured "
    "step.",
    "claim-4": "Training loss on the line from z through x and beyond, minus that at x, at the last measured "
    "step.",
}

Value = Callable[[Measurement], float | None]


def claims_page(records: Sequence[Recorded], environments: Mapping[str, Any]) -> str:
    """Return the page of the claims as HTML; the same text for the same records.

    Args:
        records: The runs, as far as they have been made.
        environments: Environments of the runs by their hashes.
    """
    records = sorted(records, key=lambda each: (each.setting, each.name, each.seed))
    drawn = [chart for chart in charts(records) if any(group["series"] for group in chart["groups"])]
    places = "\n".join(frame.figure(chart, CAPTIONS[chart["id"]]) for chart in drawn)
    left = len(missing(list(records)))
    progress = (
        f"<strong>It is not finished</strong>: {left} runs are to be made." if left else "All are made."
    )
    title = "The river and the valley: four claims"
    content = "\n".join(
        (
            f"<h1>{title}</h1>",
            f'<p class="note">{len(records)} runs with a small Llama and a small ResNet on MNIST. {progress} '
            "The claims are those of arXiv 2605.22432, section 3.</p>",
            "<h2>Answer</h2>",
            f'<div class="answer"><ul>{"".join(_answer(claim, records) for claim in CLAIMS)}</ul></div>',
            "<h2>Pictures</h2>",
            places or "<p>There is nothing to draw yet.</p>",
            "<h2>Table</h2>",
            sections.from_markdown(table(records)),
            "<h2>The river test</h2>",
            '<p class="note">What a short decay of the learning rate gains over x, in validation loss, after '
            f"{claims.STEPS:,} steps; mean over seeds, with half of the 95 % interval.</p>",
            sections.from_markdown(river_table(records)),
            "<h2>How it was decided</h2>",
            f"<p>{escape(RULE)}</p>",
            "<h2>Runs</h2>",
            sections.from_markdown(runs_table(records)),
            "<h2>Environments</h2>",
            *(
                sections.details(f"<code>{escape(name)}</code>", sections.as_json(known))
                for name, known in sorted(environments.items())
            ),
        )
    )
    return frame.document(title, content, drawn)


def _answer(claim: claims.Claim, records: Sequence[Recorded]) -> str:
    words = [cell.word for cell in cells(claim, records)]
    counts = ", ".join(
        f"{words.count(word)} {word}" for word in ("supported", "unclear", "not supported") if word in words
    )
    return (
        f"<li>{escape(claim.text)} <strong>{verdict(claim, records).capitalize()}</strong>"
        f"{f' ({counts})' if counts else ''}.</li>"
    )


def table(records: Sequence[Recorded]) -> str:
    """Return the effects of all claims as a table in Markdown."""
    rows = ["| claim | setting | optimizer | effect, positive if it holds | n | mean ± 95 % | verdict |"]
    rows.append("|---" * 7 + "|")
    for number, claim in enumerate(CLAIMS, start=1):
        for cell in cells(claim, records):
            rows.append(
                f"| {number} | {cell.setting} | {cell.optimizer} | {cell.effect} | {cell.found.n} | "
                f"{_interval(cell.found)} | {cell.word} |"
            )
    return "\n".join(rows) if len(rows) > 2 else "Nothing has been run yet."


def _interval(found: Interval) -> str:
    if not math.isfinite(found.mean):
        return "not measured"
    return f"{found.mean:.3g} ± {found.half:.2g}" if math.isfinite(found.half) else f"{found.mean:.3g}"


def river_table(records: Sequence[Recorded]) -> str:
    """Return the gains of the river test by the point they start from, as a table in Markdown."""
    rows = ["| setting | optimizer | from x | from y | from z |", "|---|---|---|---|---|"]
    for setting, name in _runs_of(records):
        own = _own(records, setting, name)
        cells_ = []
        for start in "xyz":
            gains = [
                each.rivers[0].gain(start).mean
                for each in own
                if each.rivers and start in each.rivers[0].before
            ]
            cells_.append(shown(interval(gains)) if gains else "")
        rows.append(f"| {setting} | {name} | {' | '.join(cells_)} |")
    return "\n".join(rows) if len(rows) > 2 else "Nothing has been run yet."


def runs_table(records: Sequence[Recorded]) -> str:
    """Return all runs as a table in Markdown."""
    rows = ["| setting | optimizer | seed | loss at x | s | environment | failure |", "|---" * 7 + "|"]
    for each in records:
        last = f"{each.measurements[-1].loss['x']:.4g}" if each.measurements else ""
        rows.append(
            f"| {each.setting} | {each.name} | {each.seed} | {last} | {each.seconds:.0f} | "
            f"{each.environment} | {each.failure or ''} |"
        )
    return "\n".join(rows) if len(rows) > 2 else "Nothing has been run yet."


def charts(records: Sequence[Recorded]) -> list[Json]:
    """Return the charts of the claims; the settings are their groups."""
    return [
        _over_steps(
            records,
            ("claim-1", "1. Momentum and update", "r_dom, hidden matrices"),
            {"momentum": _momentum, "update": _update},
            (*ORTHOGONALIZING, "adamw", "sgd"),
        ),
        _over_steps(
            records,
            ("claim-2", "2. Do updates undo each other?", "persistence"),
            {
                "bulk": lambda at: _persistence(at, "bulk"),
                "dominant": lambda at: _persistence(at, "dominant"),
            },
            tuple(LOOKS),
        ),
        _over_steps(
            records,
            ("claim-3", "3. Gradients at z and at x", "r_dom of gradients"),
            {"at z": lambda at: at.gradients.get("z"), "at x": lambda at: at.gradients.get("x")},
            AVERAGING,
        ),
        _on_segment(records, ("claim-3-way", "3. On the way from z to x", "r_dom, subspace at x"), "along"),
        _on_segment(records, ("claim-4", "4. Across the valley", "loss minus that at x (nats)"), "segment"),
    ]


def _momentum(at: Measurement) -> float | None:
    return mean(at.watched.momentum) if at.watched and at.watched.momentum else None


def _update(at: Measurement) -> float | None:
    return mean(at.watched.update) if at.watched else None


def _persistence(at: Measurement, part: str) -> float | None:
    return at.watched.persistence[part] if at.watched else None


def _runs_of(records: Sequence[Recorded]) -> list[tuple[str, str]]:
    return [key for key in claims.runs() if _own(records, *key)]


def _own(records: Sequence[Recorded], setting: str, name: str) -> list[Recorded]:
    return [each for each in records if (each.setting, each.name) == (setting, name)]


def _settings(records: Sequence[Recorded]) -> list[str]:
    return list(dict.fromkeys(setting for setting, _ in _runs_of(records)))


def _over_steps(
    records: Sequence[Recorded],
    names: tuple[str, str, str],
    values: Mapping[str, Value],
    optimizers: Sequence[str],
) -> Json:
    """Two numbers, the first hollow, at the measured steps; means over seeds, bars from least to most."""
    groups = []
    for setting in _settings(records):
        made = []
        for optimizer in optimizers:
            for number, (label, value) in enumerate(values.items()):
                found: dict[int, list[float]] = {}
                for each in _own(records, setting, optimizer):
                    for at in each.measurements:
                        if (one := value(at)) is not None:
                            found.setdefault(at.step, []).append(one)
                if found:
                    style = frame.style(LOOKS[optimizer], f"{optimizer}, {label}", hollow=number == 0)
                    made.append(_averaged(style, found, "bars"))
        groups.append({"name": setting, "series": made})
    name, title, label = names
    return frame.chart(name, title, ("steps", label), groups, log={"y": "log"}, checked="y")


def _on_segment(records: Sequence[Recorded], names: tuple[str, str, str], what: str) -> Json:
    """Curves over the segment at the last measured step; means over seeds with bands."""
    groups = []
    for setting in _settings(records):
        made = []
        for optimizer in AVERAGING:
            found: dict[float, list[float]] = {}
            for each in _own(records, setting, optimizer):
                curve = getattr(each.measurements[-1], what) if each.measurements else None
                if curve is None:
                    continue
                values = curve["shares"] if what == "along" else curve["losses"]
                known = dict(zip(curve["positions"], values, strict=True))
                for place, value in known.items():
                    found.setdefault(place, []).append(value - (0 if what == "along" else known[1.0]))
            if found:
                made.append(_averaged(frame.style(LOOKS[optimizer], optimizer), found, "band"))
        groups.append({"name": setting, "series": made})
    name, title, label = names
    more: Json = {"zero": 0, "linear": 0.1} if what == "segment" else {}
    log = {"y": "asinh"} if what == "segment" else {}
    return frame.chart(
        name, title, ("place: z is 0, x is 1", label), groups, log=log, checked="".join(log), **more
    )


def _averaged(style: Json, found: Mapping[Any, list[float]], spread: str) -> Json:
    places = sorted(found)
    bounds = ([min(found[place]) for place in places], [max(found[place]) for place in places])
    return frame.series(style, [(place, mean(found[place])) for place in places], bounds, spread)
