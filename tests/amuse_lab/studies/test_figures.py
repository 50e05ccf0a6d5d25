from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from scipy.stats import t

from amuse_lab.studies import drawing, figures
from amuse_lab.studies.looks import look
from amuse_lab.studies.shakespeare import shakespeare_anytime
from amuse_lab.studies.study import Record, Request
from amuse_lab.studies.verdicts import findings
from tests.amuse_lab.studies import invented

STUDY = invented.study()
RECORDS = invented.records(STUDY, ahead=0.01)
SEEDS = {step: STUDY.seeds(step) for step in STUDY.horizons}


def written(records: dict[str, Record], folder: Path) -> dict[str, bytes]:
    paths = figures.write_figures(STUDY, records, folder)
    assert all(path.name == f"invented-{name}.png" for name, path in paths.items())
    return {name: path.read_bytes() for name, path in paths.items()}


def panels(name: str, records: dict[str, Record] = RECORDS) -> list[Axes]:
    figure = figures.FIGURES[name](findings(STUDY, records), records)
    assert figure is not None
    return figure.axes


def labelled(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line."""
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def measured(entry: str, step: int) -> np.ndarray:
    """What the formula gives for the chosen runs of an optimizer, seed by seed."""
    runs = [r for r in RECORDS.values() if r.entry == entry and r.seed in SEEDS.get(step, STUDY.seeds(320))]
    runs = [run for run in runs if run.steps == step or not run.scheduled]
    return np.array(
        [
            invented.loss(Request(entry, run.point, run.seed, step, True, ()), step, "power 10", ahead=0.01)
            for run in sorted(runs, key=lambda run: run.seed)
        ]
    )


@pytest.mark.parametrize("name", figures.FIGURES)
def test_legends_lie_inside_the_figure(name: str) -> None:
    with drawing.defaults():
        figure = figures.FIGURES[name](findings(STUDY, RECORDS), RECORDS)
        assert figure is not None
        figure.canvas.draw()
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1


def test_all_figures_are_drawn_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    first = written(RECORDS, tmp_path / "one")
    again = written(dict(reversed(RECORDS.items())), tmp_path / "two")
    assert list(first) == ["anytime", "difference", "steps", "learning-rate", "settings", "readouts"]
    assert first == again
    for name in first:
        height, width, _ = imread(tmp_path / "one" / f"invented-{name}.png").shape
        assert width == 960
        assert 400 < height < 1800


def test_settings_of_the_machine_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(RECORDS, tmp_path / "one")
    monkeypatch.setitem(figures.drawing.rcParams, "font.size", 23)
    monkeypatch.setitem(figures.drawing.rcParams, "axes.facecolor", "black")
    assert written(RECORDS, tmp_path / "two") == before


def test_the_anytime_curve_is_the_mean_over_seeds() -> None:
    (axes,) = panels("anytime")
    steps, means = labelled(axes, "amuse")
    assert set(STUDY.horizons) <= set(steps) <= set(STUDY.curve)
    for step, mean in zip(steps, means, strict=True):
        if step in STUDY.horizons:
            assert mean == pytest.approx(measured("amuse", int(step)).mean(), abs=1e-9)
    steps, means = labelled(axes, "envelope of scheduled runs")
    assert list(steps) == list(STUDY.horizons)
    assert means == pytest.approx([measured("muon-cosine", int(step)).mean() for step in steps], abs=1e-9)
    steps, _ = labelled(axes, "muon-cosine")
    assert list(steps) == list(STUDY.horizons)


def test_differences_have_student_s_intervals_over_paired_seeds() -> None:
    (axes,) = panels("difference")
    (bars,) = axes.containers
    (segments,) = bars.lines[2]
    for horizon, ((_, low), (_, high)) in zip(STUDY.horizons, segments.get_segments(), strict=True):
        found = measured("amuse", horizon) - measured("muon-cosine", horizon)
        half = t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
        assert low == pytest.approx(found.mean() - half, abs=1e-9)
        assert high == pytest.approx(found.mean() + half, abs=1e-9)


def test_whoever_is_ahead_needs_fewer_steps() -> None:
    (axes,) = panels("steps")
    _, shares = labelled(axes, "amuse")
    assert len(shares) > 0
    assert (shares < 1).all()


def test_trials_are_shown_against_their_learning_rates() -> None:
    cosine, amuse = panels("learning-rate")
    for panel, entry in ((cosine, "muon-cosine"), (amuse, "amuse")):
        trials = [each for each in RECORDS.values() if each.entry == entry and each.seed == 0]
        for horizon in STUDY.horizons:
            rates = [run.point["lr"] for run in trials if horizon in run.readings]
            losses = [
                min(each["loss"] for each in run.readings.get(horizon, {"x": {"loss": 9.0}}).values())
                for run in trials
                if horizon in run.readings
            ]
            x, y = labelled(panel, f"{horizon:,} steps")
            assert sorted(x) == pytest.approx(sorted(rates))
            assert sorted(y) == pytest.approx(sorted(loss - min(losses) for loss in losses))


def test_readouts_are_compared_with_the_best() -> None:
    _, amuse = panels("readouts")
    texts = [text.get_text() for text in amuse.texts]
    assert [label.get_text() for label in amuse.get_yticklabels()] == ["x", "y", "power 10"]
    assert texts[:4] == ["2"] * 4
    assert texts[4:8] == ["50"] * 4
    assert texts[8:] == ["0"] * 4


@pytest.mark.parametrize(
    ("kept", "drawn"),
    [
        (lambda run: run is None, []),
        (
            lambda run: run.seed in (0, 100) and run.entry == "amuse",
            ["learning-rate", "settings", "readouts"],
        ),
        (lambda run: run.entry == "amuse", ["anytime", "learning-rate", "settings", "readouts"]),
        (lambda run: run.entry == "muon-cosine", ["anytime", "learning-rate", "readouts"]),
        (
            lambda run: run.seed in (0, 100, 1),
            ["anytime", "difference", "steps", "learning-rate", "settings", "readouts"],
        ),
        (lambda run: not run.scheduled or run.steps == 40, None),
    ],
    ids=["nothing", "trials", "one without a horizon", "one with a horizon", "one seed", "one horizon"],
)
def test_what_there_is_is_drawn(kept: object, drawn: list[str] | None, tmp_path: Path) -> None:
    assert callable(kept)
    found = list(written({key: run for key, run in RECORDS.items() if kept(run)}, tmp_path))
    assert drawn is None or found == drawn


def test_failed_runs_leave_gaps(tmp_path: Path) -> None:
    broken = {
        key: replace(run, failure="the loss is not finite", readings={}, steps=3)
        if run.seed == 2 or run.point["lr"] > 0.03
        else run
        for key, run in RECORDS.items()
    }
    assert "anytime" not in written(broken, tmp_path)  # no mean over seeds of which one failed
    assert "learning-rate" in written(broken, tmp_path)


def test_optimizers_are_told_apart_without_colour() -> None:
    study = shakespeare_anytime()
    looks = [(look(study, entry).marker, look(study, entry).dash, entry.scheduled) for entry in study.entries]
    assert len(set(looks)) == len(looks)
    assert len({look(study, entry).color for entry in study.entries}) == len(looks)
