"""The charts of one run's landscape, from its record."""

from collections.abc import Callable, Sequence

from amuse_lab.landscape.claims import by_chance
from amuse_lab.landscape.measuring import Measurement
from amuse_lab.landscape.recorded import Recorded
from amuse_lab.landscape.watching import Watched
from amuse_lab.studies.looks import FREE, MARKERS, SHADES, Look
from amuse_lab.studies.page import frame
from amuse_lab.studies.page.frame import Json

POINTS: dict[str, Look] = dict(zip("xyz", FREE, strict=False))
"""The looks of x, y and z."""

NAMES = {"x": "x, the average", "y": "y, where gradients are taken", "z": "z, which steps move"}


def spectrum(run: Recorded) -> Json:
    """The leading eigenvalues at x, one curve for each step; hollow within the dominant subspace."""
    shown = [
        frame.series(_of_step(run, at), list(enumerate(at.spectra["x"].values, start=1)))
        for at in run.measurements
        if at.spectra["x"].values[-1] > 0
    ]
    return _chart("spectrum", "Eigenvalues at x", ("number", "eigenvalue of the Hessian"), shown, log="y")


def sharpness(run: Recorded) -> Json:
    """The largest eigenvalue at x, y and z."""
    return _chart(
        "sharpness",
        "Sharpness",
        ("steps", "largest eigenvalue of the Hessian"),
        _by_point(run, lambda at, point: at.sharpness(point)),
        log="y",
    )


def gradients(run: Recorded) -> Json:
    """r_dom of gradients at x, y and z, each in its own dominant subspace."""
    return _chart(
        "gradients",
        "Dominant share of gradients",
        ("steps", "r_dom of the gradient"),
        _by_point(run, lambda at, point: at.gradients.get(point)),
    )


def updates(run: Recorded) -> Json:
    """r_dom of the momentum and of the update of the hidden matrices, step by step."""

    def shown(at: Measurement, watched: Watched) -> list[Json]:
        momentum = [(frame.style(FREE[1], "momentum", hollow=True), watched.momentum or [])]
        both = [*momentum, (frame.style(FREE[0], "update"), watched.update)]
        chance = [by_chance(at)] * len(watched.update)
        return [
            frame.series(style, list(enumerate(shares, start=at.step + 1)))
            for style, shares in (*both, (frame.line("a random direction", "#000000"), chance))
            if shares
        ]

    return _windows(
        run,
        "updates",
        "Dominant share of momentum and update",
        ("steps", "r_dom, hidden matrices"),
        shown,
        log="y",
    )


def oscillation(run: Recorded) -> Json:
    """The cosine of consecutive updates within the dominant subspace and within the bulk."""

    def shown(at: Measurement, watched: Watched) -> list[Json]:
        return [
            frame.series(
                frame.style(look, f"{name} part"), list(enumerate(watched.cosines[name], start=at.step + 2))
            )
            for look, name in ((FREE[0], "dominant"), (FREE[1], "bulk"))
            if watched.cosines[name]
        ]

    return _windows(
        run,
        "oscillation",
        "Do updates go back and forth?",
        ("steps", "cosine of consecutive updates"),
        shown,
        zero=0,
    )


def singular(run: Recorded) -> Json:
    """Singular values of momentum and update of the largest hidden matrix, at the last measured step."""
    last = next((at.watched for at in reversed(run.measurements) if at.watched is not None), None)
    looks = {
        "momentum": frame.style(FREE[1], "momentum", hollow=True),
        "update": frame.style(FREE[0], "update"),
    }
    shown = [
        frame.series(looks[name], [(n / (len(values) - 1), value) for n, value in enumerate(values)])
        for name, values in sorted(last.singular.items() if last else ())
        if len(values) > 1 and values[-1] > 0
    ]
    return _chart(
        "singular",
        "Singular values of momentum and update",
        ("place among them, 0 the largest", "singular value over the largest"),
        shown,
        log="y",
    )


def along(run: Recorded) -> Json:
    """r_dom of gradients on the way from z to x, in the dominant subspace at x."""
    shown = [
        frame.series(_of_step(run, at), list(zip(at.along["positions"], at.along["shares"], strict=True)))
        for at in run.measurements
        if at.along is not None
    ]
    return _chart(
        "along", "Gradients on the way from z to x", ("place: z is 0, x is 1", "r_dom, subspace at x"), shown
    )


def valley(run: Recorded) -> Json:
    """The loss on the segment from z through x and beyond."""
    shown = [
        frame.series(_of_step(run, at), list(zip(at.segment["positions"], at.segment["losses"], strict=True)))
        for at in run.measurements
        if at.segment is not None
    ]
    return _chart(
        "valley", "Across the valley", ("place: z is 0, x is 1", "training loss (nats)"), shown, log="y"
    )


def river(run: Recorded) -> Json:
    """What decays of the learning rate from x, y and z gain over x, by the rate they start from."""
    shown = []
    for test in run.rivers[-1:]:
        for number, start in enumerate(test.before):
            gains = {float(rate): test.gain(start, rate) for rate in test.branches[0].losses[start]}
            bounds = (
                [gain.low if gain.n > 1 else gain.mean for gain in gains.values()],
                [gain.high if gain.n > 1 else gain.mean for gain in gains.values()],
            )
            look = POINTS.get(start, FREE[number % len(FREE)])
            points = [(rate, gain.mean) for rate, gain in gains.items()]
            style = frame.style(look, f"from {start}")
            shown.append(frame.series(style, points, bounds, "bars"))
    groups = [{"name": "all", "series": shown}]
    labels = ("learning rate that the decay starts from", "gain over x (nats)")
    return frame.chart(
        "river", "The river test", labels, groups, log={"x": "log"}, checked="x", zero=0, ticks=None
    )


CHARTS: Sequence[Callable[[Recorded], Json]] = (
    *(valley, gradients, along, updates, oscillation, singular),
    *(sharpness, spectrum, river),
)
"""The charts, in the order of the page."""


def charts(run: Recorded) -> list[Json]:
    """Return the charts that show something."""
    made = [make(run) for make in CHARTS]
    return [chart for chart in made if any(group["series"] for group in chart["groups"])]


def _by_point(run: Recorded, value: Callable[[Measurement, str], float | None]) -> list[Json]:
    """A curve over the steps for each of x, y and z; one for all where there is no averaging."""
    averages = any(at.segment is not None for at in run.measurements)
    shown = []
    for point, look in POINTS.items():
        found = [(at.step, value(at, point)) for at in run.measurements]
        known = [(step, number) for step, number in found if number is not None]
        if known and (averages or point == "x"):
            shown.append(frame.series(frame.style(look, NAMES[point] if averages else "the weights"), known))
    return shown


def _of_step(run: Recorded, at: Measurement) -> Json:
    """The look of a measured step among those of its run."""
    number = run.measurements.index(at)
    look = Look(SHADES[number % len(SHADES)], list(MARKERS)[number % len(MARKERS)])
    return frame.style(look, f"after {at.step:,} steps")


def _windows(
    run: Recorded,
    name: str,
    title: str,
    labels: tuple[str, str],
    shown: Callable[[Measurement, Watched], list[Json]],
    *,
    log: str = "",
    zero: float | None = None,
) -> Json:
    """A chart of the steps after the measured ones, the last window first; one is shown at a time."""
    groups = [
        {"name": f"after {at.step:,} steps", "series": shown(at, at.watched)}
        for at in reversed(run.measurements)
        if at.watched is not None
    ]
    more = {} if zero is None else {"zero": zero}
    return frame.chart(name, title, labels, groups, log=dict.fromkeys(log, "log"), checked=log, **more)


def _chart(name: str, title: str, labels: tuple[str, str], shown: list[Json], *, log: str = "") -> Json:
    groups = [{"name": "all", "series": shown}]
    return frame.chart(name, title, labels, groups, log=dict.fromkeys(log, "log"), checked=log)
